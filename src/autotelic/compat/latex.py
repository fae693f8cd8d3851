r"""A small recursive-descent parser from LaTeX (or plain) arithmetic to the exact ring. It evaluates nothing else.

sum     = [+-] product {[+-] product}
product = power {[* / \cdot] power | power}            juxtaposition multiplies
power   = atom {! | %} [^ atom]
atom    = number | variable | \frac{..}{..} | \sqrt[n]{..} | \binom{..}{..} | \pi | \infty | ( sum ) | { sum }
"""

import math
import re
from fractions import Fraction
from typing import Any

from autotelic.compat.exact import MAX_BITS, NotExactError, Poly

MAX_DEPTH = 40
"""Nesting of brackets that is read; more is not an answer."""
MAX_DIGITS = 1000

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4}(?![\d.]))?|\.\d+)|(?P<command>\\[A-Za-z]+|\\[{}%])"
    r"|(?P<letters>[A-Za-z]+)|(?P<op>\*\*|[-+*/^_!%(){}\[\]|,'=<>&:;]))"
)
_GREEK = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"""
GREEK = frozenset(_GREEK.split())


class FormulaError(Exception):
    """The text is not a formula."""


def parse_expression(text: str) -> Poly:
    """Return the exact value of a formula.

    Raises:
        NotExactError: A formula (as far as can be seen) that the exact ring does not hold.
        FormulaError: Not a formula at all.
    """
    return run(Parser(tokenize(text)))


def run(parser: "Parser") -> Any:
    """Parse to the end."""
    value = parser.sum(0)
    if parser.index != len(parser.tokens):
        raise NotExactError("trailing text")
    return value


def tokenize(text: str) -> list[tuple[str, str]]:
    """Return (kind, text) pairs."""
    tokens: list[tuple[str, str]] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise FormulaError(f"unexpected character {text[position]!r}")
        position = match.end()
        kind = match.lastgroup or ""
        value = match.group(kind)
        if kind == "letters":
            if len(value) > 2:
                raise NotExactError("a word")
            tokens.extend(("letter", letter) for letter in value)
        elif kind == "number" and len(value) > MAX_DIGITS:
            raise NotExactError("too many digits")
        else:
            tokens.append((kind, value))
    return tokens


class Parser:
    """One pass over the tokens, with values in `ring` (`Poly`, or the samples of `autotelic.compat.numeric`)."""

    ring: Any = Poly

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens = tokens
        self.index = 0

    def peek(self) -> tuple[str, str]:
        """Return the next token without taking it."""
        return self.tokens[self.index] if self.index < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        """Take the next token."""
        token = self.peek()
        self.index += 1
        return token

    def expect(self, value: str) -> None:
        """Take a token that must be there."""
        if self.take()[1] != value:
            raise NotExactError(f"missing {value}")

    def sum(self, depth: int) -> Any:
        """Read terms with their signs."""
        if depth > MAX_DEPTH:
            raise FormulaError("too deep")
        negative = False
        while self.peek()[1] in ("+", "-"):
            negative ^= self.take()[1] == "-"
        value = self.product(depth)
        value = -value if negative else value
        while self.peek()[1] in ("+", "-"):
            negative = self.take()[1] == "-"
            while self.peek()[1] in ("+", "-"):
                negative ^= self.take()[1] == "-"
            term = self.product(depth)
            value = value - term if negative else value + term
        return value

    def product(self, depth: int) -> Any:
        """Read factors; juxtaposition multiplies."""
        start = self.index
        value = self.power(depth)
        while True:
            kind, text = self.peek()
            if text in ("*", "\\cdot"):
                self.take()
                value = value * self.signed_power(depth)
            elif text in ("/", "\\div"):
                self.take()
                value = value / self.signed_power(depth)
            elif self.starts_mixed_number(start):
                value = value + self.power(depth)
            elif kind in ("letter", "command", "number") or text in ("(", "{", "["):
                if text in ("\\}", "\\%", "\\cup", "\\in") or (
                    kind == "number" and self.tokens[self.index - 1][0] == "number"
                ):
                    if kind == "number" and self.starts_mixed_fraction(start):
                        value = value + self.power(depth) / self.after_slash(depth)
                        continue
                    raise NotExactError("not a product")
                if text == "(" and self.tokens[self.index - 1][1] in ("f", "g", "h", "P", "p", "F"):
                    raise NotExactError("a function")
                value = value * self.power(depth)
            else:
                return value

    def starts_mixed_number(self, start: int) -> bool:
        r"""Return whether an integer is followed by a proper fraction of integers: ``1\frac{4}{5}``."""
        if self.index != start + 1 or not self.tokens[start][1].isdigit() or self.peek()[1] != "\\frac":
            return False
        shape = [text for _, text in self.tokens[self.index + 1 : self.index + 7]]
        if len(shape) == 6 and shape[0] == shape[3] == "{" and shape[2] == shape[5] == "}":
            digits = (shape[1], shape[4])
        elif len(shape) >= 1 and shape[0].isdigit() and len(shape[0]) == 2:
            digits = (shape[0][0], shape[0][1])
        else:
            return False
        return all(d.isdigit() for d in digits) and int(digits[0]) < int(digits[1])

    def starts_mixed_fraction(self, start: int) -> bool:
        """Return whether an integer is followed by a proper plain fraction: ``1 4/5``."""
        if self.index != start + 1 or not self.tokens[start][1].isdigit():
            return False
        following = [text for _, text in self.tokens[self.index : self.index + 3]]
        return (
            len(following) == 3 and following[1] == "/" and following[0].isdigit() and following[2].isdigit()
            and int(following[0]) < int(following[2])
        )  # fmt: skip

    def after_slash(self, depth: int) -> Any:
        """Read the denominator of a plain fraction."""
        self.expect("/")
        return self.power(depth)

    def signed_power(self, depth: int) -> Any:
        """Read a factor that may carry signs."""
        negative = False
        while self.peek()[1] in ("+", "-"):
            negative ^= self.take()[1] == "-"
        value = self.power(depth)
        return -value if negative else value

    def power(self, depth: int) -> Any:
        """Read an atom with factorials, percent signs and an exponent."""
        value = self.atom(depth)
        while self.peek()[1] in ("!", "%", "\\%"):
            value = self.factorial(value) if self.take()[1] == "!" else value / self.ring.number(100)
        if self.peek()[1] in ("^", "**"):
            self.take()
            exponent = self.exponent(depth + 1)
            if self.peek()[1] in ("^", "**"):
                raise NotExactError("a tower of powers")
            value = value.power(exponent)
        while self.peek()[1] in ("!", "%", "\\%"):
            value = self.factorial(value) if self.take()[1] == "!" else value / self.ring.number(100)
        return value

    def exponent(self, depth: int) -> Any:
        """Read what follows ``^``."""
        if self.peek()[1] == "-":
            self.take()
            return -self.atom(depth)
        kind, text = self.peek()
        if kind == "number" and len(text) > 1 and self.tokens[self.index - 1][1] == "^" and text.isdigit():
            pass  # ``x^10`` without braces: what people mean, though not what LaTeX sets
        return self.atom(depth)

    def atom(self, depth: int) -> Any:
        """Read a number, a variable, a command or a bracket."""
        if depth > MAX_DEPTH:
            raise FormulaError("too deep")
        kind, text = self.take()
        if kind == "number":
            return self.ring.number(_fraction(text))
        if kind == "letter":
            return self.ring.atom(text + self.subscript())
        if kind == "command":
            return self.command(text[1:], depth)
        closing = {"(": ")", "{": "}", "[": "]"}.get(text)
        if closing is None:
            raise NotExactError("not an expression")
        value = self.sum(depth + 1)
        self.expect(closing)
        return value

    def subscript(self) -> str:
        """Read an optional subscript, as part of a name."""
        if self.peek()[1] != "_":
            return ""
        self.take()
        kind, text = self.take()
        if kind in ("letter", "number"):
            return "_" + text
        if text != "{":
            raise NotExactError("subscript")
        inner = []
        while self.peek()[1] not in ("}", ""):
            inner.append(self.take()[1])
        self.expect("}")
        return "_" + "".join(inner)

    def command(self, name: str, depth: int) -> Any:
        """Read the arguments of a command and apply it."""
        if name == "frac":
            top = self.argument(depth + 1)
            return top / self.argument(depth + 1)
        if name == "sqrt":
            degree = 2
            if self.peek()[1] == "[":
                self.take()
                value = self.sum(depth + 1).rational()
                self.expect("]")
                if value is None or value.denominator != 1 or not 2 <= value <= 20:
                    raise NotExactError("degree of a root")
                degree = int(value)
            return self.argument(depth + 1).root(degree)
        if name == "binom":
            top, bottom = self.argument(depth + 1).rational(), self.argument(depth + 1).rational()
            if (
                top is None
                or bottom is None
                or top.denominator * bottom.denominator != 1
                or not 0 <= bottom <= top <= 300
            ):
                raise NotExactError("binomial")
            return self.ring.number(math.comb(int(top), int(bottom)))
        if name == "infty":
            return self.ring.atom("infty")
        if name == "pi":
            return self.ring.atom("pi")
        if name in GREEK:
            return self.ring.atom("\\" + name + self.subscript())
        raise NotExactError(f"\\{name}")

    def argument(self, depth: int) -> Any:
        r"""Read a command's argument: a group, or one character (``\frac12``)."""
        kind, text = self.peek()
        if kind == "number" and text.isdigit() and len(text) > 1:
            self.tokens[self.index : self.index + 1] = [("number", text[0]), ("number", text[1:])]
        if kind == "number" and text.isdigit():
            return self.ring.number(int(self.take()[1][0]))
        return self.atom(depth)

    def factorial(self, value: Any) -> Any:
        """Return n! for a small integer."""
        number = value.rational()
        if number is None or number.denominator != 1 or not 0 <= number <= 300:
            raise NotExactError("factorial")
        return self.ring.number(math.factorial(int(number)))


def _fraction(text: str) -> Fraction:
    """Return a decimal literal exactly; an exponent beyond the size limit is refused before it is computed."""
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) * 4 > MAX_BITS:
        raise NotExactError("too many digits")
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)
