r"""Canonical form of an answer: enough to decide most pairs with no symbolic work and in microseconds.

A form is `exact` when two exact forms are equivalent if and only if their keys are equal: rational numbers, expressions
in the ring of `autotelic.answers.exact`, words, and tuples, sets, intervals and matrices of those. Other formulas
(``\sin x``, ``2^n``, ``\frac{x^2-1}{x-1}``) are `symbolic` leaves, for the worker processes.

Rules, in one place: ``50\% = 1/2``; units, currency and degree signs are dropped; ``x = 3`` is 3; a bare list
``1, 2`` is a set, ``(1, 2)`` an ordered pair or open interval; ``1 \pm \sqrt 2`` is a set of two; ``1\frac{1}{2}`` is a
mixed number; words are compared without case. Text that does not parse is compared as written, never evaluated.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from autotelic.answers.exact import NotExactError, Poly
from autotelic.answers.latex import MAX_DEPTH, FormulaError, parse_expression
from autotelic.answers.normalize import MAX_ANSWER, normalize, split_text, strip_plain_unit

COMPOSITES = ("tuple", "set", "interval", "matrix", "union", "system")


@dataclass(frozen=True)
class Canonical:
    """The canonical form of one answer.

    Attributes:
        kind: "number", "expression", "equation", "text", "symbolic", or one of `COMPOSITES`.
        key: Normal form as text; equal keys mean equivalent answers.
        exact: Whether unequal keys of two exact forms mean different answers.
        parts: The elements of a composite, in order (sets: sorted by key).
        latex: The normalised formula that a symbolic leaf sends to the workers.
    """

    kind: str
    key: str
    exact: bool
    parts: tuple["Canonical", ...] = ()
    latex: str = ""


def canonical(answer: str | None) -> Canonical | None:
    """Return the canonical form, or ``None`` where there is no answer (``None``, or nothing but space)."""
    return None if answer is None else _canonical(answer)


@lru_cache(maxsize=65536)
def _canonical(answer: str) -> Canonical | None:
    if len(answer) > MAX_ANSWER:
        return Canonical("text", "text:" + " ".join(answer.split()), True)
    text = normalize(answer)
    if not text or not any(c.isalnum() or c in "\\{[(" for c in text):
        return None
    try:
        return _parse(text, 0)
    except FormulaError:  # nested beyond any real answer
        return Canonical("text", "text:" + text, True)


_CONJUNCTION = re.compile(r"(?<=[\d)}\]])\s*,?\s+(?:and|or)\s+(?=[\d(\\.-])")


def _parse(text: str, depth: int) -> Canonical:
    """Return the form of normalised text."""
    if depth > MAX_DEPTH:
        raise FormulaError("too deep")
    text = _CONJUNCTION.sub(" , ", text)
    text = strip_plain_unit(split_text(text)).strip().rstrip(".").strip()
    while (inner := _unwrapped(text)) is not None:
        text = inner
    for reader in (_words, _matrix, _union, _list, _bracketed, _equation, _inequality, _plus_minus):
        form = reader(text, depth)
        if form is not None:
            return form
    return _leaf(text)


def _leaf(text: str) -> Canonical:
    """Return a number or an expression where it is exact, a symbolic leaf otherwise."""
    if not text:
        return Canonical("text", "text:", True)
    try:
        value = parse_expression(text)
    except NotExactError:
        return Canonical("symbolic", "symbolic:" + text.replace(" ", ""), False, latex=text)
    except FormulaError:
        return Canonical("text", "text:" + text.lower(), True)
    kind = "expression" if value.rational() is None else "number"
    return Canonical(kind, value.key(), True)


def _unwrapped(text: str) -> str | None:
    """Remove one pair of braces or boxes around the whole answer."""
    match = re.match(r"\\boxed\s*(?=\{)", text)
    inner = text[match.end() :] if match else text
    if inner.startswith("{") and _closes_at(inner, 0) == len(inner) - 1:
        return inner[1:-1].strip()
    return None


def _words(text: str, depth: int) -> Canonical | None:
    """Words, a choice letter in parentheses, a number in a base: compared as text."""
    choice = re.fullmatch(r"\(?\s*([A-Ja-j])\s*(?:\)|[.:]|\)[.:])", text) or re.fullmatch(r"\(\s*([A-J])\s*\)", text)
    if choice:
        return Canonical("expression", f"1*{choice.group(1)}", True)
    based = re.fullmatch(r"([0-9A-F]+)\s*_\s*\{?\s*(\d+)\s*\}?", text)
    if based:
        return Canonical("text", f"base:{based.group(1)}_{based.group(2)}", True)
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*([aApP])?\.?\s*[mM]?\.?", text)
    if clock:
        return Canonical("text", "text:" + text.lower().replace(" ", "").replace(".", ""), True)
    if re.search(r"[A-Za-z]{3}", text) and not re.search(r"[\\^=+*/<>(){}\[\]|]", text):
        return Canonical("text", "text:" + " ".join(re.sub(r"[^\w\s.%-]", " ", text.lower()).split()), True)
    if re.search(r"(?<![A-Za-z\\])[A-Za-z]{4}", text) and text.count(" ") >= 2 and "\\" not in text:
        return Canonical("text", "text:" + text.lower(), True)
    return None


_MATRIX = re.compile(
    r"[(\[]?\s*\\begin\s*\{\s*([pbBvV]?matrix|array|smallmatrix)\s*\}(?:\s*\{[lcr| ]*\})?"
    r"(.*?)\\end\s*\{\s*\1\s*\}\s*[)\]]?",
    re.S,
)


def _matrix(text: str, depth: int) -> Canonical | None:
    """A matrix environment: rows of forms, with its shape in the key."""
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match.group(2):
        return None
    rows = [row.split("&") for row in match.group(2).split("\\\\") if row.strip()]
    if not rows:
        return None
    parts = tuple(_parse(cell.strip(), depth + 1) for row in rows for cell in row)
    shape = "x".join(str(len(row)) for row in rows)
    return _composite("matrix", parts, f"{'det' if match.group(1) in ('vmatrix', 'Vmatrix') else ''}{shape}")


def _union(text: str, depth: int) -> Canonical | None:
    r"""``A \cup B``: a set of its parts."""
    text = re.sub(r"^[A-Za-z]\s*\\in\b\s*", "", text)
    pieces = _split_top(text, "\\cup")
    if len(pieces) < 2 or not all(pieces):
        return None
    return _composite("union", _unordered(tuple(_parse(piece, depth + 1) for piece in pieces)))


def _list(text: str, depth: int) -> Canonical | None:
    """A bare list is a set; assignments to different variables are a system."""
    text = re.sub(r",?\s(?:and|or)\s", " , ", text)
    pieces = _split_top(text, ",")
    if len(pieces) < 2:
        return None
    pieces = [piece for piece in pieces if piece]
    if not pieces:
        return None
    if len(pieces) == 1:
        return _parse(pieces[0], depth + 1)
    sides = [_split_top(piece, "=") for piece in pieces]
    names = [side[0].replace(" ", "") for side in sides]
    if all(len(side) == 2 and _is_name(side[0]) for side in sides) and len(set(names)) > 1:
        pairs = sorted(zip(names, sides, strict=True), key=lambda pair: pair[0])
        return _composite("system", tuple(_parse(s[1], depth + 1) for _, s in pairs), ",".join(n for n, _ in pairs))
    return _composite("set", _unordered(tuple(_parse(piece, depth + 1) for piece in pieces)))


def _bracketed(text: str, depth: int) -> Canonical | None:
    """Braces (sets), parentheses (tuples, open intervals), brackets (intervals); a single one in brackets is itself."""
    text = re.sub(r"^[A-Za-z]\s*\\in\b\s*", "", text)
    if text.startswith("\\{") and text.endswith("\\}") and _closes_at(text, 0) == len(text) - 2:
        inner = text[2:-2].strip()
        pieces = [piece for piece in _split_top(inner, ",") if piece]
        return _composite("set", _unordered(tuple(_parse(piece, depth + 1) for piece in pieces)))
    if text in ("\\emptyset", "\\emptyset "):
        return _composite("set", ())
    if not text or text[0] not in "([" or text[-1] not in ")]" or _closes_at(text, 0) != len(text) - 1:
        return None
    pieces = _split_top(text[1:-1], ",")
    if not all(pieces):
        return None
    if len(pieces) == 1:
        return _parse(pieces[0], depth + 1)
    parts = tuple(_parse(piece, depth + 1) for piece in pieces)
    if text[0] + text[-1] == "()":
        return _composite("tuple", parts)
    return _composite("interval", parts, text[0] + text[-1])


def _equation(text: str, depth: int) -> Canonical | None:
    """``x = 3`` and ``f(x) = 3`` are 3; any other equation is its difference of sides, up to a factor."""
    sides = _split_top(text, "=")
    if len(sides) < 2 or not all(sides) or re.search(r"[<>]|\\(?:leq|geq|neq)\b", text):
        return None
    if all(_is_name(side) for side in sides[:-1]) or len(sides) > 2:
        return _parse(sides[-1], depth + 1)
    if _is_name(sides[1]) and not _is_name(sides[0]) and re.fullmatch(r"-?[\d./ ]+|-?\\frac.*", sides[0]):
        return _parse(sides[0], depth + 1)
    try:
        difference = parse_expression(sides[0]) - parse_expression(sides[1])
        if not difference.terms:
            return Canonical("equation", "equation:0", True)
        leading = max(difference.terms)
        scaled = difference * Poly.number(1 / difference.terms[leading])
        return Canonical("equation", "equation:" + scaled.key(), True)
    except (NotExactError, FormulaError):
        return Canonical("symbolic", "symbolic:" + text.replace(" ", ""), False, latex=text)


_RELATION = re.compile(r"(\\leq|\\geq|\\neq|[<>]=?)")


def _inequality(text: str, depth: int) -> Canonical | None:
    r"""``x > 3`` and ``1 \leq x < 3`` are intervals; other relations are compared as they are written."""
    pieces = _RELATION.split(text)
    if len(pieces) not in (3, 5):
        return None
    pieces = [piece.strip() for piece in pieces]
    relations = [{"\\leq": "<=", "\\geq": ">="}.get(r, r) for r in pieces[1::2]]
    terms = pieces[0::2]
    if not all(terms) or any(r not in ("<", "<=", ">", ">=") for r in relations):
        return Canonical("symbolic", "symbolic:" + text.replace(" ", ""), False, latex=text)
    if all(r[0] == ">" for r in relations):
        terms, relations = terms[::-1], ["<" + r[1:] for r in relations[::-1]]
    elif any(r[0] == ">" for r in relations):
        return Canonical("text", "text:" + text, True)
    if len(terms) == 3 and _is_name(terms[1]):
        low, high = terms[0], terms[2]
        brackets = ("[" if relations[0] == "<=" else "(") + ("]" if relations[1] == "<=" else ")")
    elif len(terms) == 2 and _is_name(terms[0]):
        low, high, brackets = "-\\infty", terms[1], "(" + ("]" if relations[0] == "<=" else ")")
    elif len(terms) == 2 and _is_name(terms[1]):
        low, high, brackets = terms[0], "\\infty", ("[" if relations[0] == "<=" else "(") + ")"
    else:
        return Canonical("symbolic", "symbolic:" + text.replace(" ", ""), False, latex=text)
    parts = (_parse(low, depth + 1), _parse(high, depth + 1))
    return _composite("tuple", parts) if brackets == "()" else _composite("interval", parts, brackets)


def _plus_minus(text: str, depth: int) -> Canonical | None:
    r"""One ``\pm`` is a set of two."""
    if len(re.findall(r"\\pm\b", text)) != 1:
        return None
    both = [_parse(re.sub(r"\\pm\b", sign, text), depth + 1) for sign in ("+", "-")]
    return _composite("set", _unordered(tuple(both)))


def _composite(kind: str, parts: tuple[Canonical, ...], tag: str = "") -> Canonical:
    """Return the form of several parts; exact where every part is."""
    key = f"{kind}{tag}({'; '.join(part.key for part in parts)})"
    return Canonical(kind, key, all(part.exact for part in parts), parts)


def _unordered(parts: tuple[Canonical, ...]) -> tuple[Canonical, ...]:
    """Flatten nested sets, drop repetitions, and sort."""
    flat = [inner for part in parts for inner in (part.parts if part.kind == "set" else (part,))]
    return tuple(sorted({part.key: part for part in flat}.values(), key=lambda part: part.key))


def _is_name(text: str) -> bool:
    """Return whether text is a variable, ``f(x)``, a subscripted name, or words such as "area"."""
    text = text.replace(" ", "")
    if len(text) > 80:
        return False
    name = r"(?:\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?'*)"
    return re.fullmatch(rf"{name}(?:\({name}(?:,{name})*\))?", text) is not None or (
        re.fullmatch(rf"\\angle{name}?[A-Z0-9_{{}}]*|[A-Z]{{2,3}}", text) is not None
    )


def _closes_at(text: str, start: int) -> int:
    """Return the index at which the bracket at `start` closes (any bracket closes any: intervals), or -1."""
    depth = 0
    index = start
    while index < len(text):
        c = text[index]
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
            if depth == 0:
                return index - 1 if c == "}" and text[index - 1] == "\\" else index
        index += 1
    return -1


def _split_top(text: str, separator: str) -> list[str]:
    """Split at `separator` outside every bracket."""
    pieces, depth, start, index = [], 0, 0, 0
    if separator not in text:
        return [text.strip()]
    while index < len(text):
        c = text[index]
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(separator, index):
            pieces.append(text[start:index].strip())
            index += len(separator)
            start = index
            continue
        index += 1
    pieces.append(text[start:].strip())
    return pieces


def as_fraction(answer: str | None) -> Fraction | None:
    """Return the exact rational value of an answer that is a number, ``None`` for any other."""
    form = canonical(answer)
    return Fraction(form.key) if form is not None and form.kind == "number" else None
