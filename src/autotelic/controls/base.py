"""Entropy controls as frozen configuration: what is chosen once per update, and how advantages are rewritten.

A control sees one `UpdateBatch`, everything that this rank contributes to one optimizer step, before it is split into
micro-batches. `plan` decides over the update batch of all ranks; `rewrite` is applied to each micro-batch with its part
of the plan. So the choice depends neither on the micro-batch size, nor on ranks, padding side or row order.
Clip-Cov and KL-Cov are here, what they are compared with is in `autotelic.controls.baselines`.

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 10-14.
Deviations: listed in `autotelic.functional.token_advantages`. In the trainer, TRL's PPO clip stays as configured and
acts on the *rewritten* advantage, so it never blocks the pull back towards the old policy; the paper's Clip-Cov and
KL-Cov switch the clip off (`epsilon` of 1 and of infinity), which the `entropy_*` recipes do too. Tokens that the PPO
clip silences are no candidates of Clip-Cov, as in the authors' code, where the ratio is known at selection: with
`refresh=True`. On the rollout's own log-probabilities, the default, every ratio is 1 and nothing is clipped.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from autotelic import functional as F
from autotelic.errors import UserError, closest
from autotelic.functional.divergence import KLForm

LARGE_FRACTION = 1e-2


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
    state: Mapping[str, float] = field(default_factory=dict)
    """What a control with memory returned for the update before."""

    def token_ids(self) -> Int[Tensor, "B T"]:
        """Return a number per token, unique in the update batch and independent of padding."""
        return self.row_ids.unsqueeze(-1) * (1 << 20) + F.response_positions(self.mask)

    def moments(self) -> F.TokenMoments:
        """Return mean log-probability, mean advantage and token count, over all ranks if `across_ranks`."""
        take = F.global_moments if self.across_ranks else F.token_moments
        return take(self.logprobs, self.advantages, self.mask)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all ranks if `across_ranks`."""
        return F.global_sum(values) if self.across_ranks else values


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


@dataclass(frozen=True, kw_only=True)
class EntropyControl:
    """Base of the controls.

    Args:
        refresh: recompute log-probabilities (and entropies) with one extra forward pass before each update and decide
            on those; the default decides on the rollout's own, which cost nothing.
        seed: keys random choices, together with step, response and position.
    """

    refresh: bool = False
    seed: int = 0

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Beyond log-probabilities: ``entropy`` per token, ``expected`` of the entropy discriminator."""
    silences: ClassVar[bool] = True
    """Whether touched tokens get no gradient at all; only this can be done under a sequence-level ratio."""

    def check(self, updates_per_rollout: float | int, importance_sampling_level: str) -> None:
        """Refuse a trainer configuration in which this control cannot work."""
        if importance_sampling_level == "sequence" and not self.silences:
            raise UserError(
                f"{self.name} weighs single tokens, which importance_sampling_level='sequence' (GSPO) cannot express: "
                "its ratio is shared by the whole response. Use importance_sampling_level='token', or clip_cov."
            )

    def plan(self, batch: UpdateBatch) -> Plan:
        """Decide over the tokens of one update."""
        raise NotImplementedError  # abstract

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return the advantages of one micro-batch, given its part of the plan."""
        raise NotImplementedError  # abstract

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


@dataclass(frozen=True)
class CovarianceControl(EntropyControl):
    """Base of the controls that choose tokens by covariance.

    Args:
        fraction: share of the response tokens of the update batch, in (0, 1]; not a percentage.
        scope: ``"update"`` takes statistics and quota over the whole update batch; ``"micro"`` over each micro-batch of
            each rank, as the reference code does (parity).
    """

    fraction: float = 2e-4
    scope: Literal["update", "micro"] = "update"

    def __post_init__(self) -> None:
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]
        if self.fraction > LARGE_FRACTION:
            warnings.warn(
                f"{self.name}: fraction={self.fraction:g} touches {self.fraction:.1%} of the tokens; the paper uses "
                "0.02 % to 0.2 %. This is a share, not a percentage. (Small models with short responses may need it.)",
                EntropyControlWarning,
                stacklevel=3,
            )
        if self.scope not in ("update", "micro"):
            raise UserError(f"scope must be 'update' or 'micro', got {self.scope!r}")

    @property
    def at_least_one(self) -> bool:
        """The reference code selects one token even where the quota is below one."""
        return self.scope == "micro"

    @property
    def per_micro_batch(self) -> bool:
        """Whether statistics belong to each micro-batch of each rank."""
        return self.scope == "micro"


@dataclass(frozen=True)
class ClipCov(CovarianceControl):
    """Clip-Cov: no gradient on a few tokens drawn from a band of high covariance (Eq. 11-12).

    Args:
        low: omega_low, nats x advantage, exclusive.
        high: omega_high, exclusive.
    """

    low: float = 1.0
    high: float = 5.0

    name: ClassVar[str] = "clip_cov"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise UserError(f"clip_cov: low must be below high, got {self.low} and {self.high}: no token lies between")

    def plan(self, batch: UpdateBatch) -> Plan:
        """Draw floor(fraction N) tokens with low < Cov < high, among those that the PPO clip spares."""
        moments = batch.moments()
        covariance = self.covariance(batch, moments)
        _, selected = F.clip_cov(
            batch.advantages,
            covariance if batch.clipped is None else covariance.masked_fill(batch.clipped, -torch.inf),
            batch.mask,
            fraction=self.fraction,
            low=self.low,
            high=self.high,
            priority=F.hash_uniform(self.seed, batch.step, batch.row_ids, F.response_positions(batch.mask)),
            token_ids=batch.token_ids(),
            num_tokens=moments.num_tokens,
            at_least_one=self.at_least_one,
            across_ranks=batch.across_ranks,
        )
        return Plan(selected, covariance, F.quota(self.fraction, moments.num_tokens, at_least_one=self.at_least_one))

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return the advantages with zero on the selected tokens."""
        return advantages.masked_fill(plan.selected, 0.0)

    @classmethod
    def preset(cls, name: str) -> "ClipCov":
        """Return the settings of the paper or of verl; see `PRESETS`."""
        return _preset(cls, name)


ROUNDING = 1e-5
"""Log-ratios, in nats, that float32 passes over the same weights can differ by."""


@dataclass(frozen=True)
class KLCov(CovarianceControl):
    """KL-Cov: a KL penalty on the tokens of largest covariance (Eq. 13-14).

    Args:
        coef: beta.
        form: the estimate of KL(pi_old || pi) that is penalised: ``abs`` is the authors' code, k1, k2 and k3 the usual
            estimators.
        on_policy: what to do where there is only one update per rollout. There the ratio is 1 and the penalty has no
            gradient. ``"refuse"`` raises; ``"entropy_term"`` instead adds `coef` times the entropy of the policy at the
            selected positions to the objective, whose gradient is not zero: the token distribution there is widened
            rather than held in place. It is ours, not the paper's.
    """

    fraction: float = 2e-3
    coef: float = 1.0
    form: KLForm = "abs"
    on_policy: Literal["refuse", "entropy_term"] = "refuse"

    name: ClassVar[str] = "kl_cov"
    silences: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coef < 0:
            raise UserError(f"kl_cov: coef must not be negative, got {self.coef}: it would push the policy away")
        if self.form not in ("abs", "k1", "k2", "k3"):
            raise UserError(f"kl_cov: unknown KL form {self.form!r}; use abs, k1, k2 or k3")
        if self.on_policy not in ("refuse", "entropy_term"):
            raise UserError(f"kl_cov: on_policy must be 'refuse' or 'entropy_term', got {self.on_policy!r}")

    def check(self, updates_per_rollout: float | int, importance_sampling_level: str) -> None:
        """Refuse one update per rollout (zero gradient) and sequence-level ratios (no per-token penalty)."""
        if updates_per_rollout <= 1 and self.on_policy == "refuse":
            raise UserError(
                "kl_cov needs at least two updates per rollout: while the policy equals the old policy, the ratio is 1 "
                "and the KL penalty has exactly zero gradient. Raise steps_per_generation above "
                "gradient_accumulation_steps, or num_iterations above 1, or set on_policy='entropy_term', or use "
                "clip_cov."
            )
        super().check(updates_per_rollout, importance_sampling_level)

    def plan(self, batch: UpdateBatch) -> Plan:
        """Choose the floor(fraction N) tokens of largest covariance, among those where it is positive."""
        moments = batch.moments()
        covariance = self.covariance(batch, moments)
        _, selected = F.kl_cov(
            batch.advantages,
            torch.zeros_like(batch.logprobs),
            covariance,
            batch.mask,
            fraction=self.fraction,
            coef=self.coef,
            token_ids=batch.token_ids(),
            num_tokens=moments.num_tokens,
            positive_only=self.scope == "update",
            at_least_one=self.at_least_one,
            across_ranks=batch.across_ranks,
        )
        return Plan(selected, covariance, F.quota(self.fraction, moments.num_tokens, at_least_one=self.at_least_one))

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return A - coef k'(log r) / r on the selected tokens.

        While the policies are equal, log r is what rounding leaves between two passes; its sign must not decide.
        """
        if self.scope == "update":
            log_ratio = torch.where(log_ratio.abs() < ROUNDING, 0.0, log_ratio)
        return F.kl_penalised(advantages, log_ratio, plan.selected, coef=self.coef, form=self.form)

    def entropy_coef(self, updates_per_rollout: float | int) -> float:
        """Return `coef` where the penalty is replaced by the entropy of the selected positions."""
        return self.coef if updates_per_rollout <= 1 and self.on_policy == "entropy_term" else 0.0

    @classmethod
    def preset(cls, name: str) -> "KLCov":
        """Return the settings of the paper or of verl; see `PRESETS`."""
        return _preset(cls, name)


PRESETS: dict[tuple[str, str], EntropyControl] = {
    # Section 4.3 and the released scripts: r = 2e-4, omega = (1, 5); k = 2e-3 (7B), 2e-4 (32B), beta = 1.
    ("clip_cov", "paper_7b"): ClipCov(scope="micro", refresh=True, fraction=2e-4, low=1.0, high=5.0),
    ("clip_cov", "paper_32b"): ClipCov(scope="micro", refresh=True, fraction=2e-4, low=1.0, high=5.0),
    ("clip_cov", "verl_default"): ClipCov(scope="micro", refresh=True, fraction=2e-4, low=1.0, high=5.0),
    ("kl_cov", "paper_7b"): KLCov(scope="micro", refresh=True, fraction=2e-3, coef=1.0),
    ("kl_cov", "paper_32b"): KLCov(scope="micro", refresh=True, fraction=2e-4, coef=1.0),
    ("kl_cov", "verl_default"): KLCov(scope="micro", refresh=True, fraction=2e-4, coef=0.1),
}
"""Reference settings and reference behaviour: statistics per micro-batch, on the current policy's log-probabilities.

The PPO clip is the trainer's: the paper sets it to (1, 1) for Clip-Cov and has none in KL-Cov.
"""


def _preset(cls: type[Any], name: str) -> Any:
    known = [preset for method, preset in PRESETS if method == cls.name]
    if name not in known:
        raise UserError(f"{cls.name}: unknown preset {name!r}{closest(name, known)} There are {', '.join(known)}.")
    return PRESETS[cls.name, name]
