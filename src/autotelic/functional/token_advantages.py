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
the authors leave out of the candidates (give such tokens the covariance -inf for that). The
authors' kl_cov has no PPO clip; under one, ``kl_cov`` would lose a token's penalty together with its advantage;
``kl_penalised`` with the loss's ``weights`` does not.
"""

from typing import Unpack

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.divergence import KLForm, kl_gradient
from autotelic.functional.gradient_weights import GradientWeights
from autotelic.functional.masking import as_mask, compute_dtype, fill_outside
from autotelic.functional.selection import Choice, random_values, select


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
    **choice: Unpack[Choice],
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
            choice follows the token wherever the batch is split. Needed across ranks.
        choice: ``token_ids``, ``num_tokens``, ``at_least_one``, ``across_ranks``, ``group``; see ``selection.Choice``.

    Returns:
        The advantages (0 on the selected tokens and outside the mask), and which tokens were selected: exactly
        min(floor(fraction N), number of candidates) of them.
    """
    if not low < high:
        raise UserError(f"low must be below high, got low={low} and high={high}: no token could be selected")
    if priority is None and choice.get("across_ranks"):
        raise UserError(
            "clip_cov across ranks needs priority=hash_uniform(...): a generator's position differs "
            "between ranks, so the choice would depend on their number"
        )
    priority = random_values(mask, generator) if priority is None else priority
    candidates = as_mask(mask) & (low < covariance) & (covariance < high)
    selected = select(-priority, candidates, mask, fraction=fraction, **choice)
    return fill_outside(advantages, as_mask(mask) & ~selected), selected


def kl_cov(
    advantages: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    covariance: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    fraction: float | int,
    coef: float | int,
    form: KLForm = "abs",
    positive_only: bool = True,
    max_log_ratio: float | int = 20.0,
    **choice: Unpack[Choice],
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
        positive_only: leave tokens alone whose covariance is not positive; False is the authors' code.
        max_log_ratio: bound on |log r| in the rewrite, so that 1 / r does not overflow.
        choice: ``token_ids``, ``num_tokens``, ``at_least_one``, ``across_ranks``, ``group``; see ``selection.Choice``.

    Returns:
        The rewritten advantages (0 outside the mask), and which tokens were selected. At log r = 0 the forms abs, k2
        and k3 leave the advantages as they are: the penalty has no gradient there.
    """
    candidates = as_mask(mask) & (covariance > 0) if positive_only else as_mask(mask)
    selected = select(covariance, candidates, mask, fraction=fraction, **choice)
    penalty = {"coef": coef, "form": form, "max_log_ratio": max_log_ratio}
    return kl_penalised(fill_outside(advantages, mask), log_ratio, selected, **penalty), selected


def kl_penalised(
    advantages: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    selected: Bool[Tensor, "B T"],
    *,
    coef: float | int,
    form: KLForm = "abs",
    max_log_ratio: float | int = 20.0,
    weights: GradientWeights | None = None,
) -> Float[Tensor, "B T"]:
    """Return ``kl_cov``'s advantages where the choice was made before.

    The choice belongs to the whole update batch, the ratio to the micro-batch in hand. The gradient with respect to
    ln pi that is wanted is -g, g = w(sign A) A - coef k'(log r); the loss gives it to the advantage g / w(sign g).

    Args:
        advantages: per token.
        log_ratio: see ``kl_cov``.
        selected: the tokens that are penalised.
        coef: beta.
        form: see ``kl_cov``.
        max_log_ratio: see ``kl_cov``.
        weights: w of the loss that will be taken (``gradient_weights``); that of the surrogate without a clip, w = r,
            where None: A' = A - coef k'(log r) / r.
    """
    dtype = torch.promote_types(compute_dtype(advantages), compute_dtype(log_ratio))
    a = advantages.to(dtype)
    bounded = fill_outside(log_ratio.detach().to(dtype), selected).clamp(-max_log_ratio, max_log_ratio)
    penalty = coef * kl_gradient(bounded, form)
    if weights is None:
        return torch.where(selected, a - penalty * (-bounded).exp(), a)
    own = weights.of(a).to(dtype)
    final = weights.of(own * a - penalty).to(dtype)
    return torch.where(selected & (final > 0), a * (own / final) - penalty / final, a)
