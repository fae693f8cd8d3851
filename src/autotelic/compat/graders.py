"""How TTRL and EMPO's verl version decide that two answers are equal, quirks included. For `autotelic.compat.rewards`.

The official graders hand answers to sympy's ``parse_expr``, which evaluates them as Python; here the same comparisons
are made on numbers in this process, and on formulas in the worker, which reads LaTeX.
"""

import contextlib
import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

from autotelic.answers.pool import Pool
from autotelic.compat.texts import UNITS_VERL, drop_units, mathd
from autotelic.errors import UserError

TOLERANCE = 2e-3 * 1.01
LARGEST = 1e12
"""Of a value that is compared by its floating-point number."""
pool = Pool(time_limit=20.0)


class UnsafeQuirkError(UserError):
    """The official code would call Python's ``eval`` on this answer; that is not reproduced."""


def plain_text(latex: str) -> str:
    r"""Return LaTeX as plain text: ``\frac{a}{b}`` is a/b, roots are sqrt(..), unknown commands vanish."""
    text = latex.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac").replace("\\frac", " \\frac")
    text = re.sub(r"\\begin\{[a-z]*matrix\}(.*?)\\end\{[a-z]*matrix\}", _matrix_text, text, flags=re.S)
    out, index = [], 0
    while index < len(text):
        piece, index = _piece(text, index)
        out.append(piece)
    return "".join(out).strip()


_SYMBOLS = {
    "pi": "pi", "infty": "inf", "cup": "U", "cdot": "*", "times": "*", "pm": "±", "le": "≤", "leq": "≤", "ge": "≥",
    "geq": "≥", "ne": "≠", "neq": "≠", "in": "∈", "circ": "∘", "div": "÷", "alpha": "α", "beta": "β", "theta": "θ",
    "approx": "≈", "sim": "∼", "equiv": "≡", "to": "→", "rightarrow": "→", "cdots": "⋯", "dots": "…", "angle": "∠",
    "gamma": "γ", "delta": "δ", "lambda": "λ", "mu": "μ", "phi": "ϕ", "omega": "ω", "sigma": "σ", "rho": "ρ",
    "sum": "∑", "prod": "∏", "int": "∫", "triangle": "▵", "perp": "⊥", "mid": "∣", "subset": "⊂", "forall": "∀",
    "exists": "∃", "degree": "°", "ldots": "…", "cap": "∩", "emptyset": "∅", "varnothing": "∅", "sin": "sin",
    "cos": "cos", "tan": "tan", "log": "log", "ln": "ln", ",": " ", ";": " ", ":": " ", " ": " ", "%": "%", "$": "$",
    "{": "{", "}": "}", "&": "&", "_": "_", "#": "#", "quad": " ", "qquad": "  ", "\\": "\n",
}  # fmt: skip


def _piece(text: str, index: int) -> tuple[str, int]:
    """Return the plain text of the next token, and where the following one begins."""
    c = text[index]
    if c == "{":
        end = _group_end(text, index)
        return plain_text(text[index + 1 : end]) if end > index else "", max(end, index) + 1
    if c in "}$":
        return "", index + 1
    if c == "~":
        return " ", index + 1
    if c != "\\":
        return c, index + 1
    match = re.compile(r"\\([A-Za-z]+)\s*|\\(.)", re.S).match(text, index)
    if match is None:
        return "", index + 1
    name, after = match.group(1) or match.group(2), match.end()
    if name == "frac":
        top, after = _argument(text, after)
        bottom, after = _argument(text, after)
        return f"{top}/{bottom}", after
    if name == "sqrt":
        if text[after : after + 1] == "[" and "]" in text[after:]:
            after = text.index("]", after) + 1
        inside, after = _argument(text, after)
        return f"sqrt({inside})", after
    if name in ("left", "right"):
        return "", after
    return _SYMBOLS.get(name, ""), after


def _argument(text: str, index: int) -> tuple[str, int]:
    while index < len(text) and text[index] == " ":
        index += 1
    return _piece(text, index) if index < len(text) else ("", index)


def _group_end(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    return len(text)


def _matrix_text(match: re.Match[str]) -> str:
    rows = re.split(r"\\{1,2}(?![A-Za-z])", match.group(1))
    rows = [" ".join(cell.strip() for cell in row.split("&")) for row in rows]
    return "[ " + "; ".join(row for row in rows if row) + " ]"


def plain_form(text: str, verl: bool) -> str:
    """Return the lower-case plain form that both graders compare."""
    inner = re.search(r"^\\text\{(.+?)\}$", text)
    text = inner.group(1) if inner else text
    text = text.replace("\\%", "%").replace("\\$", "$").replace("$", "").replace("%", "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in (("million", 6), ("billion", 9), ("trillion", 12)):
        text = text.replace(word, f"*10^{power}")
    if verl:
        text = drop_units(text, UNITS_VERL)
    else:
        for unit in ("degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day", "week", "month",
                     "year", "foot", "feet", "inch", "yard"):  # fmt: skip
            text = re.sub(rf"{unit}(?:es)?s? *(?:\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if len(text) > 0 and text[0] == "{" and text[-1] == "}":
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    value = _float(text)
    if value is not None and abs(value) < 1e300 and abs(value - round(value)) <= 1e-7:
        text = str(round(value))
    if "\\" in text:
        with contextlib.suppress(RecursionError):  # the official code keeps what it cannot read
            text = plain_text(text)
    text = re.sub(r"- *", "-", text)
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", text)
    text = text.replace(" ", "").replace("{", "").replace("}", "").lower()
    return str(int(float(text.replace(",", "")))) if is_integer(text) else text


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def without_thousands(text: str) -> str:
    """Remove commas between a digit and exactly three digits."""
    while (shorter := re.sub(r"(\d),(\d\d\d)($|\D)", r"\1\2\3", text)) != text:
        text = shorter
    return text


def is_integer(text: str) -> bool:
    """Return whether text is a whole number, thousands commas allowed."""
    value = _float(without_thousands(text))
    return value is not None and abs(value) < 1e300 and abs(value - round(value)) <= 1e-7


def elements(text: str) -> list[str]:
    """Split a tuple or interval without inner brackets."""
    text = without_thousands(text)
    if len(text) > 2 and text[0] in "()[]" and text[-1] in "()[]" and not any(c in text[1:-1] for c in "()[]"):
        return [part.strip() for part in text[1:-1].split(",")]
    return [text] if text else []


def _is_fraction(text: str) -> bool:
    return re.search(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$", text) is not None


def _allowed(text: str) -> bool:
    """Return whether the official code would let sympy see this text."""
    letters = {c for c in text.replace("sqrt", "").replace("frac", "") if c.isalpha()}
    return len(letters) <= 2 and "^{" not in text and "^(" not in text and not re.search(r"\^\d+\^|\^\d\d+", text)


def _formula(plain: str) -> str:
    r"""Return plain text as a leaf for the worker: e and i are variables, as they are to the official parser."""
    if re.search(r"(?<!\d)\.(?!\d)|[^\w+\-*/^().! ]", plain):  # a sentence's end, a ratio: the official parser fails
        return "formula:"
    text = plain.replace("sqrt", "\\sqrt ").replace("pi", "\\pi ")
    return "formula:" + re.sub(
        r"(?<![\\a-z])[ei](?![a-z])", lambda m: {"e": "\\epsilon ", "i": "\\iota "}[m.group()], text
    )


@lru_cache(maxsize=65536)
def _values(plain: str) -> list[complex] | None:
    """Return the values of a formula at three points, None where it has none or they are too large."""
    number = _float(plain)
    if number is not None:
        values = [complex(number)] * 3
    else:
        found = pool.request([_formula(plain)], [], mode="official")[0][0] or ()
        values = [complex(*parts) for parts in found]
    return values if values and all(abs(value) <= LARGEST for value in values) else None


def _by_elements(given: str, truth: str, same: Callable[[str, str], bool], verl: bool) -> bool:
    """Compare two plain forms element by element."""
    if truth == given:
        return True
    if not given:
        return False
    ours, theirs = elements(given), elements(truth)
    if (len(theirs) > 1 and (truth[0] != given[0] or truth[-1] != given[-1])) or len(ours) != len(theirs):
        return False
    right = False
    for one, two in zip(ours, theirs, strict=True):
        if _is_fraction(two) and _is_fraction(one):
            right = one == two  # unreduced fractions count as wrong
        elif not verl and is_integer(two) != is_integer(one):
            right = False
        else:
            right = same(one, two)
        if not right:
            return False
    return right


def ttrl_equal(given: str, truth: str) -> bool:
    """Return TTRL's verdict on an answer and the majority answer."""
    if mathd(truth, verl=False) == mathd(given, verl=False):
        return True
    return _by_elements(plain_form(given, verl=False), plain_form(truth, verl=False), _ttrl_same, verl=False)


def _ttrl_same(given: str, truth: str) -> bool:
    """Return whether the difference is zero by algebra."""
    if not _allowed(f"({truth})-({given})"):
        return False
    return pool.request([_formula(given), _formula(truth)], [(0, 1)], mode="official")[1][0] is True


def verl_plain_equal(given: str, truth: str) -> bool:
    """Return the verdict of the parts of EMPO's verl grader that need no math-verify."""
    if mathd(given, verl=True) == mathd(truth, verl=True):
        return True
    split_given, split_truth = given.split("=")[-1], truth.split("=")[-1]
    if _verl_elements(given, truth):
        return True
    enable = split_given != mathd(given, verl=True) or split_truth != truth
    return enable and _verl_elements(split_given, split_truth)


def _verl_elements(given: str, truth: str) -> bool:
    return _by_elements(plain_form(given, verl=True), plain_form(truth, verl=True), _verl_same, verl=True)


def _verl_same(given: str, truth: str) -> bool:
    """Compare one element: choice letters, truth values, then numbers with a tolerance."""
    if _choice(given, truth) or _truth_value(given, truth):
        return True
    if "pi" in given or "pi" in truth:
        raise UnsafeQuirkError(
            f"the official grader would call eval on {given[:40]!r} or {truth[:40]!r}; that quirk is not reproduced"
        )
    return close(truth, given)


def _choice(given: str, truth: str) -> bool:
    if given == truth:
        return True
    if given.startswith("[") and given.endswith("]"):
        given = given.strip("[]")
    if not given:
        return False
    if "A" <= given[0] <= "Z" and given[1:2] in (".", ":") and len(given) > 1:
        return given[0] == truth
    return f"'{truth}'" in given


def _truth_value(given: str, truth: str) -> bool:
    meaning = {"TRUE": True, "YES": True, "T": True, "Y": True, "FALSE": False, "NO": False, "F": False, "N": False}
    one, two = meaning.get(given.upper()), meaning.get(truth.upper())
    return one is not None and one == two


def decimal_places(value: float) -> int:
    """Return the digits after the point that matter at 1e-6."""
    text = format(Decimal(str(value)).normalize(), "f")
    if "." not in text:
        return 0
    digits = len(text.split(".")[1])
    return next((i + 1 for i in range(digits) if abs(value - round(value, i + 1)) <= 1e-6), digits)


def close(truth: str, given: str) -> bool:
    """Return whether two plain numbers or expressions agree to about 0.2 %, by the official steps."""
    if given == truth:
        return True
    one, two = _float(given), _float(truth)
    if one is not None and two is not None and abs(one) < 1e300 and abs(two) < 1e300:
        places = min(decimal_places(two), decimal_places(one))
        a, b = round(one, places), round(two, places)
        if b != 0 and (abs((a - b) / b) <= TOLERANCE or _mantissas_agree(f"{one:.2e}", f"{two:.2e}")):
            return True
    return _symbolically_close(truth, given)


def _mantissas_agree(first: str, second: str) -> bool:
    """Compare 1.23e5 style texts: equal exponents, and mantissas rounded to the places they share."""
    (base_a, power_a), (base_b, power_b) = (text.split("e") for text in (first, second))
    a, b = float(base_a), float(base_b)
    places = min(decimal_places(a), decimal_places(b))
    return int(power_a) == int(power_b) and abs(round(a, places) - round(b, places)) <= TOLERANCE


_SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d*)?)\*10(?:\^|\*\*)\(?(-?\d+)\)?")


def _symbolically_close(truth: str, given: str) -> bool:
    """Return whether (truth - given) / truth is a constant of at most 0.2 %; or scientific notations agree."""
    if not (_allowed(truth) and _allowed(given)):
        return False
    truth, given = truth.split(";")[0], given.split(";")[0]  # the official parser reads the first statement only
    one, two = _values(given), _values(truth)
    if one is not None and two is not None and all(abs(b) > 0 for b in two):
        shares = [(b - a) / b for a, b in zip(one, two, strict=True)]
        if all(abs(s - shares[0]) <= 1e-9 for s in shares) and abs(shares[0]) <= TOLERANCE:
            return True
        if any(abs(s - shares[0]) > 1e-9 for s in shares):
            return False
    elif one is not None and two is not None and all(abs(a) <= TOLERANCE for a in one):
        return True  # truth 0: the official code divides by 1 instead
    texts = [given, truth]
    matches = [_SCIENTIFIC.fullmatch(text) for text in texts]
    if not any(matches):
        return False
    forms = []
    for text, match in zip(texts, matches, strict=True):
        value = _float(text)
        if match is not None:
            forms.append(f"{match.group(1)}e{match.group(2)}")
        elif value is not None:
            forms.append(f"{value:.2e}")
        else:
            return False
    return _mantissas_agree(*forms)
