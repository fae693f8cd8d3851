"""Which head gives a run its log-probabilities and entropies, ours or TRL's: one rule, and the reason in one sentence.

The first line that applies decides, with `fused_head=auto`:
    ours would not be exact for this model                  TRL's
    LoRA on the head, which TRL's leaves out                ours
    a vocabulary below MIN_VOCABULARY                       TRL's
    something that only ours does is asked for              ours
    a CPU                                                   ours
    a GPU for which TIMED has a row                         the faster one
    any other device                                        TRL's

Only ours leaves rows without a gradient out of the backward pass, keeps the relative precision of entropies near zero,
and gives log-probabilities of further words and sums over the vocabulary without logits. Figures: docs/performance.md.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

MIN_VOCABULARY = 8192
"""`auto` leaves smaller heads to TRL's. On a CPU ours is faster there too (1.2 to 2.5 times, V = 18 to 2048), but there
the head is a hundredth of an update, and a run keeps TRL's numbers to the bit. From here on it is 1.3 to 4 times."""


class Timed(NamedTuple):
    """TRL's seconds over ours for values and gradients of every row, on one device."""

    device: str
    """As CUDA names it."""
    dtype: str
    width: int
    """d, of the hidden states."""
    times: float
    low: float
    """The lower end of its 95 % interval."""


TIMED: tuple[Timed, ...] = ()
"""What `python benchmarks/gpu.py` has measured; a test compares it with benchmarks/results/gpu.json."""


class Choice(NamedTuple):
    """A head, and why."""

    ours: bool
    why: str

    def __str__(self) -> str:
        whose = "ours" if self.ours else "TRL's"
        return f"{whose}, since {self.why}"


def place_of(weight: Tensor) -> str:
    """Return where a weight lies: `cpu`, a GPU's name, or another device's type."""
    return torch.cuda.get_device_name(weight.device) if weight.is_cuda else weight.device.type


def choose_head(weight: Tensor, dtype: torch.dtype, asked: str | None = None) -> Choice:
    """Return which head a run takes that leaves it to us, where either would be exact.

    Args:
        weight: of the head, (V, d).
        dtype: of the products.
        asked: why nothing but ours will do; None where TRL's does it too.
    """
    (vocabulary, width), place = weight.shape, place_of(weight)
    if vocabulary < MIN_VOCABULARY:
        return Choice(False, f"a vocabulary below {MIN_VOCABULARY} gains nothing that counts")
    if asked is not None:
        return Choice(True, asked)
    if place == "cpu":
        return Choice(True, "it is faster on a CPU")
    rows = [row for row in TIMED if (row.device, row.dtype) == (place, str(dtype).removeprefix("torch."))]
    if not rows:
        return Choice(False, f"ours has not been timed on {place}; fused_head=on takes it")
    row = min(rows, key=lambda row: abs(math.log(row.width / width)))
    measured = f"{row.times:.2f} times as fast as TRL's on {place} at d = {row.width}"
    return Choice(row.low > 1, f"ours was {measured}" if row.low <= 1 else f"it was {measured}")
