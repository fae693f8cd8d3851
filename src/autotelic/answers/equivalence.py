"""Are two answers equivalent? One protocol, several backends; this module holds the protocol and the mathematical one.

A backend compares the unique answers of one group: ``compare(answers, pairs) -> verdicts``, one verdict per ordered
pair, ``None`` where it could not tell. A user's own equivalence is any function of two strings (`FunctionEquivalence`).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Protocol, runtime_checkable

from autotelic.answers.canonical import Canonical, canonical
from autotelic.answers.numeric import surely_different
from autotelic.answers.pool import Pool, default_pool


@runtime_checkable
class Equivalence(Protocol):
    """What a clustering needs to know about its answers.

    Attributes:
        symmetric: Whether compare(a, b) always equals compare(b, a): then each unordered pair is asked once.
    """

    symmetric: bool

    def compare(self, answers: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[bool | None]:
        """Return one verdict per pair of indices into `answers`: True, False, or None (could not tell)."""
        ...


class FunctionEquivalence:
    """A user's own function of two strings, called once per ordered pair of different strings."""

    symmetric = False

    def __init__(self, function: Callable[[str, str], bool]) -> None:
        self.function = function

    def compare(self, answers: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[bool | None]:
        """Call the function on each pair."""
        return [bool(self.function(answers[i], answers[j])) for i, j in pairs]


class MathEquivalence:
    """Canonical forms first; what they leave undecided goes to the worker process; what that leaves is not equal.

    Args:
        pool: Worker pool; the process-wide one by default.
        cache_size: Remembered verdicts on pairs of formulas (least recently used are dropped).
    """

    symmetric = True

    def __init__(self, pool: Pool | None = None, cache_size: int = 100_000) -> None:
        self._pool = pool
        self._cache: OrderedDict[tuple[str, str], bool | None] = OrderedDict()
        self._cache_size = cache_size
        self._lock = Lock()

    @property
    def pool(self) -> Pool:
        """The worker pool in use."""
        return self._pool or default_pool()

    def compare(self, answers: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[bool | None]:
        """Return one verdict per pair; symbolic leaves of all pairs are sent to the worker in one request."""
        forms = [canonical(answer) for answer in answers]
        wanted: dict[tuple[str, str], None] = {}

        def unknown(first: str, second: str) -> bool | None:
            pair = _ordered(first, second)
            with self._lock:
                if pair in self._cache:
                    self._cache.move_to_end(pair)
                    return self._cache[pair]
            if surely_different(first, second):
                return False
            wanted.setdefault(pair)
            return None

        verdicts = [_decide(forms[i], forms[j], unknown) for i, j in pairs]
        if wanted:
            known = self._ask(list(wanted))
            retry = [k for k, verdict in enumerate(verdicts) if verdict is None]
            for k in retry:
                i, j = pairs[k]
                verdicts[k] = _decide(forms[i], forms[j], lambda a, b: known.get(_ordered(a, b), unknown(a, b)))
        return verdicts

    def _ask(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], bool | None]:
        """Ask the worker about pairs of formulas, and remember what it says (undecided included)."""
        index: dict[str, int] = {}
        for pair in pairs:
            for formula in pair:
                index.setdefault(formula, len(index))
        verdicts = self.pool.compare(list(index), [(index[a], index[b]) for a, b in pairs])
        known = dict(zip(pairs, verdicts, strict=True))
        with self._lock:
            self._cache.update(known)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return known


def _ordered(first: str, second: str) -> tuple[str, str]:
    return (first, second) if first <= second else (second, first)


Ask = Callable[[str, str], bool | None]


def _decide(first: Canonical | None, second: Canonical | None, ask: Ask) -> bool | None:
    """Compare two canonical forms; `ask` decides pairs of formulas, or returns None."""
    if first is None or second is None:
        return False
    if first.key == second.key:
        return True
    if first.exact and second.exact:
        return False
    if first.parts or second.parts:
        return _decide_parts(first, second, ask)
    if "text" in (first.kind, second.kind):
        return False
    if "equation" in (first.kind, second.kind):
        return False
    return ask(first.latex or first.key.replace("*infty", "*\\infty"), second.latex or second.key)


def _decide_parts(first: Canonical, second: Canonical, ask: Ask) -> bool | None:
    """Compare two composites part by part; sets by a one-to-one matching."""
    shape_first, shape_second = first.key.partition("(")[0], second.key.partition("(")[0]
    if first.kind != second.kind or shape_first != shape_second or len(first.parts) != len(second.parts):
        return False
    if first.kind in ("set", "union"):
        return _match(first.parts, second.parts, ask)
    verdicts = [_decide(a, b, ask) for a, b in zip(first.parts, second.parts, strict=True)]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _match(first: tuple[Canonical, ...], second: tuple[Canonical, ...], ask: Ask) -> bool | None:
    """Return whether the parts pair up (equality is transitive, so the first partner found is as good as any)."""
    left, undecided = list(second), False
    for part in first:
        verdicts = [_decide(part, other, ask) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True
