r"""Decide what is certain, in microseconds and in this process: plain numbers, plain words, equal spellings.

*Equal* is said only where both texts are certainly one value; *different* only where both are plain numbers or words. A
number is a rational number as written, or a closed form of numbers, roots and pi (``\frac{3\sqrt{2}}{5}``): its
floating-point value rules pairs out, never in. Everything else is undecided, and goes to the worker.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from autotelic.answers.normalize import MAX_ANSWER, normalize, squeezed
from autotelic.answers.reading import split_unit, word_key
from autotelic.answers.units import Remark

MAX_DIGITS = 400
"""Digits of a number that is read exactly here."""
PRINTED = 10
"""Decimals from which a number is a calculator's print-out, equal to the exact value that it rounds."""
APART = 1e-6
"""Relative distance of floating-point values that rounding cannot explain."""
LARGEST, SMALLEST = 1e12, 1e-12


@dataclass(frozen=True)
class Plain:
    """What can be said of an answer without algebra.

    Attributes:
        key: Equal keys are equal answers.
        number: The exact value of a plain number.
        size: The approximate value of a closed form.
        words: Whether the answer is plain words.
        remark: The unit of a number.
        decimals: Digits after the point of a decimal number.
    """

    key: str
    number: Fraction | None = None
    size: float | None = None
    words: bool = False
    remark: Remark | None = None
    decimals: int = 0


@lru_cache(maxsize=65536)
def plain(answer: str) -> Plain | None:
    """Read an answer as far as that is certain; ``None`` where there is no answer."""
    if len(answer) > MAX_ANSWER:
        return Plain("long:" + " ".join(answer.split()))
    text = normalize(answer)
    if not text:
        return None
    if re.fullmatch(r"(?:\\text\{[A-Za-z' -]{3,}\}[ .!-]*)+", text):
        key = word_key(text)
        return Plain(f"words:{key}", words=not re.search(r"\b(?:and|or)\b", key))
    if re.fullmatch(r"(?:[^\W\d_A-Za-z]| )+", text):  # another script
        return Plain(f"words:{text.lower()}", words=True)
    named = re.match(r"[A-Za-z]\s*=\s*(?=[-\d\\])", text)
    value, remark = split_unit(text[named.end() :] if named else text)
    while (inner := re.fullmatch(r"\{([^{}]*)\}|\(([^(),]*)\)", value)) is not None:
        value = (inner.group(1) or inner.group(2) or "").strip()
    number = _number(squeezed(value))
    if number is not None:
        decimals = len(value.partition(".")[2]) if re.fullmatch(r"-?\d+\.\d+", value) else 0
        key = f"number:{number}:{remark if remark and (remark.units or remark.nouns or remark.directions) else ''}"
        return Plain(key, number, _float(number), remark=remark, decimals=decimals)
    try:
        size = _Sizes(squeezed(value)).whole()
    except (ValueError, ArithmeticError, RecursionError):
        size = None
    if size is not None and not SMALLEST < abs(size) < LARGEST:
        size = None
    return Plain(f"text:{squeezed(text)}", size=size, remark=remark)


def decide(first: Plain, second: Plain) -> bool | None:
    """Return whether two answers are equal, ``None`` where that needs algebra."""
    if first.key == second.key:
        return True
    if first.words or second.words:
        known = (p.words or p.number is not None or p.size is not None for p in (first, second))
        return False if all(known) else None
    if first.remark is not None and second.remark is not None and first.remark.differs(second.remark):
        return False if first.number is not None and second.number is not None else None
    if first.number is not None and second.number is not None:
        decimals = max(first.decimals, second.decimals)
        printed = decimals >= PRINTED and min(first.decimals, second.decimals) == 0
        apart = abs(first.number - second.number)
        return apart * 10**decimals < 1 if printed else apart == 0
    if first.size is not None and second.size is not None:
        scale = max(abs(first.size), abs(second.size))
        return False if abs(first.size - second.size) > APART * scale else None
    return None


def as_fraction(answer: str | None) -> Fraction | None:
    """Return the exact rational value of an answer that is a plain number, ``None`` for any other."""
    found = None if answer is None else plain(answer)
    return None if found is None else found.number


_DECIMAL = r"(\d+(?:\.\d+)?|\.\d+)"
_FORMS = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>\d+) ?\\frac\{{(?P<a>\d+)\}}\{{(?P<b>\d+)\}}"
    rf"|\\frac\{{(?P<minus>-?)(?P<top>\d+)\}}\{{(?P<bottom>\d+)\}}|(?P<over>\d+)/(?P<under>\d+)|(?P<decimal>{_DECIMAL})"
    r"(?:\\cdot ?10\^\{(?P<power>-?\d{1,3})\})?)(?P<percent>\\?%)?"
)


def _number(text: str) -> Fraction | None:
    """Return a plain number: an integer, a decimal, a fraction, a mixed number, a power of ten, a percentage."""
    match = _FORMS.fullmatch(text) if len(text) <= MAX_DIGITS else None
    if match is None:
        return None
    g = match.groupdict()
    try:
        if g["whole"] is not None:
            if int(g["a"]) >= int(g["b"]):
                return None
            value = int(g["whole"]) + Fraction(int(g["a"]), int(g["b"]))
        elif g["top"] is not None:
            value = Fraction(int(g["minus"] + g["top"]), int(g["bottom"]))
        elif g["over"] is not None:
            value = Fraction(int(g["over"]), int(g["under"]))
        else:
            value = Fraction(g["decimal"]) * Fraction(10) ** int(g["power"] or 0)
    except ZeroDivisionError:
        return None
    return (-value if g["sign"] == "-" else value) / (100 if g["percent"] else 1)


def _float(number: Fraction) -> float | None:
    try:
        size = float(number)
    except OverflowError:
        return None
    return size if number == 0 or SMALLEST < abs(size) < LARGEST else None


_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\\[A-Za-z]+|[-+/^(){}\[\]])\s*")


class _Sizes:
    r"""The floating-point value of a closed form: numbers, ``\pi``, ``\sqrt``, ``\frac``, + - * / ^ and brackets."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or len(self.tokens) > 200:
                raise ValueError("not a closed form")
            self.tokens.append(match.group(1))
            position = match.end()
        self.index = 0

    def whole(self) -> float:
        value = self.sum(0)
        if self.index != len(self.tokens):
            raise ValueError("not a closed form")
        return value

    def peek(self) -> str:
        return self.tokens[self.index] if self.index < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if (wanted and token != wanted) or not token:
            raise ValueError("not a closed form")
        self.index += 1
        return token

    def sum(self, depth: int) -> float:
        if depth > 20:
            raise ValueError("too deep")
        sign = -1.0 if self.peek() in ("+", "-") and self.take() == "-" else 1.0
        value = sign * self.product(depth)
        while self.peek() in ("+", "-"):
            sign = -1.0 if self.take() == "-" else 1.0
            value += sign * self.product(depth)
        return value

    def product(self, depth: int) -> float:
        start, value = self.index, self.power(depth)
        while (token := self.peek()) and token not in ")}]+-":
            if token == "/":
                self.take()
                value /= self.power(depth)
            else:
                if token == "\\cdot":
                    self.take()
                elif token[0].isdigit() or (
                    token == "\\frac" and self.tokens[start : self.index] == self.tokens[start : start + 1]
                ):
                    raise ValueError("a mixed number, or no product")
                value *= self.power(depth)
        return value

    def power(self, depth: int) -> float:
        value = self.atom(depth)
        if self.peek() == "^":
            self.take()
            exponent = self.group("{", "}", depth)
            if value <= 0 and exponent != round(exponent):
                raise ValueError("a branch to choose")
            value = value**exponent
        return value

    def group(self, left: str, right: str, depth: int) -> float:
        self.take(left)
        value = self.sum(depth + 1)
        self.take(right)
        return value

    def atom(self, depth: int) -> float:
        token = self.take()
        if token[0].isdigit():
            return float(token)
        if token == "\\pi":
            return math.pi
        if token == "\\frac":
            top = self.group("{", "}", depth)
            return top / self.group("{", "}", depth)
        if token == "\\sqrt":
            degree = self.group("[", "]", depth) if self.peek() == "[" else 2.0
            value = self.group("{", "}", depth)
            if value < 0:
                raise ValueError("not real")
            return value ** (1 / degree)
        if token in "({":
            self.index -= 1
            return self.group(token, {"(": ")", "{": "}"}[token], depth)
        raise ValueError("not a closed form")
