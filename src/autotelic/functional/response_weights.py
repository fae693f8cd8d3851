"""Weights of whole responses by entropy.

    entrocraft   m = 1[H > high] - 1[H < low];  keep response i where m A_i >= 0
                 (too much entropy: only rewarded responses; too little: only punished ones; within the band: all)
    aem          alpha_s = exp(-lambda h_s) / mean exp(-lambda h),   h min-max over the spans of a prompt's responses;
                 A' = alpha_s A on span s;  alpha = 1 where the entropies of a prompt differ by less than 0.1

H is the batch's mean entropy, nats per token; a span is one turn of the model in a response.

References: Entrocraft, arXiv:2604.26326, Alg. 1 (the released code has another rule: `compat.policy_losses`); AEM,
arXiv:2605.00425, by two agreeing second-hand descriptions.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from autotelic.functional.distributed import global_max, global_sum
from autotelic.functional.masking import as_mask, fill_outside, wide


def band_side(entropy: float, low: float, high: float) -> int:
    """Return 1 above the band, -1 below it, 0 within."""
    return int(entropy > high) - int(entropy < low)


def entrocraft_keep(advantages: Float[Tensor, "*B"], side: int) -> Bool[Tensor, "*B"]:
    """Return what stays: m A >= 0, with m the side of the band on which entropy is."""
    return side * advantages >= 0


def turns(mask: Shaped[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return, for each response token, which uninterrupted run of response tokens of its row it is in, from 0."""
    valid = as_mask(mask)
    before = torch.nn.functional.pad(valid[:, :-1], (1, 0))
    return ((valid & ~before).long().cumsum(-1) - 1).clamp(min=0)


def aem_weights(
    entropy: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    prompts: Int[Tensor, " B"],
    *,
    num_prompts: int,
    coef: float | int = 1.0,
    min_range: float | int = 0.1,
    across_ranks: bool = False,
    group: object = None,
) -> Float[Tensor, "B T"]:
    """Return alpha of each response token's turn, 1 outside the mask.

    Args:
        entropy: nats per token, of the policy that wrote the response.
        mask: the model's own tokens; turns are its uninterrupted runs.
        prompts: which prompt each row belongs to, in [0, num_prompts), the same on every rank.
        num_prompts: prompts of the batch of all ranks.
        coef: lambda.
        min_range: nats; prompts whose turns differ by less keep alpha = 1.
        across_ranks: a prompt's responses may be on several processes of ``group``.
        group: the process group.
    """
    valid, h = as_mask(mask), fill_outside(wide(entropy.detach()), mask)
    if not valid.any() and not across_ranks:
        return torch.ones_like(entropy)
    turn = turns(valid)
    width = int(turn.max()) + 1 if turn.numel() else 1

    def per_turn(values: Tensor) -> Tensor:
        return values.new_zeros(values.shape[0], width).scatter_add_(1, turn, values)

    counts = per_turn(wide(valid))
    means, real = per_turn(h) / counts.clamp(min=1), counts > 0
    owner = prompts.unsqueeze(-1).expand_as(means)

    def largest(values: Tensor) -> Tensor:
        found = values.new_full((num_prompts,), -torch.inf)
        found.scatter_reduce_(0, owner[real], values[real], "amax")
        return global_max(found, group=group) if across_ranks else found

    def total(values: Tensor) -> Tensor:
        found = values.new_zeros(num_prompts).scatter_add_(0, owner[real], values[real])
        return global_sum(found, group=group) if across_ranks else found

    high, low = largest(means), -largest(-means)
    spread = (high - low).clamp(min=1e-12)
    weights = (-coef * (means - low[owner]) / spread[owner]).exp()
    average = total(weights) / total(torch.ones_like(weights)).clamp(min=1)
    alpha = torch.where((high - low < min_range)[owner], 1.0, weights / average[owner])
    return torch.where(valid, alpha.gather(1, turn), 1.0).to(entropy.dtype)
