"""One line on stderr that says how far a command is, and how long it will take."""

import sys
import time
from typing import Any

from autotelic.runs.time_left import duration

EVERY = 30.0
"""Seconds between two lines where nobody watches a terminal."""


class ProgressLine:
    """Shows `37/200 responses, 12 s left`: rewritten in place on a terminal, else a line every 30 seconds.

    Args:
        unit: what is counted.
        quiet: say nothing.
        file: where it is written; stderr by default.
    """

    def __init__(self, unit: str = "responses", *, quiet: bool = False, file: Any = None) -> None:
        self.unit, self.quiet = unit, quiet
        self.file = sys.stderr if file is None else file
        self.watched = self.file.isatty()
        self.started = self.last = time.monotonic()
        self.width = 0

    def __call__(self, done: float | int, total: int) -> None:
        """Say that so much is done."""
        now = time.monotonic()
        if self.quiet or now - self.last < (0.2 if self.watched else EVERY):
            return
        self.last = now
        left = (now - self.started) * (total - done) / done if done else float("nan")
        text = f"{int(done)}/{total} {self.unit}, {duration(left)} left"
        self.file.write(f"\r{text:<{self.width}}" if self.watched else f"{text}\n")
        self.file.flush()
        self.width = len(text)

    def close(self) -> None:
        """Clear the line."""
        if self.width and self.watched:
            self.file.write("\r" + " " * self.width + "\r")
            self.file.flush()
        self.width = 0
