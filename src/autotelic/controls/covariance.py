"""Clip-Cov and KL-Cov: few tokens carry most of the covariance that takes entropy away.

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 10-14.
Deviations: listed in `autotelic.functional.token_advantages`. In the trainer, TRL's PPO clip stays as configured:
it takes the advantage of a token away, never KL-Cov's penalty (`functional.gradient_weights`). The paper's Clip-Cov and
KL-Cov switch the clip off (`epsilon` of 1 and of infinity), which the `entropy_*` recipes do too. Tokens that the PPO
clip silences are no candidates of Clip-Cov, as in the authors' code, where the ratio is known at selection: with
`refresh=True`. On the rollout's own log-probabilities, the default, every ratio is 1 and nothing is clipped.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControl, EntropyControlWarning, Plan, UpdateBatch
from autotelic.errors import UserError, one_of, warn_user
from autotelic.functional.divergence import KLForm
from autotelic.functional.selection import Choice
from autotelic.runs.method_settings import setting

LARGE_FRACTION = 1e-2
SHARE = "share of the response tokens of the update batch; not a percentage"


@dataclass(frozen=True)
class CovarianceControl(EntropyControl):
    """Base of the controls that choose tokens by covariance."""

    fraction: float = setting(2e-4, SHARE, unit="share")
    scope: Literal["update", "micro"] = setting("update", "micro: per micro-batch and rank, as the reference code does")
    mixed_only: bool = setting(
        False, "count only tokens of prompts whose responses differ in reward, as the paper does"
    )

    paper: ClassVar[str] = "Cui et al. 2025, arXiv:2505.22617"

    def __post_init__(self) -> None:
        super().__post_init__()
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]
        if self.fraction > LARGE_FRACTION:
            warn_user(
                f"{self.name}: fraction={self.fraction:g} touches {self.fraction:.1%} of the tokens; the paper uses "
                "0.02 % to 0.2 %. This is a share, not a percentage. (Small models with short responses may need it.)",
                EntropyControlWarning,
            )

    @property
    def per_micro_batch(self) -> bool:
        """Whether statistics belong to each micro-batch of each rank."""
        return self.scope == "micro"

    def counted(self, batch: UpdateBatch) -> UpdateBatch:
        """Return the tokens that means, N and the quota count."""
        if not self.mixed_only or batch.flat is None:
            return batch
        return replace(batch, mask=batch.mask & ~batch.flat.unsqueeze(-1))

    def choice(self, batch: UpdateBatch, moments: F.TokenMoments) -> Choice:
        """Return how tokens are counted; the reference code selects one even where the quota is below one."""
        return {**batch.choice(), "num_tokens": moments.num_tokens, "at_least_one": self.scope == "micro"}

    def quota(self, moments: F.TokenMoments) -> int:
        """Return how many tokens the control asks for."""
        return F.quota(self.fraction, moments.num_tokens, at_least_one=self.scope == "micro")


@dataclass(frozen=True)
class ClipCov(CovarianceControl):
    """Clip-Cov: no gradient on a few tokens drawn from a band of high covariance (Eq. 11-12)."""

    low: float = setting(1.0, "omega_low, lower end of the covariance band, exclusive", unit="nats x advantage")
    high: float = setting(5.0, "omega_high, upper end, exclusive", unit="nats x advantage")

    name: ClassVar[str] = "clip_cov"
    label: ClassVar[str] = "Clip-Cov"
    purpose: ClassVar[str] = "hold entropy: no gradient on a few tokens of high covariance"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise UserError(f"clip_cov: low must be below high, got {self.low} and {self.high}: no token lies between")

    def plan(self, batch: UpdateBatch) -> Plan:
        """Draw floor(fraction N) tokens with low < Cov < high, among those that the PPO clip spares."""
        batch = self.counted(batch)
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
            **self.choice(batch, moments),
        )
        return Plan(selected, covariance, self.quota(moments))

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return the advantages with zero on the selected tokens."""
        return advantages.masked_fill(plan.selected, 0.0)

    @classmethod
    def preset(cls, name: str) -> "ClipCov":
        """Return the settings of the paper or of verl; see `PRESETS`."""
        return _preset(cls, name)


ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far two passes over the same weights differ in ln pi, in nats per (1 + |ln pi|), by what they compute in.

Measured on the carried model, padded and unpadded: 99 % of the tokens stay below 1.6e-6, .003 and .023.
"""


def rounding(logprobs: Float[Tensor, "B T"], precision: torch.dtype) -> Float[Tensor, "B T"]:
    """Return the log-ratio, in nats, below which a token's move is rounding noise."""
    return ROUNDING.get(precision, ROUNDING[torch.float32]) * (1 + logprobs.abs())


@dataclass(frozen=True)
class KLCov(CovarianceControl):
    """KL-Cov: a KL penalty on the tokens of largest covariance (Eq. 13-14).

    With one update per rollout the ratio is 1 and the penalty has no gradient: that is refused, unless
    ``on_policy="entropy_term"``, which adds `coef` times the entropy of the policy at the selected positions to the
    objective. The token distribution there is then widened rather than held in place; this is ours, not the paper's.
    """

    fraction: float = setting(2e-3, SHARE, unit="share")
    coef: float = setting(1.0, "beta, the penalty's factor", unit="advantage / nat")
    form: KLForm = setting("abs", "the estimate of KL(pi_old || pi) that is penalised; abs is the authors' code")
    on_policy: Literal["refuse", "entropy_term"] = setting("refuse", "what to do with one update per rollout")

    name: ClassVar[str] = "kl_cov"
    label: ClassVar[str] = "KL-Cov"
    purpose: ClassVar[str] = "hold entropy: a KL penalty on the few tokens of highest covariance"
    silences: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coef < 0:
            raise UserError(f"kl_cov: coef must not be negative, got {self.coef}: it would push the policy away")

    def check(self, updates_per_rollout: float | int, importance_sampling_level: str, *, clipped: bool = False) -> None:
        """Refuse one update per rollout (zero gradient), sequence-level ratios (no token penalty), k1 beside a clip."""
        if clipped and self.form == "k1":
            raise UserError(
                "kl_cov cannot have form=k1 beside a PPO clip: its penalty pulls one way at every ratio, and beyond "
                "the upper bound the clip leaves no gradient in that direction. Use abs, k2 or k3"
            )
        if updates_per_rollout <= 1 and self.on_policy == "refuse":
            raise UserError(
                "kl_cov needs at least two updates per rollout: while the policy equals the old policy, the ratio is 1 "
                "and the KL penalty has exactly zero gradient. Raise steps_per_generation above "
                "gradient_accumulation_steps, or num_iterations above 1, or set on_policy='entropy_term', or use "
                "clip_cov."
            )
        super().check(updates_per_rollout, importance_sampling_level, clipped=clipped)

    def plan(self, batch: UpdateBatch) -> Plan:
        """Choose the floor(fraction N) tokens of largest covariance, among those where it is positive."""
        batch = self.counted(batch)
        moments = batch.moments()
        covariance = self.covariance(batch, moments)
        candidates = covariance > 0 if self.scope == "update" else batch.mask
        selected = F.select(covariance, candidates, batch.mask, fraction=self.fraction, **self.choice(batch, moments))
        noise = rounding(torch.where(batch.mask, batch.logprobs, 0.0), batch.precision)
        return Plan(selected, covariance, self.quota(moments), bound=None if self.scope == "micro" else noise)

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return advantages whose gradient in the trainer's loss is, on the selected tokens, that of A and the penalty.

        While the policies are equal, log r is what rounding leaves between two passes; its sign must not decide.
        """
        if plan.bound is not None:
            log_ratio = torch.where(log_ratio.abs() < plan.bound, 0.0, log_ratio)
        return F.kl_penalised(
            advantages, log_ratio, plan.selected, coef=self.coef, form=self.form, weights=plan.weights
        )

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
        raise UserError(f"{cls.name}: unknown preset {name!r}{one_of(name, known)}")
    return PRESETS[cls.name, name]
