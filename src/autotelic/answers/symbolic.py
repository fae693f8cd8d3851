"""Symbolic parsing and comparison; imported by the worker process only (sympy, latex2sympy, math-verify).

Two formulas are equal when math-verify's parser gives the same expression, or their values agree to 25 digits at every
sample point; where a formula has no numeric value (sets, relations) math-verify compares.
"""

import hashlib
import logging
import warnings
from dataclasses import dataclass
from typing import Any

DIGITS = 30
HUGE = 10**20
"""Beyond this, agreement to 25 digits proves nothing about the difference."""
STEPS = ("floor", "ceiling", "Abs", "Mod", "sign", "Max", "Min", "Piecewise", "factorial", "binomial")
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


@dataclass(frozen=True)
class Parsed:
    """A sympy object (``None`` where the text does not parse) and its values at the sample points."""

    expression: Any
    values: tuple[Any, ...] | None


def warm_up() -> None:
    """Import everything and run each path once, so that forked children need not."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    compare(parse(r"\frac{\sin x}{2}"), parse(r"\frac{1}{2}\sin(x)"))
    compare(parse(r"(1,2)"), parse(r"x>2"))


def parse(latex: str) -> Parsed:
    """Parse one normalised formula with math-verify's LaTeX parser."""
    from latex2sympy2_extended.latex2sympy2 import latex2sympy
    from math_verify.parser import should_treat_as_complex

    try:
        text = latex.replace("**", "^").replace("*", r" \cdot ")
        expression = latex2sympy(text, is_real=not should_treat_as_complex(text), convert_degrees=False)
        return Parsed(expression, _values(expression))
    except Exception:  # the parser raises whatever its grammar, sympy or the memory limit raise: all mean "unreadable"
        return Parsed(None, None)


def report(parsed: Parsed) -> None:
    """Report nothing: an expression stays in its process."""


def _values(expression: Any) -> tuple[Any, ...] | None:
    """Return the values at the sample points, ``None`` where the formula is not numeric."""
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.has(sympy.zoo, sympy.nan, sympy.oo):
        return None
    symbols = sorted(expression.free_symbols, key=str)
    stepwise = any(type(node).__name__ in STEPS for node in sympy.preorder_traversal(expression))
    values = []
    for point in range(12 if stepwise and symbols else 3 if symbols else 1):
        at = {symbol: _sample(str(symbol), point, integer=stepwise and point > 1) for symbol in symbols}
        value = expression.evalf(DIGITS, subs=at)
        if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo):
            return None
        real, imaginary = value.as_real_imag()
        if not (real.is_Float or real.is_Rational) or not (imaginary.is_Float or imaginary.is_Rational):
            return None
        values.append((real, imaginary))
    return tuple(values)


def _sample(name: str, point: int, integer: bool) -> Any:
    """Return the value of a variable at a sample point: fixed by its name, generic, positive."""
    import sympy

    digest = hashlib.sha256(f"{name}:{point}".encode()).digest()
    if integer:
        return sympy.Integer(2 + int.from_bytes(digest[:2], "big") % 97)
    return sympy.Rational(1, 2) + sympy.Rational(int.from_bytes(digest[:8], "big"), 1 << 63)


def compare(first: Parsed, second: Parsed) -> bool | None:
    """Return whether two parsed formulas are equal; ``None`` where one did not parse."""
    import sympy
    from math_verify.grader import verify

    if first.expression is None or second.expression is None:
        return None
    if first.values is not None and second.values is not None:
        if len(first.values) != len(second.values):  # different sample sets: only constants or step functions differ so
            shorter = min(len(first.values), len(second.values))
            return _agree(first.values[:shorter], second.values[:shorter]) and _vanishes(first, second)
        if not _agree(first.values, second.values):
            return False
        huge = any(abs(part) > HUGE for value in first.values for part in value)
        return _vanishes(first, second) if huge else True
    if first.values is not None or second.values is not None:
        return False
    try:
        if first.expression == second.expression:
            return True
        if isinstance(first.expression, sympy.Expr) and isinstance(second.expression, sympy.Expr):
            return _vanishes(first, second)
        one, two = first.expression, second.expression
        return verify(one, two, timeout_seconds=None) and verify(two, one, timeout_seconds=None)
    except Exception:  # as in `parse`: whatever sympy raises on odd input means "cannot tell"
        return None


def _agree(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Return whether all values agree to 25 digits."""
    for (a, b), (c, d) in zip(first, second, strict=True):
        scale = abs(a) + abs(b) + abs(c) + abs(d)
        if abs(a - c) + abs(b - d) > scale * 10 ** (5 - DIGITS):
            return False
    return True


def _vanishes(first: Parsed, second: Parsed) -> bool:
    """Return whether the difference is zero by algebra."""
    import sympy

    return bool(first.expression == second.expression or sympy.simplify(first.expression - second.expression) == 0)
