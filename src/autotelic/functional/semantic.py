"""Entropy over clusters of answers, the consensus reward and the prompt filter of EMPO.

    p(c_j | q) = |c_j| / G        H(q) = -sum_j p(c_j | q) ln p(c_j | q)        r_i = p(c(o_i) | q)
    a prompt is kept where  delta_low < H(q) < delta_high

Reference: Zhang et al. 2025, arXiv:2504.05812, Sec. 3; Kuhn et al. 2023, arXiv:2302.09664 and Farquhar et al. 2024 for
semantic entropy.
Deviations: an unparseable answer (-1) shares a cluster with nothing, not even another unparseable one: it counts as a
cluster of its own in the entropy (so a group that cannot be parsed has the entropy ln G of a group without agreement)
and its reward is 0. The threshold allows for rounding, so that ln G masks a group of G different answers for every G.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.masking import wide


def cluster_sizes(clusters: Int[Tensor, "P G"]) -> Int[Tensor, "P G"]:
    """Return, for each response, how many responses of its group share its cluster; 0 for unparseable ones."""
    same = (clusters.unsqueeze(-1) == clusters.unsqueeze(-2)) & (clusters >= 0).unsqueeze(-1)
    return same.sum(-1)


def semantic_entropy(
    clusters: Int[Tensor, "P G"], *, unparseable: Literal["singleton", "drop"] = "singleton"
) -> Float[Tensor, " P"]:
    """Return the entropy of the answer clusters of each prompt, in nats, in float64.

    Args:
        clusters: an integer per response; equal integers mean equal answers, -1 (any negative) an unparseable one.
        unparseable: ``singleton`` counts each as a different answer; ``drop`` takes frequencies over the parseable
            ones only (0 where there are none).
    """
    parsed = clusters >= 0
    sizes = wide(cluster_sizes(clusters))
    if unparseable == "singleton":
        sizes, counted = sizes.clamp(min=1), torch.ones_like(parsed)
    elif unparseable == "drop":
        counted = parsed
    else:
        raise UserError(f"unknown treatment of unparseable answers {unparseable!r}: use 'singleton' or 'drop'")
    n = wide(counted.sum(-1, keepdim=True))
    # Each response carries 1/n of the mass, and -ln p of its cluster: the sum over responses is the sum over clusters.
    surprisal = torch.where(counted, n.clamp(min=1).log() - sizes.clamp(min=1).log(), torch.zeros_like(sizes))
    return surprisal.sum(-1) / n.squeeze(-1).clamp(min=1)


def consensus_reward(
    clusters: Int[Tensor, "P G"], denominator: Literal["group", "parseable"] = "group"
) -> Float[Tensor, "P G"]:
    """Return the share of the group that gave the same answer, in float64; 0 for an unparseable answer.

    Args:
        clusters: an integer per response, -1 where unparseable.
        denominator: the size of the group, or the number of its parseable answers.
    """
    sizes = wide(cluster_sizes(clusters))
    if denominator == "group":
        return sizes / clusters.shape[-1]
    if denominator == "parseable":
        return sizes / (clusters >= 0).sum(-1, keepdim=True).clamp(min=1)
    raise UserError(f"unknown denominator {denominator!r}: use 'group' or 'parseable'")


def entropy_threshold_mask(entropy: Shaped[Tensor, " P"], *, low: float | int, high: float | int) -> Bool[Tensor, " P"]:
    """Return which prompts lie strictly between the two bounds, in nats.

    A value within rounding of a bound (1e-9 nats for float64, 1e-5 below) counts as equal to it, hence as outside. With
    ``high = math.log(G)`` a group of G different answers is masked for every G; the closest group that is kept, two
    equal answers among 256, is 5e-3 nats away. Use infinities for no bound.
    """
    if not low < high:
        raise UserError(f"low must be below high, got low={low} and high={high}: no prompt would be kept")
    tolerance = 1e-9 if entropy.dtype == torch.float64 else 1e-5
    return (entropy > low + tolerance) & (entropy < high - tolerance)


def weighted_semantic_entropy(
    clusters: Int[Tensor, "P G"], sequence_logprobs: Float[Tensor, "P G"]
) -> Float[Tensor, " P"]:
    """Return the likelihood-weighted semantic entropy, in nats.

        p(c) = sum_{i in c} w_i,   w = softmax_i(sequence_logprobs_i),   H = -sum_c p(c) ln p(c)

    Args:
        clusters: an integer per response, -1 where unparseable (each then its own cluster).
        sequence_logprobs: ln pi of each response, or its mean per token (length-normalised).
    """
    same = (clusters.unsqueeze(-1) == clusters.unsqueeze(-2)) & (clusters >= 0).unsqueeze(-1)
    same = same | torch.eye(clusters.shape[-1], dtype=torch.bool, device=clusters.device)
    log_w = wide(sequence_logprobs).log_softmax(-1)
    log_mass = log_w.unsqueeze(-2).masked_fill(~same, float("-inf")).logsumexp(-1)
    return -(log_w.exp() * log_mass.masked_fill(log_w == float("-inf"), 0.0)).sum(-1)
