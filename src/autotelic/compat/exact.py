r"""Exact arithmetic for answers: Laurent polynomials over the rationals with square roots of integers.

``2\sqrt{3}``, ``\frac{\pi}{2}``, ``6 - 5i`` and ``x^5 - 3x + 1`` all have one normal form

    sum_k  q_k sqrt(n_k) prod_j a_j^{e_jk},   q_k rational, n_k square-free, e_jk integer,

in which two expressions are equal if and only if their terms are (``\pi``, ``e`` and every variable are treated as
independent). Whatever leaves this ring, or grows too large, raises `NotExactError`: no operation here takes more than
about a millisecond, on any input.
"""

import math
from fractions import Fraction

MAX_BITS = 4096
"""Bits of a numerator or denominator: about 1200 digits."""
MAX_TERMS = 100
MAX_POWER = 64

Monomial = tuple[int, tuple[tuple[str, int], ...]]
"""A square-free radicand, and atoms with their exponents, sorted by name."""


class NotExactError(Exception):
    """The expression is outside the ring, or too large for it."""


class Poly:
    """One element of the ring: a map from monomial to its rational coefficient, zeros left out."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Monomial, Fraction]):
        if len(terms) > MAX_TERMS:
            raise NotExactError("too many terms")
        for value in terms.values():
            if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
                raise NotExactError("too many digits")
        self.terms = {m: q for m, q in terms.items() if q != 0}

    @classmethod
    def number(cls, value: Fraction | int) -> "Poly":
        """Return a constant."""
        return cls({(1, ()): Fraction(value)})

    @classmethod
    def atom(cls, name: str) -> "Poly":
        """Return a variable or a transcendental constant."""
        return cls({(1, ((name, 1),)): Fraction(1)})

    def rational(self) -> Fraction | None:
        """Return the value if it is a rational number."""
        if not self.terms:
            return Fraction(0)
        if len(self.terms) == 1 and (1, ()) in self.terms:
            return self.terms[(1, ())]
        return None

    def __add__(self, other: "Poly") -> "Poly":
        terms = dict(self.terms)
        for monomial, value in other.terms.items():
            terms[monomial] = terms.get(monomial, Fraction(0)) + value
        return Poly(terms)

    def __neg__(self) -> "Poly":
        return Poly({m: -q for m, q in self.terms.items()})

    def __sub__(self, other: "Poly") -> "Poly":
        return self + (-other)

    def __mul__(self, other: "Poly") -> "Poly":
        if len(self.terms) * len(other.terms) > MAX_TERMS * 10:
            raise NotExactError("too many terms")
        terms: dict[Monomial, Fraction] = {}
        for first, p in self.terms.items():
            for second, q in other.terms.items():
                monomial, factor = _multiply(first, second)
                terms[monomial] = terms.get(monomial, Fraction(0)) + p * q * factor
        return Poly(terms)

    def inverse(self) -> "Poly":
        """Return 1 / self for a single term, or for a sum of two square roots (by the conjugate)."""
        if not self.terms:
            raise NotExactError("division by zero")
        if len(self.terms) == 1:
            [((radicand, atoms), value)] = self.terms.items()
            inverted = Poly({(radicand, tuple((a, -e) for a, e in atoms if a != "i")): 1 / (value * radicand)})
            imaginary = any(a == "i" for a, _ in atoms)
            return inverted * -Poly.atom("i") if imaginary else inverted
        if len(self.terms) == 2 and all(set(atoms) <= {("i", 1)} for _, atoms in self.terms):
            first, second = ({m: q} for m, q in self.terms.items())
            conjugate = Poly(first) - Poly(second)
            norm = (self * conjugate).rational()
            if norm:
                return conjugate * Poly.number(1 / norm)
        raise NotExactError("division by a sum")

    def __truediv__(self, other: "Poly") -> "Poly":
        return self * other.inverse()

    def power(self, exponent: "Poly") -> "Poly":
        """Return self ** exponent for a small integer or half-integer exponent."""
        value = exponent.rational()
        if value is None or abs(value) > MAX_BITS:
            raise NotExactError("exponent is not a small number")
        if value.denominator == 2:
            return self.root(2).power(Poly.number(value * 2))
        if value.denominator > 2:
            if value.denominator > 10:
                raise NotExactError("exponent is not a small fraction")
            return self.root(value.denominator).power(Poly.number(value.numerator))
        count = int(value)
        if count < 0:
            return self.inverse().power(Poly.number(-count))
        constant = self.rational()
        if constant is not None:
            if max(constant.numerator.bit_length(), constant.denominator.bit_length()) * count > MAX_BITS:
                raise NotExactError("too many digits")
            return Poly.number(constant**count)
        if count > MAX_POWER:
            raise NotExactError("exponent too large")
        result = Poly.number(1)
        for _ in range(count):
            result = result * self
        return result

    def root(self, degree: int) -> "Poly":
        """Return the `degree`-th root of a rational number (square roots always, others where they are rational)."""
        value = self.rational()
        if value is None:
            raise NotExactError("root of an expression")
        if degree == 2:
            outside, radicand = _square_part(abs(value.numerator) * value.denominator)
            root = Poly({(radicand, ()): Fraction(outside, value.denominator)})
            return root * Poly.atom("i") if value < 0 else root
        if value < 0 and degree % 2 == 0:
            raise NotExactError("even root of a negative number")
        sign = -1 if value < 0 else 1
        return Poly.number(
            Fraction(sign * _integer_root(abs(value.numerator), degree), _integer_root(value.denominator, degree))
        )

    def key(self) -> str:
        """Return the normal form as text: equal exactly when the values are."""
        if (value := self.rational()) is not None:
            return str(value)
        parts = []
        for (radicand, atoms), value in sorted(self.terms.items()):
            factors = [] if radicand == 1 else [f"sqrt({radicand})"]
            factors += [name if power == 1 else f"{name}^{power}" for name, power in atoms]
            parts.append("*".join([str(value), *factors]))
        return " + ".join(parts)


def _multiply(first: Monomial, second: Monomial) -> tuple[Monomial, int]:
    """Return the product of two monomials, and the integer that comes out of the roots."""
    common = math.gcd(first[0], second[0])
    radicand, factor = first[0] * second[0] // common**2, common
    if radicand.bit_length() > MAX_BITS:
        raise NotExactError("too many digits")
    exponents = dict(first[1])
    for name, power in second[1]:
        exponents[name] = exponents.get(name, 0) + power
    if exponents.get("i", 0) >= 2:
        exponents["i"] -= 2
        factor = -factor
    if any(abs(power) > MAX_POWER for power in exponents.values()):
        raise NotExactError("exponent too large")
    return (radicand, tuple(sorted((a, e) for a, e in exponents.items() if e != 0))), factor


def _square_part(number: int) -> tuple[int, int]:
    """Return (a, b) with number = a^2 b and b square-free."""
    if number == 0:
        return 0, 1
    if number > 10**12:
        root = math.isqrt(number)
        if root * root == number:
            return root, 1
        raise NotExactError("radicand too large")
    outside, radicand, prime = 1, 1, 2
    while prime**3 <= number:
        count = 0
        while number % prime == 0:
            number //= prime
            count += 1
        outside *= prime ** (count // 2)
        radicand *= prime ** (count % 2)
        prime += 1
    root = math.isqrt(number)  # what is left is a prime, a product of two primes, or a square of one
    return (outside * root, radicand) if root * root == number else (outside, radicand * number)


def _integer_root(number: int, degree: int) -> int:
    """Return the exact integer root of a non-negative integer."""
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle - 1)
    if low**degree != number:
        raise NotExactError("root is not rational")
    return low
