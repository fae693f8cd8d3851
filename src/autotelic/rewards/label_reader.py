r"""Reads labels. Wherever a response is compared with a label, this module says which answers the label accepts.

| label as published | accepted answers |
| --- | --- |
| `2`, `0.5`, `\frac{1}{2}`, `Paris` | as it is |
| `$\frac{1}{2}$` | what the dollars hold |
| `He has 1+1=2 eggs\n#### 2` (GSM8K) | `2` |
| a solution that ends in `\boxed{...}` (MATH), or holds `<answer>...</answer>` | what the box holds |
| `The answer is 2.` | `2` |
| `["4", "four"]`, also as a text | each of them |
| `{"ground_truth": ...}` (verl), `{"value": ..., "aliases": [...]}` (TriviaQA) | what these hold |

None, a boolean, an empty text, and several sentences without a marked answer cannot be read: no answer is accepted, and
whoever asks says how many there are and which.
"""

import ast
import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autotelic.answers import equivalent, extract
from autotelic.errors import UserError

MARKED = ("boxed", "answer_tag", "hashes")
KEYS = ("ground_truth", "value", "aliases")
MAX_PLAIN = 200
"""Characters of a label that is an answer without any mark; what is longer is a solution."""


def read_label(label: Any, *, free_text: bool = False) -> tuple[str, ...]:
    """Return the accepted answers; none where the label cannot be read.

    Args:
        label: as it stands in a data set; see the table at the top of this module.
        free_text: answers are texts, compared by meaning: sentences without a mark are answers too.
    """
    if isinstance(label, Mapping):
        return _union((label[key] for key in KEYS if label.get(key) is not None), free_text)
    if hasattr(label, "tolist"):  # a number or an array of NumPy
        label = label.tolist()
    if isinstance(label, list | tuple | set):
        return _union(label, free_text)
    if label is None or isinstance(label, bool) or (isinstance(label, float) and not math.isfinite(label)):
        return ()
    if not isinstance(label, str | int | float):
        return ()
    text = str(label).strip()
    if re.fullmatch(r"""\[\s*(["']).*\1\s*\]""", text, re.S):  # a list that a table keeps as text
        with contextlib.suppress(ValueError, SyntaxError, RecursionError):
            return _union(ast.literal_eval(text), free_text)
    found = extract(text, methods=MARKED) or extract(text, methods=("phrase",))
    if found is None and (free_text or _is_plain(text)):
        found = text
    return (_without_dollars(found),) if found else ()


def is_right(answer: str | None, accepted: Sequence[str], equivalence: Any = None, question: str = "") -> bool:
    """Return whether an answer means the same as one of the accepted ones.

    Args:
        answer: of a response; None is wrong.
        accepted: what `read_label` returned.
        equivalence: of `autotelic.answers`; None is mathematics.
        question: what was asked, for equivalences that read it.
    """
    return any(equivalent(answer, gold, equivalence=equivalence, question=question) for gold in accepted)


def unread_labels(
    labels: Iterable[Any], *, free_text: bool = False, needed: bool = True
) -> tuple[list[int], str | None]:
    """Return the places of the labels that cannot be read, and a line that names them.

    Args:
        labels: of all rows.
        free_text: see `read_label`.
        needed: refuse labels of which none can be read.

    Raises:
        UserError: none of the labels can be read, and they are needed.
    """
    labels = list(labels)
    places = [place for place, label in enumerate(labels) if not read_label(label, free_text=free_text)]
    if not places:
        return [], None
    shown = ", ".join(str(place + 1) for place in places[:5]) + (", ..." if len(places) > 5 else "")
    text = " ".join(str(labels[places[0]]).split())
    first = text if len(text) <= 60 else text[:57] + "..."
    note = f"{len(places)} of {len(labels)} labels cannot be read (row {shown}; the first is {first!r})"
    if needed and len(places) == len(labels):
        raise UserError(
            f"{note}: give an answer, a solution that ends in \\boxed{{...}} or '#### ...', or a list of answers"
        )
    return places, note


def _union(labels: Iterable[Any], free_text: bool) -> tuple[str, ...]:
    """Return the accepted answers of several labels, each once."""
    return tuple(dict.fromkeys(answer for label in labels for answer in read_label(label, free_text=free_text)))


def _is_plain(text: str) -> bool:
    """Tell whether a text is an answer by itself: short, on one line, and no sentence that explains something."""
    if not text or "\n" in text or len(text) > MAX_PLAIN:
        return False
    return not (re.search(r"[.!?](\s|$)", text) and len(text.split()) > 4)


def _without_dollars(text: str) -> str:
    """Return what a pair of dollars holds, where the whole text stands in it."""
    text = text.strip()
    for mark in ("$$", "$"):
        inner = text[len(mark) : -len(mark)]
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and "$" not in inner:
            return inner.strip()
    return text
