"""Which tokens keep their gradient, by how far the policy has moved there: in place of, or beside, the PPO clip.

With pi the present policy, mu the sampler, pi_old the policy of the rollout, all at the sampled token:

    dppo, tv   keep A > 0 where pi - mu <= high, A < 0 where mu - pi <= low
    dppo, kl   D = mu ln(mu / pi) + (1 - mu) ln((1 - mu) / (1 - pi));  drop where D > high and the token moves away from
               mu: A > 0 and pi > mu, or A < 0 and pi < mu
    erc        keep where low < (H + 1e-8) / (H_old + 1e-8) < high
    estr       keep where (ln(pi / mu))^2 / (H_mu + eps) <= tau
    ce_gppo    gradient weight of A, in place of r and of 0 where PPO clips:
               beta_low (1 - low) where A < 0 and r < 1 - low;  beta_high (1 + high) where A > 0 and r > 1 + high;
               0 where A < 0 and r > c (the dual clip);  r elsewhere

References: DPPO: arXiv:2602.04879 with the code of Stable-RL (commit c6af1d1) and verl (commit 1dda039,
core_algos.py:1379, 1460); ERC: arXiv:2512.05591 with Kwai-Klear/ERC, commit f1885c5; ESTR: arXiv:2607.22186, by
agreeing second-hand descriptions; CE-GPPO: arXiv:2509.20712 with Kwai-Klear/CE-GPPO, commit 10558fe.
Deviations: a token whose probability rounds to 1 keeps 1e-8 of the rest in the divergence, as verl's code does; ERC's
likelihood term on correct responses is not part of its mask.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.masking import compute_dtype


def dppo_mask(
    advantages: Float[Tensor, "*B"],
    logprobs: Float[Tensor, "*B"],
    sampler_logprobs: Float[Tensor, "*B"],
    *,
    divergence: Literal["tv", "kl"] = "tv",
    low: float | int = 0.15,
    high: float | int = 0.15,
) -> Bool[Tensor, "*B"]:
    """Return the tokens that DPPO trains on.

    Args:
        advantages: per token; their sign decides which way is away.
        logprobs: ln pi, without gradient.
        sampler_logprobs: ln mu.
        divergence: of the two-outcome distributions (this token or not): total variation, or KL(mu || pi).
        low: bound for A < 0; not used by ``kl``.
        high: bound for A > 0; for both signs with ``kl``.
    """
    dtype = torch.promote_types(compute_dtype(logprobs), compute_dtype(sampler_logprobs))
    pi, mu = logprobs.detach().to(dtype).exp(), sampler_logprobs.detach().to(dtype).exp()
    if divergence == "tv":
        return torch.where(advantages > 0, pi - mu <= high, (mu - pi <= low) | (advantages == 0))
    if divergence != "kl":
        raise UserError(f"unknown divergence {divergence!r}: use tv or kl")
    moved = mu * (sampler_logprobs.to(dtype) - logprobs.detach().to(dtype))
    rest = (1 - mu) * ((1 - mu + 1e-8) / (1 - pi + 1e-8)).log()
    away = ((advantages > 0) & (pi > mu)) | ((advantages < 0) & (pi < mu))
    return ~((moved + rest > high) & away)


def entropy_ratio_mask(
    entropy: Float[Tensor, "*B"], old_entropy: Float[Tensor, "*B"], *, low: float | int, high: float | int
) -> Bool[Tensor, "*B"]:
    """Return the tokens whose entropy ratio lies strictly between the bounds (ERC)."""
    ratio = (entropy.detach() + 1e-8) / (old_entropy.detach() + 1e-8)
    return (low < ratio) & (ratio < high)


def estr_mask(
    logprobs: Float[Tensor, "*B"],
    sampler_logprobs: Float[Tensor, "*B"],
    sampler_entropy: Float[Tensor, "*B"],
    *,
    tau: float | int,
    eps: float | int = 0.01,
) -> Bool[Tensor, "*B"]:
    """Return the tokens whose squared log-ratio is small against the sampler's entropy (ESTR)."""
    moved = (logprobs.detach() - sampler_logprobs.detach()).square()
    return moved / (sampler_entropy.detach() + eps) <= tau


def ce_gppo_weight(
    advantages: Float[Tensor, "*B"],
    log_ratio: Float[Tensor, "*B"],
    *,
    beta_low: float | int = 0.25,
    beta_high: float | int = 1.0,
    low: float | int = 0.2,
    high: float | int = 0.2,
    dual_clip: float | int | None = 10.0,
) -> Float[Tensor, "*B"]:
    """Return what CE-GPPO multiplies the advantage with in the gradient with respect to ln pi.

    Args:
        advantages: per token.
        log_ratio: ln pi - ln pi_old, without gradient.
        beta_low: share of the boundary's weight that a punished token keeps below 1 - low.
        beta_high: the same for a rewarded token above 1 + high.
        low: the lower bound is 1 - low.
        high: the upper bound is 1 + high.
        dual_clip: ratio above which a punished token gets no gradient; None for no bound.
    """
    ratio = log_ratio.detach().exp()
    weight = torch.where((advantages < 0) & (ratio < 1 - low), beta_low * (1 - low), ratio)
    weight = torch.where((advantages > 0) & (ratio > 1 + high), beta_high * (1 + high), weight)
    return weight if dual_clip is None else weight.masked_fill((advantages < 0) & (ratio > dual_clip), 0.0)
