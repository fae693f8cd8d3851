"""What a surrogate multiplies an advantage with, in the gradient with respect to the token's log-probability.

    dL_t / d ln pi(y_t) = -w(r_t, sign A_t) A_t,       L_t one of TRL's losses, one ratio r_t per token

    grpo, dapo, bnpo, dr_grpo, luspo    w = r, and 0 where PPO clips: A > 0 and r > 1 + high, or A < 0 and r < 1 - low
    cispo                               w = min(r, high)
    sapo                                w = 4 s (1 - s) r,   s = sigmoid(tau (r - 1)),   tau by the sign of A

A method that wants the gradient -g finds its advantage by A' = g / w(r, sign g), whatever the loss is.

References: Schulman et al. 2017, arXiv:1707.06347 (PPO); MiniMax 2025, arXiv:2506.13585 (CISPO); Gao et al. 2025,
arXiv:2511.20347 (SAPO).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic.errors import UserError

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Losses of TRL that are PPO's clipped surrogate."""
OUT_OF_REACH = 1e9
"""A bound of the PPO clip that no ratio meets: for controls that have a bound of their own."""


class GradientWeights(NamedTuple):
    """The weight of a token's advantage, by the sign that the advantage has."""

    positive: Float[Tensor, "B T"]
    negative: Float[Tensor, "B T"]

    def of(self, values: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Return each token's weight for the sign of its value."""
        return torch.where(values > 0, self.positive, self.negative)


def gradient_weights(
    log_ratio: Float[Tensor, "B T"],
    loss_type: str,
    *,
    clip_low: float | int,
    clip_high: float | int,
    temperatures: tuple[float | int, float | int] = (1.0, 1.0),
) -> GradientWeights:
    """Return the weights of every token.

    Args:
        log_ratio: ln pi - ln pi_old, without gradient.
        loss_type: TRL's name of the loss; ``vespo`` is not here, since its weight belongs to the whole response.
        clip_low: PPO's lower bound is 1 - clip_low.
        clip_high: PPO's upper bound is 1 + clip_high; CISPO's is clip_high itself.
        temperatures: SAPO's, for A > 0 and for the others.

    Raises:
        UserError: an unknown loss.
    """
    ratio = log_ratio.exp()
    if loss_type in CLIPPED:
        return GradientWeights(ratio * (ratio <= 1 + clip_high), ratio * (ratio >= 1 - clip_low))
    if loss_type == "cispo":
        return GradientWeights(*[ratio.clamp(max=clip_high)] * 2)
    if loss_type == "sapo":
        soft = [(tau * (ratio - 1)).sigmoid() for tau in temperatures]
        return GradientWeights(*(4 * s * (1 - s) * ratio for s in soft))
    raise UserError(f"unknown loss_type {loss_type!r}: the weight of an advantage in its gradient is not known")
