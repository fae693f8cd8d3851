"""Advantages from the rewards of a group of responses to one prompt.

    mean:           A_i = r_i - mean_j r_j
    leave_one_out:  A_i = r_i - mean_{j != i} r_j = n/(n-1) (r_i - mean_j r_j)
    scale = "std":  A_i / (std + eps),  std with n - 1 in the denominator;    scale = "none": A_i
    scale = "mean": A_i / mean_j r_j                                          MaxRL

    whitened over tokens:  (x_t - mean x) / sqrt(var x + 1e-8),  x_t the reward of the response (REINFORCE++), or the
                           reward less the group's mean (REINFORCE++ with baseline)

References: Shao et al. 2024, arXiv:2402.03300, Sec. 4.1 (group mean and std); Ahmadian et al. 2024, arXiv:2402.14740
(RLOO: leave one out); Liu et al. 2025, arXiv:2503.20783 (no division by the std); MaxRL, arXiv:2602.02710, with
tajwarfahim/maxrl and prime-rl (no epsilon; a group without reward gets 0); REINFORCE++, as in
PRIME-RL/Entropy-Mechanism-of-RL, commit 8850579, core_algos.py:113-280.
Deviations: a group whose rewards are all equal gets exactly 0, not rounding noise divided by eps.
"""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.distributed import global_sum
from autotelic.functional.masking import as_mask, compute_dtype, fill_outside, wide


def group_advantages(
    rewards: Shaped[Tensor, "P G"],
    scale: Literal["std", "mean", "none"] = "std",
    baseline: Literal["mean", "leave_one_out"] = "mean",
    mask: Shaped[Tensor, "P G"] | Shaped[Tensor, " P"] | None = None,
    *,
    eps: float = 1e-6,
) -> Float[Tensor, "P G"]:
    """Return group-relative advantages.

    Args:
        rewards: one per response; any real dtype.
        scale: divide by the group's standard deviation (n - 1 in the denominator), by its mean reward (MaxRL; rewards
            must not be negative), or not.
        baseline: the group mean, or the mean of the others.
        mask: responses (P, G) or whole prompts (P,) that take part; the rest are not read and get advantage 0.
        eps: added to the standard deviation.
    """
    if rewards.shape[1] < 2:
        raise UserError(
            f"a group needs at least 2 responses, got {rewards.shape[1]}: the baseline would be the reward "
            "itself and every advantage 0; raise the number of generations per prompt"
        )
    if scale not in ("std", "mean", "none"):
        raise UserError(f"unknown scale {scale!r}: use 'std', 'mean' or 'none'")
    if baseline not in ("mean", "leave_one_out"):
        raise UserError(f"unknown baseline {baseline!r}: use 'mean' or 'leave_one_out'")
    dtype = compute_dtype(rewards)
    keep = torch.ones_like(rewards, dtype=torch.bool) if mask is None else as_mask(mask)
    keep = keep if keep.ndim == 2 else keep.unsqueeze(-1).expand_as(rewards)
    r = fill_outside(wide(rewards), keep)
    n = wide(keep.sum(-1, keepdim=True))
    centred = fill_outside(r - r.sum(-1, keepdim=True) / n.clamp(min=1), keep)
    spread = r.masked_fill(~keep, float("-inf")).amax(-1) > r.masked_fill(~keep, float("inf")).amin(-1)
    advantages = centred * n / (n - 1).clamp(min=1) if baseline == "leave_one_out" else centred
    if scale == "std":
        variance = centred.square().sum(-1, keepdim=True) / (n - 1).clamp(min=1)
        advantages = advantages / (variance.sqrt() + eps)
    if scale == "mean":
        if bool((r < 0).any()):
            raise UserError("MaxRL divides by the mean reward of the group, so rewards must not be negative")
        mean = r.sum(-1, keepdim=True) / n.clamp(min=1)
        advantages = torch.where(mean > 0, advantages / mean.clamp(min=1e-300), 0.0)
    return fill_outside(advantages, keep & spread.unsqueeze(-1)).to(dtype)


def whitened_advantages(
    values: Float[Tensor, " B"],
    mask: Shaped[Tensor, "B T"],
    *,
    eps: float = 1e-8,
    across_ranks: bool = False,
    group: object = None,
) -> Float[Tensor, " B"]:
    """Return (x - mean) / sqrt(var + eps), with mean and variance over the response tokens of the batch.

    A reward that comes with the end of a response, without discount, is the reward-to-go of each of its tokens. So one
    number per response stands for all of them, and a response counts as often as it has tokens.

    Args:
        values: reward of each response (REINFORCE++), or reward less the group's mean.
        mask: response tokens.
        eps: added to the variance.
        across_ranks: take the statistics over all processes of ``group``.
        group: the process group.
    """
    x, lengths = wide(values), wide(as_mask(mask).sum(-1))
    sums = torch.stack([lengths.sum(), (lengths * x).sum()])
    count, total = (global_sum(sums, group=group) if across_ranks else sums).unbind()
    centred = x - total / count.clamp(min=1)
    square = (lengths * centred.square()).sum()
    variance = (global_sum(square, group=group) if across_ranks else square) / count.clamp(min=1)
    return (centred * (variance + eps).rsqrt()).to(compute_dtype(values))


def broadcast_advantages(advantages: Float[Tensor, " B"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return each response's advantage on every one of its tokens, 0 outside the mask."""
    return fill_outside(advantages.unsqueeze(-1).expand(mask.shape), mask)
