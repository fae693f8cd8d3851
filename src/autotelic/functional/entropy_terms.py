"""Advantages with an entropy term, or weighed by what a token does to entropy.

    repo             A' = A - beta (ln pi + H)          beta = coef, or coef |A| (REPO-R)
    steer            A' = A exp(-k |Omega|),            Omega = A p (1 - p) (ln p + H) / p_old,
                                                        k = -ln(w_min) / max(max |Omega|, 0.02)
    entropic         A' = A + alpha |A| where p > threshold,
                                                        alpha = clip(K_p e + K_i sum e, -1, 1),  e = H - H*

References: arXiv:2603.11682 (REPO: no official code; the formula as given by independent reviews and
re-implementations, coef |A| and the doubling controller by one review); arXiv:2510.10150 (STEER: the code,
zz-haooo/STEER, commit 08add1cc); arXiv:2511.15248 (EntroPIC: the code, yk7333/EntroPIC, commit 2470730).
Deviations: results are 0 outside the mask. Weights multiply the advantage, so PPO's clip applies to them; EntroPIC's
code adds its term unclipped.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.distributed import global_max
from autotelic.functional.masking import as_mask, compute_dtype, fill_outside


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
