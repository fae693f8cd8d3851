"""Rewards from a model's own certainty: no label, no other sample.

    self-certainty     mean_t KL(U || p_t) = mean_t [ logsumexp(z_t) - mean_v z_t(v) - ln V ]
    token entropy      -mean_t H_t                    (RENT)
    EM-RL, token       -sum_t H_t                     EM-RL, sequence     sum_t ln p(y_t)

References: Zhao et al. 2025, arXiv:2505.19590 (self-certainty, Intuitor); Prabhudesai et al. 2025, arXiv:2505.22660
(RENT); Agarwal et al. 2025, arXiv:2505.15134 (EM-RL).
Deviations: none.
"""

import math

from jaxtyping import Float, Shaped
from torch import Tensor

from autotelic.functional.logprobs import scale_logits
from autotelic.functional.masking import fill_outside, sequence_means


def token_self_certainty(logits: Float[Tensor, "*B V"], temperature: float | int = 1.0) -> Float[Tensor, "*B"]:
    """Return KL(U || p_t) in nats, U uniform over the vocabulary; 0 for a uniform p, infinite where some p is 0."""
    z = scale_logits(logits, temperature)
    return z.logsumexp(-1) - z.mean(-1) - math.log(z.shape[-1])


def self_certainty_reward(token_certainty: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Return the mean self-certainty of each response; 0 for an empty one."""
    return sequence_means(token_certainty, mask)


def negative_entropy_reward(entropy: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Return minus the mean token entropy of each response (RENT); 0 for an empty one."""
    return -sequence_means(entropy, mask)


def total_negative_entropy_reward(entropy: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Return minus the summed token entropy of each response (EM-RL, token); it favours short responses."""
    return -fill_outside(entropy, mask).sum(-1)


def sequence_logprob_reward(logprobs: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Return ln p of each response (EM-RL, sequence); it favours short responses."""
    return fill_outside(logprobs, mask).sum(-1)
