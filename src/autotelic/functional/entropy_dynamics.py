"""First-order theory of how an update of the logits changes entropy, for a softmax policy over V actions.

    any dz:             dH = -Cov_{a~pi}(ln pi, dz)                        Lemma 1
    policy gradient:    dz = eta pi A     ->  dH = -eta Cov(ln pi, pi A)   Theorem 1; needs E_pi[A] = 0
    natural gradient:   dz = eta A        ->  dH = -eta Cov(ln pi, A)      Theorem 2
    one sample a:       dz = eta A (e_a - pi)  ->  dH = -eta A (S_a - E_pi[S]),   S_k = pi_k (H + ln pi_k)

Each holds up to O(eta^2). S is -dH/dz, the discriminator of Wang et al.; averaged over a ~ pi the last form is
Theorem 1.

References: Cui et al. 2025, arXiv:2505.22617, Lemma 1, Theorems 1 and 2; Wang et al. 2026, arXiv:2602.03392 (S).
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from autotelic.functional.logprobs import scale_logits


class Discriminator(NamedTuple):
    """The entropy discriminator of each sampled token, in nats."""

    sampled: Float[Tensor, "*B"]
    """S_a of the sampled token."""
    expected: Float[Tensor, "*B"]
    """E_pi[S], the baseline."""


def action_covariance(
    logits: Float[Tensor, "*B V"], values: Float[Tensor, "*B V"], temperature: float | int = 1.0
) -> Float[Tensor, "*B"]:
    """Return Cov_{a~pi}(ln pi(a), values(a)), exactly, over the V actions of each state."""
    log_p = scale_logits(logits, temperature).log_softmax(-1)
    p = log_p.exp()
    centred_log_p = log_p.masked_fill(p == 0, 0.0)
    centred_log_p = centred_log_p - (p * centred_log_p).sum(-1, keepdim=True)
    return (p * centred_log_p * (values - (p * values).sum(-1, keepdim=True))).sum(-1)


def entropy_discriminator(
    logits: Float[Tensor, "*B V"], tokens: Int[Tensor, "*B"], temperature: float | int = 1.0
) -> Discriminator:
    """Return S_a = p_a (H + ln p_a) of each sampled token, and E_pi[S] = sum_k p_k^2 (H + ln p_k)."""
    log_p = scale_logits(logits, temperature).log_softmax(-1)
    p = log_p.exp()
    log_p = log_p.masked_fill(p == 0, 0.0)
    entropy = -(p * log_p).sum(-1, keepdim=True)
    s = p * (entropy + log_p)
    return Discriminator(s.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), (p * s).sum(-1))


def sampled_entropy_change(
    discriminator: Discriminator, advantages: Float[Tensor, "*B"], learning_rate: float | int = 1.0
) -> Float[Tensor, "*B"]:
    """Return -eta A (S_a - E_pi[S]), the first-order change of entropy at each token's own state, in nats.

    ``learning_rate`` is a step in the logits; for a network it stands for an unknown scale, so only sign and proportion
    have meaning there.
    """
    return -learning_rate * advantages * (discriminator.sampled - discriminator.expected)
