"""Label-free rewards as functions of tensors. One equation, one function, one citation.

`autotelic.functional` holds those of EMPO itself (`semantic_entropy`, `consensus_reward`, `entropy_threshold_mask`).
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional import cluster_sizes, semantic_entropy

Ties = Literal["share", "all", "none"]
Normalize = Literal["std", "range", "none"]


def largest_share(clusters: Int[Tensor, "P G"]) -> Float[Tensor, " P"]:
    """Return p_max: the share of the group in its largest cluster, 0 where nothing is parseable."""
    return cluster_sizes(clusters).max(-1).values.to(torch.float64) / clusters.shape[-1]


def echoes_question(answer: str | None, question: str, limit: float) -> bool:
    """Return whether an answer only repeats the question: it is part of it, or most of its words are, in order.

        precision of ROUGE-L = LCS(answer, question) / words of the answer > limit

    Reference: the guard of EMPO's natural-reasoning reward, QingyangZhang/EMPO, commit c5eccd4.

    Args:
        answer: ``None`` echoes nothing.
        question: What was asked.
        limit: Share of the answer's words, in [0, 1].
    """
    if answer is None:
        return False
    answer, question = answer.lower(), question.lower()
    if answer in question:
        return True
    words, asked = answer.split()[:500], question.split()[:500]
    row = [0] * (len(asked) + 1)
    for word in words:  # one row of the table of longest common subsequences after the other
        previous = row
        row = [0]
        for j, other in enumerate(asked):
            row.append(previous[j] + 1 if word == other else max(previous[j + 1], row[j]))
    return bool(words) and row[-1] / len(words) > limit


def majority_reward(clusters: Int[Tensor, "P G"], ties: Ties = "share") -> Float[Tensor, "P G"]:
    """Return the majority vote: r_i = 1[the answer is in the largest cluster].

    Reference: Zuo et al. 2025 (TTRL), arXiv:2504.16084, Sec. 2.
    Deviations: unparseable answers never win; k clusters tied for the largest share the win (1/k each, ``share``), win
    fully (``all``) or not at all (``none``), where the authors' code lets the first one seen win.
    """
    sizes = cluster_sizes(clusters)
    top = (sizes == sizes.max(-1, keepdim=True).values) & (sizes > 0)
    members = top.sum(-1, keepdim=True)
    tied = members // sizes.max(-1, keepdim=True).values.clamp(min=1)
    if ties == "share":
        return top.to(torch.float64) / tied.clamp(min=1)
    if ties == "all":
        return top.to(torch.float64)
    if ties == "none":
        return (top & (tied == 1)).to(torch.float64)
    raise UserError(f"unknown rule for ties {ties!r}: use 'share', 'all' or 'none'")


def weighted_consensus_reward(
    clusters: Int[Tensor, "P G"], sequence_logprobs: Float[Tensor, "P G"]
) -> Float[Tensor, "P G"]:
    """Return the likelihood-weighted mass of the answer's cluster; 0 for an unparseable answer.

        r_i = sum_{j in c(i)} w_j,   w = softmax(sequence_logprobs) over the group

    Reference: the cluster mass of Kuhn et al. 2023, arXiv:2302.09664, Eq. 4, normalised over the sampled responses.
    """
    same = (clusters.unsqueeze(-1) == clusters.unsqueeze(-2)) & (clusters >= 0).unsqueeze(-1)
    weights = sequence_logprobs.to(torch.float64).softmax(-1)
    return (same * weights.unsqueeze(-2)).sum(-1)


def self_certainty(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """Return KL(U || p_t) for the uniform distribution U over the vocabulary, in nats.

        KL(U || p) = logsumexp(z) - mean(z) - log V

    Reference: Zhao et al. 2025 (Intuitor), arXiv:2505.19590, Eq. 4-5; the reward is its mean over response tokens.
    """
    wide = logits.float()
    return wide.logsumexp(-1) - wide.mean(-1) - math.log(wide.shape[-1])


def keep_within(value: Float[Tensor, " P"], low: float | int, high: float | int) -> Bool[Tensor, " P"]:
    """Return low < value < high, where a value within 1e-9 of a bound is on it, hence outside."""
    return (value > low + 1e-9) & (value < high - 1e-9)


def normalized(rewards: Float[Tensor, "P G"], how: Normalize) -> Float[Tensor, "P G"]:
    """Return (r - mean) / std, or (r - min) / (max - min), within each group; 0 where all are equal."""
    wide = rewards.to(torch.float64)
    if how == "none":
        return wide
    spread = wide.max(-1, keepdim=True).values - wide.min(-1, keepdim=True).values
    flat = spread <= 1e-12
    if how == "std":
        scaled = (wide - wide.mean(-1, keepdim=True)) / wide.std(-1, keepdim=True, correction=0).clamp(min=1e-12)
    elif how == "range":
        scaled = (wide - wide.min(-1, keepdim=True).values) / spread.clamp(min=1e-12)
    else:
        raise UserError(f"unknown normalisation {how!r}: use 'std', 'range' or 'none'")
    return scaled.masked_fill(flat, 0.0)


def seed_grpo_scale(clusters: Int[Tensor, "P G"], alpha: float | int = 1.0) -> Float[Tensor, " P"]:
    """Return SEED-GRPO's factor on the advantages of each prompt: small where the policy is unsure.

        A'_i = A_i (1 - alpha H(q) / ln G)

    Reference: Chen et al. 2025, arXiv:2505.12346, with its linear form of f.
    Deviations: H is the entropy of cluster frequencies (the paper weighs clusters by likelihood).

    Args:
        clusters: An integer per response, -1 where unparseable.
        alpha: Strength, in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must lie in [0, 1], got {alpha}: beyond 1 the sign of advantages would turn")
    largest = torch.tensor(float(clusters.shape[-1]), dtype=torch.float64).log()
    share = semantic_entropy(clusters) / largest if clusters.shape[-1] > 1 else torch.zeros(len(clusters))
    return (1.0 - alpha * share).to(torch.float64).clamp(0.0, 1.0)
