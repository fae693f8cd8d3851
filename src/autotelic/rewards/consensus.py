"""Rewards from agreement within the group: EMPO, likelihood-weighted EMPO, majority vote, SRT."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional import consensus_reward, entropy_threshold_mask, semantic_entropy, weighted_semantic_entropy
from autotelic.rewards.formulas import (
    Ties,
    echoes_question,
    keep_within,
    largest_share,
    majority_reward,
    seed_grpo_scale,
    weighted_consensus_reward,
)
from autotelic.rewards.label_free_reward import Batch, LabelFreeReward
from autotelic.runs.method_settings import setting

Units = Literal["nats", "fraction_of_log_G", "p_max"]


@dataclass(kw_only=True)
class _Thresholded(LabelFreeReward):
    """A reward that leaves out prompts on which the policy is sure, or hopelessly unsure: low < H(q) < high, strictly.

    In units of "p_max" the bounds are on the share of the largest cluster, which falls as entropy rises.
    """

    low: float | int = setting(0.0, "lower bound; 0 leaves out unanimous groups")
    high: float | int | None = setting(
        None, "upper bound; by default the largest value there is: groups in which all answers differ are left out"
    )
    units: Units = setting("fraction_of_log_G", "of low and high: nats, a share of ln G, or p_max")

    def __post_init__(self) -> None:
        """Refuse bounds between which nothing can lie."""
        super().__post_init__()
        if self.high is not None and not self.low < self.high:
            raise UserError(f"low must be below high, got low={self.low} and high={self.high}: no prompt would be kept")
        if self.units != "nats" and self.low >= 1:
            raise UserError(f"low={self.low} is not below 1, the largest value in units of {self.units}: lower it")

    def prompt_mask(self, batch: Batch) -> Bool[Tensor, " P"]:
        """Return the prompts strictly between the thresholds."""
        return self.keeps(batch.clusters, self.entropy(batch))

    def keeps(self, clusters: Int[Tensor, "P G"], entropy: Float[Tensor, " P"] | None = None) -> Bool[Tensor, " P"]:
        """Return which prompts lie strictly between the thresholds, from their clusters."""
        if self.units == "p_max":
            return keep_within(largest_share(clusters), self.low, 1.0 if self.high is None else self.high)
        largest = math.log(clusters.shape[-1])
        scale = largest if self.units == "fraction_of_log_G" else 1.0
        entropy = semantic_entropy(clusters) if entropy is None else entropy
        if largest == 0:  # a group of one has no entropy to bound
            return entropy < 0
        high = largest if self.high is None else self.high * scale
        return entropy_threshold_mask(entropy, low=self.low * scale, high=high)

    def entropy(self, batch: Batch) -> Float[Tensor, " P"]:
        """Return the semantic entropy of each prompt, in nats."""
        return semantic_entropy(batch.clusters)


@dataclass(kw_only=True)
class EMPO(_Thresholded):
    """Entropy-minimised policy optimisation: r_i = n_c(i) / G.

    The settings `unparseable`, `echo` and `least_p_max` are the guards of the authors' natural-reasoning runs (-0.5,
    0.8, 0.2): free text invites answers that repeat the question, or that say nothing.

    Reference: Zhang et al. 2025, arXiv:2504.05812, Eq. 8-9; guards: their code, commit c5eccd4.
    Deviations: an answer that cannot be parsed shares no cluster and earns 0, unless `unparseable` says otherwise.
    """

    name: ClassVar[str] = "empo"
    title: ClassVar[str] = "EMPO"
    purpose: ClassVar[str] = "reward a response by the share of its group that gives the same answer"
    paper: ClassVar[str] = "Zhang et al. 2025, arXiv:2504.05812"
    denominator: Literal["group", "parseable"] = setting("group", "divide by G, or by the parseable answers")
    unparseable: float | int = setting(0.0, "reward of a response without an answer")
    echo: float | int | None = setting(
        None, "an answer that repeats the question earns 0: part of it, or a larger ROUGE-L precision than this"
    )
    least_p_max: float | int = setting(0.0, "a group whose largest cluster is smaller earns 0", unit="share")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the share of the group that gave the same answer, behind the guards."""
        rewards = consensus_reward(batch.clusters, self.denominator)
        rewards = rewards * (largest_share(batch.clusters) >= self.least_p_max - 1e-9).unsqueeze(-1)
        if self.echo is not None:
            echoes = [[echoes_question(r.answer, g.question, float(self.echo)) for r in g.rows] for g in batch.groups]
            rewards = rewards.masked_fill(torch.tensor(echoes), 0.0)
        return rewards.masked_fill(batch.clusters < 0, float(self.unparseable))


@dataclass(kw_only=True)
class WeightedEMPO(_Thresholded):
    """EMPO with clusters weighted by likelihood instead of counted; needs ``logprobs``."""

    name: ClassVar[str] = "weighted_empo"
    title: ClassVar[str] = "weighted EMPO"
    purpose: ClassVar[str] = "as empo, with responses counted by their likelihood"
    paper: ClassVar[str] = "Zhang et al. 2025, arXiv:2504.05812"
    needs: ClassVar[tuple[str, ...]] = ("mean_logprobs", "sum_logprobs")
    length_normalized: bool = setting(True, "weigh by the mean log-probability per token, not the sum")

    def _weights(self, batch: Batch) -> Float[Tensor, "P G"]:
        return batch.stat("mean_logprobs" if self.length_normalized else "sum_logprobs")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the likelihood-weighted mass of the answer's cluster."""
        return weighted_consensus_reward(batch.clusters, self._weights(batch))

    def entropy(self, batch: Batch) -> Float[Tensor, " P"]:
        """Return the likelihood-weighted semantic entropy."""
        return weighted_semantic_entropy(batch.clusters, self._weights(batch))


@dataclass(kw_only=True)
class MajorityVote(LabelFreeReward):
    """TTRL's reward: 1 for the majority answer, 0 for the others. Ties share the win by `ties`."""

    name: ClassVar[str] = "majority_vote"
    title: ClassVar[str] = "majority vote"
    purpose: ClassVar[str] = "reward the majority answer (TTRL)"
    paper: ClassVar[str] = "TTRL: Zuo et al. 2025, arXiv:2504.16084"
    ties: Ties = setting("share", "who wins where several clusters are largest")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the majority vote."""
        return majority_reward(batch.clusters, self.ties)


@dataclass(kw_only=True)
class SRT(LabelFreeReward):
    """Self-rewarded training: the majority vote, where the majority is large enough.

        hard: r_i = 1[answer in the largest cluster] 1[p_max >= tau]
        soft: r_i = p(c(o_i)) 1[p_max >= tau]

    Reference: Shafayat et al. 2025, arXiv:2505.21444 (hard).
    Deviations: ``soft`` is the same rule with the share of the cluster in place of the indicator. Prompts below the
    threshold are masked, so that they can also leave the denominator.
    """

    name: ClassVar[str] = "srt"
    title: ClassVar[str] = "SRT"
    purpose: ClassVar[str] = "reward the majority answer, on prompts where the majority is large enough"
    paper: ClassVar[str] = "Shafayat et al. 2025, arXiv:2505.21444"
    tau: float | int = setting(0.5, "least share of the largest cluster", unit="share")
    soft: bool = setting(False, "reward the cluster's share in place of 0 or 1")
    ties: Ties = setting("share", "who wins where several clusters are largest (hard only)")

    def __post_init__(self) -> None:
        """Refuse a threshold that no share can reach."""
        super().__post_init__()
        if not 0 <= self.tau <= 1:
            raise UserError(f"tau is a share of the group, in [0, 1], got {self.tau}")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the vote, 0 where the majority is too small."""
        vote = consensus_reward(batch.clusters) if self.soft else majority_reward(batch.clusters, self.ties)
        return vote * self.prompt_mask(batch).unsqueeze(-1)

    def prompt_mask(self, batch: Batch) -> Bool[Tensor, " P"]:
        """Return the prompts whose largest cluster has at least the share tau."""
        return largest_share(batch.clusters) >= self.tau - 1e-9


@dataclass(kw_only=True)
class SoftSRT(SRT):
    """SRT with the share of the largest cluster as the reward."""

    name: ClassVar[str] = "srt_soft"
    title: ClassVar[str] = "SRT, soft"
    purpose: ClassVar[str] = "as srt, with the majority's share as the reward"
    soft: bool = setting(True, "reward the cluster's share in place of 0 or 1")


@dataclass(kw_only=True)
class SeedGRPO(MajorityVote):
    """The majority vote with SEED-GRPO's factor on each prompt's advantages, in ``RewardResult.advantage_scale``.

    TRL's own trainers do not read that factor. There, the rewards themselves are multiplied by it, which has the same
    effect when the trainer does not divide by the group's standard deviation (``scale_rewards="none"`` or "batch").
    """

    name: ClassVar[str] = "seed_grpo"
    title: ClassVar[str] = "SEED-GRPO"
    purpose: ClassVar[str] = "reward the majority answer, and weigh prompts down where answers disagree"
    paper: ClassVar[str] = "arXiv:2505.12346"
    alpha: float | int = setting(1.0, "strength of the factor, in [0, 1]")

    def advantage_scale(self, batch: Batch) -> Float[Tensor, " P"]:
        """Return 1 - alpha H / ln G."""
        return seed_grpo_scale(batch.clusters, self.alpha)
