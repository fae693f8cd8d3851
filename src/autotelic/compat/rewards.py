"""The reward vectors of the authors' code, quirks included: for parity tests and for reproducing their runs.

* ``empo_trl`` (QingyangZhang/EMPO, TRL version): answers are equal when their extracted strings are; the reward is the
  share of the group, 0 without an answer; the whole group gets 0 where the entropy is not below ln G, in floating
  point, so that groups of some sizes escape the threshold by rounding.
* ``empo_verl`` (the same, verl version): a pairwise grader with a tolerance of 0.2 %; each answer joins the first
  cluster whose first member it equals; an answer that cannot be found is its own cluster and earns 1 / G; no threshold.
* ``ttrl`` (PRIME-RL/TTRL): the most frequent extracted string is the label (the first seen wins ties, and the empty
  string can win); a response earns 1 where a grader finds its answer equal to that label.

Not reproduced: where the official verl grader calls Python's ``eval`` on answer text (an answer that contains "pi"
meets a different answer), `UnsafeQuirkError` is raised. Use `autotelic.rewards.EMPO` and `MajorityVote` for training.

Reference: commits c5eccd4 (EMPO) and 3e2cc93 (TTRL).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from autotelic.answers.extraction import last_boxed
from autotelic.compat.graders import UnsafeQuirkError, pool, ttrl_equal, verl_plain_equal
from autotelic.compat.texts import MAX_COMPAT, ttrl_extract
from autotelic.errors import UserError, one_of

__all__ = ["MODES", "UnsafeQuirkError", "rewards"]


def rewards(responses: Sequence[str], mode: str) -> list[float]:
    """Return the rewards that the authors' code gives to one group of responses.

    Args:
        responses: The texts of one group.
        mode: "empo_trl", "empo_verl" or "ttrl".

    Raises:
        UnsafeQuirkError: The authors' code would evaluate answer text as Python.
    """
    if mode not in MODES:
        raise UserError(f"unknown compatibility mode {mode!r}{one_of(mode, MODES)}")
    return MODES[mode](list(responses)) if responses else []


def _empo_trl(responses: list[str]) -> list[float]:
    """String equality, singletons for empty answers, and the threshold that rounding defeats."""
    import numpy as np

    leaves = [f"extract:{text[-20_000:]}" for text in responses]
    read = pool.request(leaves, [], mode="official")[0]
    answers = [_older_spelling(found or "", text) for found, text in zip(read, responses, strict=True)]
    ids: dict[object, int] = {}
    clusters = [ids.setdefault(answer.strip() or ("", i), len(ids)) for i, answer in enumerate(answers)]
    shares = np.bincount(clusters) / len(clusters)
    if not -(shares * np.log(shares)).sum() < math.log(len(clusters)):
        return [0.0] * len(clusters)
    return [float(shares[c]) if answer else 0.0 for c, answer in zip(clusters, answers, strict=True)]


def _older_spelling(found: str, response: str) -> str:
    r"""Undo two rewritings that math-verify has learnt since: plain units were kept, ``\text{...}`` unwrapped."""
    box = last_boxed(response)
    if box is not None and re.fullmatch(r"\s[A-Za-z ]+", box.strip()[len(found) :]) and box.strip().startswith(found):
        found = box.strip() if found else found
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", found)


def _empo_verl(responses: list[str]) -> list[float]:
    """Greedy clusters over a pairwise grader that is neither symmetric nor transitive."""
    answers = [_last_closed_box(text) for text in responses]
    equal = _verl_matrix(answers)
    firsts: list[int] = []
    labels = []
    for i, answer in enumerate(answers):
        label = next((c for c, j in enumerate(firsts) if answer and answers[j] and equal[j, i]), len(firsts))
        if label == len(firsts):
            firsts.append(i)
        labels.append(label)
    counts = Counter(labels)
    return [counts[label] / len(labels) for label in labels]


def _last_closed_box(text: str) -> str:
    r"""Return the last ``\boxed{...}`` that closes, "" without one."""
    return (last_boxed(text) or "")[:MAX_COMPAT]


def _verl_matrix(answers: list[str]) -> dict[tuple[int, int], bool]:
    """Grade every pair i < j as (given i, truth j); math-verify sees what the cheaper steps left unequal."""
    pairs = [(i, j) for i in range(len(answers)) for j in range(i + 1, len(answers)) if answers[i] and answers[j]]
    equal = {(i, j): verl_plain_equal(answers[i], answers[j]) for i, j in pairs}
    left = [pair for pair in pairs if not equal[pair]]
    index: dict[str, int] = {}
    asked = []
    for i, j in left:
        for one, two in {(answers[i], answers[j]), (answers[i].split("=")[-1], answers[j].split("=")[-1])}:
            asked.append(((i, j), (index.setdefault(one, len(index)), index.setdefault(two, len(index)))))
    if asked:
        verdicts = pool.request([f"value:{text}" for text in index], [q for _, q in asked], mode="official")[1]
        for (pair, _), verdict in zip(asked, verdicts, strict=True):
            equal[pair] = equal[pair] or verdict is True
    return equal


def _ttrl(responses: list[str]) -> list[float]:
    """A vote by string, then grading by equivalence."""
    answers = [ttrl_extract(text) for text in responses]
    label = Counter(answers).most_common(1)[0][0]
    return [float(ttrl_equal(answer, label)) for answer in answers]


MODES = {"empo_trl": _empo_trl, "empo_verl": _empo_verl, "ttrl": _ttrl}
