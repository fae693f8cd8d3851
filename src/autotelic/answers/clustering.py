"""Partition the answers of one group by meaning.

The partition does not depend on the order of the answers: pairs are asked in sorted order of their strings, and every
linkage works on the whole relation. Answers that are ``None`` stay out (-1): they are no cluster and win no vote.
Equivalence that is not transitive, or not symmetric, is counted and reported instead of silently resolved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autotelic.answers.backends import JudgeEquivalence
from autotelic.answers.compare import Equivalence, FunctionEquivalence, MathEquivalence
from autotelic.answers.fast import plain
from autotelic.errors import UserError

LINKAGES = ("union_find", "greedy", "complete")


@dataclass(frozen=True)
class Clustering:
    """One group's partition and how it came about.

    Attributes:
        clusters: An integer per answer, numbered in order of first appearance; -1 where there is no answer.
        num_pairs: Pairs that the equivalence was asked about.
        num_undecided: Pairs on which it could not tell (they count as different).
        num_intransitive: Triples a = b, b = c, a != c.
        num_asymmetric: Pairs with a = b but not b = a (they count as equal for "union_find", different otherwise).
    """

    clusters: list[int]
    num_pairs: int = 0
    num_undecided: int = 0
    num_intransitive: int = 0
    num_asymmetric: int = 0
    notes: dict[str, float] = field(default_factory=dict)


_math = MathEquivalence()


def warm_up(equivalence: Equivalence | None = None) -> None:
    """Make ready what an equivalence needs: start the worker in the background, ask a judge whether it is there.

    Raises:
        UserError: the judge refuses, or gives no answer.
    """
    if equivalence is None:
        _math.pool.warm_up(wait=False)
    elif isinstance(equivalence, JudgeEquivalence):
        equivalence.warm_up()


def equivalent(
    first: str | None,
    second: str | None,
    *,
    equivalence: Equivalence | Callable[..., bool] | None = None,
    question: str = "",
) -> bool:
    """Return whether two answers are the same answer; an answer that is ``None`` equals nothing, not even ``None``."""
    return cluster([first, second], equivalence=equivalence, question=question) == [0, 0]


def cluster(
    answers: Sequence[str | None],
    *,
    equivalence: Equivalence | Callable[..., bool] | None = None,
    linkage: str = "union_find",
    question: str = "",
) -> list[int]:
    """Return a cluster number per answer, -1 where the answer is ``None`` (see `cluster_group` for the details)."""
    return cluster_group(answers, equivalence=equivalence, linkage=linkage, question=question).clusters


def cluster_group(
    answers: Sequence[str | None],
    *,
    equivalence: Equivalence | Callable[..., bool] | None = None,
    linkage: str = "union_find",
    question: str = "",
) -> Clustering:
    """Partition one group's answers.

    Args:
        answers: One per response.
        equivalence: A backend, or a function of two answers (or of the question and two); mathematics by default.
        linkage: "union_find": connected components. "greedy": each string joins the first cluster (in sorted order)
            whose first member it equals. "complete": clusters in which every pair is equal.
        question: What was asked; entailment and judges decide with it, mathematics without.

    Returns:
        The partition with its counts.
    """
    if linkage not in LINKAGES:
        raise UserError(f"unknown linkage {linkage!r}: choose one of {', '.join(LINKAGES)}")
    backend = _backend(equivalence)
    present = [None if a is None or not a.strip() else a for a in answers]
    representative: dict[str, str] = {}
    if isinstance(backend, MathEquivalence):  # strings that certainly are one answer need no comparison
        by_key: dict[str, str] = {}
        for answer in sorted({a for a in present if a is not None}):
            form = plain(answer)
            if form is not None:
                representative[answer] = by_key.setdefault(form.key, answer)
    else:
        representative = {a: a for a in present if a is not None}
    unique = sorted(set(representative.values()))
    relation = _Relation(unique, backend, question)
    labels = {"union_find": _components, "greedy": _greedy, "complete": _complete}[linkage](relation)
    numbered: dict[int, int] = {}
    clusters = []
    for answer in present:
        if answer is None or answer not in representative:
            clusters.append(-1)
        else:
            label = labels[relation.index[representative[answer]]]
            clusters.append(numbered.setdefault(label, len(numbered)))
    return Clustering(
        clusters=clusters,
        num_pairs=relation.num_pairs,
        num_undecided=relation.num_undecided,
        num_intransitive=relation.count_intransitive(),
        num_asymmetric=relation.num_asymmetric,
    )


def _backend(equivalence: Equivalence | Callable[..., bool] | None) -> Equivalence:
    if equivalence is None:
        return _math
    return equivalence if isinstance(equivalence, Equivalence) else FunctionEquivalence(equivalence)


class _Relation:
    """The equivalence of every pair of unique answers."""

    def __init__(self, unique: list[str], backend: Equivalence, question: str) -> None:
        self.size = len(unique)
        self.index = {answer: i for i, answer in enumerate(unique)}
        pairs = [(i, j) for i in range(self.size) for j in range(i + 1, self.size)]
        asked = pairs if backend.symmetric else pairs + [(j, i) for i, j in pairs]
        verdicts = backend.compare(unique, asked, question) if asked else []
        self.num_pairs = len(asked)
        self.num_undecided = sum(verdict is None for verdict in verdicts)
        forward = dict(zip(asked, verdicts, strict=True))
        self.either: set[tuple[int, int]] = set()
        self.both: set[tuple[int, int]] = set()
        self.num_asymmetric = 0
        for i, j in pairs:
            one, two = forward[i, j] is True, forward.get((j, i), forward[i, j]) is True
            self.num_asymmetric += one != two
            if one or two:
                self.either.add((i, j))
            if one and two:
                self.both.add((i, j))

    def equal(self, i: int, j: int) -> bool:
        """Return whether both directions hold."""
        return i == j or (min(i, j), max(i, j)) in self.both

    def count_intransitive(self) -> int:
        """Return the number of triples in which exactly two of the three pairs are equal."""
        neighbours: dict[int, set[int]] = {i: set() for i in range(self.size)}
        for i, j in self.either:
            neighbours[i].add(j)
            neighbours[j].add(i)
        return sum(
            (min(a, b), max(a, b)) not in self.either
            for middle in neighbours
            for a in neighbours[middle]
            for b in neighbours[middle]
            if a < b
        )


def _components(relation: _Relation) -> list[int]:
    """Connected components, by union-find."""
    parent = list(range(relation.size))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in relation.either:
        first, second = root(i), root(j)
        parent[max(first, second)] = min(first, second)
    return [root(i) for i in range(relation.size)]


def _greedy(relation: _Relation) -> list[int]:
    """Each answer, in sorted order, joins the first cluster whose first member it equals."""
    labels: list[int] = []
    for i in range(relation.size):
        labels.append(next((j for j in range(i) if labels[j] == j and relation.equal(i, j)), i))
    return labels


def _complete(relation: _Relation) -> list[int]:
    """Each answer, in sorted order, joins the first cluster of which it equals every member."""
    labels: list[int] = []
    for i in range(relation.size):
        firsts = [j for j in range(i) if labels[j] == j]
        fits = (j for j in firsts if all(relation.equal(i, k) for k in range(i) if labels[k] == j))
        labels.append(next(fits, i))
    return labels
