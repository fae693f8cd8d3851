"""Entropy controls as frozen configuration: what is chosen once per update, and how advantages are rewritten.

A control sees one `UpdateBatch`, everything that this rank contributes to one optimizer step, before it is split into
micro-batches. `plan` decides over the update batch of all ranks; `rewrite` is applied to each micro-batch with its part
of the plan. So the choice depends neither on the micro-batch size, nor on ranks, padding side or row order.

A control is a class in a file of this folder. It carries its name, label and paper, its settings are its fields, and
`autotelic.controls.table` finds it there: nothing else lists the controls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.functional.gradient_weights import GradientWeights
from autotelic.functional.selection import Choice
from autotelic.runs.method_settings import check_settings, setting


class EntropyControlWarning(UserWarning):
    """A setting that works but is probably not what was meant."""


@dataclass(frozen=True)
class UpdateBatch:
    """This rank's share of one optimizer step."""

    logprobs: Float[Tensor, "B T"]
    """ln pi of the sampled tokens under the policy that selection looks at (the rollout's, unless refreshed)."""
    advantages: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    row_ids: Int[Tensor, " B"]
    """Identity of each response in the batch of all ranks; it survives shuffling and splitting."""
    step: int
    seed: int
    across_ranks: bool = True
    old_logprobs: Float[Tensor, "B T"] | None = None
    """The rollout's own, where `logprobs` are refreshed."""
    entropy: Float[Tensor, "B T"] | None = None
    """Of the distribution that `logprobs` belong to, for controls that need it."""
    expected: Float[Tensor, "B T"] | None = None
    """E_pi[S] of the entropy discriminator, likewise."""
    clipped: Bool[Tensor, "B T"] | None = None
    """Tokens whose gradient the PPO clip takes away already; known where `logprobs` are refreshed."""
    accuracy: Float[Tensor, " B"] | None = None
    """Mean reward of the response's group, where all rewards are 0 or 1."""
    flat: Bool[Tensor, " B"] | None = None
    """Whether all responses of the group have one reward: all right or all wrong, for example."""
    state: Mapping[str, float] = field(default_factory=dict)
    """What a control with memory returned for the update before."""
    total_steps: int = 0
    """Optimizer steps of the run; 0 where it is not known."""
    group_size: int = 1
    """Responses per prompt; `row_ids` count them prompt by prompt."""
    sampler_logprobs: Float[Tensor, "B T"] | None = None
    """Those of the policy that wrote the tokens, where they differ from the rollout's."""
    precision: torch.dtype = torch.float32
    """In which the log-probabilities were computed: two passes differ by its rounding."""
    by_response: bool = False
    """Whether the loss is a mean over responses of their token means; else a mean over tokens."""
    prepared: Float[Tensor, "B T"] | None = None
    """What the control's `at_rollout` returned."""
    proxy: Float[Tensor, "B T"] | None = None
    """ln pi of the sampled token under the policy without its tail (Lp-Reg)."""

    @property
    def progress(self) -> float:
        """Which share of the run this update completes, in (0, 1]; 1 where the length is not known."""
        return min((self.step + 1) / self.total_steps, 1.0) if self.total_steps > 0 else 1.0

    @classmethod
    def join(cls, batches: "Sequence[UpdateBatch]") -> "UpdateBatch":
        """Return the micro-batches of one update as one; they come from one generation batch and share its width."""
        return replace(batches[0], **_joined(batches))

    def token_ids(self) -> Int[Tensor, "B T"]:
        """Return a number per token, unique in the update batch and independent of padding."""
        return self.row_ids.unsqueeze(-1) * (1 << 20) + F.response_positions(self.mask)

    def moments(self) -> F.TokenMoments:
        """Return mean log-probability, mean advantage and token count, over all ranks if `across_ranks`."""
        take = F.global_moments if self.across_ranks else F.token_moments
        return take(self.logprobs, self.advantages, self.mask)

    def choice(self) -> Choice:
        """Return what a choice of tokens over this batch needs: identities for ties, and whether ranks take part."""
        return {"token_ids": self.token_ids(), "across_ranks": self.across_ranks}

    def anchor(self) -> Float[Tensor, "B T"]:
        """Return the log-probabilities of the policy that wrote the tokens, as far as they are known; 0 outside."""
        known = (self.sampler_logprobs, self.old_logprobs, self.logprobs)
        return torch.where(self.mask, next(each for each in known if each is not None), 0.0)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all ranks if `across_ranks`."""
        return F.global_sum(values) if self.across_ranks else values

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of `values` over all ranks if `across_ranks`."""
        return F.global_max(values) if self.across_ranks else values


@dataclass(frozen=True)
class Plan:
    """What a control decided for one update."""

    selected: Bool[Tensor, "B T"]
    """The tokens that it touches."""
    covariance: Float[Tensor, "B T"]
    requested: int | None = None
    """The quota over all ranks, for controls that have one."""
    advantages: Float[Tensor, "B T"] | None = None
    """The rewritten advantages, where they are decided here."""
    state: Mapping[str, float] = field(default_factory=dict)
    """What the next update is to remember."""
    term_coef: float = 0.0
    """Coefficient of an entropy term in the objective, over `term_tokens`."""
    term_tokens: Bool[Tensor, "B T"] | None = None
    """The tokens of that term; `selected` where None."""
    old: Float[Tensor, "B T"] | None = None
    """What `rewrite` needs to know of each token before the update; a control's own."""
    bound: Float[Tensor, "B T"] | None = None
    """From which it makes a bound on each token's move; a control's own."""
    logprobs: Float[Tensor, "B T"] | None = None
    """ln pi of the policy in training, without gradient; known where `rewrite` is called."""
    entropy: Float[Tensor, "B T"] | None = None
    """Its entropy, likewise."""
    weights: GradientWeights | None = None
    """What the trainer's loss multiplies an advantage with in the gradient; known where `rewrite` is called."""

    @classmethod
    def join(cls, plans: "Sequence[Plan]", *, per_micro_batch: bool = False) -> "Plan":
        """Return the plans of one update as one; micro-batch quotas add up, the update's own is already whole."""
        requested = sum(plan.requested or 0 for plan in plans) if per_micro_batch else plans[0].requested
        return replace(plans[0], **_joined(plans), requested=requested)

    def split(self, counts: Sequence[int]) -> "list[Plan]":
        """Return the plan of each micro-batch; the quota and the state stay those of the whole update."""
        parts = {name: value.split(list(counts)) for name, value in _tensors(self).items()}
        return [replace(self, **{name: part[i] for name, part in parts.items()}) for i in range(len(counts))]

    def narrow(self, width: int) -> "Plan":
        """Return the plan of the first `width` columns."""
        return replace(self, **{name: value[:, :width] for name, value in _tensors(self).items()})


def _tensors(of: Any) -> dict[str, Tensor]:
    """Return the fields that have one row per response."""
    return {f.name: value for f in fields(of) if isinstance(value := getattr(of, f.name), Tensor)}


def _joined(parts: Sequence[Any]) -> dict[str, Tensor]:
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in _tensors(parts[0])}


@dataclass(frozen=True, kw_only=True)
class EntropyControl:
    """Base of the controls."""

    refresh: bool = setting(
        False, "decide on log-probabilities (and entropies) of an extra forward pass before each update"
    )
    seed: int = setting(0, "keys random choices, together with step, response and position")

    name: ClassVar[str] = ""
    """In configuration files, on the command line and in `METHODS`."""
    label: ClassVar[str] = ""
    """In reports and messages."""
    purpose: ClassVar[str] = ""
    """What it is for, in one line of `autotelic list`."""
    paper: ClassVar[str] = ""
    """Where the method comes from."""
    intervenes: ClassVar[bool] = True
    """Whether it acts on the entropy, so that the entropy law does not hold under it."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Beyond log-probabilities: ``entropy`` per token, ``expected`` of the entropy discriminator."""
    silences: ClassVar[bool] = True
    """Whether touched tokens get no gradient at all; this can be done under a sequence-level ratio too."""
    whole_responses: ClassVar[bool] = False
    """Whether the new advantages are the same for every token of a response, as a sequence-level ratio needs."""
    follows_entropy: ClassVar[bool] = False
    """Whether `rewrite` reads the entropy of the policy in training."""
    replaces_clip: ClassVar[bool] = False
    """Whether the trainer's PPO clip is switched off: the control has a bound of its own."""

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self, updates_per_rollout: float | int, importance_sampling_level: str, *, clipped: bool = False) -> None:
        """Refuse a trainer configuration in which this control cannot work.

        Args:
            updates_per_rollout: optimizer steps that a rollout serves.
            importance_sampling_level: ``token``, or ``sequence`` for one ratio per response.
            clipped: whether a PPO clip takes gradients away.
        """
        if importance_sampling_level == "sequence" and not (self.silences or self.whole_responses):
            raise UserError(
                f"{self.name} weighs single tokens, which importance_sampling_level='sequence' (GSPO) cannot express: "
                "its ratio is shared by the whole response. Use importance_sampling_level='token', or clip_cov."
            )

    def at_rollout(self, batch: UpdateBatch) -> Float[Tensor, "B T"] | None:
        """Return one number per token that needs whole groups or the whole rollout; `plan` finds it in `prepared`."""
        return None

    def plan(self, batch: UpdateBatch) -> Plan:
        """Decide over the tokens of one update."""
        raise NotImplementedError  # abstract

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return the advantages of one micro-batch, given its part of the plan."""
        raise NotImplementedError  # abstract

    @staticmethod
    def with_gradient(
        gradient: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return the advantages for which ln pi moves by `gradient`, whatever the trainer's loss is."""
        weight = log_ratio.exp() if plan.weights is None else plan.weights.of(gradient)
        return torch.where(weight > 0, gradient / weight, 0.0)

    @property
    def has_vocabulary_term(self) -> bool:
        """Whether `vocabulary_term` is part of the loss; it costs a forward pass with logits."""
        return False

    def vocabulary_term(self, logits: Float[Tensor, "N V"], temperature: float | int) -> Float[Tensor, " N"]:
        """Return a term of the loss on each selected token, from its logits."""
        raise NotImplementedError  # abstract

    @property
    def silent_share(self) -> float:
        """Return the share of tokens that surely get no gradient; 0 where it is not known before the update."""
        return 0.0

    @property
    def per_micro_batch(self) -> bool:
        """Whether statistics belong to each micro-batch of each rank, as in the reference code."""
        return False

    def entropy_coef(self, updates_per_rollout: float | int) -> float:
        """Return the coefficient of an entropy term on the selected tokens; zero for most controls."""
        return 0.0

    def covariance(self, batch: UpdateBatch, moments: F.TokenMoments) -> Float[Tensor, "B T"]:
        """Return each token's covariance about the batch means (Eq. 10)."""
        return F.token_covariance(
            batch.logprobs,
            batch.advantages,
            batch.mask,
            mean_logprob=moments.mean_logprob,
            mean_advantage=moments.mean_advantage,
        )


Rewritten = tuple[Tensor, int | None, Mapping[str, float]]
"""Advantages, quota (None without one), and what to remember."""


@dataclass(frozen=True)
class AdvantageControl(EntropyControl):
    """Base of the controls that rewrite all advantages of an update at once."""

    silences: ClassVar[bool] = False

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Return the new advantages of the update batch, the quota, and the next state."""
        raise NotImplementedError  # abstract

    def plan(self, batch: UpdateBatch) -> Plan:
        """Rewrite the update's advantages; what changed counts as selected."""
        advantages, requested, state = self.rewritten(batch)
        advantages = advantages.to(batch.advantages.dtype)
        changed = batch.mask & (advantages != batch.advantages)
        return Plan(changed, self.covariance(batch, batch.moments()), requested, advantages, state)

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return the planned advantages."""
        assert plan.advantages is not None
        return plan.advantages


def entropies(batch: UpdateBatch) -> Float[Tensor, "B T"]:
    """Return the batch's entropies, which the trainer measures for controls whose `needs` name them."""
    assert batch.entropy is not None
    return batch.entropy


def mean_entropy(batch: UpdateBatch) -> float:
    """Return the token mean of the entropy over the update batch of all ranks, in nats."""
    total = batch.total(F.masked_sum(entropies(batch).double(), batch.mask))
    return float(total) / max(batch.moments().num_tokens, 1)
