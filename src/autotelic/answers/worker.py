"""The process that does symbolic mathematics: ``python -m autotelic.answers.worker``, one JSON object a line.

Two processes, both children of the training process's `autotelic.answers.pool`:

* the *supervisor* imports sympy once and forks; it never reads a formula;
* the *child* parses and compares. It cannot open a file for writing, start a process or reach the network, its memory
  is bounded, and the kernel ends it when one step has used its CPU seconds. A new one is forked in milliseconds.

Limits are CPU seconds of the child, not time on the clock, so that a busy machine changes no verdict.

Request: ``{"leaves": [text, ...], "pairs": [[i, j], ...], "limit": CPU seconds, "mode": name}``.
Reply: ``{"equal": [true | false | null, ...], "read": [...], "unfinished": [pair], "timeouts": n, "seconds": CPU}``.
Null
means undecided: neither proved nor refuted, or out of time (then the pair's number is in "unfinished"). `MODES`
names the modules that read and compare; "read" is what a mode reports of each leaf (null in the default mode).
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
"""CPU seconds for one parse or one comparison: what takes longer is hostile, and its neighbours need the rest."""
PATIENCE = 60.0
"""Seconds on the clock without a result after which a child is taken for stuck."""
MEMORY_LIMIT = 1 << 30
"""Bytes that a child may map beyond what it was born with."""
REMEMBERED = 1024
"""Parsed answers that a child keeps for the next request."""


def main() -> None:
    """Serve requests from standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    importlib.import_module(MODES["math"]).warm_up()
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
        """Answer one request, restarting the child after every step that was ended."""
        leaves, pairs = request["leaves"], request["pairs"]
        module = MODES[request.get("mode", "math")]
        if module not in sys.modules:  # loaded here once, so that no child has to
            self.stop()
            importlib.import_module(module).warm_up()
        operations = [[i] for i in range(len(leaves))] + pairs
        results: dict[int, Any] = {}
        hostile: set[int] = set()
        timeouts, position, spent = 0, 0, 0.0
        while position < len(operations) and spent < request["limit"]:
            if not self.pid:
                self.start()
            message = {"leaves": leaves, "operations": operations, "from": position, "skip": sorted(hostile)}
            message |= {"mode": request.get("mode", "math"), "limit": request["limit"] - spent}
            self.send(json.dumps(message).encode() + b"\n")
            position, used, ended = self.collect(operations, results, position)
            spent += used
            if ended:  # the step at `position` was ended
                timeouts += 1
                spent += STEP_LIMIT
                hostile.update(operations[position] if len(operations[position]) == 1 else [])
                position += 1
            elif position < len(operations):
                break  # out of time between two steps
        late = [k for k, pair in enumerate(pairs) if len(leaves) + k not in results or hostile.intersection(pair)]
        return {
            "equal": [results.get(len(leaves) + k) for k in range(len(pairs))],
            "read": [results.get(k) for k in range(len(leaves))],
            "unfinished": late,
            "timeouts": timeouts + (position < len(operations)),
            "seconds": spent,
        }

    def collect(self, operations: list[list[int]], results: dict[int, Any], position: int) -> tuple[int, float, bool]:
        """Read results; return the next operation, the CPU seconds used, and whether the child ended."""
        buffer, used = b"", 0.0
        while position < len(operations):
            ready = select.select([self.from_child], [], [], PATIENCE)[0]
            chunk = os.read(self.from_child, 65536) if ready else b""
            if not chunk:
                self.stop()
                return position, used, True
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                index, result, used = json.loads(line)
                if index < 0:
                    return position, used, False
                results[index] = result
                position = index + 1
        return position, used, False

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
    """Parse and compare until the pipe closes; send every result at once, with the CPU time so far."""
    remembered: dict[tuple[str, str], Any] = {}
    _confine()
    with os.fdopen(request_read, "rb") as requests:
        for line in requests:
            message = json.loads(line)
            leaves, skip, name = message["leaves"], set(message["skip"]), message["mode"]
            mode, began = sys.modules[MODES[name]], time.process_time()

            def parsed(leaf: int, mode: Any = mode, leaves: Any = leaves, name: str = name) -> Any:
                key = (name, leaves[leaf])
                if key not in remembered:
                    if len(remembered) >= REMEMBERED:
                        remembered.clear()
                    remembered[key] = mode.parse(leaves[leaf])
                return remembered[key]

            for index in range(message["from"], len(message["operations"])):
                operation = message["operations"][index]
                left = message["limit"] - (time.process_time() - began)
                if left <= 0:
                    os.write(reply_write, json.dumps([-1, None, time.process_time() - began]).encode() + b"\n")
                    break
                signal.setitimer(signal.ITIMER_PROF, min(STEP_LIMIT, left))  # its signal ends the process
                result = None
                if not skip.intersection(operation):
                    read = [parsed(leaf) for leaf in operation]
                    result = mode.compare(*read) if len(read) == 2 else mode.report(*read)
                signal.setitimer(signal.ITIMER_PROF, 0)
                os.write(reply_write, json.dumps([index, result, time.process_time() - began]).encode() + b"\n")


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
