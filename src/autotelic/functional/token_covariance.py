"""The token covariance that drives entropy.

    Cov(y_i) = (ln pi(y_i) - mean_j ln pi(y_j)) (A(y_i) - mean_j A(y_j)),   means over the N response tokens

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 10.
Deviations: the means run over the mask that is given, and that should be the whole update batch; where a rank sees only
part of it, pass the global means (``token_moments`` on one process, ``distributed.global_moments`` on many).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from autotelic.functional.masking import as_mask, compute_dtype, fill_outside, wide


class TokenMoments(NamedTuple):
    """What the covariance needs to know of the whole batch."""

    mean_logprob: float
    mean_advantage: float
    num_tokens: int


def token_sums(
    logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> Float[Tensor, "3"]:
    """Return (sum of logprobs, sum of advantages, number of tokens) in float64, ready to be added over ranks."""
    sums = [fill_outside(wide(x.detach()), mask).sum() for x in (logprobs, advantages)]
    return torch.stack([*sums, wide(as_mask(mask).sum())])


def moments_from_sums(sums: Float[Tensor, "3"], dtype: torch.dtype = torch.float64) -> TokenMoments:
    """Return means and count from (added) sums, the means rounded to ``dtype``.

    Rounding the float64 means to the precision of the inputs makes them the same for every split and order of the
    batch.
    """
    total_logprob, total_advantage, count = sums.tolist()
    means = torch.tensor([total_logprob, total_advantage], dtype=torch.float64) / max(count, 1.0)
    mean_logprob, mean_advantage = means.to(dtype).tolist()
    return TokenMoments(mean_logprob, mean_advantage, int(count))


def token_moments(
    logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> TokenMoments:
    """Return the means over the mask and the number of tokens; zeros for an empty mask."""
    return moments_from_sums(token_sums(logprobs, advantages, mask), compute_dtype(logprobs))


def token_covariance(
    logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    mean_logprob: float | Tensor | None = None,
    mean_advantage: float | Tensor | None = None,
) -> Float[Tensor, "B T"]:
    """Return each token's covariance, 0 outside the mask, without gradient.

    Args:
        logprobs: ln pi of the sampled tokens; values outside the mask are not read.
        advantages: per token.
        mask: the tokens over which the means run, unless they are given.
        mean_logprob: mean over the whole update batch, where this call sees only part of it.
        mean_advantage: likewise.
    """
    if mean_logprob is None or mean_advantage is None:
        moments = token_moments(logprobs, advantages, mask)
        mean_logprob = moments.mean_logprob if mean_logprob is None else mean_logprob
        mean_advantage = moments.mean_advantage if mean_advantage is None else mean_advantage
    dtype = torch.promote_types(compute_dtype(logprobs), compute_dtype(advantages))
    centred_logprob = fill_outside(logprobs.detach().to(dtype), mask) - mean_logprob
    centred_advantage = fill_outside(advantages.detach().to(dtype), mask) - mean_advantage
    return fill_outside(centred_logprob * centred_advantage, mask)
