r"""Numbers that tell formulas apart: the value of a formula at three points, in floating point, in microseconds.

Formulas whose values differ are different; formulas whose values agree are left to symbolic work. So a group of
different formulas (``\sin 2x``, ``2^n``, ``\frac{x^2-1}{x+1}``) needs no worker at all. Whatever is unusual (a floor,
a root of a negative number, a value beyond 10^12) has no fingerprint, and is left to symbolic work too.
"""

import cmath
import math
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from autotelic.compat.exact import NotExactError
from autotelic.compat.latex import FormulaError, Parser, run, tokenize

POINTS = 3
LARGEST = 1e12
"""Values further apart than both are different: far beyond what rounding does below `LARGEST`."""

FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "log": cmath.log, "exp": cmath.exp,
    "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z),
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "lg": cmath.log10,
}  # fmt: skip


class Samples:
    """The values of a formula at the sample points."""

    __slots__ = ("values",)

    def __init__(self, values: tuple[complex, ...]):
        if not all(abs(value) <= LARGEST for value in values):  # also false for nan
            raise NotExactError("too large to be told apart")
        self.values = values

    @classmethod
    def number(cls, value: Fraction | int) -> "Samples":
        """Return a constant."""
        return cls((complex(value),) * POINTS)

    @classmethod
    def atom(cls, name: str) -> "Samples":
        """Return a constant by name, or a variable: positive, generic, fixed by its name."""
        constants = {"pi": math.pi, "e": math.e, "i": 1j}
        if name in constants:
            return cls((complex(constants[name]),) * POINTS)
        if name == "infty":
            raise NotExactError("infinity")
        return cls(tuple(0.5 + 2 * zlib.crc32(f"{k}{name}".encode()) / 2**32 + 0j for k in range(POINTS)))

    def rational(self) -> Fraction | None:
        """Return a constant small integer."""
        first = self.values[0]
        if len(set(self.values)) == 1 and first.imag == 0 and first.real == round(first.real) and abs(first) < 1000:
            return Fraction(round(first.real))
        return None

    def __add__(self, other: "Samples") -> "Samples":
        return Samples(tuple(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __sub__(self, other: "Samples") -> "Samples":
        return Samples(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def __neg__(self) -> "Samples":
        return Samples(tuple(-a for a in self.values))

    def __mul__(self, other: "Samples") -> "Samples":
        return Samples(tuple(a * b for a, b in zip(self.values, other.values, strict=True)))

    def __truediv__(self, other: "Samples") -> "Samples":
        return Samples(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def power(self, exponent: "Samples") -> "Samples":
        """Return self ** exponent, where the branch is not in question."""
        return Samples(tuple(_power(a, b) for a, b in zip(self.values, exponent.values, strict=True)))

    def root(self, degree: int) -> "Samples":
        """Return the principal root of a positive value."""
        return self.power(Samples.number(Fraction(1, degree)))

    def apply(self, function: Callable[[complex], complex]) -> "Samples":
        """Return a function's values."""
        return Samples(tuple(function(a) for a in self.values))


def _power(base: complex, exponent: complex) -> complex:
    if exponent.imag == 0 and exponent.real == round(exponent.real):
        return base ** int(exponent.real) if abs(exponent.real) < 1000 else base**exponent
    if base.imag != 0 or base.real <= 0:
        raise NotExactError("a branch to choose")
    return base**exponent


class _NumericParser(Parser):
    """The parser of exact expressions, with elementary functions."""

    ring = Samples

    def command(self, name: str, depth: int) -> Any:
        if name not in FUNCTIONS:
            return super().command(name, depth)
        function = FUNCTIONS[name]
        if name == "log" and self.peek()[1] == "_":
            self.take()
            base = self.argument(depth + 1)
            return self.function_argument(depth + 1).apply(cmath.log) / base.apply(cmath.log)
        exponent = None
        if self.peek()[1] == "^":
            self.take()
            exponent = self.exponent(depth + 1)
            if exponent.rational() is None or exponent.rational() < 1:
                raise NotExactError("an inverse function, or a power?")
        value = self.function_argument(depth + 1).apply(function)
        return value if exponent is None else value.power(exponent)

    def function_argument(self, depth: int) -> Any:
        r"""Read ``(...)``, ``{...}``, or the run of factors that ``\sin 2x`` applies to."""
        if self.peek()[1] in ("(", "{", "["):
            value = self.atom(depth)
            if self.peek()[1] in ("^", "!"):
                raise NotExactError("a power of what?")
            return value
        value = self.power(depth)
        while self.peek()[0] in ("number", "letter") or self.peek()[1] in ("\\pi", "\\theta", "\\alpha", "\\frac"):
            value = value * self.power(depth)
        if self.peek()[1] in ("(", "{", "/", "*", "\\cdot"):
            raise NotExactError("where does the argument end?")
        return value


@lru_cache(maxsize=65536)
def fingerprint(latex: str) -> tuple[complex, ...] | None:
    """Return the values of a normalised formula at the sample points, ``None`` where it has none."""
    try:
        return run(_NumericParser(tokenize(latex))).values
    except (NotExactError, FormulaError, ArithmeticError, ValueError):
        return None
