"""The process that does symbolic mathematics: ``python -m autotelic.answers.worker``, one JSON object a line.

Two processes, both children of the training process's `autotelic.answers.pool`:

* the *supervisor* imports sympy once, forks, and keeps time; it never reads a formula;
* the *child* parses and compares. It cannot open a file for writing, start a process or reach the network, its memory
  is bounded, and it is killed when one step or the whole request exceeds its time. A new one is forked in milliseconds.

Request: ``{"leaves": [text, ...], "pairs": [[i, j], ...], "limit": seconds, "mode": name}``.
Reply: ``{"equal": [true | false | null, ...], "read": [...], "timeouts": steps killed, "hostile": [index, ...]}``;
null means undecided (a side did not parse, or time ran out). `MODES` names the modules that read and compare; "read" is
what a mode reports of each leaf (null in the default mode).
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

MODES = {"math": "autotelic.answers.symbolic", "official": "autotelic.compat.math_verify_worker"}
STEP_LIMIT = 0.7
"""Seconds for one parse or one comparison: what takes longer is hostile, and its neighbours need the rest."""
MEMORY_LIMIT = 1 << 30
"""Bytes that a child may map beyond what it was born with."""


def main() -> None:
    """Serve requests from standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    for module in MODES.values():
        importlib.import_module(module).warm_up()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing a library prints may enter the protocol
    out.write(json.dumps({"ready": os.getpid()}) + "\n")
    supervisor = _Supervisor()
    for line in sys.stdin:
        out.write(json.dumps(supervisor.serve(json.loads(line))) + "\n")
    supervisor.stop()


class _Supervisor:
    """Owns one child at a time."""

    def __init__(self) -> None:
        self.pid = 0
        self.to_child = self.from_child = -1

    def serve(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request, restarting the child after every step that had to be killed."""
        leaves, pairs = request["leaves"], request["pairs"]
        deadline = time.monotonic() + request["limit"]
        operations = [[i] for i in range(len(leaves))] + pairs
        results: list[Any] = [None] * len(operations)
        hostile: set[int] = set()
        timeouts, position = 0, 0
        while position < len(operations) and time.monotonic() < deadline:
            if not self.pid:
                self.start()
            message = {"leaves": leaves, "operations": operations, "from": position, "skip": sorted(hostile)}
            message["mode"] = request.get("mode", "math")
            self.send(json.dumps(message).encode() + b"\n")
            position = self.collect(operations, results, position, deadline)
            if position < len(operations):  # the step at `position` was killed
                timeouts += 1
                hostile.update(operations[position] if len(operations[position]) == 1 else [])
                position += 1
        undone = len(operations) - position
        return {
            "equal": results[len(leaves) :],
            "read": results[: len(leaves)],
            "timeouts": timeouts + (undone > 0),
            "hostile": sorted(hostile),
        }

    def collect(self, operations: list[list[int]], results: list[Any], position: int, deadline: float) -> int:
        """Read results until all are there, or kill the child; return the first operation without a result."""
        buffer = b""
        while position < len(operations):
            wait = min(STEP_LIMIT, deadline - time.monotonic())
            ready = select.select([self.from_child], [], [], max(wait, 0.0))[0] if wait > 0 else []
            chunk = os.read(self.from_child, 65536) if ready else b""
            if not chunk:  # out of time, or the child died (memory)
                self.stop()
                return position
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                index, results_at = json.loads(line)
                results[index] = results_at
                position = index + 1
        return position

    def send(self, message: bytes) -> None:
        """Write a whole message to the child, which reads it before it does anything else."""
        with contextlib.suppress(BrokenPipeError):
            while message:
                message = message[os.write(self.to_child, message) :]

    def start(self) -> None:
        """Fork a child that already has sympy in memory."""
        request_read, self.to_child = os.pipe()
        self.from_child, reply_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.to_child)
                os.close(self.from_child)
                _child(request_read, reply_write)
            finally:
                os._exit(0)
        os.close(request_read)
        os.close(reply_write)

    def stop(self) -> None:
        """Kill the child and wait for its end."""
        if not self.pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.to_child)
        os.close(self.from_child)
        self.pid = 0


def _child(request_read: int, reply_write: int) -> None:
    """Parse and compare until the pipe closes; every result is sent as soon as it is known."""
    modules = {name: importlib.import_module(module) for name, module in MODES.items()}
    _confine()
    with os.fdopen(request_read, "rb") as requests:
        for line in requests:
            message = json.loads(line)
            leaves, skip = message["leaves"], set(message["skip"])
            parsed: dict[int, Any] = {}
            mode = modules[message["mode"]]
            for index in range(message["from"], len(message["operations"])):
                operation = message["operations"][index]
                result = None
                if not skip.intersection(operation):
                    for leaf in operation:
                        if leaf not in parsed:
                            parsed[leaf] = mode.parse(leaves[leaf])
                    if len(operation) == 2:
                        result = mode.compare(parsed[operation[0]], parsed[operation[1]])
                    else:
                        result = mode.report(parsed[operation[0]])
                os.write(reply_write, json.dumps([index, result]).encode() + b"\n")


def _confine() -> None:
    """Bound memory and refuse side effects, whatever a library might be talked into."""
    import resource

    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_LIMIT, mapped + MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(3000)
    refused = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
               "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.putenv", "os.kill",
               "subprocess.Popen", "socket.", "shutil.", "ctypes.", "pty.spawn", "urllib.", "ftplib.",
               "http.")  # fmt: skip

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(refused):
            raise PermissionError(f"{event} is refused while answers are parsed")
        if event == "open":
            mode, flags = args[1], args[2]
            writes = isinstance(mode, str) and any(c in mode for c in "wax+")
            if writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                raise PermissionError("opening a file for writing is refused while answers are parsed")

    sys.addaudithook(audit)


if __name__ == "__main__":
    main()
