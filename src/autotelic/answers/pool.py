"""The pool of worker processes, seen from the training process: started on first use, kept warm, never trusted.

The supervisor process (`autotelic.answers.worker`) bounds CPU time and memory; this side only writes a line and waits
for one, with a limit of its own in case the supervisor itself is lost. Works from any thread. Starting takes seconds:
`Pool.warm_up` with ``wait=False`` lets them pass while the caller does something else.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIME_LIMIT = 2.0
"""CPU seconds of the worker for all symbolic work of one group."""
START_LIMIT = 120.0
"""Seconds for a worker to import sympy, on a loaded machine; not part of any group's time."""
GRACE = 120.0
"""Seconds on the clock after which the supervisor itself is taken for lost; a busy machine needs them."""


class WorkerLostError(RuntimeError):
    """A worker did not answer, or ended."""


@dataclass
class PoolStats:
    """What the workers did since the process began.

    Attributes:
        requests: Groups sent to a worker.
        comparisons: Pairs in them.
        undecided: Pairs neither proved equal nor different.
        timeouts: Steps that were ended, and requests that were cut short.
        restarts: Workers replaced.
        starts: Supervisors started.
        seconds: CPU seconds of the workers.
    """

    requests: int = 0
    comparisons: int = 0
    undecided: int = 0
    timeouts: int = 0
    restarts: int = 0
    starts: int = 0
    seconds: float = 0.0


class _Worker:
    """One supervisor process and its pipes."""

    def __init__(self) -> None:
        source = str(Path(__file__).resolve().parents[2])
        paths = [source, os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autotelic.answers.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self.buffer = b""
        self.ready = False

    def ask(self, request: dict[str, object], limit: float) -> dict[str, Any]:
        """Send one request and return its reply; wait first until the worker has started."""
        if not self.ready:
            self.read(START_LIMIT)
            self.ready = True
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerLostError("the worker ended") from error
        return self.read(limit)

    def read(self, limit: float) -> dict[str, Any]:
        """Return the next line, or raise when it does not come in time."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + limit
        while b"\n" not in self.buffer:
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([descriptor], [], [], wait)[0]:
                raise WorkerLostError("no answer in time")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise WorkerLostError("the worker ended")
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """End the process; its child ends with its pipe."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pool:
    """Symbolic comparisons in a killable process.

    Args:
        time_limit: CPU seconds of the worker for one group's symbolic work.
    """

    def __init__(self, time_limit: float | int = TIME_LIMIT) -> None:
        self.time_limit = float(time_limit)
        self.stats = PoolStats()
        self._worker: _Worker | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def compare(self, leaves: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[bool | None]:
        """Return for each pair of leaves whether they are equal; ``None`` where that could not be decided."""
        return self.request(leaves, pairs)[1] if pairs else []

    def request(
        self, leaves: Sequence[str], pairs: Sequence[tuple[int, int]], mode: str = "math"
    ) -> tuple[list[Any], list[bool | None], set[int]]:
        """Return what `mode` (`autotelic.answers.worker.MODES`) reports of each leaf, its verdict on each pair, and the
        numbers of the pairs that ran out of time.
        """
        with self._lock:
            worker = self._started()
            request: dict[str, object] = {"leaves": list(leaves), "pairs": [list(pair) for pair in pairs]}
            request |= {"limit": self.time_limit, "mode": mode}
            self.stats.requests += 1
            self.stats.comparisons += len(pairs)
            try:
                reply = worker.ask(request, self.time_limit + GRACE)
            except WorkerLostError:
                worker.process.kill()
                worker.close()
                self._worker = None
                self.stats.restarts += 1
                self.stats.timeouts += 1
                self.stats.undecided += len(pairs)
                return [None] * len(leaves), [None] * len(pairs), set(range(len(pairs)))
            self.stats.seconds += reply["seconds"]
            self.stats.timeouts += reply["timeouts"]
            self.stats.restarts += reply["timeouts"]
            self.stats.undecided += sum(verdict is None for verdict in reply["equal"])
            return reply["read"], reply["equal"], set(reply["unfinished"])

    def warm_up(self, *, wait: bool = True) -> None:
        """Start the worker now (it takes some seconds) instead of at the first formula that needs it."""
        with self._lock:
            worker = self._started()
            if wait and not worker.ready:
                worker.read(START_LIMIT)
                worker.ready = True

    def _started(self) -> _Worker:
        """Return the running worker; a forked process starts its own instead of sharing its parent's pipes."""
        if self._worker is not None and os.getpid() != self._owner:
            self._worker = None
        if self._worker is None or self._worker.process.poll() is not None:
            self._owner = os.getpid()
            self._worker = _Worker()
            self.stats.starts += 1
        return self._worker

    @property
    def running(self) -> bool:
        """Whether a worker process exists."""
        return self._worker is not None and self._worker.process.poll() is None

    def close(self) -> None:
        """End the worker process; the next request starts another."""
        with self._lock:
            if self._worker is not None and os.getpid() == self._owner:
                self._worker.close()
            self._worker = None


_default: Pool | None = None
_default_lock = threading.Lock()


def default_pool() -> Pool:
    """Return the process-wide pool; nothing is started before its first request."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Pool()
            atexit.register(_default.close)
        return _default
