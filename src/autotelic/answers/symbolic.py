r"""Comparison of two answers by algebra; imported by the worker process only (sympy, latex2sympy).

`parse` reads an answer once; `compare` works on two readings. Formulas are parsed by latex2sympy. Two of them are
different when their values at random points are further apart than rounding explains, and equal when sympy proves that
their difference is zero; where neither succeeds the pair is undecided. Values never prove equality.
"""

import contextlib
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from autotelic.answers.normalize import squeezed
from autotelic.answers.reading import Node, read
from autotelic.answers.values import Values, too_large, values_apart, values_at

INTEGERS = frozenset("nmkNMK")
"""Variables that stand for positive integers."""
_WARM = (
    r"\frac{x^2-1}{x-1}", "x+1", r"\sin(2x)+\sqrt{n}", r"\log_2 8", r"\sqrt{3+2\sqrt2}", r"1+\sqrt2", r"\binom{n}{2}",
    "n(n-1)/2", "2x<6", r"e^{i\pi}", "2^{n+1}", r"2 \cdot 2^n", r"\frac{a}{b}", "|x-3|", "5!", "3x+2y=6", r"1 \pm i",
)  # fmt: skip


@dataclass
class Parsed:
    """A reading, with what is worked out of it.

    Attributes:
        node: The structure.
        parts: The parsed parts.
        key: The structure as text; equal keys are equal answers.
        expression: The sympy object of a value, ``None`` where latex2sympy cannot read it.
        values: The values of the expression at sample points, ``None`` where it has none.
    """

    node: Node
    parts: list["Parsed"]
    key: str
    expression: Any = None
    values: Values | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the reading."""
        return self.node.kind


def warm_up() -> None:
    """Run each path once, so that forked children need not."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for one, two in itertools.pairwise([parse(formula) for formula in _WARM]):
        compare(one, two)


def report(parsed: Any) -> None:
    """Report nothing: an expression stays in its process."""


def parse(answer: str) -> Parsed | None:
    """Read one answer."""
    node = read(answer)
    return None if node is None else _parsed(node)


def _parsed(node: Node, integers: bool = True, member: bool = False) -> Parsed:
    """Return a reading with what is worked out of it; `member`: of a set in braces, whose members may be sets."""
    integers = integers and node.kind != "relation"
    parts = [_parsed(part, integers, node.text == "{}" and part.text == "{}") for part in node.parts]
    ordered = list(parts) if node.text == "[]" else []
    if node.kind == "set":
        for k in range(len(parts) - 1, 0, -1):  # repetitions add nothing
            if any(same(parts[k], other) for other in parts[:k]):
                del parts[k]
        if len(parts) == 1 and not member:
            return parts[0]
    keys = [part.key for part in parts]
    text = squeezed(node.text) if node.kind == "value" else node.text
    alike = node.kind in ("set", "union") and not ordered
    key = f"{node.kind}[{text}]{node.remark or ''}{sorted(keys) if alike else [part.key for part in ordered or parts]}"
    parsed = Parsed(node, parts, key)
    parsed.notes["ordered"] = ordered
    if node.kind in ("value", "letter"):
        parsed.expression = expression_of(node.text, integers)
        parsed.values = None if parsed.expression is None else values_at(parsed.expression)
    if node.kind == "matrix" and None not in (cells := [part.expression for part in parts]):
        widths = node.text.removeprefix("det ").split("x")
        with contextlib.suppress(ValueError):
            found = sympy.Matrix(len(widths), int(widths[0]), cells)
            parsed.expression = found.det() if node.text.startswith("det") else found
    return parsed


_DECIMAL = re.compile(r"(?<![\d.])(\d+)\.(\d+)(?![\d.])")
_UNKNOWN_FUNCTION = re.compile(r"(?<![\\A-Za-z])([fghFGH]'*|P)\s*\(([^()]*)\)")
_CONFIG = ConversionConfig(lowercase_symbols=False)


_FUNCTION = r"\\(?:sin|cos|tan|cot|sec|csc|ln|log)(?:_\{\w+\}|\^\{\w+\})*"
_RULES_OF_REPAIR: tuple[tuple[str, Any], ...] = (
    (r"(\d)\((?=\\frac)", r"\1\\cdot("),  # 2(1/2) is no mixed number
    (r"(?<![\d.^{/])(\d+)/(\d+)(?=\\(?!cdot)|[A-Za-z(])", r"\\frac{\1}{\2}"),  # 1/2 ln 3
    (rf"({_FUNCTION}) ?(\d*(?:[A-Za-z]|\\[a-z]+))\\cdot", r"(\1{\2})\\cdot "),  # sin x \cdot x
    (rf"({_FUNCTION}) ?(\d+)/|(\\(?:ln|log)) ?([A-Za-z])/", lambda m: f"({m[1] or m[3]}{{{m[2] or m[4]}}})/"),
    (r"(\d+!|(?<![A-Za-z])[A-Za-z]!)\^", r"{\1}^"),
    (r"(\d+)\\bmod (\d+)", lambda m: str(int(m[1]) % int(m[2])) if int(m[1]) >= int(m[2]) > 0 else m[0]),
    (r"\\(max|min|gcd|lcm)\\\{([^{}]*)\\\}", r"\\\1(\2)"),
    (r"\\Gamma(?!\()", r"\\zeta_{G}"),
    (r"(?<![A-Za-z\\])([A-Za-z])('+)", lambda m: f"{m[1]}_{{{'p' * len(m[2])}}}"),  # x' is not x
    (r"(?<![A-Za-z\\])([A-Z])\^\{?([Tc])\}?(?![A-Za-z])", r"\1^{q_{\2}}"),  # nor A^T A
)
_REPAIRS = [(re.compile(pattern), better) for pattern, better in _RULES_OF_REPAIR]
"""What latex2sympy reads otherwise than it is meant."""


def expression_of(latex: str, integers: bool = True) -> Any:
    """Return the sympy expression of normalised LaTeX, evaluated; ``None`` where it cannot be read.

    Args:
        latex: normalised.
        integers: n, m and k are positive integers; otherwise they are real, as in an inequality.
    """
    text, hundred = (latex[:-1].strip(), 100) if latex.endswith("%") else (latex, 1)
    if not text or re.search(r"!!|\\text|\\ldots|\\and|\\or|[=<>?]", re.sub(r"_\{[^{}]*\}", "", text)):
        return None
    text = _UNKNOWN_FUNCTION.sub(_as_symbol, squeezed(text))
    text = re.sub(r"(\d+)\\degree", r"(\\frac{\1\\pi}{180})", text)
    text = _DECIMAL.sub(lambda m: f"(\\frac{{{int(m.group(1) + m.group(2))}}}{{1{'0' * len(m.group(2))}}})", text)
    text = text.replace("\\gamma", "\\zeta_{g}").replace("\\lg", "\\log_{10}")
    text = re.sub(r"(?<![\d\\A-Za-z])0+(?=\d)", "", text).replace("%", "\\%")
    for pattern, better in _REPAIRS:
        text = pattern.sub(better, text)
    if re.search(r"\\frac\{(?:d|\\partial) ?[A-Za-z]|\\partial(?!\}\{)(?! ?[A-Za-z]\})", text):
        return None  # the derivative of an unknown function
    taken = "IE" if "\\int" in text or "\\frac{d}{d" in text else "dIE"  # for latex2sympy dx, i and e
    text = re.sub(rf"\\[A-Za-z]+|([e{taken}])_\{{(\w+)\}}|_\{{[^{{}}]*\}}|([{taken}])", _own_symbol, text)
    index = re.search(r"\\(?:lim|sum|prod)_\{([a-z])(?![A-Za-z])", text)
    if index and re.search(rf"_\{{[^{{}}]*(?<![A-Za-z]){index[1]}(?![A-Za-z])", text[index.end() :]):
        return None  # the terms of a sequence
    if re.search(r"\d \d|\\degree", text):
        return None
    try:
        found = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=_CONFIG)
        value = None if too_large(found) else _evaluated(found, integers) / hundred
        return None if value is None or value.has(sympy.zoo, sympy.nan) else value  # 1/0 is no value
    except Exception:  # the parser raises whatever its grammar, sympy or the memory limit raise: all mean "unreadable"
        return None


def _own_symbol(match: re.Match[str]) -> str:
    """Return a letter that latex2sympy takes for something else as a symbol."""
    letter = match[1] or match[3]
    return f" q_{{{letter}{match[2] or ''}}} " if letter else match[0]


def _as_symbol(match: re.Match[str]) -> str:
    """Return an unknown function's value as a symbol of its own: f(x-1) is no product."""
    return "q_{" + "".join(f"{ord(c):03d}" for c in match.group(1) + "(" + match.group(2)) + "}"


def _evaluated(found: Any, integers: bool) -> Any:
    """Return an expression with its sums done, its variables real, and i and e as the constants."""
    if not isinstance(found, sympy.Basic):
        return found.doit()
    constants = {"i": sympy.I, "e": sympy.E}
    free = found.free_symbols
    rename = {
        s: constants.get(s.name) if s in free and s.name in constants else _symbol(s.name, integers)
        for s in found.atoms(sympy.Symbol)
    }
    found = found.xreplace(rename).doit()
    if isinstance(found, sympy.MatrixExpr):
        return found.as_explicit()
    return found.replace(_odd_root, lambda e: (-1) ** e.exp.p * (-e.base) ** e.exp)


def _symbol(name: str, integers: bool = True) -> Any:
    return (
        sympy.Symbol(name, integer=True, positive=True)
        if integers and name in INTEGERS
        else sympy.Symbol(name, real=True)
    )


def _odd_root(e: Any) -> bool:
    """Return whether an expression is an odd root of a negative number, which is negative in schools."""
    return bool(e.is_Pow and e.exp.is_Rational and e.exp.q % 2 and e.exp.q > 1 and e.base.is_negative)


def compare(first: Parsed | None, second: Parsed | None) -> bool | None:
    """Return whether two answers are equal; ``None`` where that could be neither proved nor refuted."""
    return False if first is None or second is None else same(first, second)


def same(a: Parsed, b: Parsed) -> bool | None:
    """Return whether two readings are one answer."""
    if a.key == b.key:
        return True
    for one, two in ((a, b), (b, a)):
        rule = _RULES.get(one.kind)
        if rule is not None and (verdict := rule(one, two)) is not NotImplemented:
            return verdict
    if {a.kind, b.kind} <= {"value", "letter"}:
        return _values(a, b)
    if {a.kind, b.kind} == {"value", "matrix"}:
        return None if a.expression is None or b.expression is None else equal(a.expression, b.expression)
    if "opaque" in (a.kind, b.kind):
        return None
    if a.kind != b.kind or len(a.parts) != len(b.parts) or a.kind in ("words", "numbers"):
        return False
    if a.kind == "set" and a.node.text == b.node.text == "[]":  # two lists in square brackets
        one, two = a.notes["ordered"], b.notes["ordered"]
        return len(one) == len(two) and _each(one, two)
    if a.kind in ("set", "union", "intersection", "cases"):
        return _match(a.parts, b.parts)
    if a.kind in ("matrix", "interval", "relation") and a.node.text != b.node.text:
        return False
    return _each(a.parts, b.parts)


def _each(first: Iterable[Parsed], second: Iterable[Parsed]) -> bool | None:
    found = [same(one, two) for one, two in zip(first, second, strict=True)]
    return False if False in found else None if None in found else True


def _match(first: list[Parsed], second: list[Parsed]) -> bool | None:
    """Return whether the parts pair up (equality is transitive, so the first partner found is as good as any)."""
    left, undecided = list(second), False
    for part in first:
        verdicts = [same(part, other) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def _choice(a: Parsed, b: Parsed) -> Any:
    """A choice letter, in brackets or alone."""
    return b.kind in ("choice", "letter") and a.node.text == b.node.text


def _named(a: Parsed, b: Parsed) -> Any:
    """``x = 3`` against 3, ``y = 3``, and equations such as ``2x = 6``."""
    if b.kind == "equation":
        return _proportional(a, b)
    if b.kind != "named":
        return same(a.parts[1], b)
    old, new = (re.fullmatch(r"[A-Za-z]\(([A-Za-z])\)", p.node.text) for p in (a, b))
    ours, its = a.parts[1].expression, b.parts[1].expression
    if old and new and old.group(1) != new.group(1) and ours is not None and its is not None:  # f(x) and f(y)
        return equal(ours, its.xreplace({_symbol(new.group(1)): _symbol(old.group(1))}))
    names = [p.parts[0].expression for p in (a, b)]
    if a.node.text != b.node.text and all(name is not None and (name.is_Add or name.is_Mul) for name in names):
        return _proportional(a, b)  # xy = 1 is not x + y = 1
    verdict = same(a.parts[1], b.parts[1])
    return verdict if verdict is True or a.node.text == b.node.text else _proportional(a, b) or verdict


def _system(a: Parsed, b: Parsed) -> Any:
    """Assignments to several names."""
    if b.kind == "system":
        one, two = (p.node.text.lstrip("(").split(",") for p in (a, b))
        return sorted(one) == sorted(two) and _each(a.parts, [b.parts[two.index(name)] for name in one])
    return b.kind == "tuple" and len(a.parts) == len(b.parts) and _each(a.parts, b.parts)


def _equation(a: Parsed, b: Parsed) -> Any:
    return _proportional(a, b) if b.kind == "equation" else NotImplemented if b.kind == "named" else False


def _proportional(a: Parsed, b: Parsed) -> bool | None:
    """Return whether the differences of sides of two equations agree up to a factor."""
    if any(part.expression is None for part in (*a.parts, *b.parts)):
        return None
    one, two = (p.parts[0].expression - p.parts[1].expression for p in (a, b))
    if one == 0 or two == 0 or one.free_symbols != two.free_symbols:
        return bool(one == two)
    one, two = (sympy.fraction(sympy.together(side))[0] for side in (one, two))
    return bool(sympy.cancel(one / two).is_number)


_NUMBERS = {
    "R": sympy.S.Reals, "R+": sympy.Interval.open(0, sympy.oo), "R-": sympy.Interval.open(-sympy.oo, 0),
    "N": sympy.S.Naturals, "Z": sympy.S.Integers, "Z+": sympy.S.Naturals, "Q": sympy.S.Rationals,
}  # fmt: skip
_OPERATORS = {
    "<": sympy.StrictLessThan, "\\leq": sympy.LessThan, ">": sympy.StrictGreaterThan, "\\geq": sympy.GreaterThan,
    "=": sympy.Eq, "\\neq": sympy.Ne,
}  # fmt: skip
_SETS = ("interval", "union", "intersection", "without", "numbers", "relation")


def _reals(a: Parsed, b: Parsed) -> Any:
    """Sets of real numbers, however they are written."""
    if b.kind not in (*_SETS, "set", "tuple", *(["value"] if a.kind == "intersection" else [])):
        return NotImplemented
    one, two = _real_set(a), _real_set(b)
    if one is None or two is None:
        return _relation(a, b) if a.kind == b.kind == "relation" else NotImplemented
    try:
        difference = one.symmetric_difference(two)
    except Exception:  # as in `expression_of`
        return None
    if one == two or difference.is_empty is True:
        return True
    return False if difference.is_empty is False else None


def _real_set(parsed: Parsed) -> Any:
    """Return the sympy set of an interval, a union, an inequality in one variable; ``None`` for anything else."""
    if "set" not in parsed.notes:
        try:
            parsed.notes["set"] = _set_of(parsed)
        except Exception:  # as in `expression_of`
            parsed.notes["set"] = None
    return parsed.notes["set"]


def _set_of(p: Parsed) -> Any:
    expressions = [part.expression for part in (p.parts or [p])]
    if p.kind == "numbers":
        return _NUMBERS.get(p.node.text)
    if p.kind == "relation":
        return None if None in expressions else _solved(expressions, p.node.text.split())
    if p.kind in ("union", "intersection", "without"):
        sets = [_real_set(part) for part in p.parts]
        join = {"union": sympy.Union, "intersection": sympy.Intersection, "without": sympy.Complement}[p.kind]
        return None if None in sets else join(*sets)
    if p.kind == "set" and not p.parts:
        return sympy.EmptySet
    if any(e is None or e.free_symbols for e in expressions):
        return None
    if p.kind in ("set", "value", "letter"):
        return sympy.FiniteSet(*expressions)
    if len(p.parts) == 2 and len(p.node.text) == 2:
        return sympy.Interval(expressions[0], expressions[1], p.node.text[0] == "(", p.node.text[1] == ")")
    return None


def _solved(sides: list[Any], operators: list[str]) -> Any:
    """Return the real solutions of a chain of inequalities in one variable."""
    symbols = set().union(*(side.free_symbols for side in sides))
    if len(symbols) != 1:
        return None
    x = sympy.Symbol("x", real=True)
    sides = [side.xreplace({symbols.copy().pop(): x}) for side in sides]
    found = sympy.S.Reals
    for left, operator, right in zip(sides, operators, sides[1:], strict=False):
        relation = _OPERATORS[operator](left, right)
        if relation == sympy.false:
            return sympy.EmptySet
        if operator == "\\neq":
            found -= sympy.solveset(left - right, x, sympy.S.Reals)
        elif relation != sympy.true:
            found &= sympy.solve_univariate_inequality(relation, x, relational=False)
    return found


def _relation(a: Parsed, b: Parsed) -> bool | None:
    """Compare inequalities in several variables: side by side, or up to a positive factor."""
    if a.node.text != b.node.text or len(a.parts) != len(b.parts):
        return False
    verdict = _each(a.parts, b.parts)
    sides = [p.expression for p in (*a.parts, *b.parts)]
    if verdict is not False or len(sides) != 4 or None in sides or sides[2] == sides[3]:
        return verdict
    return bool(sympy.cancel((sides[0] - sides[1]) / (sides[2] - sides[3])).is_positive)


_RULES: dict[str, Callable[[Parsed, Parsed], Any]] = {
    "choice": _choice, "named": _named, "system": _system, "equation": _equation, **dict.fromkeys(_SETS, _reals),
}  # fmt: skip


def _values(a: Parsed, b: Parsed) -> bool | None:
    """Two values: their units, then their expressions."""
    if a.kind == b.kind == "letter":
        return a.node.text == b.node.text
    one, two = a.node.remark, b.node.remark
    if one is not None and two is not None and one.differs(two):
        return False
    if a.expression is None or b.expression is None:
        return None
    for first, second in ((a, b), (b, a)):
        printed = re.fullmatch(r"-?\d+\.(\d{10,})", first.node.text)
        if (
            printed and not second.expression.free_symbols and "." not in second.node.text
        ):  # a calculator's print-out of an exact value
            return bool((abs(first.expression - second.expression) * 10 ** len(printed.group(1))).evalf(20) < 1)
    if a.values is not None and b.values is not None and values_apart(a.values, b.values):
        return False
    return equal(a.expression, b.expression)


def equal(one: Any, two: Any) -> bool | None:
    """Return True where the difference is zero by algebra, ``None`` where that is not shown."""
    if one == two:
        return True
    if isinstance(one, sympy.MatrixBase) and isinstance(two, sympy.MatrixBase):
        return bool(one.shape == two.shape and (one - two).applyfunc(sympy.simplify).is_zero_matrix)
    if not isinstance(one, sympy.Expr) or not isinstance(two, sympy.Expr) or (one.is_Rational and two.is_Rational):
        return False
    if one.has(sympy.oo, sympy.zoo, sympy.nan) or two.has(sympy.oo, sympy.zoo, sympy.nan):
        return False
    first, second = values_at(one), values_at(two)
    if first is not None and second is not None and values_apart(first, second):
        return False
    positive = {s: sympy.Symbol(s.name, positive=True) for s in (one - two).atoms(sympy.Symbol) if not s.is_integer}
    difference = (one - two).xreplace(positive)  # elsewhere the values agree, where both are real
    if positive and sympy.factor(one, deep=True) == sympy.factor(two, deep=True):
        return True
    for step in (
        sympy.expand,
        lambda d: sympy.cancel(sympy.together(d)),
        sympy.simplify,
        _logarithms,
        _angles,
        _radicals,
    ):
        try:
            if step(difference) == 0:
                return not positive or not _sided(one - two) or _near_and_far(one, two)
        except Exception:  # as in `expression_of`: this way does not lead there
            continue
    return None


_SIDED = (sympy.Abs, sympy.Max, sympy.Min, sympy.log, sympy.sign, sympy.asin, sympy.acos, sympy.atan, sympy.acot)


def _sided(difference: Any) -> bool:
    """Return whether a formula may follow another rule where a variable is negative."""
    return difference.has(*_SIDED) or any(not power.exp.is_integer for power in difference.atoms(sympy.Pow))


def _near_and_far(one: Any, two: Any) -> bool:
    """Return whether formulas that are equal where every variable is positive agree far from there too."""
    first, second = values_at(one, far=True), values_at(two, far=True)
    return first is None or second is None or not values_apart(first, second)


def _logarithms(difference: Any) -> Any:
    return sympy.simplify(sympy.expand_log(sympy.expand_func(difference).rewrite(sympy.exp), force=True))


def _angles(difference: Any) -> Any:
    """Return 0 where a sum of inverse functions is zero: its sine is, and its values are near zero already."""
    inverse = difference.is_number and difference.has(sympy.atan, sympy.asin, sympy.acos)
    return sympy.simplify(sympy.expand_trig(sympy.sin(difference))) if inverse else difference


def _radicals(difference: Any) -> Any:
    """Return 0 where an algebraic number is zero: its minimal polynomial is x."""
    denested = sympy.simplify(sympy.sqrtdenest(sympy.radsimp(difference)))
    if denested == 0 or difference.free_symbols:
        return denested
    x = sympy.Symbol("x")
    return sympy.S.Zero if sympy.minimal_polynomial(difference, x) == x else difference
