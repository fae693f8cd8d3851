r"""Find the final answer in a response: a string, or ``None`` where there is none.

The ways are tried in the order given; the first that finds something decides. Every scan is linear in the
length of the text, because the text is whatever a model wrote.
"""

import re
from collections import deque
from collections.abc import Sequence

from autotelic.errors import UserError

METHODS = ("boxed", "answer_tag", "hashes", "phrase", "choice", "last_number")
"""Every way to find an answer, in the default order."""

MAX_TEXT = 200_000
"""Characters read, from the end of the text: the final answer is at the end."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=[{0-9A-Za-z\\])")
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_PHRASE = re.compile(
    r"\b(?:final\s+answer|correct\s+answer|answer)(?:\s+is|\s*[:=]|\s+should\s+be|\s+must\s+be|\s+becomes)(?:\s*[:=])?",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"\b(?:option|choice)(?:\s+is)?\s*[:=]?\s*\(?([A-Ja-j])\)?(?![A-Za-z0-9])", re.IGNORECASE)
_BARE_CHOICE = re.compile(r"(?:^|\n)\s*\(?([A-J])\)?[.)]?\s*$")
_NUMBER = re.compile(r"(?<![\d.])(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:/\d+(?![\d.]))?|(?<![\d.])\.\d+")
_MATH = re.compile(
    r"\s*(?:\$\$?([^$]{1,1000})\$|\\\(((?:(?!\\\)).){1,1000})\\\)|\\\[((?:(?!\\\]).){1,1000})\\\])", re.S
)
_SENTENCE_END = re.compile(r"\n|[.;!?](?=\s|$)|[.;!?]?</")


def extract(text: str, *, methods: Sequence[str] = METHODS) -> str | None:
    r"""Return the final answer of a response.

    * ``boxed``: the last complete ``\boxed{...}`` (braces may nest);
    * ``answer_tag``: the last ``<answer>...</answer>``;
    * ``hashes``: what follows the last ``####`` on its line;
    * ``phrase``: what follows the last "the answer is" or "answer:";
    * ``choice``: "option B", or a last line that is one letter;
    * ``last_number``: the last number. A ``-`` after a digit, a letter or a closing bracket is a minus sign of the
      chain (``19-5=14`` ends in 14), elsewhere it is a sign (``=-4`` ends in -4). Not tried when a ``\boxed{`` was
      opened and never closed: the response was cut off before its answer ended.

    Args:
        text: The response.
        methods: Names from `METHODS`, in the order in which to try them.

    Returns:
        The answer as written, without surrounding white space, or ``None``.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise UserError(f"unknown extraction methods {unknown}: the known ones are {list(METHODS)}")
    text = text[-MAX_TEXT:]
    for name in methods:
        found = _FINDERS[name](text)
        if found is not None:
            found = found.strip()
            if found:
                return found
    return None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete ``\boxed{...}``; one that is never closed is not an answer."""
    found = None
    position = 0
    while (match := _BOX.search(text, position)) is not None:
        start = match.end()
        position = start
        if text[start] != "{":
            if match.group().endswith(("d", "x")) and text[start].isalpha():
                continue  # \boxedsomething is another command
            bare = re.match(r"[^\s$.,;}]{1,100}", text[start:])
            found = bare.group() if bare else found
            continue
        end = _closing_brace(text, start)
        if end is None:
            return found  # nothing after an unclosed box can be outside it
        found = text[start + 1 : end]
        position = end + 1
    return found


def _closing_brace(text: str, start: int) -> int | None:
    """Return the index of the brace that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, start):
        token = match.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def _answer_tag(text: str) -> str | None:
    """Return what stands between the last complete pair of answer tags (its box, if it holds one)."""
    opened, found = None, None
    for match in _TAG.finditer(text):
        if match.group()[1] != "/":
            opened = match.end()
        elif opened is not None:
            found, opened = text[opened : match.start()], None
    if found is None:
        return None
    return last_boxed(found) or found


def _hashes(text: str) -> str | None:
    """Return the rest of the line after the last ``####``."""
    at = text.rfind("####")
    if at < 0:
        return None
    lines = text[at:].lstrip("#").strip().splitlines()
    return lines[0] if lines else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return the last match."""
    return deque(pattern.finditer(text), maxlen=1).pop() if pattern.search(text) else None


def _phrase(text: str) -> str | None:
    """Return what follows the last "the answer is": a formula in dollars, or the rest of the sentence."""
    last = _last(_PHRASE, text)
    if last is None:
        return None
    rest = text[last.end() : last.end() + 1200].lstrip(" \t:=*\n")
    formula = _MATH.match(rest)
    if formula:
        return next(group for group in formula.groups() if group is not None)
    end = _SENTENCE_END.search(rest)
    rest = rest[: end.start()] if end else rest
    return rest.strip().strip("*_`\"'").strip()[:1000]


def _choice(text: str) -> str | None:
    """Return the letter of "option B" or of a last line that is one letter."""
    last = _last(_CHOICE, text)
    bare = _BARE_CHOICE.search(text[-200:])
    chosen = bare or last
    return chosen.group(1).upper() if chosen else None


def last_number(text: str) -> str | None:
    """Return the last number of a text, with its sign where the sign is not a subtraction."""
    last = _last(_NUMBER, text)
    if last is None:
        return None
    start = last.start()
    if text[start - 1 : start] in ("-", "−") and start > 0:
        before = text[max(start - 100, 0) : start - 1]
        spaced = before.rstrip() != before  # "is -4" has a sign; "x-4" and "5 -4" have an operator
        end = before.rstrip()[-1:]
        if not (end.isdigit() or (end.isalpha() and not spaced) or (end and end in ")]}%!")):
            return "-" + last.group()
    return last.group()


def _last_number_unless_cut(text: str) -> str | None:
    """Return the last number, unless the text ends inside a box that was never closed."""
    opened = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if opened >= 0 and _closing_brace(text, text.index("{", opened)) is None:
        return None
    return last_number(text)


_FINDERS = {
    "boxed": last_boxed,
    "answer_tag": _answer_tag,
    "hashes": _hashes,
    "phrase": _phrase,
    "choice": _choice,
    "last_number": _last_number_unless_cut,
}
