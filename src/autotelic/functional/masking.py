"""Masks and reductions: the only place where values per token become one number.

    masked_sum  = sum_i m_i x_i          masked_mean = sum_i m_i x_i / sum_i m_i          reduce = sum_i m_i x_i / D

The denominator D is always an argument, because "the mean" of a ragged batch has several meanings and the gradient must
not depend on how the batch is split. Values outside a mask are never read, so NaN or infinity in padding does no harm.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from autotelic.errors import UserError


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the precision in which statistics of ``x`` are taken: float64 for float64, float32 for all else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float64, in which sums are taken (float32 on devices that have no float64)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def as_mask(mask: Shaped[Tensor, "*A"]) -> Bool[Tensor, "*A"]:
    """Return a boolean mask from a boolean, integer or floating one (non-zero means true)."""
    return mask if mask.dtype == torch.bool else mask != 0


def fill_outside(x: Float[Tensor, "*A"], mask: Shaped[Tensor, "*A"], value: float | int = 0.0) -> Float[Tensor, "*A"]:
    """Return ``x`` with ``value`` outside the mask; the gradient there is exactly zero."""
    return torch.where(as_mask(mask), x, torch.full((), value, dtype=x.dtype, device=x.device))


def masked_sum(x: Float[Tensor, "*A"], mask: Shaped[Tensor, "*A"]) -> Float[Tensor, ""]:
    """Return the sum of ``x`` over the mask, accumulated in float64 and given back in at least float32.

    Accumulation in float64 keeps the sum the same, to float32, for any order of the terms and any split of the batch.
    """
    return wide(fill_outside(x, mask)).sum().to(compute_dtype(x))


def masked_mean(x: Float[Tensor, "*A"], mask: Shaped[Tensor, "*A"]) -> Float[Tensor, ""]:
    """Return the mean of ``x`` over the mask; an empty mask gives 0."""
    count = as_mask(mask).sum().clamp(min=1)
    return (wide(fill_outside(x, mask)).sum() / count).to(compute_dtype(x))


def reduce_tokens(
    per_token: Float[Tensor, "*A"], mask: Shaped[Tensor, "*A"], *, denominator: float | int | Tensor
) -> Float[Tensor, ""]:
    """Return ``sum(mask * per_token) / denominator``.

    Args:
        per_token: one value per response token (B, T) or per pair (N,).
        mask: true where a value counts; other values are not read, and their gradient is zero.
        denominator: what the sum is divided by, e.g. the number of response tokens of the whole update batch, on every
            rank. Zero is accepted only together with an empty mask, and the result is then 0.

    Returns:
        A scalar in the precision of ``per_token`` (float32 at least).
    """
    if isinstance(denominator, Tensor) and denominator.numel() != 1:
        raise UserError(f"denominator must be one number, got shape {tuple(denominator.shape)}; reduce it first")
    if not isinstance(denominator, Tensor) and denominator < 0:
        raise UserError(f"denominator must not be negative, got {denominator}; pass the number of tokens to divide by")
    total = wide(fill_outside(per_token, mask)).sum()
    divisor = torch.as_tensor(denominator, dtype=total.dtype, device=total.device).reshape(())
    empty = ~as_mask(mask).any()
    divisor = torch.where(empty & (divisor == 0), torch.ones_like(divisor), divisor)
    return (total / divisor).to(compute_dtype(per_token))


def sequence_means(per_token: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Return each row's mean over its mask; a row without tokens gives 0."""
    count = as_mask(mask).sum(-1).clamp(min=1)
    return (wide(fill_outside(per_token, mask)).sum(-1) / count).to(compute_dtype(per_token))
