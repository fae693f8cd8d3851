"""The one interface of label-free rewards.

A reward is an object with a configuration and two faces:

* ``reward.score(groups) -> RewardResult``: rewards (P, G), the prompt mask (P,), diagnostics. A trainer that reads
  ``prompt_mask`` drops masked prompts from its denominator.
* ``reward(prompts, completions, **kwargs) -> list[float]``: TRL's protocol. Masked prompts get the reward 0 for
  every response: all equal, hence zero advantage exactly.

TRL passes every column of the data set in ``**kwargs``, labels included. `Context.take` is the only place that looks at
them, and it takes nothing that a column could be: a label-free reward cannot see a label.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from autotelic.answers import Clustering, cluster_group, default_pool, equivalence, extract
from autotelic.errors import UserError
from autotelic.functional import cluster_sizes, semantic_entropy
from autotelic.rewards.groups import Group, Row, gather_groups, prompt_key
from autotelic.runs.method_settings import check_settings, setting
from autotelic.tasks.conversations import Completion, Prompt, assistant_text, final_text


@dataclass(frozen=True)
class TokenStats:
    """Statistics of the sampling policy on the tokens of this process's responses, in the order of the rows.

    Attributes:
        mask: True on response tokens, (B, T).
        logprobs: ln pi of the sampled token, nats.
        entropy: Entropy over the vocabulary, nats.
        self_certainty: KL(uniform || pi) over the vocabulary, nats (`autotelic.rewards.formulas.self_certainty`).
    """

    mask: Shaped[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"] | None = None
    entropy: Float[Tensor, "B T"] | None = None
    self_certainty: Float[Tensor, "B T"] | None = None

    def sums(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the sum over response tokens of one statistic, and their number, each (B,), in float64."""
        values = getattr(self, name)
        mask = self.mask.bool()
        total = torch.where(mask, values.to(torch.float64), torch.zeros((), dtype=torch.float64, device=values.device))
        return total.sum(-1), mask.sum(-1)


@dataclass(frozen=True)
class Context:
    """What a label-free reward takes from a trainer: nothing else of ``**kwargs`` is ever looked at."""

    step: int = 0
    num_generations: int | None = None
    token_stats: TokenStats | None = None
    log_metric: Callable[..., Any] | None = None

    @classmethod
    def take(cls, kwargs: Mapping[str, Any]) -> "Context":
        """Read the trainer's own arguments. A data column arrives as a list, and none of these is a list."""
        state, log = kwargs.get("trainer_state"), kwargs.get("log_metric")
        step = getattr(state, "global_step", 0)
        generations = kwargs.get("num_generations")
        if not isinstance(generations, int):
            generations = _group_size(getattr(log, "__self__", None))
        stats = kwargs.get("token_stats")
        return cls(
            step=step if isinstance(step, int) else 0,
            num_generations=generations,
            token_stats=stats if isinstance(stats, TokenStats) else None,
            log_metric=log if callable(log) else None,
        )


def _group_size(trainer: Any) -> int | None:
    """Return the group size of the TRL trainer that owns ``log_metric``: one for training, one for evaluation."""
    training = getattr(getattr(trainer, "model", None), "training", True)
    size = getattr(trainer, "num_generations" if training else "num_generations_eval", None)
    return size if isinstance(size, int) else None


@dataclass(frozen=True)
class Batch:
    """Groups of one size G, as a reward formula sees them."""

    groups: Sequence[Group]
    clusters: Int[Tensor, "P G"]
    step: int = 0

    def stat(self, name: str) -> Float[Tensor, "P G"]:
        """Return one statistic of every response."""
        return torch.tensor([[row.stats[name] for row in g.rows] for g in self.groups], dtype=torch.float64)


@dataclass(frozen=True)
class RewardResult:
    """Rewards and what to know about them.

    Attributes:
        rewards: One per response; 0 where not `valid`.
        prompt_mask: Prompts that count. A masked one has zero advantage; leave it out of the denominator too, or not.
        valid: Responses that count (all, where every group has G of them).
        clusters: Answer cluster of each response, -1 where there is no answer.
        advantage_scale: Factor on the advantages of each prompt (1 where the reward has none).
        diagnostics: Declared means over prompts: semantic entropy (nats), p_max, parse rate, timeouts, ...
    """

    rewards: Float[Tensor, "P G"]
    prompt_mask: Bool[Tensor, " P"]
    valid: Bool[Tensor, "P G"]
    clusters: Int[Tensor, "P G"]
    advantage_scale: Float[Tensor, " P"]
    diagnostics: dict[str, float] = field(default_factory=dict)

    def masked_rewards(self) -> Float[Tensor, "P G"]:
        """Return the rewards for a trainer that reads nothing else.

        Every response of a masked prompt gets 0 (no advantage, and no rounding residue), and `advantage_scale`
        multiplies the rewards.
        """
        scaled = self.rewards * self.advantage_scale.unsqueeze(-1)
        return torch.where(self.prompt_mask.unsqueeze(-1), scaled, torch.zeros_like(scaled))


@dataclass(kw_only=True)
class LabelFreeReward(ABC):
    """Base of every label-free reward.

    Attributes:
        token_stats: Statistics for the next call, set by a trainer; used once.
        last_result: Result of the last call, for a trainer's metrics and its denominator.
        last_places: Where each row of this process stands in it: (group, response).
    """

    name: ClassVar[str]
    """Name in configuration, and in TRL's logs (as ``__name__``)."""
    title: ClassVar[str] = ""
    """Name on the page (`label` of the other tables: here no name may be that of an answer)."""
    purpose: ClassVar[str] = ""
    """What it is for, in one line of `autotelic list`."""
    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    """Statistics required, as "mean_entropy" or "sum_logprobs"."""

    whole_batch: ClassVar[bool] = False
    """Whether a group's reward depends on other groups: then every process scores all of them."""

    num_generations: int | None = setting(None, "G; the trainer's, else neighbouring equal prompts are a group")
    extraction: tuple[str, ...] | None = setting(None, "how an answer is found, in order: boxed, hashes, ...")
    equivalence: Any = setting(None, "when two answers are the same: math, nli, judge, embedding, or a function")
    linkage: str = setting("union_find", "how pairs of equal answers become clusters")
    prompt_fraction: float | int = setting(
        1.0, "train on this share of a batch's prompts, those of largest p_max (a safeguard of SRT)", unit="share"
    )
    token_stats: TokenStats | None = field(default=None, repr=False, init=False)
    last_result: RewardResult | None = field(default=None, repr=False, init=False)
    last_places: list[tuple[int, int]] = field(default_factory=list, repr=False, init=False)

    def __post_init__(self) -> None:
        """Refuse settings that cannot be used."""
        check_settings(self)
        self.equivalence = equivalence(self.equivalence)
        if not 0 < self.prompt_fraction <= 1:
            raise UserError(f"prompt_fraction is a share of the prompts, in (0, 1], got {self.prompt_fraction}")

    def __getattr__(self, attribute: str) -> str:
        """Answer ``__name__``, by which TRL names a reward function."""
        if attribute == "__name__":
            return self.name
        raise AttributeError(attribute)

    @abstractmethod
    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the reward of each response; every group in the batch has G of them."""

    def prompt_mask(self, batch: Batch) -> Bool[Tensor, " P"]:
        """Return the prompts that count: all, unless a reward says otherwise."""
        return torch.ones(len(batch.groups), dtype=torch.bool)

    def advantage_scale(self, batch: Batch) -> Float[Tensor, " P"]:
        """Return a factor on each prompt's advantages: 1, unless a reward says otherwise."""
        return torch.ones(len(batch.groups), dtype=torch.float64)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], completion_ids: Any = None, **kwargs: Any
    ) -> list[float]:
        """Return one reward per completion of this process (TRL's protocol)."""
        context = Context.take(kwargs)
        stats = context.token_stats or self.token_stats
        rows = self._rows(prompts, completions, stats)
        size, everyone = self.num_generations or context.num_generations, self.whole_batch or self.prompt_fraction < 1
        groups, places = gather_groups(rows, size, everyone=everyone)
        result = self.score(groups, step=context.step)
        self.last_result, self.last_places, self.token_stats = result, places, None
        if context.log_metric is not None:
            for key, value in result.diagnostics.items():
                context.log_metric(key, value)
        masked = result.masked_rewards()
        return [float(masked[g, i]) for g, i in places]

    def score(
        self, groups: Sequence[Group], *, step: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> RewardResult:
        """Return the rewards of complete groups; their sizes may differ.

        Args:
            groups: all responses of each prompt.
            step: of the run.
            progress: called with the groups that are clustered, and how many there are.
        """
        timeouts = default_pool().stats.timeouts
        clusters, valid, partitions = self._clustered(groups, progress)
        rewards = torch.zeros(clusters.shape, dtype=torch.float64)
        mask = torch.zeros(len(groups), dtype=torch.bool)
        scale = torch.ones(len(groups), dtype=torch.float64)
        sizes = valid.sum(-1)
        for size in sorted({int(s) for s in sizes} - {0}):
            chosen = [p for p in range(len(groups)) if int(sizes[p]) == size]
            kept = [Group(tuple(r for r in groups[p].rows if r.valid), groups[p].first) for p in chosen]
            batch = Batch(kept, torch.tensor([partitions[p].clusters for p in chosen], dtype=torch.int64), step)
            index = torch.tensor(chosen)
            values = self.rewards(batch).to(torch.float64)
            for row, p in enumerate(chosen):
                rewards[p, valid[p]] = values[row]
            mask[index] = self.prompt_mask(batch)
            scale[index] = self.advantage_scale(batch).to(torch.float64)
        mask &= self._most_consistent(clusters, sizes)
        self._check_finite(rewards, groups)
        diagnostics = _diagnostics(clusters, valid, mask)
        diagnostics["semantic/timeouts"] = float(default_pool().stats.timeouts - timeouts)
        for key in ("undecided", "intransitive", "asymmetric"):
            diagnostics[f"semantic/{key}"] = float(sum(getattr(each, f"num_{key}") for each in partitions))
        return RewardResult(rewards, mask, valid, clusters, scale, diagnostics)

    def _clustered(
        self, groups: Sequence[Group], progress: Callable[[int, int], None] | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[Clustering]]:
        """Cluster the valid answers of each group; return clusters `(P, G)`, -1 elsewhere, and what is valid."""
        width = max((len(group.rows) for group in groups), default=0)
        clusters = torch.full((len(groups), width), -1, dtype=torch.int64)
        valid = torch.zeros(len(groups), width, dtype=torch.bool)
        partitions = []
        for p, group in enumerate(groups):
            valid[p, : len(group.rows)] = torch.tensor([row.valid for row in group.rows])
            answers = [row.answer for row in group.rows if row.valid]
            how = {"equivalence": self.equivalence, "linkage": self.linkage, "question": group.question}
            partitions.append(cluster_group(answers, **how))
            clusters[p, valid[p]] = torch.tensor(partitions[p].clusters, dtype=torch.int64)
            if progress is not None:
                progress(p + 1, len(groups))
        return clusters, valid, partitions

    def _rows(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], stats: TokenStats | None
    ) -> list[Row]:
        """Turn this process's responses into rows: text, answer, and the statistics that this reward needs."""
        texts = [assistant_text(completion) for completion in completions]
        columns: dict[str, list[float]] = {}
        for need in self.needs:
            reduction, _, name = need.partition("_")
            if stats is None or getattr(stats, name) is None:
                raise UserError(
                    f"the reward {self.name} needs the token statistic {name!r} and the trainer gave none: use "
                    "`autotelic train`, or set reward.token_stats to an autotelic.rewards.TokenStats before each call"
                )
            total, count = stats.sums(name)
            if len(total) != len(texts):
                raise UserError(f"token_stats has {len(total)} rows for {len(texts)} responses: give one row each")
            values = total / count.clamp(min=1) if reduction == "mean" else total
            columns[need] = values.tolist()
        options = {} if self.extraction is None else {"methods": self.extraction}
        return [
            Row(
                prompt_key(prompts[i]),
                texts[i],
                extract(final_text(completions[i]), **options),
                {need: columns[need][i] for need in columns},
            )
            for i in range(len(texts))
        ]

    def _most_consistent(self, clusters: Int[Tensor, "P G"], sizes: Int[Tensor, " P"]) -> Bool[Tensor, " P"]:
        """Return the prompts among the `prompt_fraction` with the largest p_max."""
        if self.prompt_fraction == 1:
            return torch.ones(len(clusters), dtype=torch.bool)
        keep = torch.zeros(len(clusters), dtype=torch.bool)
        p_max = cluster_sizes(clusters).max(-1).values.to(torch.float64) / sizes.clamp(min=1)
        order = p_max.argsort(descending=True, stable=True)
        keep[order[: math.ceil(self.prompt_fraction * len(clusters) - 1e-9)]] = True
        return keep

    def _check_finite(self, rewards: Tensor, groups: Sequence[Group]) -> None:
        """Stop at the first reward that is not a number."""
        bad = (~torch.isfinite(rewards)).nonzero()
        if len(bad):
            prompt = groups[int(bad[0, 0])].prompt
            raise FloatingPointError(f"the reward {self.name} is not finite for the prompt {prompt[:80]!r}")


def _diagnostics(clusters: Tensor, valid: Tensor, mask: Tensor) -> dict[str, float]:
    """Return means over prompts of what tells a healthy group from a collapsed one."""
    counted = int(valid.sum())
    if counted == 0:
        return {}
    entropy, p_max = [], []
    for row, ok in zip(clusters, valid, strict=True):
        own = row[ok]
        if len(own):
            entropy.append(float(semantic_entropy(own.unsqueeze(0))[0]))
            parsed = own[own >= 0]
            p_max.append(float(torch.bincount(parsed).max()) / len(own) if len(parsed) else 0.0)
    return {
        "semantic/entropy": sum(entropy) / len(entropy),
        "semantic/majority_share": sum(p_max) / len(p_max),
        "semantic/parse_rate": int(((clusters >= 0) & valid).sum()) / counted,
        "semantic/kept_share": float(mask.double().mean()),
    }
