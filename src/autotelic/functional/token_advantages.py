"""Clip-Cov and KL-Cov as rewrites of the advantages, one value per token.

    clip_cov:  A'_i = 0                              on floor(fraction N) tokens drawn uniformly from low < Cov < high
    kl_cov:    A'_i = A_i - coef k'(log r_i) / r_i   on the floor(fraction N) tokens of largest covariance

where k' is the derivative of the KL form: sign(log r) for ``abs``, the authors' code. Under the unclipped surrogate
-r A', r = pi / pi_old, the rewrite has exactly the gradient of the paper's loss -r A + coef k(log r): r (k' / r) = k'.

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 11-12 (Clip-Cov) and Eq. 13-14 (KL-Cov).
Deviations, against the authors' code: statistics, count and choice belong to the whole update batch, one floor per
optimiser step, not to a micro-batch; a quota below 1 selects nothing (``at_least_one=False``); a token whose covariance
is not positive is never penalised (``positive_only=True``); ties go to the lower token identity; 1 / r is bounded by
exp(20); advantages outside the mask become 0; clip_cov may choose a token that the PPO clip has already silenced, which
the authors leave out of the candidates (give such tokens the covariance -inf for that). Under a
clipped surrogate a token that PPO clips loses the KL penalty along with its advantage; the authors' kl_cov has no clip.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.distributed import global_sum, top_k_mask
from autotelic.functional.divergence import KLForm, kl_gradient
from autotelic.functional.masking import as_mask, compute_dtype, fill_outside


def quota(fraction: float | int, num_tokens: int, *, at_least_one: bool = False) -> int:
    """Return floor(fraction * num_tokens); refuses a fraction outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise UserError(
            f"fraction must be in (0, 1], got {fraction}: it is a share of the response tokens, not a "
            "percentage; the paper uses 0.0002 to 0.002"
        )
    return max(math.floor(fraction * num_tokens), int(at_least_one))


def _num_tokens(mask: Tensor, num_tokens: int | None, across_ranks: bool, group: object) -> int:
    if num_tokens is not None:
        return num_tokens
    count = as_mask(mask).sum()
    return int(global_sum(count, group=group) if across_ranks else count)


def clip_cov(
    advantages: Float[Tensor, "B T"],
    covariance: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    fraction: float | int,
    low: float | int,
    high: float | int,
    generator: torch.Generator | None = None,
    priority: Float[Tensor, "B T"] | None = None,
    token_ids: Int[Tensor, "B T"] | None = None,
    num_tokens: int | None = None,
    at_least_one: bool = False,
    across_ranks: bool = False,
    group: object = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Zero the advantage of a few tokens of high covariance.

    Args:
        advantages: per token.
        covariance: per token (``token_covariance``).
        mask: response tokens; nothing outside it is read or selected.
        fraction: share of the response tokens, in (0, 1]; the paper uses 2e-4.
        low: omega_low, exclusive; the paper uses 1.
        high: omega_high, exclusive; the paper uses 5.
        generator: source of the random choice; torch's global one where None.
        priority: instead of a generator, a uniform number per token (``hash_uniform``): the lowest are chosen, so the
            choice follows the token wherever the batch is split.
        token_ids: identities that break ties of priority; the position in this tensor where None.
        num_tokens: N of the whole batch, where this call sees only part of it.
        at_least_one: the authors' max(floor(fraction N), 1); parity only.
        across_ranks: choose over all ranks of ``group``; every rank must call, with ``priority`` and ``token_ids``.
        group: the process group, the default one where None.

    Returns:
        The advantages (0 on the selected tokens and outside the mask), and which tokens were selected: exactly
        min(floor(fraction N), number of candidates) of them.
    """
    if not low < high:
        raise UserError(f"low must be below high, got low={low} and high={high}: no token could be selected")
    valid = as_mask(mask)
    budget = quota(fraction, _num_tokens(mask, num_tokens, across_ranks, group), at_least_one=at_least_one)
    candidates = valid & (covariance > low) & (covariance < high)
    if priority is None:
        if across_ranks:
            raise UserError(
                "clip_cov across ranks needs priority=hash_uniform(...): a generator's position differs "
                "between ranks, so the choice would depend on their number"
            )
        device = generator.device if generator is not None else torch.device("cpu")
        priority = torch.rand(advantages.shape, generator=generator, dtype=torch.float64, device=device)
        priority = priority.to(advantages.device)
    selected = top_k_mask(-priority, candidates, budget, token_ids=token_ids, across_ranks=across_ranks, group=group)
    kept = valid & ~selected
    return fill_outside(advantages, kept), selected


def kl_cov(
    advantages: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    covariance: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    fraction: float | int,
    coef: float | int,
    form: KLForm = "abs",
    token_ids: Int[Tensor, "B T"] | None = None,
    num_tokens: int | None = None,
    positive_only: bool = True,
    at_least_one: bool = False,
    max_log_ratio: float | int = 20.0,
    across_ranks: bool = False,
    group: object = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Penalise the move away from the old policy on the tokens of largest covariance.

    Args:
        advantages: per token.
        log_ratio: logprobs - old_logprobs, per token, taken without gradient.
        covariance: per token (``token_covariance``).
        mask: response tokens; nothing outside it is read or selected.
        fraction: share of the response tokens, in (0, 1]; the paper uses 2e-3 (7B) and 2e-4 (32B).
        coef: beta; the paper uses 1.
        form: the estimate of KL(pi_old || pi) that is penalised; see ``divergence``.
        token_ids: identities that break ties of covariance; the position in this tensor where None.
        num_tokens: N of the whole batch, where this call sees only part of it.
        positive_only: leave tokens alone whose covariance is not positive; False is the authors' code.
        at_least_one: the authors' max(floor(fraction N), 1); parity only.
        max_log_ratio: bound on |log r| in the rewrite, so that 1 / r does not overflow.
        across_ranks: choose over all ranks of ``group``; every rank must call, with ``token_ids``.
        group: the process group, the default one where None.

    Returns:
        The rewritten advantages (0 outside the mask), and which tokens were selected. At log r = 0 the forms abs, k2
        and k3 leave the advantages as they are: the penalty has no gradient there.
    """
    valid = as_mask(mask)
    count = quota(fraction, _num_tokens(mask, num_tokens, across_ranks, group), at_least_one=at_least_one)
    eligible = valid & (covariance > 0) if positive_only else valid
    selected = top_k_mask(covariance, eligible, count, token_ids=token_ids, across_ranks=across_ranks, group=group)
    rewritten = kl_penalised(
        fill_outside(advantages, mask), log_ratio, selected, coef=coef, form=form, max_log_ratio=max_log_ratio
    )
    return rewritten, selected


def kl_penalised(
    advantages: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    selected: Bool[Tensor, "B T"],
    *,
    coef: float | int,
    form: KLForm = "abs",
    max_log_ratio: float | int = 20.0,
) -> Float[Tensor, "B T"]:
    """Return A - coef k'(log r) / r on the selected tokens: ``kl_cov`` where the choice was made before.

    The choice belongs to the whole update batch, the ratio to the micro-batch in hand.
    """
    dtype = torch.promote_types(compute_dtype(advantages), compute_dtype(log_ratio))
    bounded = fill_outside(log_ratio.detach().to(dtype), selected).clamp(-max_log_ratio, max_log_ratio)
    penalty = coef * kl_gradient(bounded, form) * (-bounded).exp()
    return torch.where(selected, advantages.to(dtype) - penalty, advantages.to(dtype))
