r"""What an answer is: a value, words, a list, a tuple, an interval, assignments, a relation. No algebra.

Conventions: ``50\%`` is 1/2; ``x = 3`` and ``f(x) = 3`` are 3, and so is ``1+2=3``; a bare list and "or" are a set,
``(1,2)`` an ordered pair or an open interval; assignments to different names are a system, never their last one;
``\pm`` is a set of two; words are compared without case and articles; a choice letter decides over its text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from autotelic.answers.normalize import MAGNITUDES, MAX_ANSWER, normalize, squeezed
from autotelic.answers.units import PLAIN_LETTERS, UNITS, Remark, read_remark

MAX_DEPTH = 25
"""Nesting of brackets that is read; deeper ones are compared as text."""
MAX_SIGNS = 3
r"""``\pm`` in one answer that are written out."""


@dataclass(frozen=True)
class Node:
    r"""One part of an answer.

    Attributes:
        kind: "value" (LaTeX for the symbolic parser), "words", "choice", "opaque" (compared as text), "set", "tuple",
            "interval", "matrix", "union", "without" (set difference), "ratio", "system" (assignments), "named" (one),
            "equation", "relation" (an inequality or a chain of them), "builder" (a set by its condition).
        parts: The elements, in order.
        text: The LaTeX of a value, the words, the brackets of an interval or a set ("" for a bare list), the names of a
            system, the operators.
        remark: The unit of a value.
    """

    kind: str
    parts: tuple["Node", ...] = ()
    text: str = ""
    remark: Remark | None = None


def read(answer: str) -> Node | None:
    """Return what an answer is, ``None`` where there is nothing to read."""
    if len(answer) > MAX_ANSWER:
        return Node("opaque", text=" ".join(answer.split()))
    text = normalize(answer)
    return _read(text, 0) if text else None


_TOKEN = re.compile(r"\\text\{[^{}]*\}|\\[A-Za-z]+|\\.|.", re.S)
_OPEN = {"(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil", "\\begin"}
_CLOSE = {")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil", "\\end"}


def tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each token with its position and the depth of brackets around it."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in _CLOSE:
            depth -= 1
        yield token, match.start(), depth
        if token in _OPEN:
            depth += 1


def split(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
    """Split outside every bracket; return the pieces and the separators between them."""
    pieces, found, start = [], [], 0
    for token, position, depth in tokens(text):
        if depth == 0 and token in separators:
            pieces.append(text[start:position].strip())
            found.append(token)
            start = position + len(token)
    pieces.append(text[start:].strip())
    return pieces, found


def _wrapped(text: str, left: str, right: str) -> str | None:
    """Return what stands between two brackets that are the first and the last token of a text."""
    if not (text.startswith(left) and text.endswith(right)) or len(text) < len(left) + len(right):
        return None
    inside = [position for _, position, depth in tokens(text) if depth == 0]
    return text[len(left) : -len(right)].strip() if inside == [0, len(text) - len(right)] else None


_BEGIN, _END = r"[(\[|]?\s*(?:\\\{)?\s*\\begin\s*\{", r"\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1\}\s*(?:\\\}|[)\]|])?"
_LINES = re.compile(_BEGIN + r"(cases|array|matrix|aligned|align\*?|gathered|split)" + _END, re.S)
_MATRIX = re.compile(_BEGIN + r"([pbBvV]?matrix|smallmatrix|array)" + _END, re.S)
_BARE_ROWS = re.compile(r"\[\s*(\[[^\[\]()]*\](?:\s*,\s*\[[^\[\]()]*\])*)\s*\]")
_ABOUT = r"either|approx(?:imately)?|about|exactly|around|roughly|answer|the answer is|nearly"
_PREFIX = re.compile(rf"^(?:\\text\{{(?:{_ABOUT})\.?\}}\s*\.?|\\approx)\s*(?=\S)|^(?:[lL]|\\ell)\s*:(?=.*=)", re.I)
_FOR = r"for (?:all|any|every|each|some)|for|where|with|such that|provided(?: that)?|whenever"
_QUALIFIER = re.compile(
    rf"\s*,?\s*\\text\{{(?:{_FOR})\b[^{{}}]*\}}.*$|\s*\(\s*(?:\\text\{{(?!or\b)[^{{}}]{{2,}}\}}[^()]*|\\or\b[^()]*)\)$"
    r"|\s*[,(]\s*[kmn]\s*\\in\s*\\mathbb\s*\{[ZN]\}\s*(?:\^\{[^{}]*\})?\s*\)?$",
    re.S,
)
_CONNECTIVES = re.compile(r"\\text\{(?:when|so|if|then|thus|hence|therefore|while|where|which gives|giving)\}")
_OR = {"\\or", "\\lor", ";"}
_AND = {",", "&", "\\&", "\\and", "\\land", "\\quad", "\\\\", "\\Rightarrow"}
_RELATIONS = {"=", "<", ">", "\\leq", "\\geq", "\\neq", "\\approx", "\\in", "\\equiv"}


def _read(text: str, depth: int) -> Node:
    text = text.strip()
    while (inner := _wrapped(text, "{", "}")) is not None:
        text = inner
    if depth > MAX_DEPTH:
        return Node("opaque", text=squeezed(text))
    readers = (_labelled, _words, _matrix, _lines, _logic, _qualified, _excluded, _list, _relation, _set, _brackets)
    for reader in (*readers, _signs, _ratio):
        node = reader(text, depth + 1)
        if node is not None:
            return node
    return _value(text)


_LABEL = re.compile(r"(?:^|(?<=[\s,;}]))(?:\(\s*(?:\\text\{)?([a-jA-J]|i{1,3}|iv|v)\}?\s*\)|([A-J])\s*[:.)])")
_LABELS = ("abcdefghij", "ABCDEFGHIJ", ["i", "ii", "iii", "iv", "v"])


def _labelled(text: str, depth: int) -> Node | None:
    """Answers to the parts of a question: (a) 3 (b) 4."""
    labels = list(_LABEL.finditer(text))
    names = [label.group(1) or label.group(2) for label in labels]
    if len(labels) < 2 or labels[0].start() or not any(names == list(known[: len(names)]) for known in _LABELS):
        return None
    ends = [label.start() for label in labels[1:]] + [len(text)]
    pieces = [text[label.end() : end] for label, end in zip(labels, ends, strict=True)]
    pieces = [re.sub(r"(?:[\s,;]|\\quad|\\and(?![A-Za-z]))+$", "", piece).strip() for piece in pieces]
    return Node("system", tuple(_read(piece, depth) for piece in pieces), ",".join(names)) if all(pieces) else None


_BASED = re.compile(
    r"\(?\s*(?:\\text\{)?([0-9A-Fa-f]+)\}?\s*\)?\s*(?:_\s*\{\s*\(?\s*|\\text\{base\}\s*)(\d+|\\text\{\w+\})\s*\)?\s*\}?"
)
_CHOICE = re.compile(
    r"(?:\\text\{(?i:option|choice|answer)\}\s*)?\(\s*(?:\\text\{)?(?P<round>[A-Za-z])\}?\s*\)(?P<after>.*)"
    r"|(?P<mark>[A-Z])\s*(?:\)|:(?!.*=))(?P<then>.*)"
    r"|\\text\{(?i:option|choice) ?\}?\s*(?P<named>[A-Za-z])\}?"
    r"|(?P<dot>[A-Z])\s*\.\s*\\text.*|(?P<point>[A-J])\.\s+\S.*",
    re.S,
)
_CONTINUES = re.compile(r"[A-Z]\s*[=:]|[\^_!+\-*/=<>,(]|\\(?:cdot|and|or|cup|leq|geq|in)(?![A-Za-z])")
_CURRENCIES = {"Rs": "rupee", "US": "dollar", "USD": "dollar", "EUR": "euro", "GBP": "pound"}
_CURRENCY = re.compile(r"\\text\{(USD|Rs|US|EUR|GBP)\.?\}\s*\.?\s*(?:\\dollar\s*)?(\d.*)")


def _words(text: str, depth: int) -> Node | None:
    """Words, choice letters, dates, clocks and numbers in a base: what is compared as text."""
    if re.fullmatch(r"\\text\{(?:the set of )?(?:all )?(?:real numbers|reals)\}", text):
        return Node("numbers", text="R")
    based = _BASED.fullmatch(text)
    if based and re.match(r"\d|[A-Fa-f]{2}", based.group(1)):
        return Node("words", text=f"{based.group(1).upper()} base {based.group(2)}")
    if measure := _measure(text):
        return Node("words", text=measure)
    if re.fullmatch(r"0[xX][0-9A-Fa-f]+|\d{4}-\d\d?-\d\d?", text):
        return Node("words", text=text.lower())
    if clock := re.fullmatch(r"(\d{1,2}\s*(?::\s*\d\d)?)\s*\\text\{([ap])m\}", text, re.I):
        return Node("words", text=re.sub(r"\s", "", clock.group(1) + clock.group(2)).lower())
    if (choice := _CHOICE.fullmatch(text)) and (letter := _chosen(**choice.groupdict(default=""))):
        return Node("choice", text=letter.upper())
    if re.fullmatch(r"\\text\{[A-Za-z]\}|[A-Za-z]", text):
        return Node("letter", text=text[-2] if text.startswith("\\") else text)
    rest = _PREFIX.sub("", text)
    if rest.startswith("\\text{") and not re.search(r"[=<>^]|\\(?:leq|geq|neq|in|frac|sqrt|approx)\b", rest):
        if rest != text and not rest.startswith("\\text{"):
            return None
        pieces = [piece for piece in split(rest, {",", "\\and"})[0] if piece]
        if len(pieces) > 1 and not re.search(r"\d", rest):
            return Node("set", tuple(_read(piece, depth) for piece in pieces))
        if currency := _CURRENCY.fullmatch(rest):
            return _value(f"{currency.group(2)}\\text{{{_CURRENCIES[currency.group(1)]}}}")
        return Node("words", text=word_key(rest))
    return None


_MEASURES = re.compile(r"(?:\d[\d.]*\s*\\text\{\w+\}(?:[\s,]|\\and(?![A-Za-z]))*){2,3}")
_FAMILIES = [set(family.split()) for family in ("year month week day h min s", "mi yd ft in", "lb oz", "dollar cent")]
"""Units that make up one measure together."""


def _measure(text: str) -> str:
    """Return a measure in several units in one spelling, "" for anything else: 1 hour 30 minutes."""
    if not _MEASURES.fullmatch(text):
        return ""
    numbers = [(number, UNITS.get(unit, "")) for number, unit in re.findall(r"([\d.]+)\s*\\text\{(\w+)\}", text)]
    units = {unit for _, unit in numbers}
    return " ".join(" ".join(pair) for pair in numbers) if any(units <= family for family in _FAMILIES) else ""


def _chosen(after: str, then: str, **letters: str) -> str:
    """Return the letter of a choice, "" where it is a factor: (a)b, (x) + 1."""
    letter = next(letter for letter in letters.values() if letter)
    if _CONTINUES.match((after or then).lstrip()):
        return ""
    options = "ABCDEFGHIJ" if not after.startswith(" ") else "ABCDEFGHIJabcdefghij"
    return letter if not after or letter in options else ""


_PAIR = re.compile(r"\\?([\[({])(?=[^\[\](){}]*\d)([^\[\](){}]*,[^\[\](){}]*?)\\?([\])}])")
_KEPT = {"(": "open", ")": "open", "[": "closed", "]": "closed", "{": "set", "}": "set"}
"""Brackets around numbers mean something among words too: increasing on (0,1)."""


def word_key(text: str) -> str:
    """Return words as they are compared: lower case, without marks, spaces and a leading article."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).replace("\\and", " and ").replace("\\or", " or ").lower()
    plain = _PAIR.sub(lambda m: f" {_KEPT[m[1]]} {m[2]} {_KEPT[m[3]]} ", plain)
    plain = " ".join(re.sub(r"[^\w\s%.+\-*/\\^]", " ", plain).split()).rstrip(".")
    plain = re.sub(r"^(?:an? (?=\w{3})|the )", "", re.sub(r" ?- ?", "-", plain))
    return {"does not exist": "dne", "no solutions": "no solution", "no real solutions": "no real solution"}.get(
        plain, plain
    )


def _as_matrix(rows: re.Match[str]) -> str:
    """Return [[1,2],[3,4]] as a matrix of LaTeX."""
    cells = [row.replace(",", "&") for row in re.findall(r"\[([^\[\]]*)\]", rows.group(1))]
    return r"\begin{pmatrix}" + r" \\ ".join(cells) + r"\end{pmatrix}"


def _matrix(text: str, depth: int) -> Node | None:
    """A matrix: its rows, with its shape in the text; a determinant is not a matrix."""
    match = _MATRIX.fullmatch(_as_matrix(rows) if (rows := _BARE_ROWS.fullmatch(text)) else text)
    if (
        match is None
        or "\\begin" in match.group(2)
        or (match.group(1) in ("array", "matrix") and re.search(r"=|[<>]|\\[lg]eq", match.group(2)))
    ):
        return None
    if match.group(1) == "array" and text.startswith("\\begin"):
        return None
    rows = [row.split("&") for row in match.group(2).split("\\\\") if row.strip()]
    shape = ("det " if match.group(1) in ("vmatrix", "Vmatrix") or text[0] == "|" else "") + "x".join(
        str(len(row)) for row in rows
    )
    return Node("matrix", tuple(_read(cell, depth) for row in rows for cell in row), shape)


_ROW = re.compile(r"(?:[^=<>,\\]|\\(?![lgn]eq))*,(?=[^,]*(?:[=<>]|\\[lgn]eq))[^,]*")
"""A value and its condition without a sign between them: 1, n = 1."""


def _lines(text: str, depth: int) -> Node | None:
    """Equations on lines of their own: a list of them."""
    match = _LINES.fullmatch(text)
    if match is None:
        return None
    body = match.group(2)
    if "\\begin" in body:
        return Node("opaque", text=squeezed(text))
    rows = [row.strip(" ,;.") for row in body.split("\\\\") if row.strip()]
    if match.group(1) == "cases" and (
        re.search(r"&|\\text\{(?:if|when|for|otherwise)", body) or all(_ROW.fullmatch(row) for row in rows)
    ):
        rows = [re.split(r"\s*,?\s*&\s*|\s*,?\s*(?=\\text)|\s*,\s*(?=[^,]*$)", row, maxsplit=1) for row in rows]
        conditions = (re.sub(r"^\\text\{(?:if|when|for)\}|&", "", row[1]) if len(row) > 1 else "" for row in rows)
        pairs = zip(rows, conditions, strict=True)
        return Node("cases", tuple(Node("tuple", (_read(row[0], depth), _read(when, depth))) for row, when in pairs))
    pieces = [piece.replace("&", "").strip(" ,;") for piece in body.split("\\\\")]
    return _read(" , ".join(piece for piece in pieces if piece), depth)


_PROPOSITION = re.compile(r"(?:[A-Za-z()\s]|\\(?:neg|land|lor|Rightarrow|Leftrightarrow)(?![A-Za-z]))+")


def _logic(text: str, depth: int) -> Node | None:
    r"""A proposition, such as ``p \land q``."""
    if not _PROPOSITION.fullmatch(text) or not re.search(r"\\(?:land|lor|Rightarrow|Leftrightarrow)", text):
        return None
    return Node("opaque", text=_proposition(text, depth))


def _proposition(text: str, depth: int) -> str:
    """Return a proposition as it is compared: the parts of "and", "or" and "if and only if" in one order."""
    while (inner := _wrapped(text, "(", ")")) is not None:
        text = inner
    for sign in ("\\Leftrightarrow", "\\Rightarrow", "\\lor", "\\land") if depth <= MAX_DEPTH else ():
        pieces, found = split(text, {sign})
        if found:
            parts = [_proposition(piece, depth + 1) for piece in pieces]
            parts = parts if sign == "\\Rightarrow" else sorted(parts)
            return f"{sign}({', '.join(parts)})"
    return squeezed(text)


_CASE = re.compile(r"\\text\{(?:(?:for|if|when)\b(?! (?:all|any|every|each|some)\b)|otherwise|else)\b")


def _qualified(text: str, depth: int) -> Node | None:
    """Drop "approximately" before a value, and "for all x", "where x > 0" or a remark in brackets after it."""
    if len(_CASE.findall(text)) > 1 and "=" not in text:  # one value for each of several cases
        return Node("opaque", text=squeezed(text))
    shorter = _PREFIX.sub("", text)
    shorter = (
        _QUALIFIER.sub("", shorter)
        if not _CONNECTIVES.search(text) or "=" not in text.split("\\text", 1)[-1]
        else shorter
    )
    return _read(shorter, depth) if shorter and shorter != text else None


def _excluded(text: str, depth: int) -> Node | None:
    r"""Several numbers that a variable is not: ``x \neq \pm 1``."""
    match = re.fullmatch(r"[A-Za-z]\s*\\neq([^=<>]*)", text)
    values = None if match is None or re.search(r"\\(?:[lgn]eq|in)(?![A-Za-z])", match[1]) else _read(match[1], depth)
    return None if values is None or values.kind != "set" else Node("without", (Node("numbers", text="R"), values))


def _list(text: str, depth: int) -> Node | None:
    r"""A list, an alternative, several equations: a set, a system, or a set of systems."""
    if "=" in text:
        text = _CONNECTIVES.sub(" , ", text) if text.count("=") > 1 or "\\text{or}" in text else text
        bars = split(text, {"|"})[0]
        if len(bars) > 1 and all("=" in bar and not re.search(r"[(\[{]", bar) for bar in bars):
            text = " , ".join(bars)
    alternatives, found = split(text, _OR)
    if set(found) == {";"} and all(re.fullmatch(r"[^=,]+=[^=,]+", piece) for piece in alternatives):
        alternatives, found = [" , ".join(alternatives)], []
    alternatives = [piece for piece in alternatives if piece]
    if len(alternatives) > 1:
        inequalities = any(re.search(r"[<>]|\\(?:leq|geq)\b", piece) for piece in alternatives)
        if inequalities and ";" not in found:
            return Node("union", tuple(_read(piece, depth) for piece in alternatives))
        return _joined([_read(piece, depth) for piece in alternatives], either=True)
    text = alternatives[0] if alternatives else text
    pieces, found = split(text, _AND)
    if not found:
        return None
    if set(found) == {"\\quad"} and not all(re.search("[=<>]", p) or re.fullmatch(r"-?\d+", p) for p in pieces if p):
        pieces = [" ".join(pieces)]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) < 2:
        return _read(pieces[0], depth) if pieces else None
    bounds = all(re.search(r"[<>]|\\(?:leq|geq|neq)\b", piece) for piece in pieces)
    if bounds and ("," not in found or "\\neq" in text):
        return Node("intersection", tuple(_read(piece, depth) for piece in pieces))
    return _joined([_read(piece, depth) for piece in pieces], either=False)


def _joined(nodes: list[Node], either: bool) -> Node:
    """Join the members of a list."""
    if either and any(node.kind == "system" for node in nodes):
        return Node("set", tuple(nodes))
    named = [node for node in nodes if node.kind == "named"]
    names = [node.text for node in named]
    if len(named) == len(nodes) and len(set(names)) == len(nodes) and len(nodes) > 1:
        bases = {re.sub(r"_\{?\d+\}?$", "", name) for name in names}
        indices = sorted(re.sub(r"^.*_\{?(\d+)\}?$", r"\1", name) for name in names)
        if (
            len(bases) == 1 and bases <= set("krtxyz") and indices == [str(k + 1) for k in range(len(nodes))]
        ):  # x_1 = 2, x_2 = 3: the solutions
            return Node("set", tuple(node.parts[-1] for node in named))
        if either:
            return Node("opaque", text=" or ".join(sorted(f"{n.text}={n.parts}" for n in named)))
        order = sorted(range(len(nodes)), key=lambda k: names[k])
        return Node("system", tuple(named[k].parts[-1] for k in order), ",".join(names[k] for k in order))
    if named and len(set(names)) > 1:
        return Node("opaque", text="; ".join(sorted(map(repr, nodes))))
    parts = [node.parts[-1] if node.kind == "named" else node for node in nodes]
    flat = [inner for part in parts for inner in (part.parts if part.kind == "set" and not part.text else (part,))]
    return Node("set", tuple(flat))


_SUB = r"(?:_\{(?:[^{}]|\{[^{}]*\})*\}|'|\^\{-1\}|\^\{\\text\{\w+\}\})*"
_GREEK = "alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho|sigma|tau|psi|xi|eta|epsilon|Delta|Omega|Phi|Theta|ell"
_ATOM = rf"(?:\\(?:{_GREEK})\s?|[A-Za-z]){_SUB}"
_SUM = rf"{_ATOM}(?:\s*(?:\+|\\cdot|\\cross)?\s*{_ATOM}){{1,4}}"  # m+n, abc
_CONSTANTS = re.compile(rf"\\text\{{[^{{}}]*\}}|\\(?!(?:{_GREEK})(?![A-Za-z]))[A-Za-z]+|(?<![A-Za-z])[ei](?![A-Za-z])")
_NAMES = (
    rf"{_ATOM}|(?:[fghFGHPE]|\(\s*[fgh]\s*\\circ\s*[fgh]\s*\)){_SUB}\s*\((?:[^()]|\([^()]*\)){{1,40}}\)",  # x, P(X>3)
    rf"({_ATOM})\s*\((?!.*\1)[A-Z\d,.\\ a-z]{{1,30}}\)",  # s(t), but not x(x-1)
    r"[CAP]_\{\d+\}\^\{\d+\}|\\(?:max|min)(?![A-Za-z]).*",
    rf"\\text\{{[^{{}}]*\}}\s*(?:[a-z]|[A-Z]{{0,4}}){_SUB}(?:\s*\(\s*[^()=]{{1,30}}\))?",  # Area, Var(X)
    r"\\(?:lim|int|sum|prod|det|dim|arg|deg|ker)(?![A-Za-z]).*|\\text\{(?:tr|rank|Re|Im)\}.*",
    r"[A-Z](?:\s*\\(?:cup|cap|setminus)\s*[A-Z])+|\|\s*[A-Z](?:\s*\\(?:cup|cap)\s*[A-Z])*\s*\|",  # A \cup B, |A|
    r"\[\s*[A-Z]{3,5}\s*\]",  # the area [ABC]
    r"\|\s*(?:[abuvwz]|\\(?:vec|overrightarrow)\{[^{}]*\})\s*\|",
    rf"\\frac\{{(?:{_ATOM}|[A-Z]{{2}})\}}\{{(?:{_ATOM}|[A-Z]{{2}})\}}",
    rf"\\(?:overline|vec|overrightarrow|overarc|widearc|arc|hat|bar|mathcal|widehat|tilde|dot)\s*\{{[^{{}}]*\}}{_SUB}",
    r"(?:m\s*)?\\(?:angle|triangle)\s*[A-Z\\a-z ]{1,10}",
    rf"\\(?:sin|cos|tan|cot)(?:\^\{{\d\}})?\s*(?:\\angle|\\frac|\\(?:{_GREEK})(?![A-Za-z])|[A-Z\d\s(){{}}+\-/])+",
    r"\|?\s*[A-Z](?:\s*'?[A-Z]'?){0,3}\s*\|?",  # AB, |AB|
    rf"(?:[A-Z]{{1,2}}|[a-z]){_SUB}(?:\s*:\s*(?:[A-Z]{{1,2}}|[a-z]){_SUB})+",  # A:B
    r"(?:\\mathbb\s*\{)?E\}?\s*\[[^\[\]=]{1,20}\]",  # E[X]
    r"\\vec\s*\{\w\}\s*\\(?:cdot|cross)\s*\\vec\s*\{\w\}",
    r"\\frac\{(?:d|\\partial)\s?(?:\^\{?\d\}?)?\s?[A-Za-z]?\}\{(?:d|\\partial)\s?[a-z](?:\^\{\d\})?\}",
    rf"\(\s*{_ATOM}(?:\s*,\s*{_ATOM})+\s*\)",  # (x, y)
    _SUM,
)
_NAME = re.compile("|".join(_NAMES))


def is_name(text: str) -> bool:
    """Return whether the left side of an equation only names what is asked for."""
    return len(text) <= 80 and _NAME.fullmatch(text.strip()) is not None


def _relation(text: str, depth: int) -> Node | None:
    """Equations and inequalities."""
    sides, operators = split(text, _RELATIONS)
    if not operators or not sides[-1]:
        return None
    if not sides[0]:
        return (
            _read(sides[-1], depth)
            if len(sides) == 2 and operators[0] in ("=", "\\approx", "\\in")
            else _relation_node(sides[1:], operators[1:], depth)
        )
    if operators == ["\\in"]:
        return _read(sides[1], depth) if is_name(sides[0]) else Node("opaque", text=squeezed(text))
    if "\\in" in operators or "\\equiv" in operators or not all(sides):
        return Node("opaque", text=re.sub(r"\\bmod (\w+)$", r"\\pmod{\1}", squeezed(text)))
    if "\\approx" in operators and (operators[0] == "=" or not is_name(sides[0])):
        return _equality(sides[: operators.index("\\approx") + 1], depth)
    operators = ["=" if operator == "\\approx" else operator for operator in operators]
    if set(operators) == {"="}:
        return _equality(sides, depth)
    return _relation_node(sides, operators, depth)


def _relation_node(sides: list[str], operators: list[str], depth: int) -> Node | None:
    if not operators:
        return None
    if all(operator in (">", "\\geq") for operator in operators):
        flipped = {">": "<", "\\geq": "\\leq"}
        sides, operators = sides[::-1], [flipped[operator] for operator in operators[::-1]]
    return Node("relation", tuple(_read(side, depth) for side in sides), " ".join(operators))


def _equality(sides: list[str], depth: int) -> Node:
    """A named value, a chain that ends in a value, or an equation."""
    if len(sides) == 1:
        return _read(sides[0], depth)
    if is_name(sides[0]) and not (sides[-1] == "0" and re.fullmatch(_SUM, sides[0])):
        names = _wrapped(sides[0].strip(), "(", ")")
        value = _read(sides[-1], depth)
        if names is not None and value.kind == "tuple" and len(value.parts) == names.count(",") + 1:
            return Node("system", value.parts, "(" + ",".join(name.strip() for name in names.split(",")))
        return Node("named", (_value(sides[0]), value), squeezed(sides[0]))
    if is_name(sides[-1]) and len(sides) == 2:
        return Node("named", (_value(sides[-1]), _read(sides[0], depth)), squeezed(sides[-1]))
    if all(not re.search(r"[A-Za-z]", _CONSTANTS.sub("", side)) for side in sides):
        return _read(sides[-1], depth)  # numbers only: 3 + 4 = 7 is 7
    return Node("equation", tuple(_read(side, depth) for side in (sides[0], sides[-1])), squeezed("=".join(sides)))


def _set(text: str, depth: int) -> Node | None:
    """Unions, intersections and differences."""
    text = re.sub(r"(\\mathbb\s*\{[A-Z]\})\s*-\s*(?=\\\{)", r"\1 \\setminus ", text)
    for operator, kind in (("\\cup", "union"), ("\\cap", "intersection"), ("\\setminus", "without")):
        pieces, found = split(text, {operator})
        if found and all(pieces):
            return Node(kind, tuple(_read(piece, depth) for piece in pieces))
    real = re.fullmatch(r"\\mathbb\s*\{([A-Z])\}\s*(\^\{\s*[+-]\s*\})?", text)
    if real:
        return Node("numbers", text=real.group(1) + (re.sub(r"[^+-]", "", real.group(2) or "")))
    return Node("set", text="{}") if text.strip() == "\\emptyset" else None


def _brackets(text: str, depth: int) -> Node | None:
    """Braces, parentheses and brackets around a list."""
    if (inner := _wrapped(text, "\\{", "\\}")) is not None:
        condition = split(inner, {"|", ":"})[0]
        if len(condition) == 2 and all(condition) and re.search(r"[<>=]|\\(?:leq|geq|neq|in)\b", condition[1]):
            if re.fullmatch(r"[A-Za-z](?:\s*\\in\s*\\mathbb\s*\{R\})?", condition[0]):
                return _read(condition[1], depth)
            return Node("opaque", text=squeezed(text))
        if inner.strip() == "\\emptyset":
            return Node("opaque", text=squeezed(text))
        pieces = [piece for piece in split(inner, {",", ";"})[0] if piece]
        parts = tuple(_read(piece, depth) for piece in pieces)
        signs = (part.parts if part.kind == "set" and not part.text else (part,) for part in parts)
        return Node("set", tuple(member for members in signs for member in members), "{}")
    if "\\pm" in text and _wrapped(text, "(", ")") is not None:
        return _signs(text, depth)
    if (inner := _wrapped(text, "\\langle", "\\rangle")) is not None:
        return Node("tuple", tuple(_read(piece, depth) for piece in split(inner, {","})[0]))
    french = re.fullmatch(r"([\[\]])([^\[\](){}]*[,;][^\[\](){}]*)([\[\]])", text)
    left, right = ("[" if text[:1] in "[" else "(", "]" if text[-1:] == "]" else ")")
    if french and (french.group(1), french.group(3)) != ("[", "]"):
        left, right, inner = (
            ("[" if french.group(1) == "[" else "("),
            ("]" if french.group(3) == "]" else ")"),
            french.group(2),
        )
    else:
        inner = next((found for a in "([" for b in ")]" if (found := _wrapped(text, a, b)) is not None), None)
    if inner is None:
        return None
    pieces = split(inner, {";"})[0]
    pieces = pieces if len(pieces) > 1 else split(inner, {","})[0]
    if len(pieces) < 2 or not all(pieces):
        return _read(inner, depth) if len(pieces) == 1 and inner and left + right in ("()", "[]") else None
    parts = tuple(_read(piece, depth) for piece in pieces)
    if len(parts) > 2 and left + right == "[]":
        return Node("set", parts, "[]")
    if len(parts) > 2 or left + right == "()":
        return Node("tuple", parts, left + right)
    return Node("interval", parts, left + right)


def _signs(text: str, depth: int) -> Node | None:
    r"""Write ``\pm`` out, upper signs together."""
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text) or len(re.findall(r"\\[pm][mp](?![A-Za-z])", text)) > MAX_SIGNS:
        return None
    upper = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", text))
    lower = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", text))
    return Node("set", (_read(upper, depth), _read(lower, depth)))


def _ratio(text: str, depth: int) -> Node | None:
    """Numbers with colons: a ratio, or a time."""
    pieces, found = split(text, {":"})
    if not found or not all(pieces):
        return None
    if any(re.fullmatch(r"0\d", piece) for piece in pieces):
        return Node("words", text=squeezed(text))
    return Node("ratio", tuple(_read(piece, depth) for piece in pieces))


_AFTER = re.compile(r"\\text\{|\\(?:dollar|euro|pound|yen|rupee|cent|Omega|degree)(?![A-Za-z])")


def _value(text: str) -> Node:
    """A value with its unit; a formula otherwise."""
    text = text.strip()
    front = re.match(r"([+-]?)\s*\\(dollar|euro|pound|yen|rupee|cent)\s*([+-]?)\s*(?=[\d\\])", text)
    if front:
        text = f"{front.group(1)}{front.group(3)}{text[front.end() :]} \\{front.group(2)} "
    value, remark = split_unit(text)
    magnitude = re.match(r"(.*?)\s*\\text\{(hundred|thousand|million|billion|trillion)s?\}$", value, re.I)
    if magnitude and magnitude.group(1):
        value = f"{magnitude.group(1)} \\cdot 10^{{{MAGNITUDES[magnitude.group(2).lower()]}}}"
    if re.search(r"\\to(?![A-Za-z])", value) and "\\lim" not in value:  # a reaction, an implication
        return Node("opaque", text=text.replace(" ", ""))
    if "\\text" in value:
        return Node("words", text=word_key(text))
    if remark is None and (marks := re.fullmatch(r"(.*\d)\s*''", value)):
        value, remark = marks.group(1), Remark((("in", 1),))
    return Node("value", text=value.strip(), remark=remark)


def split_unit(text: str) -> tuple[str, Remark | None]:
    """Return a value and the unit or remark after it."""
    trigonometry = re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])", text)
    for match in _AFTER.finditer(text):
        if trigonometry and match.group() == "\\degree":
            continue
        start = match.start()
        if start == 0 or text[:start].count("{") > text[:start].count("}"):
            continue
        head, tail = text[:start].strip(), text[start:]
        magnitude = re.match(r"\\text\{(hundred|thousand|million|billion|trillion)s? ?", tail, re.I)
        if magnitude:
            after = tail[magnitude.end() :]
            after = "\\text{" + after if not after.startswith("}") else after[1:].strip()
            return f"{head} \\text{{{magnitude.group(1)}}}", read_remark(after) if after else None
        remark = (
            read_remark(tail)
            if re.search(r"[\d)}%A-Za-z!|\]]$", head) and not re.search(r"\\(?:cdot|sin|cos|tan)$", head)
            else None
        )
        if remark is not None:
            return head.removesuffix("\\cdot").strip(), remark
        return text, None
    letter = re.fullmatch(
        r"(.*(?:[\d}]|\\pi)) ([A-Za-z]{1,2})( ?\^\{[23]\})?(?:\s*/\s*([A-Za-z]{1,2})( ?\^\{[23]\})?)?", text
    )
    plain = letter and re.fullmatch(r"-?[\d./]+(?: \\cdot 10\^\{-?\d+\})?", letter.group(1))
    if letter and (plain or re.fullmatch(r".*\\pi|-?\\frac\{\d+\}\{\d+\}", letter.group(1))):
        units = [u for u in (letter.group(2), letter.group(4)) if u]
        area = letter.group(3) or not letter.group(1).endswith("pi")
        single = PLAIN_LETTERS if plain else {"m"} if area else set()  # 2\pi h is a product
        if all((len(u) == 1 and u in single) or (len(u) == 2 and u in UNITS) for u in units):
            over = f"/\\text{{{units[1]}}}{letter.group(5) or ''}" if len(units) > 1 else ""
            return letter.group(1), read_remark(f"\\text{{{units[0]}}}{letter.group(3) or ''}{over}")
    return text, None
