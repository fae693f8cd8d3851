"""Are two answers equivalent? The protocol, a user's own function, and mathematics.

A backend compares the unique answers of one group: ``compare(answers, pairs, question) -> verdicts``, one verdict per
ordered pair, ``None`` where it could not tell.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from autotelic.answers.fast import decide, plain
from autotelic.answers.pool import Pool, default_pool
from autotelic.errors import UserError


@runtime_checkable
class Equivalence(Protocol):
    """What a clustering needs to know about its answers.

    Attributes:
        symmetric: Whether compare(a, b) always equals compare(b, a): then each unordered pair is asked once.
    """

    symmetric: bool

    def compare(
        self, answers: Sequence[str], pairs: Sequence[tuple[int, int]], question: str = ""
    ) -> list[bool | None]:
        """Return one verdict per pair of indices into `answers`: True, False, or None (could not tell)."""
        ...


class FunctionEquivalence:
    """A user's own function of two answers, or of the question and two answers; called once per ordered pair."""

    symmetric = False

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        try:
            required = [
                p for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.default is p.empty
            ]
            self.with_question = len(required) == 3
        except ValueError:  # a function written in C does not tell
            self.with_question = False

    def compare(
        self, answers: Sequence[str], pairs: Sequence[tuple[int, int]], question: str = ""
    ) -> list[bool | None]:
        """Call the function on each pair."""
        before: tuple[Any, ...] = (question,) if self.with_question else ()
        try:
            return [bool(self.function(*before, answers[i], answers[j])) for i, j in pairs]
        except Exception as error:  # whatever another's code may raise
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise UserError(
                f"equivalence {name} failed with {type(error).__name__}: {error}; it is called with two answers, or "
                "with the question and two answers, all of them text"
            ) from error


class MathEquivalence:
    """What is certain is decided here; the rest goes to the worker process, as the model wrote it.

    A pair that the worker could not decide counts as different, and is remembered; one that ran out of time is asked
    again the next time.

    Args:
        pool: Worker pool; the process-wide one by default.
        cache_size: Remembered verdicts on pairs of answers (least recently used are dropped).
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

    def compare(
        self, answers: Sequence[str], pairs: Sequence[tuple[int, int]], question: str = ""
    ) -> list[bool | None]:
        """Return one verdict per pair; what is left undecided here is sent to the worker in one request."""
        read = [plain(answer) for answer in answers]
        verdicts: list[bool | None] = []
        wanted: dict[tuple[str, str], list[int]] = {}
        for at, (i, j) in enumerate(pairs):
            one, two = read[i], read[j]
            verdict = False if one is None or two is None else decide(one, two)
            if verdict is None:
                pair = (answers[i], answers[j]) if answers[i] <= answers[j] else (answers[j], answers[i])
                with self._lock:
                    if pair in self._cache:
                        self._cache.move_to_end(pair)
                        verdict = self._cache[pair]
                    else:
                        wanted.setdefault(pair, []).append(at)
            verdicts.append(verdict)
        if wanted:
            for places, verdict in zip(wanted.values(), self._ask(list(wanted)), strict=True):
                for at in places:
                    verdicts[at] = verdict
        return verdicts

    def _ask(self, pairs: list[tuple[str, str]]) -> list[bool | None]:
        """Ask the worker, and remember what it had the time to decide."""
        index: dict[str, int] = {}
        for pair in pairs:
            for answer in pair:
                index.setdefault(answer, len(index))
        _, verdicts, unfinished = self.pool.request(list(index), [(index[a], index[b]) for a, b in pairs])
        with self._lock:
            self._cache.update((pair, verdicts[k]) for k, pair in enumerate(pairs) if k not in unfinished)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return verdicts
