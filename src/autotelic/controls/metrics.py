"""Diagnostics of one update: the covariance's tail, what was selected, how far the policy has drifted.

Everything is read from tensors that training already holds, and belongs to the update batch of all ranks.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import Plan, UpdateBatch
from autotelic.functional.distributed import world_size
from autotelic.functional.masking import wide

TOP_SHARES = {"0_02": 2e-4, "0_2": 2e-3, "2": 0.02, "20": 0.2, "50": 0.5}
"""The ranks at which Table 1 of arXiv:2505.22617 gives the mean covariance."""
ACCURACY_BINS = {"low": (1e-6, 0.33), "mid": (0.33, 0.67), "high": (0.67, 1 - 1e-6)}
"""Prompts by their share of right responses; those with none or all right have no advantages."""
BISECTIONS = 64


def control_metrics(plan: Plan, batch: UpdateBatch) -> dict[str, float]:
    """Return covariance ranks, quota and quadrants of one update, over all ranks."""
    batch = replace(batch, across_ranks=True)
    selected, mask = plan.selected & batch.mask, batch.mask
    advantages = wide(batch.advantages[mask])
    own = [mask.sum(), selected.sum(), wide(plan.covariance[mask]).sum(), advantages.sum(), advantages.square().sum()]
    num_tokens, realised, covariance, total, squares = batch.total(torch.stack([wide(x) for x in own])).tolist()
    count = max(num_tokens, 1.0)
    metrics = {
        "covariance/mean": covariance / count,
        "selected/realised": realised,
        "selected/share": realised / count,
        "advantage/std": max(squares / count - (total / count) ** 2, 0.0) ** 0.5,
    }
    if plan.requested is not None:
        metrics["selected/requested"] = float(plan.requested)
    if not num_tokens:
        return metrics
    metrics |= top_means(plan.covariance[mask], int(num_tokens))
    metrics |= quadrants(selected, batch, int(num_tokens))
    return metrics | accuracy_metrics(plan.covariance, batch)


def largest(values: Float[Tensor, " N"], counts: list[int]) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Return, for each count, the count-th largest value over all ranks and the sum of the count largest, in float64.

    Across ranks the value is found by bisection on the number of values above it: ranks exchange numbers, not tokens.
    """
    ordered = wide(values).sort().values
    size = ordered.numel()
    tail = torch.cat([ordered.flip(0).cumsum(0).flip(0), ordered.new_zeros(1)])
    wanted = torch.tensor(counts, device=ordered.device)
    if world_size() == 1:
        return ordered[size - wanted], tail[size - wanted]
    ends = torch.stack([ordered[-1], -ordered[0]]) if size else ordered.new_full((2,), -torch.inf)
    top, bottom = F.global_max(ends)
    high, low = top.expand(len(counts)), (-bottom - 1).expand(len(counts))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = F.global_sum(size - torch.searchsorted(ordered, middle.contiguous(), right=True))
        low, high = torch.where(above >= wanted, middle, low), torch.where(above >= wanted, high, middle)
    place = torch.searchsorted(ordered, high.contiguous(), right=True)
    above, sums = F.global_sum(torch.stack([wide(size - place), tail[place]]))
    return high, sums + (wanted - above) * high


def top_means(covariance: Float[Tensor, " N"], num_tokens: int) -> dict[str, float]:
    """Return the mean covariance of the largest .02, .2, 2, 20 and 50 % of the tokens (at least one token)."""
    counts = [max(int(share * num_tokens), 1) for share in TOP_SHARES.values()]
    _, sums = largest(covariance, counts)
    return {
        f"covariance/top_{name}": total / count
        for name, total, count in zip(TOP_SHARES, sums.tolist(), counts, strict=True)
    }


def quadrants(selected: Bool[Tensor, "B T"], batch: UpdateBatch, num_tokens: int) -> dict[str, float]:
    """Return the selected tokens' shares by sign of the advantage and by probability against the batch's median."""
    median, _ = largest(batch.logprobs[batch.mask], [(num_tokens + 1) // 2])
    likely, positive = wide(batch.logprobs) >= median, batch.advantages > 0
    parts = {
        "selected/positive_likely": positive & likely,
        "selected/positive_unlikely": positive & ~likely,
        "selected/negative_likely": ~positive & likely,
        "selected/negative_unlikely": ~positive & ~likely,
    }
    counts = batch.total(torch.stack([wide((selected & part).sum()) for part in parts.values()])).tolist()
    return {name: count / sum(counts) for name, count in zip(parts, counts, strict=True)} if sum(counts) else {}


def accuracy_metrics(covariance: Float[Tensor, "B T"], batch: UpdateBatch) -> dict[str, float]:
    """Return the mean token covariance of prompts that are mostly wrong, mixed and mostly right."""
    if batch.accuracy is None:
        return {}
    rows = []
    for low, high in ACCURACY_BINS.values():
        inside = (batch.accuracy >= low) & (batch.accuracy < high)
        tokens = batch.mask & inside.unsqueeze(-1)
        rows.append(torch.stack([wide(covariance[tokens]).sum(), wide(tokens.sum())]))
    totals = batch.total(torch.stack(rows)).tolist()
    return {
        f"covariance/accuracy_{name}": total / count
        for name, (total, count) in zip(ACCURACY_BINS, totals, strict=True)
        if count
    }


def drift_sums(
    logprobs: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"] | None,
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, " 11"]:
    """Return a micro-batch's part of `drift_metrics`: sums that add up over micro-batches and ranks."""
    per_token = [-logprobs, log_ratio.abs(), F.kl_estimate(log_ratio, "k1")]
    per_token.append(F.kl_estimate(log_ratio.clamp(-20, 20), "k3"))
    sums = [F.masked_sum(x.double(), mask) for x in per_token]
    rows = mask.any(-1)
    by_row = (
        F.masked_sum(F.sequence_means(entropy.double(), mask), rows) if entropy is not None else wide(rows.sum()) * 0
    )
    by_turn = torch.zeros(4, device=mask.device) if entropy is None else turn_sums(entropy, mask)
    found = (*sums, mask.sum(), by_row, rows.sum() * (entropy is not None), *by_turn)
    return torch.stack([wide(x) for x in found])


def turn_sums(entropy: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " 4"]:
    """Return sum and count of the entropy over first and last turns, of the responses that have several."""
    turn = F.turns(mask)
    last = turn.masked_fill(~mask, -1).amax(-1, keepdim=True)
    several = mask & (last > 0)
    parts = [several & (turn == 0), several & (turn == last)]
    return torch.stack([wide(x) for part in parts for x in (F.masked_sum(entropy.double(), part), part.sum())])


def drift_metrics(sums: Float[Tensor, " 11"]) -> dict[str, float]:
    """Return surprisal, three measures of the drift since the rollout, and entropies by response and by turn."""
    surprisal, absolute, k1, k3, tokens, by_row, rows, first, in_first, last, in_last = F.global_sum(sums).tolist()
    tokens = max(tokens, 1.0)
    metrics = {
        "policy/surprisal": surprisal / tokens,
        "policy/abs_log_ratio": absolute / tokens,
        "policy/k1": k1 / tokens,
        "policy/k3": k3 / tokens,
    }
    if in_first and in_last:
        metrics |= {"policy/entropy_first_turn": first / in_first, "policy/entropy_last_turn": last / in_last}
    return metrics | ({"policy/entropy_sequence": by_row / rows} if rows else {})


def jaccard(one: Bool[Tensor, "B T"], other: Bool[Tensor, "B T"]) -> float:
    """Return |one and other| / |one or other| over all ranks; two empty selections agree."""
    both, either = F.global_sum(torch.stack([(one & other).sum(), (one | other).sum()])).tolist()
    return both / either if either else 1.0
