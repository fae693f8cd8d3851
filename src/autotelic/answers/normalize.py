r"""Rewrite an answer's spelling, not its meaning, so that few forms are left to read.

Unicode, styling, spacing, delimiters and synonyms become plain LaTeX; words are marked as ``\text{...}``, "and" and
"or" as ``\and`` and ``\or``; arguments get their braces (``\frac12`` is ``\frac{1}{2}``); plain-text mathematics
becomes LaTeX (``sqrt(3)/2``). Every step is a linear pass over the text; nothing is evaluated.
"""

import html
import itertools
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from autotelic.answers.units import UNIT_LETTERS, UNITS, words

MAX_ANSWER = 2000
"""Characters of an answer that are read as mathematics; longer ones are compared as text."""
MAX_DEPTH = 40
"""Nesting of braces that is rewritten; deeper ones stay as they are."""

_RAISED = re.compile("[¹²³ʰ-ʸˠ-ˤᴬ-ᵡᶛ-ᶿ⁰-ⁿ]+")
_LOWERED = re.compile("[ᵢ-ᵪ₀-ₜⱼ]+")
_NAMES = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi
    psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"""
_GREEK = tuple(_NAMES.split())
_LETTERS = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
_SYMBOLS = {letter: f"\\{name} " for letter, name in zip(_LETTERS, _GREEK, strict=True)} | {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "÷": "/", "×": r" \cdot ", "·": r" \cdot ",
    "⋅": r" \cdot ", "∗": "*", "∞": r" \infty ", "≤": r" \leq ", "≥": r" \geq ", "⩽": r" \leq ", "⩾": r" \geq ",
    "∪": r" \cup ", "∩": r" \cap ", "∈": r" \in ", "±": r" \pm ", "∓": r" \mp ", "°": r"\degree ", "∅": r" \emptyset ",
    "≠": r" \neq ", "≈": r" \approx ", "’": "'", "‘": "'", "“": '"', "”": '"', "，": ",", "。": ".", "、": ",",
    "；": ";", "：": ":", "【": "(", "】": ")", "€": r"\euro ", "£": r"\pound ", "¥": r"\yen ", "₹": r"\rupee ",
    "¢": r"\cent ", "√": r"\sqrt ", "∛": r"\sqrt[3]", "或": r" \or ",
    "✓": "", "✔": "", "✅": "", "…": r"\ldots ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "∧": r" \land ", "∨": r" \lor ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "∖": r" \setminus ", "→": r" \to ", "⇒": r" \Rightarrow ", "元": r"\text{yuan}", "平方厘米": r"\text{cm}^2",
    "см": r"\text{cm}", "ϕ": r"\phi ", "≡": r"\equiv ", "△": r"\triangle ", "≦": r" \leq ", "≧": r" \geq ", "∶": ":",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∜": r"\sqrt[4]", "∑": r"\sum ",
    "∏": r"\prod ", "∫": r"\int ", "¬": r"\neg ", "∉": r"\notin ", "′": "'", "∥": r"\parallel ",
    "⊥": r"\perp ", "∠": r"\angle ",
}  # fmt: skip
FUNCTIONS = words(
    """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp sqrt max min gcd lcm det"""
)
_BARE = FUNCTIONS | frozenset(_GREEK) | {"frac", "binom"}
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac",
    "le": "leq", "ge": "geq", "leqslant": "leq",
    "geqslant": "geq", "times": "cdot", "ast": "cdot", "ne": "neq", "varnothing": "emptyset", "dbinom": "binom",
    "tbinom": "binom", "wedge": "land", "vee": "lor", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots",
    "lnot": "neg", "backslash": "setminus", "smallsetminus": "setminus", "tg": "tan", "ctg": "cot", "arctg": "arctan",
    "implies": "Rightarrow", "rightarrow": "to", "thickapprox": "approx", "varphi": "phi", "varepsilon": "epsilon",
    "iff": "Leftrightarrow", "lt": "<", "gt": ">", "lbrace": "{", "rbrace": "}", "lvert": "|", "rvert": "|",
    "vert": "|", "mid": "|", "lbrack": "[", "rbrack": "]", "div": "/", "colon": ":", "dollar": "dollar", "imath": "i",
    "circledR": "", "pounds": "pound", "sen": "sin", "cosec": "csc", "cotg": "cot", "arcctg": "arccot",
}  # fmt: skip
_DROPPED = words(
    """left right mleft mright middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle textstyle hfill
    scriptstyle limits nolimits rm bf it sf tt large Large LARGE huge small tiny normalsize thinspace medspace
    nobreak newline bfseries itshape boldmath par noindent centering allowbreak protect relax hline enspace enskip
    square Box blacksquare qed checkmark
    mathstrut dotfill hrulefill therefore because"""
)
_DROPPED_ARGUMENT = words("""hspace vspace phantom hphantom vphantom label tag color""")
_INLINE = words(
    """mathbf mathit boldsymbol bm underline fbox boxed framebox mathord mathop ensuremath textcolor colorbox
    mathnormal pmb bold cancel mathcal mathscr num"""
)
_WORDS = words(
    """text mbox textbf textit textrm textnormal textsf texttt textup hbox emph mathrm mathsf mathtt operatorname
    textsc"""
)
_SHORT_WORDS = words(
    """no on up is it in of to so do go he we us by my why try dry sky fly ok at as an am pm be not yes the for per any
    all one two six ten odd even left down year june july none both true out off new old man men day may cat dog
    red blue east west only full half most some base when then than more less over each also with from into mod"""
)
_COUNT = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty"""
_NUMBER_WORDS = {name: str(value) for value, name in enumerate(_COUNT.split())}
MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_COMMAND = re.compile(r"\\([A-Za-z]+)\*?|\\(.)", re.S)
_COMMA = r"(?:,|\{,\}|(?:,|\{,\})?\s*\\[,!;:]\s*|\\ )"
_THOUSANDS = re.compile(
    rf"(?<![\d.,_^{{])\d{{1,3}}(?:{_COMMA}\d{{3}}(?!\d))+|(?<![\d.,_^{{])\d{{1,3}}(?:[ _]\d{{3}})+(?![\d_])"
)
_PIECE = re.compile(r"\\text\{[^{}]*\}|\\(?:begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]+(?:[-'][A-Za-z]+)*")
_TEXTS = re.compile(r"\\text\{[^{}]*\}(?:\s*\\text\{[^{}]*\})+")
_LEAD = re.compile(
    r"^\\text\{(?:thus|so|hence|therefore)\}\s*,?\s*(?=\S)"
    r"|^\\text\{(?:(?:thus|so|hence|therefore) )?(?:the )?(?:final |correct )*(?:answers?|solutions?|results?)(?:"
    r"(?: (?:is|are))?\}\s*[:=]?\s*(?=\S)| (?:is|are)(?= )([^{}]*\}))",
    re.I,
)
"""What leads in an answer: "the answer is"."""
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?![\d.A-Za-z])")


_Rules = tuple[tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]


def _rules(*table: tuple[str, str, str | Callable[[re.Match[str]], str]]) -> _Rules:
    return tuple((sign, re.compile(pattern), better) for sign, pattern, better in table)


def _rewritten(text: str, rules: _Rules) -> str:
    """Apply each rule whose sign the text holds."""
    for sign, pattern, better in rules:
        if sign in text:
            text = pattern.sub(better, text)
    return text


_LETTER = r"(?:\{\s*\\?[A-Za-z]+\s*\}|[A-Za-z](?![A-Za-z]))"
_VECTOR = rf"(?:\\(?:vec|overrightarrow|mathbf|boldsymbol|bm|hat)\s*{_LETTER}|\\nabla)"

_FIRST = _rules(
    ("abs(", r"(?<![A-Za-z\\])abs\(([^()]*)\)", r"|\1|"),
    ("floor(", r"(?<![A-Za-z\\])floor\(([^()]*)\)", r"\\lfloor \1\\rfloor "),
    ("ceil(", r"(?<![A-Za-z\\])ceil\(([^()]*)\)", r"\\lceil \1\\rceil "),
    ("cbrt(", r"(?<![A-Za-z\\])cbrt\(([^()]*)\)", r"\\sqrt[3]{\1}"),
    ("kern", r"\\m?kern\s*-?[\d.]+\s*(?:mu|pt|em)", " "),
    ("\\\\", r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]", r"\\\\"),
    (".", r"(?<![\d.])\d{1,3}(?:\.\d{3}){2,}(?![\d.])", lambda m: m[0].replace(".", "")),
    ("'", r"(?<![\d.])\d{1,3}(?:'\d{3})+(?![\d.])", lambda m: m[0].replace("'", "")),
    ("\\not", r"\\not\s*(=|\\in(?![A-Za-z]))", lambda m: "\\neq " if m[1] == "=" else "\\notin "),
    ("^", r"\^\{?\\text\{(?:st|nd|rd|th)\}\}?|(?<=\d)\^\{(?:st|nd|rd|th)\}", ""),
    ("(", rf"(?<=[\d{{]) ?\((?:{'|'.join(_COUNT.split())})\)", ""),
    (
        "prime",
        r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)(?![A-Za-z]))",
        lambda m: "'" * (m[1] or m[2]).count("prime"),
    ),
    ("\\begin", r"\\(?:begin|end)\s*\{(?:equation|displaymath|math)\*?\}", " "),
    ("*}", r"(\\(?:begin|end)\s*\{[a-z]+)\*\}", r"\1}"),
    ("\\times", rf"({_VECTOR}\s*)\\times(?![A-Za-z])", r"\1\\cross "),
    ("\\SI", r"\\SI\s*\{([^{}]*)\}\s*\{([A-Za-z/^\d]+)\}", r"\1\\text{ \2}"),
    ("}_", r"(?<![A-Za-z}\]_^])\{([A-Za-z])\}(?=_)", r"\1"),
    ("\\", r"(?<!\\)\\[()\[\]]", " "),
    ("$", r"(?<!\\)\$", " "),
    ("~", "~", " "),
    ("\\%", r"\\%", "%"),
    ("\\$", r"\\\$", r"\\dollar "),
    ("\\\\%", r"\\\\%", "%"),
    ("...", r"\.\.\.", r"\\ldots "),
    ("", r"(?<=\d)(?:\{,\}|,?\\!\s?|,?\\,)(?=\d{3}(?!\d))", ""),
    ("{,}", r"\{,\}", ","),
    (".", r"(?<![A-Za-z])([aApP])\.\s?[mM](?:\.|(?![A-Za-z]))", r"\1m "),
    ("/", r"^\s*(?:\\text\{)?[nN]/[aA]\}?\s*$", r"\\text{n/a}"),
    ("\\|", r"\\\|", "|"),
    ("+", r"\+/-|(?:(?<=[=,])|^)\s*\+-", r"\\pm "),
    ("per", r"\bper[ -]cent\b", "percent"),
    ("答案", r"^\s*答案\s*(?:是|为|[:：])", ""),
)
_LAST = _rules(
    ("\\frac{", r"\\frac\{\s*(\\text\{[^{}]*\}[^{}]*)\}\{\s*(\\text\{[^{}]*\}[^{}]*)\}", r"\1/\2"),  # units
    ("\\mu", r"\\mu\s*\\text\{(?=[A-Za-z]\})", r"\\text{u"),
    ("\\Omega", r"(?<=\d) *(?:\\text\{)?([kM])\}? *\\Omega", r" \\text{\1ohm}"),
    ("}\\text", r"(_\{\d+\}\s*)\\text\{([A-Z][A-Za-z]{0,3})\}", r"\1\2"),  # chemical elements
    ("} \\text", r"(_\{\d+\}\s*)\\text\{([A-Z][A-Za-z]{0,3})\}", r"\1\2"),
    ("\\text", r"\\text\{([A-Z][A-Za-z]*)\}\s*(?=_\{|\^\{\d*[+-]\})", r"\1"),
    ("\\text{mod}", r"\(\s*\\text\{mod\}\s*([^()]*)\)", r"\\pmod{\1}"),
    ("\\text{mod}", r"\\text\{mod\}", r"\\bmod "),
    ("C_", r"(?<![A-Za-z\\])C_\{(\d+)\}\^\{(\d+)\}", r"\\binom{\1}{\2}"),
    ("C_", r"(?<![\w\\)}])(?:\{\s*\})?[_^]\{(\d+)\}\s*C_\{(\d+)\}", r"\\binom{\1}{\2}"),
    ("^", r"\^\s*\{\s*(?:\\circ|\\degree|o(?=\s*\}$))\s*\}", r"\\degree "),
)


@lru_cache(maxsize=65536)
def normalize(answer: str) -> str:
    r"""Return the answer in one LaTeX style, with its words in ``\text{...}``."""
    text = _plain(answer)
    text = _unstyled(text, 0)
    text = _numbers(text)
    text = _words_marked(text)
    text = text.replace("**", "^").replace("*", r" \cdot ").replace("<=", r" \leq ").replace(">=", r" \geq ")
    text = re.sub(r"(?<![\d)}])!=", r" \\neq ", text)
    text = _braced(text)
    text = _rewritten(text, _LAST)
    text = _TEXTS.sub(lambda m: r"\text{" + " ".join(re.findall(r"\{([^{}]*)\}", m.group())) + "}", text)
    text = _ends(_LEAD.sub(r"\1", re.sub(r"^\\text\{(?:negative|minus)\}\s*(?=\d)", "-", " ".join(text.split()))))
    return text if re.search(r"\w|[\[({]", text.replace("\\ldots", "")) else ""


def squeezed(text: str) -> str:
    """Return a normalised text without the spaces that mean nothing: equal results are one answer."""
    return re.sub(r"(?<![A-Za-z\d]) | (?![A-Za-z\d])", "", text).replace("{ ", "{")


def _plain(text: str) -> str:
    """Return ASCII without delimiters, marks of other formats and invisible characters."""
    if "&" in text and ";" in text and "\\begin" not in text:
        text = html.unescape(text)
    if "<" in text:
        text = re.sub(r"<su([pb])>([^<>]*)</su\1>", lambda m: f"{'^' if m[1] == 'p' else '_'}{{{m[2]}}}", text)
        text = re.sub(r"<\|[^<>|]{1,40}\|>|</?(?:br|b|i|p|strong|em)\s*/?>", " ", text)
    if not text.isascii():
        text = _ascii(text)
    text = "".join(c if c >= " " and c != "\x7f" else " " for c in text)
    text = _rewritten(text, _FIRST).strip().rstrip(".?").strip()
    while len(text) > 1 and text[0] == text[-1] and text[0] in "*_`\"'":
        text = text[1:-1].strip()
    return text


def _ascii(text: str) -> str:
    text = _RAISED.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m.group()) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + unicodedata.normalize("NFKC", m.group()) + "}", text)
    text = re.sub("(?<=\\d)º", "°", text)
    text = re.sub("[μµ](?=[mgsLlFAHCJVW](?![A-Za-z]))", "u", text)
    text = re.sub("√([0-9０-９]+)", r"\\sqrt{\1}", text)
    text = re.sub("(\\d)([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", r"\1 \2", text)
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = re.sub("(?<=[0-9０-９)}])\\s*[\u4e00-\u9fff]{1,4}\\s*$", _without_count, text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    for symbol in "−–°":  # compatibility forms of these
        text = text.replace(symbol, _SYMBOLS[symbol])
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc", "Co", "Cs", "Cn") or c in "\n\t")


def _without_count(match: re.Match[str]) -> str:
    """Drop a measure word after a number ("12个"), unless it multiplies."""
    return match.group() if re.search("[百千万亿分成折](?![克米瓦伏帕焦钟])", match.group()) else ""


def closing(text: str, start: int) -> int:
    """Return the index of the brace that closes the one at `start`, or -1."""
    depth, index = 0, start
    while index < len(text):
        c = text[index]
        if c == "\\":
            index += 1
        elif c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    return -1


def _argument(text: str, position: int) -> tuple[str, int]:
    """Return a command's argument in braces, and where it ends; nothing where there are no braces."""
    start = _after_spaces(text, position)
    end = closing(text, start) if text[start : start + 1] == "{" else -1
    return (text[start + 1 : end], end + 1) if end > 0 else ("", position)


def _unstyled(text: str, depth: int) -> str:
    r"""Drop what only changes the look, give every command one name, and mark the words of ``\text`` and its kin."""
    out, position = [], 0
    while (match := _COMMAND.search(text, position)) is not None:
        out.append(text[position : match.start()])
        position = match.end()
        name = match.group(1)
        if name is None:
            c = match.group(2)
            out.append("" if c == "!" else " " if c in ",;: \n>/" else " \\\\ " if c == "\\" else match.group())
        elif name in _DROPPED:
            if name in ("left", "right") and text[position : position + 1] == ".":
                position += 1
            out.append(" ")
        elif name in _DROPPED_ARGUMENT:
            _, position = _argument(text, position)
            out.append(" ")
        elif (name in _INLINE or name in _WORDS) and depth < MAX_DEPTH:
            if name in ("textcolor", "colorbox"):
                _, position = _argument(text, position)
            content, after = _argument(text, position)
            if after == position:
                out.append(" ")
                continue
            position = after
            content = f"\\{content} " if name == "operatorname" and content in _RENAMED else content
            out.append(_content(name, _unstyled(content, depth + 1)))
        elif name in ("quad", "qquad"):
            out.append(" \\quad ")
        elif (
            name in ("overline", "bar")
            and (repeat := re.match(r"\s*\{?(\d+)\}?", text[position:]))
            and re.search(r"\.\d*$", "".join(out))
        ):
            position += repeat.end()
            out.append(f"\\overline{{{repeat.group(1)}}}")
        else:
            out.append(_renamed(name))
    out.append(text[position:])
    return "".join(out)


def _content(name: str, inner: str) -> str:
    """Return what a command about the look of its argument leaves of it."""
    if name in _INLINE:
        return f"{{{inner}}}" if name not in ("fbox", "boxed", "framebox") and len(inner.strip()) > 1 else f" {inner} "
    return " " + _marked(inner, upright=name not in ("textbf", "textit")) + " "


def _renamed(name: str) -> str:
    """Return a command under its one name, or the character that it stands for."""
    name = _RENAMED.get(name, name)
    if name.isalpha() and name != "i":
        return f"\\{name} "
    return "\\" + name if name in ("{", "}") else f" {name} "


def _marked(text: str, upright: bool) -> str:
    r"""Return the content of ``\text{...}`` with its words marked, its mathematics not."""

    def mark(match: re.Match[str]) -> str:
        found = match.group()
        if found.startswith("\\"):
            return found
        if len(found) == 1:
            return f"\\text{{{found}}}" if upright and found in UNIT_LETTERS else found
        return _word(found)

    text = re.sub(r"\\mu\s*(?=[A-Za-z]$)", "u", re.sub(r"([kM])\\Omega\s*$", r"\1ohm", text))
    if "_" in text or ("^" in text and not set(re.findall(r"(?<![\\A-Za-z])[A-Za-z]+", text)) <= UNITS.keys()):
        return text
    return _PIECE.sub(mark, text)


def _word(word: str) -> str:
    lower = word.lower()
    if lower in ("and", "or"):
        return f" \\{lower} "
    if lower == "min":
        return r"\text{min}"
    if word in _BARE or lower in ("pi", "infinity"):
        return f"\\{'infty' if lower == 'infinity' else word if word in _BARE else lower} "
    if lower in ("percent", "percentage", "pct", "percents"):
        return "%"
    if lower in _NUMBER_WORDS:
        return f" {_NUMBER_WORDS[lower]} "
    return f"\\text{{{word}}}"


_LIKE_FUNCTIONS = {"sing", "tang", "logs", "pie", "pin", "pit", "sins"}


def _words_marked(text: str) -> str:
    r"""Mark the words that stand outside ``\text``; runs of letters that are products stay."""
    only_words = re.search(r"[\\^_=+*/<>|{}\[\]\d]", text) is None

    def mark(match: re.Match[str]) -> str:
        found = match.group()
        if found.startswith("\\") or len(found) == 1 or re.fullmatch(r"(?:[A-Za-z]{1,2}[-'])+[A-Za-z]{1,2}", found):
            return found
        lower = found.lower()
        before, after = text[: match.start()], text[match.end() : match.end() + 1]
        if lower == "min" and re.search(r"\d\s*$", before):
            return _word(found)
        if found in _BARE or lower in ("and", "or", "infinity", "inf", "oo", "pi", "percent", "percentage", "pct"):
            return "\\infty " if lower in ("inf", "oo") else _word(found)
        for name in ("sqrt", "pi", "cos", "sin", "tan", "ln", "log", "exp"):
            if found.startswith(name) and len(found) == len(name) + 1 and found not in _SHORT_WORDS | _LIKE_FUNCTIONS:
                return f"\\{name} {found[-1]}"
        return _word(found) if _reads_as_word(found, before, after, only_words) else found

    return _PIECE.sub(mark, text)


def _reads_as_word(found: str, before: str, after: str, only_words: bool) -> bool:
    """Return whether a run of letters is a word; else it is a product of variables.

    Args:
        found: the run.
        before: the text before it.
        after: the character after it.
        only_words: the text holds no mathematics.
    """
    lower = found.lower()
    if lower in _NUMBER_WORDS and only_words:
        return True
    if lower in ("am", "pm") and not before.rstrip()[-1:].isdigit():
        return False
    if lower in _SHORT_WORDS or re.search(r"[-'][A-Za-z]{3}|[A-Za-z]{3}[-']", found):
        return True
    loose = before[-1:] in ("", " ", "(", ",", "-", "}") or before[-1:].isdigit()
    free = loose and after in ("", " ", ")", ",", ".", ";", ":", "/", "?", "!", "-", "^")
    hour_times_pi = lower == "hr" and re.search(r"\\pi\s*$", before)
    measures = (found in UNITS or lower in UNITS) and not hour_times_pi
    if measures and free and re.search(r"[\d)}%iA-Za-z.]\s*(?:/\s*|\\cdot\s*)?$", before):
        return True
    if lower in MAGNITUDES or len(found) >= 5 or (lower in ("sq", "cu") and free):
        return True
    if only_words:
        if re.fullmatch("[IVX]{2,}", found) or (len(found) == 2 and found.istitle()):
            return True
        if len(found) > 2 and not _product(found):
            return True
    alone = free and before[-1:] in (" ", "") and after in ("", " ", ".", ",")
    return len(found) >= 3 and alone and not _product(found)


def _product(run: str) -> bool:
    """Return whether a run of letters is more likely a product of variables than a word: no vowel, or abc, xyz."""
    steps = {ord(b) - ord(a) for a, b in itertools.pairwise(run)}
    return len(run) <= 4 and (steps == {1} or steps == {-1} or not re.search("[aeiouAEIOU]", run))


def _numbers(text: str) -> str:
    """Return numbers in one form: no thousands separators, powers of ten written out, repeating decimals exact."""
    text = _THOUSANDS.sub(_joined, text).replace(",\\!", ",")
    text = re.sub(r"(?<=\d)\s*(?:[xX]|\\cdot|\*)\s*10\s*(?=\^|\*\*)", r" \\cdot 10", text)
    text = _SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
    text = re.sub(r"\^\{\+(\d)", r"^{\1", text)
    text = re.sub(
        r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar)\s*\{?(\d+)\}?|\\dot\s*\{?(\d)\}?|\((\d+)\))", _repeating, text
    )
    text = re.sub(r"(?<![\d.])(\d*)\.(\d*?)(\d{1,3}?)\3{2,}(?:\.\.\.|\\ldots)", _repeating, text)
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<![\d.\w}])(\d+) (\d+)/(\d+)(?![\d/.])", _mixed, text)
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])", "", text)
    return re.sub(r"(?<=\d)\.(?![\d.])(?=\s*(?:$|[^A-Za-z\s.]))", "", text)


def _joined(match: re.Match[str]) -> str:
    """Return 1,000 as 1000, except inside brackets, where a comma separates: (100,200) is a pair."""
    found = match.group()
    before = match.string[: match.start()]
    inside = sum(before.count(c) for c in "([") > sum(before.count(c) for c in ")]") or "\\{" in before
    return found if inside and "\\" not in found else re.sub(r"\D", "", found)


def _mixed(match: re.Match[str]) -> str:
    """Return 1 2/5 as a mixed number; 3 9/2 is none."""
    whole, top, bottom = match.groups()
    return f"{whole}\\frac{{{top}}}{{{bottom}}}" if int(top) < int(bottom) else match.group()


def _repeating(match: re.Match[str]) -> str:
    whole, plain, period = match.group(1) or "0", match.group(2), next(g for g in match.groups()[2:] if g)
    bottom = 10 ** len(plain) * (10 ** len(period) - 1)
    top = int(whole + plain + period) - int(whole + plain or "0")
    return f"\\frac{{{top}}}{{{bottom}}}"


_TAKES = dict.fromkeys(("sqrt", "pmod", "mathbb", "overline", "vec", "hat", "bar", "dot"), 1) | {"frac": 2, "binom": 2}


def _braced(text: str) -> str:
    r"""Give every argument of ``\frac``, ``\binom``, ``\sqrt``, ``^`` and ``_`` its braces, as LaTeX reads them."""
    text = re.sub(r"(?<![\\A-Za-z])\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}", _infix, text)
    text = re.sub(r"\\log\s*_(\d)(\d+)(?=\s*(?:$|[-+=,)]))", r"\\log_{\1}{\2}", text)
    return _inside(text, -1)


def _infix(match: re.Match[str]) -> str:
    return (
        f"\\{'frac' if match.group(2) == 'over' else 'binom'}{{{match.group(1).strip()}}}{{{match.group(3).strip()}}}"
    )


def _next(text: str, position: int, depth: int) -> tuple[str, int]:
    """Return the next token with its arguments in braces, and where it ends."""
    c = text[position]
    if c == "\\":
        return _command(text, position, depth)
    if c in "^_" and depth <= MAX_DEPTH:
        after = _after_spaces(text, position + 1)
        if text[after : after + 1] == "(" and (end := _parenthesis(text, after)) > 0:
            return f"{c}{{{_inside(text[after + 1 : end], depth)}}}", end + 1
        number = re.match(r"-?\d+" if c == "^" else r"\d+", text[after:])
        if number:
            return f"{c}{{{number.group()}}}", after + number.end()
        inner, after = _one(text, after, depth + 1)
        return f"{c}{{{inner}}}", after
    return c, position + 1


def _command(text: str, position: int, depth: int) -> tuple[str, int]:
    """Return a command with its arguments in braces, and where it ends."""
    match = _COMMAND.match(text, position)
    if match is None:
        return "", position + 1
    out, name, after = match.group(), match.group(1), match.end()
    if name == "text":
        end = closing(text, after)
        return (text[position : end + 1], end + 1) if end > 0 else ("", after)
    if name not in _TAKES or depth > MAX_DEPTH:
        return out + (" " if name else ""), after
    if name == "sqrt":
        option = re.match(r"\s*\[([^\[\]]*)\]", text[after : after + 50])
        out, after = (f"\\sqrt[{option.group(1)}]", after + option.end()) if option else (out, after)
        after = _after_spaces(text, after)
        if text[after : after + 1] == "(" and (end := _parenthesis(text, after)) > 0:
            return f"{out}{{{_inside(text[after + 1 : end], depth)}}}", end + 1
        if number := re.match(r"\d+", text[after:]):
            return f"{out}{{{number.group()}}}", after + number.end()
    for _ in range(_TAKES[name]):
        inner, after = _one(text, after, depth + 1)
        out += f"{{{inner}}}"
    return out, after


def _one(text: str, position: int, depth: int) -> tuple[str, int]:
    """Return one argument without its braces, and where it ends."""
    position = _after_spaces(text, position)
    if position >= len(text):
        return "", position
    if text[position] == "{":
        end = closing(text, position)
        return (_inside(text[position + 1 : end], depth), end + 1) if end > 0 else ("", len(text))
    if text[position] == "-":
        inner, after = _one(text, position + 1, depth)
        return "-" + inner, after
    return _next(text, position, depth)


def _inside(text: str, depth: int) -> str:
    out, position = [], 0
    while position < len(text):
        piece, position = _next(text, position, depth + 1)
        out.append(piece)
    return "".join(out)


def _after_spaces(text: str, position: int) -> int:
    while text[position : position + 1] == " ":
        position += 1
    return position


def _parenthesis(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return -1


def _ends(text: str) -> str:
    r"""Drop what only ends a sentence: ``42.``, ``42;``, ``42\text{.}``, ``42 \quad``."""
    while True:
        shorter = re.sub(r"(?:[\s.,;:]|\\quad|\\\\|\\ |(?<![\\_^}])\{\s*\})+$|^(?:[\s:,;]|\\quad|\\\\|\\ )+", "", text)
        if shorter == text:
            return text
        text = shorter
