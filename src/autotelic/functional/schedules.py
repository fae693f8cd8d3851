"""Numbers that change during training: constant, linear or cosine.

    linear:  h = h_0 + (h_1 - h_0) t / T          cosine:  h = h_0 + (h_1 - h_0) (1 - cos(pi t / T)) / 2

t counts updates from 1, T is the number of updates of the run.

Reference: Entrocraft, arXiv:2604.26326, as in its code (lblaoke/entrocraft, commit 26165bd, core_algos.py).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from autotelic.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` over a run."""

    start: float
    end: float
    shape: Literal["linear", "cosine"] = "linear"

    written: ClassVar[str] = "linear:START:END or cosine:START:END"

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine"):
            raise UserError(f"unknown schedule {self.shape!r}; write {self.written}")

    def at(self, progress: float) -> float:
        """Return the value after the share `progress` of the run, in [0, 1]."""
        p = min(max(progress, 0.0), 1.0)
        p = p if self.shape == "linear" else (1 - math.cos(math.pi * p)) / 2
        return self.start + (self.end - self.start) * p

    @classmethod
    def parse(cls, value: Any) -> "Schedule":
        """Return the schedule that a text such as ``linear:0.6:0.4`` stands for; raises ValueError."""
        if isinstance(value, Schedule):
            return value
        shape, start, end = str(value).split(":")
        if shape not in ("linear", "cosine"):
            raise ValueError(value)
        return cls(float(start), float(end), shape)

    def __str__(self) -> str:
        return f"{self.shape}:{self.start:g}:{self.end:g}"


def value_at(value: float | int | Schedule, progress: float) -> float:
    """Return a setting's value, whether it is a number or a schedule."""
    return value.at(progress) if isinstance(value, Schedule) else float(value)
