"""Train on the tokens where the policy decides: high entropy, or high surprisal.

    high_entropy     A' = A on the fraction of tokens of highest entropy, 0 elsewhere
    stare            A' = w A on the ceil(fraction n) most surprising of the n tokens with A > 0, while H < H*

References: Wang et al. 2025, arXiv:2506.01939 (80/20); arXiv:2606.19236 (STARE: the code, hp-luo/STARE, commit
3ad99d9).
Deviations: selections are exact, deterministic in ties, over the update batch instead of a micro-batch, and results are
0 outside the mask.
"""

import math
from typing import Literal, Unpack

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.distributed import top_k_mask
from autotelic.functional.masking import as_mask, compute_dtype, fill_outside
from autotelic.functional.selection import Choice, count_tokens, select


def high_entropy(
    advantages: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    fraction: float | int = 0.2,
    **choice: Unpack[Choice],
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Keep the advantage of the ``fraction`` of tokens of highest entropy only (arXiv:2506.01939).

    Returns:
        The advantages, and the tokens that are kept. The paper divides by the kept tokens only: pass
        ``denominator=kept.sum()`` to ``reduce_tokens`` for that.
    """
    kept = select(entropy, as_mask(mask), mask, fraction=fraction, **choice)
    return fill_outside(advantages, kept), kept


def stare(
    advantages: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    entropy: float | int,
    target: float | int = 0.3,
    fraction: float | int = 0.1,
    positive_weight: float | int = 1.1,
    negative_weight: float | int = 0.9,
    variant: Literal["O1", "C2"] = "O1",
    **choice: Unpack[Choice],
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Reweight the most surprising tokens while the batch's mean entropy is below the target (STARE).

    Variant O1 multiplies the positive advantages of the ceil(fraction n) most surprising tokens by ``positive_weight``;
    C2 also multiplies the negative ones of theirs by ``negative_weight``.

    Returns:
        The advantages, and the tokens that were reweighted.
    """
    if variant not in ("O1", "C2"):
        raise UserError(f"unknown STARE variant {variant!r}: use 'O1' or 'C2'")
    a = fill_outside(advantages.to(compute_dtype(advantages)), mask)
    reweighted = torch.zeros_like(as_mask(mask))
    if not entropy < target:
        return a, reweighted
    signs = [(a > 0, positive_weight)] + ([(a < 0, negative_weight)] if variant == "C2" else [])
    result, token_ids = a, choice.get("token_ids")
    ranks = {"across_ranks": choice.get("across_ranks", False), "group": choice.get("group")}
    for candidates, weight in signs:
        number = count_tokens(candidates, **ranks)
        count = min(max(math.ceil(fraction * number - 1e-6), 1), number)
        chosen = top_k_mask(-logprobs.detach(), candidates, count, token_ids=token_ids, **ranks)
        result, reweighted = torch.where(chosen, a * weight, result), reweighted | chosen
    return result, reweighted
