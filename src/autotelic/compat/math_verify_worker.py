"""What the published rewards ask of math-verify and sympy, for `autotelic.compat`; imported by the worker process only.

A leaf is ``extract:`` and a response (reported: the string that EMPO's TRL version extracts), ``value:`` and an answer
(compared as EMPO's verl version does, with three digits and "a number in an interval is equal to it"), or ``formula:``
and LaTeX (reported: its values at three points; compared: whether the difference is zero by algebra).
"""

import re
from dataclasses import dataclass
from typing import Any

import autotelic.answers.symbolic as symbolic
from autotelic.answers.normalize import normalize
from autotelic.answers.values import values_at

POINTS = 3


@dataclass(frozen=True)
class Formula:
    """A sympy expression; None where it cannot be read."""

    expression: Any


def warm_up() -> None:
    """Build the patterns once."""
    symbolic.warm_up()
    parse("extract:\\\\boxed{1}")
    compare(parse("value:1"), parse("value:[1,2]"))


def parse(leaf: str) -> Any:
    """Read one leaf."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig
    from math_verify import parse as math_verify_parse

    kind, _, text = leaf.partition(":")
    if kind == "formula":
        return Formula(symbolic.expression_of(normalize(text), integers=False))
    if kind == "value":
        text = text if "$" in text else f"${text}$"
        config = LatexExtractionConfig(boxed_match_priority=0)
        found = math_verify_parse(text, [config], fallback_mode="no_fallback", parsing_timeout=0)
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)  # where LaTeX fails, the official code takes a number
        if not found and numbers:
            found = math_verify_parse(f"${numbers[-1]}$", [config], fallback_mode="no_fallback", parsing_timeout=0)
        return found
    rewriting = NormalizationConfig(nits=False, malformed_operators=False, basic_latex=True, boxed="all", units=True)
    config = LatexExtractionConfig(
        normalization_config=rewriting, boxed_match_priority=0, try_extract_without_anchor=False
    )
    found = math_verify_parse(text, [config], extraction_mode="first_match", parsing_timeout=0)
    return str(found[-1]) if found else ""


def report(parsed: Any) -> Any:
    """Report an extracted string, or a formula's values as pairs of a real and an imaginary part."""
    if not isinstance(parsed, Formula):
        return parsed if isinstance(parsed, str) else None
    found = None if parsed.expression is None else values_at(parsed.expression)
    if found is None or None in found[:POINTS]:
        return None
    values = [complex(value) for value, _ in found[:POINTS]]
    return [(value.real, value.imag) for value in (values if len(values) == POINTS else values * POINTS)]


def compare(first: Any, second: Any) -> bool | None:
    """Return whether the second answer (as the truth) is equal to the first."""
    from math_verify import verify
    from sympy import Interval, Number

    if isinstance(first, Formula):
        return (
            None
            if None in (first.expression, second.expression)
            else symbolic.equal(first.expression, second.expression)
        )
    if not first or not second:
        return False
    try:
        if verify(second, first, numeric_precision=3, timeout_seconds=None):
            return True
        if isinstance(first[0], Number) and isinstance(second[0], Interval):
            return bool(second[0].contains(first[0]) == True)  # noqa: E712 - a sympy truth value
    except Exception:  # sympy raises anything on odd input: not equal, as in the official code
        return False
    return False
