"""No gradient on punished tokens that the entropy discriminator S marks as outliers.

    clip_b           A' = 0 where A < 0 and S - mean S < -mu std S,         S = p (ln p + H)
    clip_v           A' = 0 where A < 0 and D > mu std D,  D = E_pi[S] - S, at most max(int(fraction N), 1) tokens

Means and deviations run over the whole update batch; ``across_ranks`` makes it the batch of all processes.

Reference: Wang et al. 2026, arXiv:2602.03392, after the code (Trinity-RFT, clip_b and clip_v advantages).
Deviations: the choice of ``clip_v`` is exact, deterministic in ties, over the update batch instead of a micro-batch.
"""

from typing import Unpack

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from autotelic.functional.distributed import global_sum
from autotelic.functional.masking import as_mask, fill_outside, wide
from autotelic.functional.selection import Choice, select


def _mean_and_std(x: Tensor, mask: Tensor, across_ranks: bool, group: object) -> tuple[Tensor, Tensor]:
    """Return mean and population std over the mask (of all ranks)."""

    def total(values: Tensor) -> Tensor:
        summed = fill_outside(wide(values), mask).sum()
        return global_sum(summed, group=group) if across_ranks else summed

    count = total(torch.ones_like(x)).clamp(min=1)
    mean = total(x) / count
    return mean, (total((wide(x) - mean).square()) / count).sqrt()


def clip_b(
    advantages: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    mu: float | int = 2.5,
    across_ranks: bool = False,
    group: object = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Zero the negative advantages whose discriminator lies more than ``mu`` std below the batch mean.

    Returns:
        The advantages, and the tokens that were zeroed.
    """
    log_p, h = (fill_outside(wide(x.detach()), mask) for x in (logprobs, entropy))
    s = log_p.exp() * (h + log_p)
    mean, std = _mean_and_std(s, as_mask(mask), across_ranks, group)
    selected = as_mask(mask) & (advantages < 0) & (s - mean < -mu * std) & (std > 1e-12)
    return fill_outside(advantages, as_mask(mask) & ~selected), selected


def clip_v(
    advantages: Float[Tensor, "B T"],
    sampled: Float[Tensor, "B T"],
    expected: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    mu: float | int = 8.5,
    fraction: float | int = 1e-4,
    **choice: Unpack[Choice],
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Zero the negative advantages whose E_pi[S] - S_a exceeds ``mu`` std, the largest first, at most a fraction.

    Args:
        advantages: per token.
        sampled: S_a, of ``entropy_discriminator``.
        expected: E_pi[S], likewise.
        mask: response tokens.
        mu: threshold in standard deviations of the difference over the batch.
        fraction: the most that may be zeroed, as a share of the response tokens, one token at least.
        choice: ``token_ids``, ``across_ranks``, ``group``; see ``selection.Choice``.

    Returns:
        The advantages, and the tokens that were zeroed.
    """
    gap = fill_outside(wide((expected - sampled).detach()), mask)
    _, std = _mean_and_std(gap, as_mask(mask), choice.get("across_ranks", False), choice.get("group"))
    candidates = as_mask(mask) & (advantages < 0) & (gap > mu * std) & (std > 1e-12)
    selected = select(gap, candidates, mask, fraction=fraction, **{**choice, "at_least_one": True})
    return fill_outside(advantages, as_mask(mask) & ~selected), selected
