"""The policy losses of the authors' code and of verl, bug for bug: for comparison with reference runs, never a default.

    clip_cov:  L = mean_t [ max(-r A, -clip(r) A) * (1 - selected) ]
    kl_cov:    L = mean_t [ -r A + selected * coef |log r| ]

clip_cov draws max(int(fraction N), 1) tokens at random from low < Cov < high, among those that the PPO clip spares;
kl_cov takes the max(int(fraction N), 1) tokens of largest covariance.

Means, counts and choices belong to the micro-batch that is passed in; dropped tokens stay in the denominator; there is
no dual clip in either, no PPO clip and no bound on the ratio in kl_cov.

Sources, run and observed: PRIME-RL/Entropy-Mechanism-of-RL, commit 8850579, and volcengine/verl, commit b178a3c, both
verl/trainer/ppo/core_algos.py. Paper: Cui et al. 2025, arXiv:2505.22617.
Deviations: the 1e-8 that is added to token counts is left out (below 1e-9 of the loss).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from autotelic.errors import UserError, one_of
from autotelic.functional.distributed import top_k_mask
from autotelic.functional.divergence import kl_estimate
from autotelic.functional.masking import as_mask, fill_outside, reduce_tokens, sequence_means
from autotelic.functional.selection import quota
from autotelic.functional.surrogate import cispo_surrogate, clipped_surrogate, gspo_surrogate, log_ratio, ratio_clipped
from autotelic.functional.token_covariance import token_covariance

PolicyLoss = Literal["vanilla", "ppo", "clip_cov", "kl_cov", "gspo", "cispo"]


@dataclass(frozen=True)
class ParitySettings:
    """Numbers of a reference configuration; fractions, not percentages."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    clip_cov_fraction: float = 2e-4
    clip_cov_low: float = 1.0
    clip_cov_high: float = 5.0
    kl_cov_fraction: float = 2e-4
    kl_cov_coef: float = 1.0


PRESETS: dict[str, ParitySettings] = {
    # The paper's Clip-Cov scripts set the PPO clip to (1, 1): ratios in [0, 2].
    "paper_7b": ParitySettings(clip_low=1.0, clip_high=1.0, kl_cov_fraction=2e-3),
    "paper_32b": ParitySettings(clip_low=1.0, clip_high=1.0, kl_cov_fraction=2e-4),
    "verl_default": ParitySettings(kl_cov_coef=0.1),
}


def preset(name: str) -> ParitySettings:
    """Return a reference configuration by name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{one_of(name, PRESETS)}")
    return PRESETS[name]


def clip_cov_candidates(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    settings: ParitySettings,
) -> Bool[Tensor, "B T"]:
    """Return the tokens that Clip-Cov may drop: inside the band, and not clipped by the ratio."""
    covariance = token_covariance(logprobs, advantages, mask)
    clipped = ratio_clipped(
        logprobs, old_logprobs, advantages, mask, clip_low=settings.clip_low, clip_high=settings.clip_high
    )
    inside = (covariance > settings.clip_cov_low) & (covariance < settings.clip_cov_high)
    return inside & ~clipped & as_mask(mask)


def draw(candidates: Bool[Tensor, "B T"], budget: int, generator: torch.Generator) -> Bool[Tensor, "B T"]:
    """Return ``budget`` candidates chosen by one ``randperm`` of their row-major list, as the reference draws them."""
    rows, columns = candidates.nonzero(as_tuple=True)
    order = torch.randperm(rows.numel(), generator=generator)[: min(budget, rows.numel())].to(candidates.device)
    selected = torch.zeros_like(candidates)
    return selected.index_put((rows[order], columns[order]), torch.ones_like(order, dtype=torch.bool))


def kl_cov_selection(
    logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    settings: ParitySettings,
) -> Bool[Tensor, "B T"]:
    """Return the max(int(fraction N), 1) tokens of largest covariance, whatever its sign."""
    count = quota(settings.kl_cov_fraction, int(as_mask(mask).sum()), at_least_one=True)
    return top_k_mask(token_covariance(logprobs, advantages, mask), mask, count)


def policy_loss(
    method: PolicyLoss,
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    settings: ParitySettings,
    *,
    generator: torch.Generator | None = None,
    selected: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Return the scalar loss of the reference implementation on one micro-batch.

    Args:
        method: ``vanilla`` (dual clip, verl), ``ppo`` (no dual clip, the authors' code), ``clip_cov``, ``kl_cov``,
            ``gspo`` (mean over sequences of token means) or ``cispo``.
        logprobs: per token, with gradient.
        old_logprobs: per token.
        advantages: per token.
        mask: response tokens.
        settings: the reference's numbers.
        generator: for ``clip_cov``; the reference draws from torch's global generator.
        selected: for ``clip_cov`` and ``kl_cov``, a selection to use instead of making one.
    """
    bounds = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
    num_tokens = as_mask(mask).sum()
    if method == "gspo":
        per_sequence = sequence_means(gspo_surrogate(logprobs, old_logprobs, advantages, mask, **bounds), mask)
        rows = as_mask(mask).any(-1)
        return reduce_tokens(per_sequence, rows, denominator=rows.sum())
    if method == "cispo":
        per_token = cispo_surrogate(logprobs, old_logprobs, advantages, mask=mask, **bounds)
    elif method in ("vanilla", "ppo"):
        dual_clip = settings.dual_clip if method == "vanilla" else None
        per_token = clipped_surrogate(logprobs, old_logprobs, advantages, mask=mask, dual_clip=dual_clip, **bounds)
    elif method == "clip_cov":
        if selected is None:
            candidates = clip_cov_candidates(logprobs, old_logprobs, advantages, mask, settings)
            budget = quota(settings.clip_cov_fraction, int(num_tokens), at_least_one=True)
            selected = draw(candidates, budget, generator or torch.default_generator)
        a = fill_outside(advantages, as_mask(mask) & ~selected)
        per_token = clipped_surrogate(logprobs, old_logprobs, a, mask=mask, **bounds)
    elif method == "kl_cov":
        if selected is None:
            selected = kl_cov_selection(logprobs, advantages, mask, settings)
        plain = clipped_surrogate(
            logprobs, old_logprobs, advantages, clip_low=None, clip_high=None, mask=mask, max_log_ratio=None
        )
        penalty = kl_estimate(log_ratio(logprobs, old_logprobs, mask, max_log_ratio=None), "abs")
        per_token = plain + fill_outside(settings.kl_cov_coef * penalty, selected)
    else:
        raise UserError(f"unknown policy loss {method!r}: use vanilla, ppo, clip_cov, kl_cov, gspo or cispo")
    return reduce_tokens(per_token, mask, denominator=num_tokens)


def entrocraft_released(
    advantages: Float[Tensor, "B T"],
    rewards: Float[Tensor, "B T"],
    *,
    entropy: float | int,
    low: float | int,
    high: float | int,
) -> Float[Tensor, "B T"]:
    """Return the advantages of Entrocraft's released code, which are not those of its paper.

        max(reward, 0) above the band, min(reward, 0) below it, A within:  raw rewards, no baseline

    With rewards of 0 and 1 the lower branch is all zero; responses that are left out stay in the denominator.

    Source: lblaoke/entrocraft, commit 26165bd, core_algos.py:342-379. The paper's filter, arXiv:2604.26326, Alg. 1, is
    `autotelic.controls.entrocraft`.
    """
    if entropy > high:
        return rewards.clamp(min=0)
    return rewards.clamp(max=0) if entropy < low else advantages
