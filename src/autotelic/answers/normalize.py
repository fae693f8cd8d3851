r"""Rewrite an answer's spelling, not its meaning: Unicode, LaTeX style, spacing, units, currency.

Every step is a linear pass. Nothing here decides what an answer *is*; `autotelic.answers.canonical` does.
"""

import re
import unicodedata

MAX_ANSWER = 2000
"""Characters of an answer that are read as mathematics; longer ones are compared as text."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "÷": "/", "×": r" \cdot ", "·": r" \cdot ",
    "⋅": r" \cdot ", "∗": "*", "π": r" \pi ", "∞": r" \infty ", "≤": r" \leq ", "≥": r" \geq ", "∪": r" \cup ",
    "∩": r" \cap ", "∈": r" \in ", "±": r" \pm ", "°": "", "∅": r" \emptyset ", "θ": r" \theta ", "α": r" \alpha ",
    "β": r" \beta ", "λ": r" \lambda ", "≠": r" \neq ", "%": "%", "€": "", "£": "", "’": "'",
}  # fmt: skip
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "le": "leq", "ge": "geq", "leqslant": "leq", "geqslant": "geq",
    "times": "cdot", "ast": "cdot", "ne": "neq", "lbrace": "{", "rbrace": "}", "varnothing": "emptyset", "lt": "<",
    "gt": ">", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "dbinom": "binom", "tbinom": "binom",
    "lbrack": "[", "rbrack": "]", "land": ",",
}  # fmt: skip
_DROPPED = {
    "left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "displaystyle",
    "textstyle", "limits", "nolimits", "quad", "qquad", "hfill", "degree", "circ", "dollar", "euro", "pounds",
    "bf", "rm", "it", "thinspace", "medspace", "nobreak", "hspace",
}  # fmt: skip
TEXT_COMMANDS = {
    "text", "mbox", "textbf", "textit", "textrm", "textnormal", "mathrm", "mathbf", "mathit", "operatorname", "hbox",
    "textsf", "texttt", "mathsf", "boldsymbol", "bm", "emph", "underline",
}  # fmt: skip
_UNIT_WORDS = """degree degrees deg radian radians unit units square sq cubic cu inch inches in foot feet ft yard yards
    yd mile miles mi millimeter millimeters mm centimeter centimeters centimetre centimetres cm meter meters metre
    metres m kilometer kilometers kilometre kilometres km
    second seconds sec s minute minutes min hour hours hr hrs h day days
    week weeks month months year years dollar dollars cent cents usd euro euros pound pounds lb lbs ounce ounces oz
    gram grams g kilogram kilograms kg mg liter liters litre litres l ml mph kph gallon gallons quart quarts people
    per hz watts joules newtons volts ohms amps kelvin celsius fahrenheit"""
UNIT_WORDS = frozenset(_UNIT_WORDS.split())

_OUTER_DOLLARS = re.compile(r"(?<!\\)\$")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.S)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|\\,|(?:,|\{,\})?\s?\\!\s?)\d{3}(?!\d))+")
_TEXT = re.compile(r"\\(" + "|".join(sorted(TEXT_COMMANDS)) + r")\s*\{([^{}]*)\}(\s*\^\s*(?:\{\s*[23]\s*\}|[23]))?")
_WORD_TAIL = re.compile(r"[A-Za-z][A-Za-z./ ]*(?:\^\{?[23]\}?)?$")


def normalize(answer: str) -> str:
    r"""Return the answer in one LaTeX style: no dollars, no sizing commands, no invisible characters, plain spaces."""
    text = answer
    if not text.isascii():
        text = _plain_unicode(text)
    text = "".join(c if c >= " " and c != "\x7f" else " " for c in text)
    text = text.strip()
    text = text.replace("\\$", " ").replace("\\(", " ").replace("\\)", " ")
    text = re.sub(r"(?<!\\)\\[\[\]]", " ", text)
    text = _OUTER_DOLLARS.sub(" ", text)
    text = text.replace("\\%", "%").strip(" ").rstrip(".;,").strip()
    text = _strip_markup(text)
    text = _THOUSANDS.sub(_join_thousands, text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", "", text)
    text = re.sub(r"\^\s*(?:\{\s*\\degree\s*\}|\\degree(?![A-Za-z]))", "", text)
    text = _COMMAND.sub(_rewrite_command, text)
    text = re.sub(r"\{\s*,\s*\}", ",", text)
    return " ".join(text.split())


def _join_thousands(match: re.Match[str]) -> str:
    """Return 1,000 as 1000, except inside brackets, where a comma separates: (100,200) is a pair."""
    before = match.string[: match.start()]
    inside = sum(before.count(c) for c in "([") > sum(before.count(c) for c in ")]") or "\\{" in before
    return match.group() if inside and "\\" not in match.group() else re.sub(r"\D", "", match.group())


def _plain_unicode(text: str) -> str:
    """Return ASCII where there is an ASCII spelling; drop invisible and direction-changing characters."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
    text = re.sub(r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}", text).replace("√", r"\sqrt ")
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = re.sub(r"(\d)([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", r"\1 \2", text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc", "Co", "Cs", "Cn") or c in "\n\t")


def _strip_markup(text: str) -> str:
    """Remove bold and code marks around the whole answer."""
    while len(text) > 1 and text[0] == text[-1] and text[0] in '*_`"' and "{" not in text[:1]:
        text = text[1:-1].strip()
    return text


def _rewrite_command(match: re.Match[str]) -> str:
    """Return the one spelling of a LaTeX command."""
    name = match.group(1)
    if name in _DROPPED or name in (",", ";", ":", " ", "\n"):
        return " "
    if name == "!":
        return ""
    if name == "\\":
        return " \\\\ "
    renamed = _RENAMED.get(name, name)
    if renamed.isalpha():
        return f"\\{renamed} "
    return f"\\{renamed}" if renamed in "{}" else f" {renamed} "


def split_text(answer: str) -> str:
    r"""Return the answer with ``\text{...}`` turned into words: units and remarks dropped, "and" / "or" into commas.

    A text that follows mathematics is a unit or a remark (``12 \text{ apples}``) and is dropped, with its exponent
    (``15\text{ cm}^2``); a text that stands alone is the answer itself.
    """
    out: list[str] = []
    position = 0
    for match in _TEXT.finditer(answer):
        out.append(answer[position : match.start()])
        position = match.end()
        words = match.group(2).strip()
        lowered = words.lower().strip(" .,")
        if lowered in ("and", "or", "and/or"):
            out.append(" , ")
        elif lowered in ("percent", "percents", "per cent"):
            out.append("%")
        elif lowered in ("am", "pm", "a.m", "p.m", "million", "billion", "thousand"):
            out.append(f" {words} ")
        elif re.search(r"[0-9)}\]!%]\s*$", "".join(out)) and re.fullmatch(r"[A-Za-z./ \-]*", words):
            pass  # a unit
        else:
            out.append(f" {words} " + (match.group(3) or ""))
    out.append(answer[position:])
    return " ".join("".join(out).split())


def strip_plain_unit(answer: str) -> str:
    """Return `12` for `12 apples`, `5 cm^2`, `60 km/h`: words after a number that are not a formula."""
    match = re.match(r"(-?\s*[\d.,/ ]*\d)\s*(%?)\s*([A-Za-z].*)$", answer, re.S)
    if match is None or not _WORD_TAIL.fullmatch(match.group(3)):
        return answer
    words = re.sub(r"\^\{?[23]\}?$", "", match.group(3)).strip(" .").lower()
    if words in ("percent", "per cent"):
        return match.group(1) + "%"
    first = re.split(r"[ ./]", words)[0]
    if first in ("and", "or", "am", "pm", "a", "p", "million", "billion", "thousand", "pi", "choose", "mod", "base"):
        return answer
    spaced = answer[match.end(2) : match.start(3)].isspace() or match.group(0)[len(match.group(1)) :][:1] == " "
    known = all(w in UNIT_WORDS for w in re.split(r"[ ./]+", words) if w)
    if (known and (spaced or len(first) > 1)) or (spaced and len(first) > 2):
        return match.group(1) + match.group(2)
    return answer
