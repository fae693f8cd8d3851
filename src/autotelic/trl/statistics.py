"""Diagnostics of one update: the covariance's tail, what was selected, how far the policy has drifted.

All of it is read from tensors that training already holds; across ranks, counts and sums are added.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from autotelic import functional as F
from autotelic.trl.controls import Plan, UpdateBatch

TOP_SHARES = {"0_02": 2e-4, "0_2": 2e-3, "2": 0.02, "20": 0.2, "50": 0.5}
"""The ranks at which Table 1 of arXiv:2505.22617 gives the mean covariance."""


def control_metrics(plan: Plan, batch: UpdateBatch) -> dict[str, float]:
    """Return covariance ranks, quota and quadrants of one update, over all ranks where the plan was."""
    selected, mask = plan.selected & batch.mask, batch.mask
    total = F.global_sum if batch.across_ranks else _local
    num_tokens = int(total(mask.sum()))
    realised = int(total(selected.sum()))
    covariance_sum = float(total(F.masked_sum(plan.covariance.double(), mask)))
    metrics = {
        "covariance/mean": covariance_sum / max(num_tokens, 1),
        "selected/requested": float(plan.requested),
        "selected/realised": float(realised),
        "selected/share": realised / max(num_tokens, 1),
        "advantage/std": _spread(batch),
    }
    return metrics | top_means(plan.covariance, batch) | quadrants(selected, batch)


def top_means(covariance: Float[Tensor, "B T"], batch: UpdateBatch) -> dict[str, float]:
    """Return the mean covariance of the largest .02, .2, 2, 20 and 50 % of this rank's tokens (at least one token)."""
    ranked = covariance[batch.mask].sort(descending=True).values
    if ranked.numel() == 0:
        return {}
    sums = ranked.double().cumsum(0)
    counts = {name: max(int(share * ranked.numel()), 1) for name, share in TOP_SHARES.items()}
    return {f"covariance/top_{name}": float(sums[count - 1]) / count for name, count in counts.items()}


def quadrants(selected: Bool[Tensor, "B T"], batch: UpdateBatch) -> dict[str, float]:
    """Return the selected tokens' shares by sign of the advantage and by probability against this rank's median."""
    if not bool(selected.any()):
        return {}
    likely = batch.logprobs >= batch.logprobs[batch.mask].median()
    positive = batch.advantages > 0
    count = float(selected.sum())
    return {
        "selected/positive_likely": float((selected & positive & likely).sum()) / count,
        "selected/positive_unlikely": float((selected & positive & ~likely).sum()) / count,
        "selected/negative_likely": float((selected & ~positive & likely).sum()) / count,
        "selected/negative_unlikely": float((selected & ~positive & ~likely).sum()) / count,
    }


def ratio_metrics(
    logprobs: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> dict[str, float]:
    """Return surprisal and three measures of the drift since the rollout, for this micro-batch."""
    return {
        "policy/surprisal": float(F.masked_mean(-logprobs, mask)),
        "policy/abs_log_ratio": float(F.masked_mean(log_ratio.abs(), mask)),
        "policy/k1": float(F.masked_mean(F.kl_estimate(log_ratio, "k1"), mask)),
        "policy/k3": float(F.masked_mean(F.kl_estimate(log_ratio.clamp(-20, 20), "k3"), mask)),
    }


def jaccard(one: Bool[Tensor, "B T"], other: Bool[Tensor, "B T"]) -> float:
    """Return |one and other| / |one or other|; two empty selections agree."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def _spread(batch: UpdateBatch) -> float:
    values = batch.advantages[batch.mask]
    return float(values.std(correction=0)) if values.numel() else 0.0


def _local(x: Tensor) -> Tensor:
    return x
