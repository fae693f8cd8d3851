r"""Find the final answer in a response: a string, or ``None`` where there is none.

Only the final part of a response is searched: its last assistant turn, what follows the end of its thinking. The ways
are tried in the order given; the first that finds something decides. Every scan is linear in the length of the text,
because the text is whatever a model wrote.
"""

import re
from collections import deque
from collections.abc import Sequence

from autotelic.errors import UserError

METHODS = ("boxed", "answer_tag", "hashes", "phrase", "choice", "last_number")
"""Every way to find an answer, in the default order."""

MAX_TEXT = 200_000
"""Characters read, from the end of the text: the final answer is at the end."""

_TURN = re.compile(
    r"<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<\|assistant\|>|\[/INST\]"
    r"|<start_of_turn>model|<\|channel\|>final<\|message\|>|assistantfinal|(?:^|\n)(?:#+ ?)?Assistant:"
)
_THOUGHT = re.compile(
    r"<(/?)(?:think|thinking|thought|thoughts|reasoning|scratchpad)>|<\|(begin|end)_of_thought\|>|◁(/?)think▷", re.I
)
_MARKS = re.compile(
    r"<\|[^<>|]{1,40}\|>|</?s>|<(?:eos|bos|pad|unk)>|<end_of_turn>|\[(?:EOS|PAD|DONE|END)\]|\[/?INST\]|<<[^<>]{0,80}>>"
)
_TURN_ENDS = re.compile(
    r"<(?:\|(?:endoftext|im_end|eot_id|end_of_text|return)\||/s|eos|end_of_turn|｜end▁of▁sentence｜)>"
)
_TAG = re.compile(r"[<\[](/?)(?:final_?answer|answer|solution)[>\]]", re.I)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=[{0-9A-Za-z\\])")
_TOGETHER = re.compile(
    r"[\s$,;&\\()\[\]]*(?:(?:and|or|\\text\{ ?(?:and|or) ?\}|\\q?quad)[\s$,\\()\[\]]*){0,2}"
    r"(?:[A-Za-z](?:_\{?\d\}?)?\s*=\s*)?"
)
_IS = r"(?:\s+(?:is|are|was|(?:would|should|must|will)\s+be|becomes|comes\s+out\s+to(?:\s+be)?|equals)\b|\s*[:=→])"
_PHRASE = re.compile(
    rf"(?:\b(?:final|correct|right)?\s*answers?[*_]*{_IS}|\b(?:final|correct)\s+answer[*_:]*\s*\n"
    rf"|\b(?:result|correct\s+(?:choice|option)|best\s+(?:choice|option)|solutions?)[*_]*{_IS}"
    r"|答案(?:是|为|选|：|:)|正确选项(?:是|为|：|:)|正解(?:は|：|:)|(?:故|应|因此|所以)选|\brespuesta(?:\s+final)?(?:\s+es\b|\s*:)|\bAntwort(?:\s+ist\b|\s*:)|\bréponse(?:\s+est\b|\s*:)"
    r"|\bОтвет\s*:|\bresposta(?:\s+é\b|\s*:)|\brisposta(?:\s+è\b|\s*:))[*_]*\s*[:：=→]?",
    re.I,
)
_RUN_ON = re.compile(r"\n\s*(?:Question|Q|Problem|User|Human|Instruction)\s*\d*\s*:")
_LEAD = re.compile(
    r"\s*(?:(?:thus|hence|then|therefore|so|indeed|simply|just|clearly|now|approximately|approx\.|about|around|roughly"
    r"|exactly|given\s+by|equal\s+to|as\s+follows|the\s+following|found\s+to\s+be|known\s+to\s+be|that|both|either|option|choice"
    r"|answer\s+choice|letter|I\s+(?:think|believe|guess)|it\s+is|it\s+must\s+be|it's)\b\s*[:,]?"
    r"|not\s+[^,.;\n]{1,40}[,;]\s*(?:but|it\s+is|it's|rather)\b|[:=→>*_`\"'\s]+)",
    re.I,
)
_FORMULA = re.compile(
    r"\$\$([^$]{1,1000})\$\$|\$([^$\n]{1,1000})\$(?!\d)"
    r"|\\\(((?:(?!\\\)).){1,1000})\\\)|\\\[((?:(?!\\\]).){1,1000})\\\]",
    re.S,
)
_NEXT_FORMULA = re.compile(r"\s*(?:,|;|and|or|,\s*and)\s*(?=\$|\\\()")
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}\s+[A-Za-z]{2,}|(?:^|\s)(?:and|or|then|for|each)\s")
_VARIABLE = re.compile(r"\b(?:for|all|any|every|each|of|where|real|in)\s*(?:\$|\\\()\s*[A-Za-z]\s*(?:\$|\\\))$")
_CONDITION = re.compile(
    r"(?<=[\d$)])\s*,?\s*(?:for\s+(?:all|any|every|each)|where)\s*(?:\$[^$\n]{1,80}\$|\\\((?:(?!\\\)).){1,80}\\\))"
)
_TAIL = re.compile(
    r"\n|[.!?](?=\s|$)|;|</|,?\s+(?:because|since|which|where|not|as|so|but|hence|therefore|i\.e\.)\b|,\s+(?:not|which|so)\b"
    r"|\s+\((?=[A-Za-z])(?![A-Z]\))"
)
_STOPS = ".,;:。，；：\n"
_CHOICE = re.compile(
    r"\b(?:option|choice)(?:\s+is)?\s*[:=]?\s*\(?([A-Ja-j])\)?(?![A-Za-z0-9])|\bI\s+(?:choose|pick|select)\s+\(?([A-J])\b"
    r"|(?<![A-Za-z])\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:(?:correct|right|best)(?:\s+(?:answer|choice|option|one))?|answer)\b"
    r"|\((?=[A-J]\)[.*\s]*$)([A-J])\)|\b(?:therefore|thus|hence|so),?\s+([A-J])[.\s]*$",
    re.I,
)
_STATED_CHOICE = re.compile(r"(?:^|\n)[*_ ]*(?:final )?answer[*_ ]*:[*_ ]*\(?[A-J]\)?[*_ .]*\Z", re.I)
_BARE_CHOICE = re.compile(r"(?:^|\n)\s*\**\(?([A-J])\)?[.)]?\**\s*$|\A\s*\**\(?(?!A\s*:)([A-J])\)?\**\s*[:.)][^\n]*\Z")
_INTEGER = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])|\d+)(?:\.\d+)?"
_SIGNED = rf"[-−]?{_INTEGER}(?:/\d+)?"
_NUMBER = re.compile(
    rf"(?=[\d√π.])(?<![\d.])(?:\d+ \d+/\d+"
    rf"|(?:{_INTEGER}\s?)?(?:√\s?(?:\d+|\(\d+\))|π)(?:/\d+)?"
    rf"|{_INTEGER}\s?[x×]\s?10(?:\^\{{?[-−]?\d+\}}?|[⁻⁰¹²³⁴-⁹]+)"
    rf"|\d{{1,2}}(?::\d\d)?\s?[apAP]\.?[mM]\b"
    rf"|{_INTEGER}(?:[⁻⁰¹²³⁴-⁹]+|[eE][+-]?\d+|\^\{{?-?\d+\}}?|/\d+(?!\d|\.\d)|:\d+| : \d+)?)"
    r"(?: ?\\?%| percent\b| \(mod \d+\))?|(?<![\d.])\.\d+"
)
_TUPLE = rf"[(\[]\s*(?:{_SIGNED}|[-−]?∞)(?:\s*,\s*(?:{_SIGNED}|[-−+]?∞))+\s*[)\]]"
_ROOTS = rf"\b([a-z])\s*=\s*{_SIGNED}(?:\s*(?:,|,?\s+(?:or|and))\s*\1\s*=\s*{_SIGNED})+"
_PLAIN = re.compile(rf"(?<![\w)\]]){_TUPLE}|{_ROOTS}|\b[a-z]\s*[≤≥<>]\s*{_SIGNED}")
"""Pairs, solutions of one letter and bounds, in plain text."""
_ABOUT = re.compile(rf"(?<=[\d$)}}])\s*,?\s*(?:\bor\s+)?(?:about|approximately|roughly)\s+\$?{_INTEGER}(?:\s?\\?%)?\$?")
_LATEX = re.compile(
    r"(?:-?\d*\s?)\\[dt]?frac\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}\s*\{(?:[^{}]|\{[^{}]*\})*\}|\d\d)|-?\d*\\sqrt\s*(?:\{[^{}]*\}|\d)"
)


def extract(text: str, *, methods: Sequence[str] = METHODS) -> str | None:
    r"""Return the final answer of a response.

    * ``boxed``: the last complete ``\boxed{...}`` (braces may nest); boxes that stand together are one list. A box
      before the last ``<answer>``, or before a last line "Answer: B", does not count;
    * ``answer_tag``: the last ``<answer>...</answer>``, or another tag of that meaning;
    * ``hashes``: what follows the last ``####`` on its line, unless it is a heading;
    * ``phrase``: what follows the last "the answer is", without the words around it;
    * ``choice``: "option B", or a last line that is one letter;
    * ``last_number``: the last formula or number. A ``-`` after a digit, a letter or a closing bracket is a minus sign
      of the chain (``19-5=14`` ends in 14), elsewhere it is a sign (``=-4`` ends in -4). Not tried when a ``\boxed{``
      was opened and never closed: the response was cut off before its answer ended.

    A response that was cut off while thinking, or that ends with its thinking, has no answer.

    Args:
        text: The response.
        methods: Names from `METHODS`, in the order in which to try them.

    Returns:
        The answer as written, without surrounding white space, or ``None``.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise UserError(f"unknown extraction methods {unknown}: the known ones are {list(METHODS)}")
    text = _final_part(text[-MAX_TEXT:])
    for name in methods:
        found = _FINDERS[name](text)
        if found is not None and (found := found.strip()):
            return found
    return None


def _final_part(text: str) -> str:
    """Return the last turn without its thinking and without marks of chat formats; "" while it still thinks."""
    if (turn := _last(_TURN, text)) is not None:
        text = text[turn.end() :]
    if (thought := _last(_THOUGHT, text)) is not None:
        ended = "/" in thought.group() or "end_of" in thought.group().lower()
        text = text[thought.end() :] if ended else ""
    if "<" in text and (ended := _TURN_ENDS.search(text, len(text) - len(text.lstrip()) + 1)) is not None:
        text = text[: ended.start()]
    text = _MARKS.sub(" ", text)
    if (next_question := _RUN_ON.search(text)) is not None:  # the model went on with a question of its own
        head = text[: next_question.start()]
        if "####" in head or _BOX.search(head) or _PHRASE.search(head):
            return head
    return text


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return the last match."""
    found = deque(pattern.finditer(text), maxlen=1)
    return found.pop() if found else None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete ``\boxed{...}``; one that is never closed is not an answer."""
    boxes = _boxes(text)
    return boxes[-1][2] if boxes else None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Return where each complete box begins and ends, and its content."""
    found, position = [], 0
    while (match := _BOX.search(text, position)) is not None:
        start = position = match.end()
        if text[start] != "{":
            bare = re.match(r"[^\s$.,;}]{1,100}", text[start:])
            if bare and not (match.group().endswith(("d", "x")) and text[start].isalpha()):  # \boxedsomething is no box
                found.append((match.start(), start + bare.end(), bare.group()))
            continue
        end = _closing_brace(text, start)
        if end is None:
            break  # nothing after an unclosed box can be outside it
        found.append((match.start(), end + 1, text[start + 1 : end]))
        position = end + 1
    return found


def _closing_brace(text: str, start: int) -> int | None:
    """Return the index of the brace that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def _boxed(text: str) -> str | None:
    """Return the last box, or the last boxes where they stand together."""
    boxes = _boxes(text)
    opened = max((tag.start() for tag in _TAG.finditer(text) if not tag.group(1)), default=-1)
    if not boxes or boxes[-1][0] < opened or ("nswer" in text and _STATED_CHOICE.search(text[boxes[-1][1] :])):
        return None
    together = [boxes[-1][2].strip()]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        if not _TOGETHER.fullmatch(text[before[1] : after[0]][:200]):
            break
        together.insert(0, before[2].strip())
    return ",".join(dict.fromkeys(together))


def _answer_tag(text: str) -> str | None:
    """Return what stands in the last pair of answer tags: its box, what it states, or all of it."""
    opened, found = None, None
    for match in _TAG.finditer(text):
        if not match.group(1):
            opened = match.end()
        elif opened is not None:
            found, opened = text[opened : match.start()], None
    if opened is not None and text[opened:].strip():
        found = text[opened:]  # cut off, or never closed
    if found is None:
        return None
    return _boxed(found) or _phrase(found) or _tidy(found)


def _hashes(text: str) -> str | None:
    """Return the rest of the line after the last ``####``, unless it is a heading with text below it."""
    for match in reversed(list(re.finditer(r"####+(?!#)([^\n]*)\n?", text))):
        line = match.group(1).strip(" \t#")
        if line and not (re.match(r"[*_]*[A-Za-z]{3}", line) and text[match.end() :].strip()):
            return _tidy(line)
        if line:
            return _phrase(line)
    return None


def _phrase(text: str) -> str | None:
    """Return what follows the last "the answer is": a formula in dollars, or the rest of the sentence."""
    last = _last(_PHRASE, text)
    if last is None:
        return None
    rest = text[last.end() : last.end() + 1200]
    while (lead := _LEAD.match(rest)) and lead.end():
        rest = rest[lead.end() :]
    found = []
    while formula := _FORMULA.match(rest):
        found.append(next(group for group in formula.groups() if group is not None).strip())
        rest = rest[formula.end() :]
        joint = _NEXT_FORMULA.match(rest)
        if joint is None:
            return ",".join(found)
        rest = rest[joint.end() :]
    if choices := re.match(r"\(?[A-J]\)?(?:(?:,| and|, and| &)\s\(?[A-J]\)?)+(?=[.;\s]*(?:\n|$))", rest):
        return choices.group()
    if choice := re.match(r"(?:\([A-J]\)|[A-J])(?=[.,;:*]|\)\s|\s+(?:because|since|as|and\s+it)\b|\s*$|\s*\n)", rest):
        return choice.group()
    if verdict := re.match(r"(?:yes|no|true|false)(?=,\s)", rest, re.I):
        return verdict.group()
    if rest.startswith("\\boxed{"):  # never closed, or it would have been found before
        return None
    if number := re.match(r"\$?-?\d[\d.,/]*%?(?=, (?!and |or )[a-z]+)", rest):
        return number.group()
    end = _TAIL.search(rest)
    return _tidy(rest[: end.start()] if end else rest)[:1000] or None


def _tidy(text: str) -> str:
    """Drop marks of emphasis and punctuation around an answer."""
    return text.strip().rstrip(_STOPS).strip("*_`\"' ").rstrip(_STOPS).strip()


def _choice(text: str) -> str | None:
    """Return the letter of "option B" or of a last line that is one letter."""
    chosen = _BARE_CHOICE.search(text if len(text) < 200 else "\n" + text[-200:]) or _last(_CHOICE, text)
    return next(group for group in chosen.groups() if group).upper() if chosen else None


def last_number(text: str) -> str | None:
    """Return the last number of a text, with its sign where the sign is not a subtraction."""
    last = _last(_NUMBER, text)
    return None if last is None else _sign(text, last.start()) + last.group()


def _sign(text: str, start: int) -> str:
    """Return the sign before a number: "is -4" has one; "x-4", "5 -4" and "(3)-4" have an operator."""
    start -= text[max(start - 1, 0) : start] in ("$", "€", "£")
    if start == 0 or text[start - 1] not in "-−":
        return ""
    before = text[max(start - 100, 0) : start - 1]
    end = before.rstrip()[-1:]
    operator = end.isdigit() or (end.isalpha() and before.rstrip() == before) or (end != "" and end in ")]}%!")
    return "" if operator else "-"


def _last_formula(text: str) -> str | None:
    """Return the last formula or number, unless the text ends inside a box that was never closed."""
    opened = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if opened >= 0 and _closing_brace(text, text.index("{", opened)) is None:
        return None
    text = re.sub(r"(?<!\\)\((?!mod )[^()]*[A-Za-z]{2}[^()]*\)[\s.!]*$", "", text[-2000:])
    for pattern, words in ((_ABOUT, ("about", "approximately", "roughly")), (_CONDITION, ("for ", "where"))):
        text = pattern.sub("", text) if any(word in text for word in words) else text
    number = _last(_NUMBER, text)
    formulas = [
        m for m in _FORMULA.finditer(text) if not (_PROSE.search(m.group()) or _VARIABLE.search(text[: m.end()]))
    ]
    plain = deque(_PLAIN.finditer(text, max(number.start() - 100, 0) if number else len(text)), maxlen=1)
    candidates = formulas[-1:] + list(plain) + [m for m in [_last(_LATEX, text)] if m is not None]
    for formula in candidates:
        if number is None or formula.end() >= number.end():
            inside = () if formula.re is _PLAIN else filter(None, formula.groups())
            return next(iter(inside), formula.group()).strip()
    return None if number is None else _sign(text, number.start()) + number.group()


_FINDERS = {
    "boxed": _boxed,
    "answer_tag": _answer_tag,
    "hashes": _hashes,
    "phrase": _phrase,
    "choice": _choice,
    "last_number": _last_formula,
}
