"""Logits of a few words for each row, without the others.

    z_nk = h_n . w_{ids(n, k)} + b_{ids(n, k)}

With the log-probability of one word t, from `linear_logprob_entropy`, they give those of all others:
ln p_k = z_k - z_t + ln p_t.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from autotelic.kernels.rows import spans, widest

CHUNK = 2**22
"""Elements of the gathered weights at once: 16 MiB in float32."""


def linear_selected(
    hidden: Float[Tensor, "N d"],
    weight: Float[Tensor, "V d"],
    ids: Int[Tensor, "N K"],
    bias: Float[Tensor, " V"] | None = None,
) -> Float[Tensor, "N K"]:
    """Return the logits of K words for each row, in float32 (float64 for float64 operands), differentiable.

    Args:
        hidden: one row per token.
        weight: of the head.
        ids: words in [0, V); a word may stand in a row more than once.
        bias: of the head.
    """
    return _Selected.apply(hidden, weight, ids, bias)  # pyright: ignore[reportReturnType]


class _Selected(torch.autograd.Function):
    """Gathers some rows' words at a time; the backward pass adds them up in one gradient of the weight."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, ids, bias)
        dtype = widest(hidden, weight, bias)
        out = torch.empty(ids.shape, dtype=dtype, device=hidden.device)
        for rows in chunks(hidden, ids):
            out[rows] = torch.bmm(weight[ids[rows]].to(dtype), hidden[rows].to(dtype).unsqueeze(-1)).squeeze(-1)
        return out if bias is None else out.add_(bias[ids])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, ids, bias = ctx.saved_tensors
        dtype, needs = upstream.dtype, ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if needs[0] else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if needs[1] else None
        for rows in chunks(hidden, ids):
            g = upstream[rows]
            if grad_hidden is not None:
                grad_hidden[rows] = torch.bmm(g.unsqueeze(1), weight[ids[rows]].to(dtype)).squeeze(1)
            if grad_weight is not None:
                outer = g.unsqueeze(-1) * hidden[rows].to(dtype).unsqueeze(1)
                grad_weight.index_add_(0, ids[rows].flatten(), outer.flatten(0, 1))
        grad_bias = None
        if bias is not None and needs[3]:
            grad_bias = torch.zeros_like(bias, dtype=dtype).index_add_(0, ids.flatten(), upstream.flatten()).to(bias)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden),
            None if grad_weight is None else grad_weight.to(weight),
            None,
            grad_bias,
        )


def chunks(hidden: Tensor, ids: Tensor) -> list[slice]:
    """Return rows whose gathered weights fit `CHUNK`."""
    return list(spans(ids.shape[0], max(CHUNK // max(ids.shape[1] * hidden.shape[1], 1), 1)))
