"""Values of expressions at random points: they tell formulas apart, and never prove that two are equal.

Each value comes with a bound on its rounding error, carried through every operation, so that neither cancellation nor
magnitude (1/1500!, 10^60 + 1) makes equal formulas differ, or different ones agree.
"""

import zlib
from typing import Any

DIGITS = 50
LOOSE = 10.0**8
"""A difference counts only if it is this many times the error bound."""
MAX_DIGITS = 200_000
"""Decimal digits of an integer that is worked out."""

Values = tuple[Any, ...]
"""One (value, error) a point; ``None`` at a point where there is none."""

_POSITIVE, _SIGNED, _FAR = 3, 3, 12


def values_at(expression: Any, far: bool = False) -> Values | None:
    """Return the values at the sample points: at positive ones first, then at ones of either sign.

    Args:
        expression: A sympy expression.
        far: At points up to 10^6 instead, half of them negative in every variable: |x + 3| is x + 3 at all others.
    """
    import mpmath
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.has(sympy.oo, sympy.zoo, sympy.nan):
        return None
    symbols = sorted(expression.free_symbols, key=str)
    near = _POSITIVE + _SIGNED
    points = range(near, near + _FAR) if far else range(near) if symbols else range(1)
    found = []
    with mpmath.workdps(DIGITS):
        for point in points:
            at = {symbol: _sample(symbol, point) for symbol in symbols} | {"real": point >= _POSITIVE}
            try:
                found.append(_value(expression, at))
            except (ArithmeticError, ValueError, TypeError, KeyError, NotImplementedError, AttributeError):
                found.append(None)
    return tuple(found) if any(value is not None for value in found) else None


def values_apart(first: Values, second: Values) -> bool:
    """Return whether the values of two formulas are further apart than rounding explains, at some point."""
    import mpmath

    with mpmath.workdps(DIGITS):
        if len(first) == 1:
            first = first * len(second)
        if len(second) == 1:
            second = second * len(first)
        for one, two in zip(first, second, strict=True):
            if one is None or two is None:
                continue
            (a, da), (b, db) = one, two
            if abs(a - b) > LOOSE * (da + db):
                return True
    return False


def _sample(symbol: Any, point: int) -> Any:
    """Return the value of a variable at a sample point: fixed by its name, generic, an integer for n, m and k."""
    import mpmath

    number = zlib.crc32(f"{point}:{symbol}".encode())
    if symbol.is_integer:
        return mpmath.mpf(2 + number % 29)
    value = mpmath.mpf(0.5) + mpmath.mpf(number) / 2**31
    if point >= _POSITIVE + _SIGNED:
        step = point - _POSITIVE - _SIGNED
        value *= 8 ** (1 + step // 2)
        return -value if step % 2 or zlib.crc32(str(symbol).encode()) >> step & 1 else value
    return -value if point >= _POSITIVE and number % 3 else value


def _value(expression: Any, at: dict[Any, Any]) -> tuple[Any, Any]:
    """Return the value of an expression and a bound on its error."""
    import mpmath
    import sympy

    unit = mpmath.mpf(10) ** (2 - DIGITS)
    if expression.is_Symbol:
        return at[expression], abs(at[expression]) * unit
    if expression.is_Integer or expression.is_Rational:
        value = mpmath.mpf(int(expression.p)) / int(expression.q)
        return value, abs(value) * unit
    if expression.is_Add or expression.is_Mul:
        parts = [_value(part, at) for part in expression.args]
        if expression.is_Add:
            total = sum(value for value, _ in parts)
            return total, sum(error for _, error in parts) + abs(total) * unit
        value, error = parts[0]
        for other, its in parts[1:]:
            value, error = value * other, abs(value) * its + abs(other) * error + error * its
        return value, error + abs(value) * unit
    if expression.is_Pow:
        (base, its), (exponent, ours) = _value(expression.base, at), _value(expression.exp, at)
        if base == 0:
            return _spread(lambda b: b**exponent, base, its)
        value = base**exponent
        if at["real"] and mpmath.im(value):
            raise ValueError("off the real line two equal formulas may follow other branches")
        return value, abs(value) * (unit + abs(exponent) * its / abs(base) + abs(mpmath.log(base)) * ours)
    if not expression.args:
        value = mpmath.mpmathify(expression.evalf(DIGITS))
        return value, abs(value) * unit
    function = getattr(mpmath, _NAMES.get(type(expression).__name__, ""), None)
    if function is not None and len(expression.args) == 1:
        found = _spread(function, *_value(expression.args[0], at))
        if at["real"] and mpmath.im(found[0]):
            raise ValueError("off the real line two equal formulas may follow other branches")
        return found
    if isinstance(expression, sympy.Abs):
        value, error = _value(expression.args[0], at)
        return abs(value), error
    if isinstance(expression, sympy.floor | sympy.ceiling):
        value, error = _value(expression.args[0], at)
        rounded = (mpmath.floor if isinstance(expression, sympy.floor) else mpmath.ceil)(value)
        if abs(value - mpmath.nint(value)) <= LOOSE * error:
            raise ValueError("on a step")
        return rounded, mpmath.mpf(0)
    if isinstance(expression, sympy.Max | sympy.Min):
        parts = [_value(part, at) for part in expression.args]
        chosen = (max if isinstance(expression, sympy.Max) else min)(parts, key=lambda part: mpmath.re(part[0]))
        return chosen[0], max(error for _, error in parts)
    if isinstance(expression, sympy.binomial):
        (n, a), (k, b) = (_value(part, at) for part in expression.args)
        value = mpmath.binomial(n, k)
        return value, abs(value) * (unit + a + b) * 100
    raise NotImplementedError(type(expression).__name__)


_NAMES = {
    "exp": "exp", "log": "log", "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "asin": "asin", "acos": "acos", "atan": "atan", "acot": "acot", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "factorial": "factorial", "gamma": "gamma",
    "conjugate": "conj", "re": "re", "im": "im", "sign": "sign", "zeta": "zeta", "erf": "erf",
}  # fmt: skip


def _spread(function: Any, value: Any, error: Any) -> tuple[Any, Any]:
    """Return a function's value, and how far it moves within the error of its argument."""
    import mpmath

    found = function(value)
    step = max(error, abs(value) * mpmath.mpf(10) ** (4 - DIGITS))
    moved = function(value + step) if step else found
    return found, 4 * abs(moved - found) + abs(found) * mpmath.mpf(10) ** (2 - DIGITS)


def too_large(expression: Any) -> bool:
    """Return whether working an expression out would make integers of more than `MAX_DIGITS` digits."""
    import sympy

    if isinstance(expression, sympy.MatrixBase):
        return False
    for node in sympy.preorder_traversal(expression):
        if isinstance(node, sympy.Pow) and node.base.is_number and node.exp.is_number:
            exponent, base = _rough(node.exp), _rough(node.base)
            digits = 400 if base is None or base > 1e15 else len(str(int(base)))
            if exponent is None or exponent * digits > MAX_DIGITS:
                return True
        if isinstance(node, sympy.factorial | sympy.binomial):
            size = _rough(node.args[0])
            if node.args[0].is_number and (size is None or size > 50_000):
                return True
    return False


def _rough(number: Any) -> float | None:
    """Return the size of a number, ``None`` where it is beyond all bounds."""
    import sympy

    if number.is_Integer or number.is_Rational:
        return abs(float(number)) if abs(int(number.p)).bit_length() < 1000 else None
    if isinstance(number, sympy.Pow):
        base, exponent = _rough(number.base), _rough(number.exp)
        if base is None or exponent is None or (base > 1 and exponent * len(str(int(base))) > 300):
            return None
        return max(base, 1.0) ** exponent
    if number.is_Add or number.is_Mul:
        sizes = [_rough(part) for part in number.args]
        if any(size is None for size in sizes):
            return None
        total = 1.0 if number.is_Mul else 0.0
        for size in sizes:
            total = total * max(size or 0.0, 1.0) if number.is_Mul else total + (size or 0.0)
        return total
    if isinstance(number, sympy.factorial):
        size = _rough(number.args[0])
        return None if size is None or size > 150 else float(sympy.factorial(int(size)))
    return 1e3
