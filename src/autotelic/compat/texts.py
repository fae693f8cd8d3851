r"""How published label-free rewards read an answer: string rewriting, quirks included. For `autotelic.compat.rewards`.

Written from the behaviour of three families: the competition-math normaliser ("mathd") that many graders share, the
longer one in front of it in TTRL, and the lower-case plain form in which both compare. Only regular expressions on
strings: nothing is evaluated. Answers longer than `MAX_COMPAT` are cut: the patterns here are not all linear.
"""

import re
from collections.abc import Sequence

MAX_COMPAT = 2000

_COMMON_UNITS = (
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of rs|rd|o|{0}p . m|lb|tile|"
    "per|{1}lt|gain|ab|way|west|{2}no change|men|soldier|pie|bc|excess|st|inches|noon|percent|by|gal|kmh|{3}acre|rise|"
    "a . m|th|π r 2|sq|mark|{4}toy|coin|sq . m|gallon|° f|profit|minw|yr|women|feet|am|pm|hr|cu cm|square|v â € ™|are|"
    "rupee|rounds|cubic|cc|mtr|{5}ohm|number|kmph|day|hour|minute|min|second|man|woman|sec|cube|mt|sq inch|mp|∏ cm ³|"
    "hectare|more|sec|"
    "unit|cu . m|cm 2|rs .|rs|kg|{6}month|{7}cm|mm|apple|liter|loss|yard|pure|year|increase|decrease|{8}"
    "less|Surface|litre|pi sq m|s .|metre|meter|inch"
)
_LETTER_UNITS = (
    "gm|", "dm|", "a .|b .|c .|d .|e .|f .|g .|h .|t|a|h|", "c|", "l|", "s|", "g|", "km|m|", "d|",
)  # fmt: skip
_SI_UNITS = "kilogram|second|ampere|A|K|mol|cd|N|J|W|Pa|Hz|C|V|Ω|F|T|H|eV|kW·h|atm|bar|°C"


def _unit_patterns(names: str) -> tuple[re.Pattern[str], ...]:
    words = names.split("|")
    return tuple(re.compile(rf"(^|\W){word}($|\W)") for word in [*words, *(word + "s" for word in words)])


UNITS_TTRL = _unit_patterns(_COMMON_UNITS.format(*_LETTER_UNITS))
UNITS_VERL = _unit_patterns(_COMMON_UNITS.format(*[""] * len(_LETTER_UNITS)) + "|" + _SI_UNITS)


def drop_units(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    """Remove every unit that stands by itself, twice over, but never the whole answer."""
    for _ in range(2):
        for pattern in patterns:
            text = pattern.sub(r"\1\2", text) or text
    return text


def drop_trailing_text(text: str) -> str:
    r"""Remove from the first ``\text{`` to a final brace, unless nothing would be left."""
    return re.sub(r"\\text{.*?}$", "", text).strip() or text


def braced_fractions(text: str) -> str:
    r"""Return ``\frac{1}{2}`` for ``\frac12`` and ``\frac1{2}``; unchanged where an argument is missing."""
    first, *rest = text.split("\\frac")
    out = first
    for piece in rest:
        if piece.startswith("{"):
            out += "\\frac" + piece
        elif len(piece) < 2:
            return text
        elif piece[1] == "{":
            out += "\\frac{" + piece[0] + "}" + piece[1:]
        else:
            out += "\\frac{" + piece[0] + "}{" + piece[1] + "}" + piece[2:]
    return out


def slash_fraction(text: str, roots: bool = False) -> str:
    r"""Return ``\frac{a}{b}`` for ``a/b`` with plain integers a, b (with `roots`, ``sqrt`` is let through)."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    for part in parts:
        if not (roots and "sqrt" in part) and not re.fullmatch(r"-?(?:0|[1-9]\d*)", part):
            return text
    return f"\\frac{{{parts[0]}}}{{{parts[1]}}}"


def mathd(text: str, verl: bool) -> str:
    """Return the competition-math normal form; the verl version of EMPO drops units and unifies matrices too."""
    text = text.strip()
    inner = re.search(r"^\\text\{(.+?)\}$", text)
    if inner:
        text = inner.group(1).strip()
    try:
        return _mathd(text, verl)
    except (ValueError, IndexError):  # the official code returns the answer as it stood
        return text


def _right_side(text: str) -> str:
    """Return .5 as 0.5, and what follows a short name and an equals sign."""
    text = "0" + text if text.startswith(".") else text
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text


def _mathd(text: str, verl: bool) -> str:
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    if verl:
        text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text)
        text = re.sub(r"\\end\{array\}", r"\\end{pmatrix}", text).replace("bmatrix", "pmatrix")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    if verl:
        text = text.replace("\\neq", "\\ne").replace("\\leq", "\\le").replace("\\geq", "\\ge")
    text = text.replace("\\left", "").replace("\\right", "")
    if verl:
        text = drop_units(drop_trailing_text(text), UNITS_VERL)
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")  # two of them are an error, as in the official code
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = _right_side(text)
    if "\\sqrt" in text:
        first, *rest = text.split("\\sqrt")
        text = first + "".join("\\sqrt" + (r if r[0] == "{" else "{" + r[0] + "}" + r[1:]) for r in rest)
    if any(not piece for piece in text.replace(" ", "").split("\\frac")[1:]):
        raise ValueError("a fraction without arguments")
    text = braced_fractions(text.replace(" ", ""))
    return slash_fraction("\\frac{1}{2}" if text == "0.5" else text)


def ttrl_extract(response: str) -> str:
    """Return the answer that TTRL takes from a response; "" where it finds none."""
    text = response
    if "final answer is $" in text and "$. I hope" in text:
        found = text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    elif "boxed" in text:
        found = _after_boxed(text.split("boxed")[-1])
    elif "he answer is" in text:
        found = text.split("he answer is")[-1].strip()
    elif "final answer is" in text:
        found = text.split("final answer is")[-1].strip()
    else:
        numbers = re.findall(r"-?\d*\.?\d+", text[-MAX_COMPAT * 100 :].replace(",", ""))
        found = numbers[-1] if numbers else ""
    found = re.sub(r"\n\s*", "", found[: MAX_COMPAT * 2])
    found = found[1:] if found.startswith(":") else found
    found = found[:-1] if found.endswith(".") else found
    found = found[:-1] if found.endswith("/") else found
    return ttrl_strip(found[:MAX_COMPAT])


def _after_boxed(rest: str) -> str:
    """Return the braced group that follows, to the end of the text where it never closes."""
    if not rest:
        return ""
    if rest[0] != "{":
        return rest.split("$")[0].strip()
    depth, out = 1, []
    for c in rest[1:]:
        depth += (c == "{") - (c == "}")
        if depth == 0:
            break
        out.append(c)
    return "".join(out)


_ASSIGNED = ("x=", "y=", "z=", "x\\in", "y\\in", "z\\in", "x\\to", "y\\to", "z\\to")


def ttrl_strip(text: str) -> str:
    """Return the string by which TTRL counts votes."""
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text)
    text = re.sub(r"\\end\{array\}", r"\\end{pmatrix}", text).replace("bmatrix", "pmatrix")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    text = text.replace("\\neq", "\\ne").replace("\\leq", "\\le").replace("\\geq", "\\ge")
    text = text.replace("\\left", "").replace("\\right", "").replace("\\{", "{").replace("\\}", "}")
    text = drop_units(drop_trailing_text(text), UNITS_TTRL)
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("$", "")
    text = text.replace("\\(", "").replace("\\)", "")
    text = number_words(text)
    text = re.sub(r"\\text\{(.*?)\}", r"\1", text)
    for name in _ASSIGNED:
        text = text.replace(name, "")
    text = text.replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}")
    text = text.replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = text.replace("infinity", "\\infty")
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = text.replace("+\\inity", "\\infty").replace("and", "").replace("\\mathbf", "")
    text = re.sub(r"\\mbox{.*?}", "", text).replace("'", "").replace('"', "")
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0*([^\d])", r"\1\2", text)
    text = re.sub(r"(\d+)\.0*$", r"\1", text)
    text = _right_side(text)
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    return slash_fraction(braced_fractions(text), roots=True)


_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {
    **{word: value for value, word in enumerate(_UNITS.split())},
    **{word: 20 + 10 * k for k, word in enumerate(_TENS.split())},
}


def number_words(text: str) -> str:
    """Return digits for an answer that names a number in English, as far as "nine hundred ninety nine"."""
    words = re.findall(r"[a-z]+", text.lower().replace("-", " "))
    if text.strip()[:1].isdigit() or not any(word in _NUMBERS or word == "hundred" for word in words):
        return text
    total = 0
    for word in words:
        if word in _NUMBERS:
            total += _NUMBERS[word]
        elif word == "hundred":
            total = max(total, 1) * 100
    return str(total)
