"""Rows of one update in another order, so that those of a prompt lie in one micro-batch.

TRL shuffles a generation batch and cuts it into micro-batches. An update is a set of rows: where its loss is a sum over
them, whatever their micro-batch, any order within the update has the same gradient up to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autotelic.lm.packing import prompt_numbers

SUMS_OVER_ROWS = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")
"""Losses of TRL whose denominators do not depend on which rows share a micro-batch: a number of rows, or the tokens of
the whole update. `bnpo` divides by the tokens of each micro-batch."""


def update_window(steps_per_generation: int, accumulation: int) -> int:
    """Return how many neighbouring micro-batches of a generation batch always belong to one update; 1 if only itself.

    An update of several generation batches takes each of them whole.
    """
    if steps_per_generation % accumulation == 0:
        return accumulation
    return steps_per_generation if accumulation % steps_per_generation == 0 else 1


def regrouped(micro_batches: Sequence[dict[str, Any]], window: int) -> list[dict[str, Any]]:
    """Return the micro-batches with the rows of each window sorted by prompt, in order of first appearance.

    Args:
        micro_batches: of one generation batch, as TRL splits it.
        window: see `update_window`; a divisor of their number.
    """
    return [
        micro
        for start in range(0, len(micro_batches), window)
        for micro in sorted_window(micro_batches[start : start + window])
    ]


def sorted_window(window: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the micro-batches of an update with their rows sorted by prompt; as they are, if not all can be moved."""
    sizes = [micro["prompt_ids"].shape[0] for micro in window]
    rows, whole = [], []
    for name, value in window[0].items():
        if isinstance(value, list) or (isinstance(value, Tensor) and value.dim() and value.shape[0] != sizes[0]):
            return window  # images, whose rows are not those of the batch
        (rows if isinstance(value, Tensor) and value.dim() else whole).append(name)
    joined = {name: torch.cat([micro[name] for micro in window]) for name in rows}
    order = torch.tensor(prompt_numbers(joined["prompt_ids"], joined["prompt_mask"])).argsort(stable=True)
    parts = {name: value[order.to(value.device)].split(sizes) for name, value in joined.items()}
    return [
        {name: parts[name][i] if name in parts else micro[name] for name in micro} for i, micro in enumerate(window)
    ]
