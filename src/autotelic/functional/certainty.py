"""How far a token's distribution is from the uniform one: the self-certainty of Intuitor.

    KL(U || p_t) = logsumexp(z_t) - mean_v z_t(v) - ln V

The rewards that are means and sums of it, of the entropy and of ln p are in `autotelic.rewards.certainty_rewards`.

Reference: Zhao et al. 2025, arXiv:2505.19590, Eq. 4-5.
"""

import math

from jaxtyping import Float
from torch import Tensor

from autotelic.functional.logprobs import scale_logits


def token_self_certainty(logits: Float[Tensor, "*B V"], temperature: float | int = 1.0) -> Float[Tensor, "*B"]:
    """Return KL(U || p_t) in nats, U uniform over the vocabulary; 0 for a uniform p, infinite where some p is 0."""
    z = scale_logits(logits, temperature)
    return z.logsumexp(-1) - z.mean(-1) - math.log(z.shape[-1])
