"""Advantages from the rewards of a group of responses to one prompt.

    mean:           A_i = r_i - mean_j r_j
    leave_one_out:  A_i = r_i - mean_{j != i} r_j = n/(n-1) (r_i - mean_j r_j)
    scale = "std":  A_i / (std + eps),  std with n - 1 in the denominator;    scale = "none": A_i

References: Shao et al. 2024, arXiv:2402.03300, Sec. 4.1 (group mean and std); Ahmadian et al. 2024, arXiv:2402.14740
(leave one out); Liu et al. 2025, arXiv:2503.20783 (no division by the std).
Deviations: a group whose rewards are all equal gets exactly 0, not rounding noise divided by eps.
"""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.masking import as_mask, compute_dtype, fill_outside, wide


def group_advantages(
    rewards: Shaped[Tensor, "P G"],
    scale: Literal["std", "none"] = "std",
    baseline: Literal["mean", "leave_one_out"] = "mean",
    mask: Shaped[Tensor, "P G"] | Shaped[Tensor, " P"] | None = None,
    *,
    eps: float = 1e-6,
) -> Float[Tensor, "P G"]:
    """Return group-relative advantages.

    Args:
        rewards: one per response; any real dtype.
        scale: divide by the group's standard deviation (n - 1 in the denominator), or not.
        baseline: the group mean, or the mean of the others.
        mask: responses (P, G) or whole prompts (P,) that take part; the rest are not read and get advantage 0.
        eps: added to the standard deviation.
    """
    if rewards.shape[1] < 2:
        raise UserError(
            f"a group needs at least 2 responses, got {rewards.shape[1]}: the baseline would be the reward "
            "itself and every advantage 0; raise the number of generations per prompt"
        )
    if scale not in ("std", "none"):
        raise UserError(f"unknown scale {scale!r}: use 'std' or 'none'")
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
    return fill_outside(advantages, keep & spread.unsqueeze(-1)).to(dtype)


def broadcast_advantages(advantages: Float[Tensor, " B"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return each response's advantage on every one of its tokens, 0 outside the mask."""
    return fill_outside(advantages.unsqueeze(-1).expand(mask.shape), mask)
