"""Other ways to hold entropy, each a rewrite of the advantages (or of one coefficient), for the same table.

    high_entropy     A' = A on the fraction of tokens of highest entropy, 0 elsewhere
    repo             A' = A - beta (ln pi + H)          beta = coef, or coef |A| (REPO-R)
    steer            A' = A exp(-k |Omega|),            Omega = A p (1 - p) (ln p + H) / p_old,
                                                        k = -ln(w_min) / max(max |Omega|, 0.02)
    entropic         A' = A + alpha |A| where p > threshold,
                                                        alpha = clip(K_p e + K_i sum e, -1, 1),  e = H - H*
    clip_b           A' = 0 where A < 0 and S - mean S < -mu std S,         S = p (ln p + H)
    clip_v           A' = 0 where A < 0 and D > mu std D,  D = E_pi[S] - S, at most max(int(fraction N), 1) tokens
    stare            A' = w A on the ceil(fraction n) most surprising of the n tokens with A > 0, while H < H*

Each reads the whole update batch; ``across_ranks`` makes it the batch of all processes.

References: Wang et al. 2025, arXiv:2506.01939 (80/20); arXiv:2603.11682 (REPO: no official code; the formula as given
by independent reviews and re-implementations, coef |A| and the doubling controller by one review); arXiv:2510.10150
(STEER: the code, zz-haooo/STEER, commit 08add1cc); arXiv:2511.15248 (EntroPIC: the code, yk7333/EntroPIC, commit
2470730); arXiv:2602.03392 (discriminator clipping: the code, Trinity-RFT, clip_b and clip_v advantages);
arXiv:2606.19236 (STARE: the code, hp-luo/STARE, commit 3ad99d9).
Deviations: selections are exact, deterministic in ties, over the update batch instead of a micro-batch, and results are
0 outside the mask. Weights multiply the advantage, so PPO's clip applies to them; EntroPIC's code adds its term
unclipped.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.distributed import global_max, global_sum, top_k_mask
from autotelic.functional.masking import as_mask, compute_dtype, fill_outside, wide
from autotelic.functional.token_advantages import quota


def _count(mask: Bool[Tensor, "B T"], across_ranks: bool, group: object) -> int:
    return int(global_sum(mask.sum(), group=group) if across_ranks else mask.sum())


def high_entropy(
    advantages: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    fraction: float | int = 0.2,
    token_ids: Int[Tensor, "B T"] | None = None,
    across_ranks: bool = False,
    group: object = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Keep the advantage of the ``fraction`` of tokens of highest entropy only (arXiv:2506.01939).

    Returns:
        The advantages, and the tokens that are kept. The paper divides by the kept tokens only: pass
        ``denominator=kept.sum()`` to ``reduce_tokens`` for that.
    """
    count = quota(fraction, _count(as_mask(mask), across_ranks, group))
    kept = top_k_mask(entropy, mask, count, token_ids=token_ids, across_ranks=across_ranks, group=group)
    return fill_outside(advantages, kept), kept


def repo(
    advantages: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    coef: float | int,
    rescale: bool = True,
) -> Float[Tensor, "B T"]:
    """Return A - beta L with L = ln pi - E_pi[ln pi] = ln pi + H (REPO, arXiv:2603.11682).

    Args:
        advantages: per token.
        logprobs: ln pi of the sampled tokens; no gradient.
        entropy: of the distribution that each token was drawn from, same temperature; no gradient.
        mask: response tokens.
        coef: beta, or zeta of REPO-R.
        rescale: REPO-R, beta = zeta |A|: a prompt without signal stays without.
    """
    dtype = compute_dtype(advantages)
    a, log_p, h = (fill_outside(x.detach().to(dtype), mask) for x in (advantages, logprobs, entropy))
    return a - coef * (a.abs() if rescale else 1.0) * fill_outside(log_p + h, mask)


def doubling_coef(coef: float | int, entropy: float | int, target: float | int) -> float:
    """Return twice the coefficient while entropy is below its target (the initial entropy), else half (REPO-R)."""
    return coef * 2 if entropy < target else coef / 2


def steer(
    advantages: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    min_weight: float | int = 0.8,
    across_ranks: bool = False,
    group: object = None,
) -> Float[Tensor, "B T"]:
    """Damp the tokens whose update would change entropy most, up or down (STEER, symmetric, exponential).

    ``min_weight`` is the weight of the largest estimated change: 0.8 in the released script, 0.7 in version 4 of the
    paper. The 0.02 under ``max |Omega|`` is the code's.
    """
    if not 0 < min_weight <= 1:
        raise UserError(
            f"min_weight must be in (0, 1], got {min_weight}: it is the smallest weight of a token; use 0.8"
        )
    dtype = compute_dtype(logprobs)
    a, log_p, old, h = (fill_outside(x.detach().to(dtype), mask) for x in (advantages, logprobs, old_logprobs, entropy))
    p = log_p.exp().clamp(1e-8, 1 - 1e-8)
    change = a / old.exp().clamp(1e-8, 1.0) * p * (1 - p) * (p.log() + h)
    size = fill_outside(change, mask).abs()
    largest = size.max() if size.numel() else size.new_zeros(())
    largest = global_max(largest, group=group) if across_ranks else largest
    weight = (math.log(min_weight) / largest.clamp(min=0.02) * size).exp().clamp(min_weight, 1.0)
    return a * weight


@dataclass(frozen=True)
class PIController:
    """Proportional-integral control of entropy (EntroPIC); ``update`` returns the next controller and its alpha."""

    target: float | int
    proportional: float | int = 1.0
    integral: float | int = 0.01
    accumulated: float | int = 0.0

    def update(self, entropy: float | int) -> tuple["PIController", float]:
        """Return the controller after one update batch of mean entropy ``entropy``, and alpha in [-1, 1] for it."""
        error = entropy - self.target
        alpha = min(max(self.proportional * error + self.integral * self.accumulated, -1.0), 1.0)
        following = PIController(self.target, self.proportional, self.integral, self.accumulated + error)
        return following, alpha


def entropic(
    advantages: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    alpha: float | int,
    threshold: float | int,
) -> Float[Tensor, "B T"]:
    """Return A + alpha |A| on tokens of probability above ``threshold`` (EntroPIC).

    So positive samples weigh 1 + alpha and negative ones 1 - alpha there. ``alpha`` comes from ``PIController``: below
    the target entropy it is negative, and certain tokens are rewarded less and punished more.
    """
    likely = as_mask(mask) & (logprobs.detach() > math.log(threshold))
    a = fill_outside(advantages.to(compute_dtype(advantages)), mask)
    return torch.where(likely, a + alpha * a.abs(), a)


def _mean_and_std(x: Tensor, mask: Tensor, across_ranks: bool, group: object) -> tuple[Tensor, Tensor]:
    """Return mean and population std over the mask (of all ranks)."""

    def total(values: Tensor) -> Tensor:
        summed = fill_outside(wide(values), mask).sum()
        return global_sum(summed, group=group) if across_ranks else summed

    count = total(torch.ones_like(x)).clamp(min=1)
    mean = total(x) / count
    return mean, (total((wide(x) - mean).square()) / count).sqrt()


def clip_b(
    advantages: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    mu: float | int = 2.5,
    across_ranks: bool = False,
    group: object = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Zero the negative advantages whose discriminator lies more than ``mu`` std below the batch mean.

    Returns:
        The advantages, and the tokens that were zeroed.
    """
    log_p, h = (fill_outside(wide(x.detach()), mask) for x in (logprobs, entropy))
    s = log_p.exp() * (h + log_p)
    mean, std = _mean_and_std(s, as_mask(mask), across_ranks, group)
    selected = as_mask(mask) & (advantages < 0) & (s - mean < -mu * std) & (std > 1e-12)
    return fill_outside(advantages, as_mask(mask) & ~selected), selected


def clip_v(
    advantages: Float[Tensor, "B T"],
    sampled: Float[Tensor, "B T"],
    expected: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    mu: float | int = 8.5,
    fraction: float | int = 1e-4,
    token_ids: Int[Tensor, "B T"] | None = None,
    across_ranks: bool = False,
    group: object = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Zero the negative advantages whose E_pi[S] - S_a exceeds ``mu`` std, the largest first, at most a fraction.

    Args:
        advantages: per token.
        sampled: S_a, of ``entropy_discriminator``.
        expected: E_pi[S], likewise.
        mask: response tokens.
        mu: threshold in standard deviations of the difference over the batch.
        fraction: the most that may be zeroed, as a share of the response tokens, one token at least.
        token_ids: identities for ties.
        across_ranks: use the batch of all processes.
        group: the process group.

    Returns:
        The advantages, and the tokens that were zeroed.
    """
    gap = fill_outside(wide((expected - sampled).detach()), mask)
    _, std = _mean_and_std(gap, as_mask(mask), across_ranks, group)
    candidates = as_mask(mask) & (advantages < 0) & (gap > mu * std) & (std > 1e-12)
    count = quota(fraction, _count(as_mask(mask), across_ranks, group), at_least_one=True)
    selected = top_k_mask(gap, candidates, count, token_ids=token_ids, across_ranks=across_ranks, group=group)
    return fill_outside(advantages, as_mask(mask) & ~selected), selected


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
    token_ids: Int[Tensor, "B T"] | None = None,
    across_ranks: bool = False,
    group: object = None,
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
    result = a
    for candidates, weight in signs:
        number = _count(candidates, across_ranks, group)
        count = min(max(math.ceil(fraction * number - 1e-6), 1), number)
        chosen = top_k_mask(
            -logprobs.detach(), candidates, count, token_ids=token_ids, across_ranks=across_ranks, group=group
        )
        result, reweighted = torch.where(chosen, a * weight, result), reweighted | chosen
    return result, reweighted
