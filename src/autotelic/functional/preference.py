"""Preference losses and segment scores: CPL and its variants, DPO, PPL, RePO. One value per pair.

    P(2 over 1) = sigma(S_2 - S_1),   L = -y log sigma(S_2 - bias S_1) - (1 - y) log sigma(S_1 - bias S_2)

A score is linear in log-probabilities: CPL sums them over the segment, DPO and CPL-KL their ratio to a reference, PPL
subtracts the look-ahead of `autotelic.functional.lookahead`. Here `label` is the probability that segment 2 is
preferred.

References: Hejna et al. 2023, arXiv:2310.13639 (CPL) and its code (jhejna/cpl); Rafailov et al. 2023,
arXiv:2305.18290v3, Eq. 7 (DPO); arXiv:2505.06273, Fig. 1 (PPL); arXiv:2606.09124 and its code (RePO).
Deviations: per function, below.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from autotelic.functional.lookahead import Number, lookahead_sum, lookahead_weights

Normalize = Literal["sum", "mean"]


def cpl_score(
    logprobs: Float[Tensor, "N S"],
    mask: Bool[Tensor, "N S"] | None = None,
    ref_logprobs: Float[Tensor, "N S"] | None = None,
    normalize: Normalize = "sum",
) -> Float[Tensor, " N"]:
    """Score of a segment without look-ahead: S = sum_t [ log pi(a_t|s_t) (- log pi_ref(a_t|s_t)) ].

    With `ref_logprobs` this is CPL-KL's score and, over a response's tokens, DPO's. `normalize="mean"` divides by the
    number of steps. Values outside the mask are never read. Multiply by alpha (or beta) before the loss.
    """
    step = logprobs if ref_logprobs is None else logprobs - ref_logprobs
    if mask is None:
        return step.sum(-1) if normalize == "sum" else step.mean(-1)
    total = step.masked_fill(~mask, 0.0).sum(-1)
    return total if normalize == "sum" else total / mask.sum(-1).clamp(min=1)


def cpl_loss(
    score_1: Float[Tensor, " N"], score_2: Float[Tensor, " N"], label: Float[Tensor, " N"], bias: Number = 1.0
) -> Float[Tensor, " N"]:
    """CPL's loss per pair: -y log sigma(S_2 - bias S_1) - (1 - y) log sigma(S_1 - bias S_2).

    Reference: Hejna et al. 2023, arXiv:2310.13639, the regularised objective; `bias` is its lambda.

    Args:
        score_1: alpha times the score of segment 1, in nats.
        score_2: alpha times the score of segment 2.
        label: probability that segment 2 is preferred, in [0, 1]; 0.5 is a tie.
        bias: lambda in (0, 1], the weight of the segment that lost; 1 is a proper likelihood.
    """
    return -label * logsigmoid(score_2 - bias * score_1) - (1 - label) * logsigmoid(score_1 - bias * score_2)


def cpl_ranking_loss(
    scores: Float[Tensor, " N"],
    ranks: Float[Tensor, " N"],
    bias: Number = 1.0,
    denominator: Literal["nonzero", "pairs"] = "nonzero",
) -> Float[Tensor, ""]:
    """CPL over all pairs of a ranked batch: mean of -log sigma(S_j - bias S_i) over pairs with ranks_i < ranks_j.

    Reference: `biased_bce_with_scores` of jhejna/cpl.
    Deviations: the sort is stable, so that tied ranks keep their row order (there: any order).

    Args:
        scores: alpha times the score of each segment.
        ranks: what the segments are ranked by, for example their true return; higher is better.
        bias: lambda, on the segment that ranks lower.
        denominator: `nonzero` divides as there by the number of pairs whose loss does not round to exactly 0, so that
            well-separated pairs raise the weight of the others; `pairs` divides by all N (N - 1) / 2.
    """
    ordered = scores[torch.argsort(ranks, stable=True)]
    margins = (ordered.unsqueeze(0) - bias * ordered.unsqueeze(1))[_above_diagonal(len(scores), scores.device)]
    total = -logsigmoid(margins).sum()
    if denominator == "pairs":
        return total / max(len(margins), 1)
    flip = (-margins.detach()).clamp(min=0)  # their form of log(1 + exp(-x)): 0 as soon as exp(-x) is below rounding
    rounded = ((-flip).exp() + (-margins.detach() - flip).exp()).log() + flip
    return total / (rounded != 0).sum().clamp(min=1)


def _above_diagonal(n: int, device: torch.device) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool, device=device).triu(1)


def cloned_segments(label: Float[Tensor, " N"], data: Literal["all", "preferred"] = "all") -> Bool[Tensor, " M"]:
    """Which of 2N segments (first segments, then second ones) behaviour cloning uses; a tie prefers both."""
    if data == "all":
        return torch.ones(2 * len(label), dtype=torch.bool, device=label.device)
    return torch.cat([label <= 0.5, label >= 0.5])


def behavior_cloning_loss(
    logprobs: Float[Tensor, "M S"],
    mask: Bool[Tensor, "M S"] | None = None,
    use: Bool[Tensor, " M"] | None = None,
) -> Float[Tensor, ""]:
    """CPL-BC's regulariser: -log pi(a_t|s_t), averaged over the steps of the segments in `use` (`cloned_segments`)."""
    kept = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
    if use is not None:
        kept = kept & use.unsqueeze(-1)
    return -logprobs.masked_fill(~kept, 0.0).sum() / kept.sum().clamp(min=1)


def preference_accuracy(
    score_1: Float[Tensor, " N"], score_2: Float[Tensor, " N"], label: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Share of pairs whose higher score agrees with the rounded label (0.5 rounds to 0, equal scores prefer 1)."""
    return ((score_2 > score_1) == (torch.round(label) == 1)).to(score_1.dtype).mean()


def dpo_loss(
    chosen: Float[Tensor, " N"],
    rejected: Float[Tensor, " N"],
    ref_chosen: Float[Tensor, " N"],
    ref_rejected: Float[Tensor, " N"],
    beta: Number = 0.1,
) -> Float[Tensor, " N"]:
    """DPO per pair: -log sigma(beta [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)]).

    Reference: Rafailov et al. 2023, arXiv:2305.18290v3, Eq. 7.

    Args:
        chosen: log pi of the whole chosen response, summed over tokens.
        rejected: log pi of the rejected one.
        ref_chosen: log pi_ref of the chosen response.
        ref_rejected: log pi_ref of the rejected one.
        beta: inverse temperature of the implied reward.
    """
    return -logsigmoid(beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected))


def ppl_score(
    logprobs: Float[Tensor, "N S"],
    divergences: Float[Tensor, "N R"],
    weights: Float[Tensor, "N R"],
    mask: Bool[Tensor, "N S"] | None = None,
    ref_logprobs: Float[Tensor, "N S"] | None = None,
    coef: Number = 1.0,
    normalize: Normalize = "sum",
) -> Float[Tensor, " N"]:
    """Policy-labelled score of a segment, or of a response when normalised by its length.

        S(zeta; mu) = sum_t [ log pi(a_t|s_t) (- log pi_ref) - coef sum_{l>=1} gamma^l d_{t+l} ]

    Over a response with `normalize="mean"` and `mean` weights, this is the language form
    S(y; mu) = (1/T) sum_t [ log pi/pi_ref (y_t) - 1/(T-t) sum_{l>t} gamma^(l-t) d_l ].

    Reference: arXiv:2505.06273, Fig. 1. Deviations: the window is an argument; the paper does not state it.

    Args:
        logprobs: log pi of the actions taken.
        divergences: d_l, the label's divergence from pi at each step of the segment or of the longer rollout
            (`categorical_kl`, `gaussian_kl`, `single_sample_divergence`, `dirac_divergence`, ...).
        weights: `lookahead_weights` of the same shape; divergences where it is 0 are never read.
        mask: true on the segment's real steps.
        ref_logprobs: for KL-to-reference regularisation.
        coef: c_L; 0 is CPL.
        normalize: `mean` divides the whole score by the number of steps.
    """
    ahead = (weights * divergences.masked_fill(weights == 0, 0.0)).sum(-1)
    if normalize == "mean":
        ahead = ahead / (logprobs.shape[-1] if mask is None else mask.sum(-1).clamp(min=1))
    return cpl_score(logprobs, mask, ref_logprobs, normalize) - coef * ahead


def ppl_loss(
    score_1: Float[Tensor, " N"],
    score_2: Float[Tensor, " N"],
    label: Float[Tensor, " N"],
    bias: Number = 1.0,
    alpha: Number = 1.0,
) -> Float[Tensor, " N"]:
    """PPL's contrastive KL loss per pair: -log sigma(alpha [S(zeta+; mu+) - bias S(zeta-; mu-)]).

    CPL's loss on policy-labelled scores (`ppl_score`); the arguments are those of `cpl_loss`, before alpha.
    """
    return cpl_loss(alpha * score_1, alpha * score_2, label, bias)


def consecutive_mask(mask: Bool[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
    """RePO's own reading of a mask with holes: as many columns as it has true ones, from the first true one on."""
    column = torch.arange(mask.shape[1], device=mask.device)
    first = mask.to(torch.uint8).argmax(-1, keepdim=True)
    return (column >= first) & (column < first + mask.sum(-1, keepdim=True))


def repo_step_score(
    logprobs: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    label_logprobs: Float[Tensor, "N T"] | None = None,
    start: int = 0,
) -> Float[Tensor, "N T"]:
    """RePO's score of each token: log pi_t - mean_{l>=t}[log mu_l - log pi_l]; 0 outside the mask.

    Reference: arXiv:2606.09124 and its code. Deviations: interior holes of the mask are closed up; pass
    `consecutive_mask(mask)` for their behaviour, in which a hole takes a token's place.

    Args:
        logprobs: log pi of the sampled tokens.
        mask: true on response tokens.
        label_logprobs: log mu of the sampling distribution; None is RePO_det, which drops log mu.
        start: 0 is the live window l >= t, 1 the one that is commented out there, l >= t + 1.
    """
    gap = -logprobs if label_logprobs is None else label_logprobs - logprobs
    ahead = lookahead_sum(gap, mask, start=start, weights="mean", holes="skip")
    return logprobs.masked_fill(~mask, 0.0) - ahead


def repo_score(
    logprobs: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    label_logprobs: Float[Tensor, "N T"] | None = None,
    start: int = 0,
) -> Float[Tensor, " N"]:
    """Mean of `repo_step_score` over a response's tokens, in one pass (no T x T window)."""
    gap = -logprobs if label_logprobs is None else label_logprobs - logprobs
    weights = lookahead_weights(mask, start=start, weights="mean", holes="skip", dtype=logprobs.dtype)
    return ppl_score(logprobs, gap, weights, mask, normalize="mean")


def repo_loss(
    chosen: Float[Tensor, " N"],
    rejected: Float[Tensor, " N"],
    ref_chosen: Float[Tensor, " N"] | None = None,
    ref_rejected: Float[Tensor, " N"] | None = None,
    alpha: Number = 0.1,
    bias: Number = 1.0,
    ref_coef: Number = 1.0,
) -> Float[Tensor, " N"]:
    """RePO per pair: -log sigma(alpha [(S+ - c R+) - bias (S- - c R-)]).

    Reference: `RePO_Loss` and `RePO_Loss_deterministic` of its code.

    Args:
        chosen: `repo_score` of the chosen response.
        rejected: of the rejected one.
        ref_chosen: mean reference log-probability of the chosen response (`cpl_score(..., normalize="mean")`).
        ref_rejected: of the rejected one.
        alpha: scale of the margin; there is no beta.
        bias: lambda, on the rejected side as a whole, reference included.
        ref_coef: c, weight of the reference.
    """
    if ref_chosen is not None and ref_rejected is not None:
        chosen, rejected = chosen - ref_coef * ref_chosen, rejected - ref_coef * ref_rejected
    return -logsigmoid(alpha * chosen - bias * (alpha * rejected))


def repo_sft_loss(logprobs: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, ""]:
    """RePO's SFT term: -log pi over the chosen tokens of the batch, pooled, each response's first token left out."""
    later = mask & (mask.long().cumsum(-1) > 1)
    return -logprobs.masked_fill(~later, 0.0).sum() / later.sum().clamp(min=1)
