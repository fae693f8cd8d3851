"""What Clip-Cov and KL-Cov are compared with: other controls of entropy, and the settings of TRL that act on it.

`CONTROLS` rewrite the advantages of the whole update batch at once, by the functions of `autotelic.functional`, and are
used like `ClipCov`. They decide on the rollout's log-probabilities and, where they need them, on its entropies: these
come with the forward pass that TRL makes for `old_per_token_logps`, or from one extra pass per rollout where TRL makes
none (one update per rollout). `clip_v` always costs a pass of its own, which needs the full logits.

`ENGINE_CONTROLS` are TRL's own: each writes the fields of a GRPOConfig.

References: each control's formula and source stand in `autotelic.functional.baselines`. Clip-higher: Yu et al. 2025,
arXiv:2503.14476; clip-lower: Park et al. 2025, arXiv:2509.26114; adaptive bonus: He et al. 2025, arXiv:2505.22312;
CISPO: arXiv:2506.13585, with the bound of arXiv:2510.13786; GSPO: Zheng et al. 2025, arXiv:2507.18071.
Deviations: those of `autotelic.functional.baselines`; the 80/20 mask divides by all response tokens, as TRL's own
`top_entropy_quantile` does (which takes its quantile over a micro-batch of all ranks; `high_entropy` over the update).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.base import EntropyControl, Plan, UpdateBatch
from autotelic.errors import UserError

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


@dataclass(frozen=True)
class Observe(AdvantageControl):
    """No control: the advantages stay, the diagnostics of every control are logged."""

    name: ClassVar[str] = "observe"
    silences: ClassVar[bool] = True

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Return the advantages as they are."""
        return batch.advantages, None, {}


@dataclass(frozen=True)
class HighEntropy(AdvantageControl):
    """The 80/20 rule: only the `fraction` of tokens of highest entropy are trained on (arXiv:2506.01939)."""

    fraction: float = 0.2

    name: ClassVar[str] = "high_entropy"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    silences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Keep the tokens of highest entropy."""
        advantages, _ = F.high_entropy(
            batch.advantages,
            entropies(batch),
            batch.mask,
            fraction=self.fraction,
            token_ids=batch.token_ids(),
            across_ranks=batch.across_ranks,
        )
        return advantages, None, {}


@dataclass(frozen=True)
class Repo(AdvantageControl):
    """REPO: the advantage less `coef` (|A|) (ln pi + H) (arXiv:2603.11682).

    Args:
        coef: beta; zeta where `rescale`. There is no default: the paper's value could not be established.
        rescale: REPO-R, the term is proportional to |A|.
        adapt: double the coefficient while entropy is below `target`, else halve it, after every update.
        target: nats; the entropy of the first update where None.
    """

    coef: float | None = None
    rescale: bool = True
    adapt: bool = False
    target: float | None = None

    name: ClassVar[str] = "repo"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __post_init__(self) -> None:
        required(self, "coef", "it multiplies ln pi + H; for example 0.01")

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Subtract the term, and adapt its coefficient for the next update."""
        assert self.coef is not None
        coef = batch.state.get("coef", self.coef)
        advantages = F.repo(
            batch.advantages, batch.logprobs, entropies(batch), batch.mask, coef=coef, rescale=self.rescale
        )
        if not self.adapt:
            return advantages, None, {}
        entropy = mean_entropy(batch)
        target = batch.state.get("target", entropy if self.target is None else self.target)
        return advantages, None, {"coef": F.doubling_coef(coef, entropy, target), "target": target}


@dataclass(frozen=True)
class Steer(AdvantageControl):
    """STEER: damp the tokens whose update would change entropy most (arXiv:2510.10150).

    Args:
        min_weight: weight of the largest estimated change, in (0, 1].
    """

    min_weight: float = 0.8

    name: ClassVar[str] = "steer"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Multiply by exp(-k |Omega|)."""
        old = batch.logprobs if batch.old_logprobs is None else batch.old_logprobs
        advantages = F.steer(
            batch.advantages,
            batch.logprobs,
            old,
            entropies(batch),
            batch.mask,
            min_weight=self.min_weight,
            across_ranks=batch.across_ranks,
        )
        return advantages, None, {}


@dataclass(frozen=True)
class Entropic(AdvantageControl):
    """EntroPIC: proportional-integral control of entropy through the likely tokens' weights (arXiv:2511.15248).

    The accumulated error is kept with each checkpoint.

    Args:
        target: nats; the entropy to hold. No default: the authors' script uses 0.1 for an 8B model.
        threshold: tokens of a probability above it are reweighted. No default: it could not be established.
        proportional: K_p.
        integral: K_i.
    """

    target: float | None = None
    threshold: float | None = None
    proportional: float = 1.0
    integral: float = 0.01

    name: ClassVar[str] = "entropic"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __post_init__(self) -> None:
        required(self, "target", "the entropy to hold, in nats per token; for example 0.1")
        required(self, "threshold", "the probability above which tokens are reweighted; for example 0.9")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise UserError(f"entropic: threshold must be in [0, 1), got {self.threshold}: it is a probability")

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Weigh the likely tokens by the controller's alpha, and advance the controller."""
        assert self.target is not None and self.threshold is not None
        accumulated = batch.state.get("accumulated", 0.0)
        controller = F.PIController(self.target, self.proportional, self.integral, accumulated)
        following, alpha = controller.update(mean_entropy(batch))
        advantages = F.entropic(
            batch.advantages, batch.logprobs, batch.mask, alpha=alpha, threshold=max(self.threshold, 1e-300)
        )
        return advantages, None, {"accumulated": float(following.accumulated), "alpha": alpha}


@dataclass(frozen=True)
class ClipB(AdvantageControl):
    """Clip_B: no gradient on punished tokens whose discriminator is far below the mean (arXiv:2602.03392).

    Args:
        mu: standard deviations below the batch mean.
    """

    mu: float = 2.5

    name: ClassVar[str] = "clip_b"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    silences: ClassVar[bool] = True

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Zero the outliers."""
        advantages, _ = F.clip_b(
            batch.advantages, batch.logprobs, entropies(batch), batch.mask, mu=self.mu, across_ranks=batch.across_ranks
        )
        return advantages, None, {}


@dataclass(frozen=True)
class ClipV(AdvantageControl):
    """Clip_V: no gradient on the punished tokens whose E_pi[S] - S_a is largest (arXiv:2602.03392).

    Args:
        mu: threshold, in standard deviations of the difference.
        fraction: the most that may be zeroed, as a share of the response tokens, one token at least.
    """

    mu: float = 8.5
    fraction: float = 1e-4

    name: ClassVar[str] = "clip_v"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "expected"})
    silences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Zero the outliers, up to the quota."""
        assert batch.expected is not None
        sampled = batch.logprobs.exp() * (entropies(batch) + batch.logprobs)
        advantages, _ = F.clip_v(
            batch.advantages,
            sampled,
            batch.expected,
            batch.mask,
            mu=self.mu,
            fraction=self.fraction,
            token_ids=batch.token_ids(),
            across_ranks=batch.across_ranks,
        )
        return advantages, F.quota(self.fraction, batch.moments().num_tokens, at_least_one=True), {}


@dataclass(frozen=True)
class Stare(AdvantageControl):
    """STARE: reweight the most surprising tokens while entropy is below its target (arXiv:2606.19236).

    Args:
        target: nats.
        fraction: share of the tokens with an advantage of one sign.
        positive_weight: factor on positive advantages.
        negative_weight: factor on negative advantages, in variant C2.
        variant: O1 or C2.
    """

    target: float = 0.3
    fraction: float = 0.1
    positive_weight: float = 1.1
    negative_weight: float = 0.9
    variant: Literal["O1", "C2"] = "O1"

    name: ClassVar[str] = "stare"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __post_init__(self) -> None:
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]
        if self.variant not in ("O1", "C2"):
            raise UserError(f"unknown STARE variant {self.variant!r}: use 'O1' or 'C2'")

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Reweight, if the gate is open."""
        advantages, _ = F.stare(
            batch.advantages,
            batch.logprobs,
            batch.mask,
            entropy=mean_entropy(batch),
            target=self.target,
            fraction=self.fraction,
            positive_weight=self.positive_weight,
            negative_weight=self.negative_weight,
            variant=self.variant,
            token_ids=batch.token_ids(),
            across_ranks=batch.across_ranks,
        )
        return advantages, None, {}


CONTROLS: tuple[type[EntropyControl], ...] = (Observe, HighEntropy, Repo, Steer, Entropic, ClipB, ClipV, Stare)


def entropies(batch: UpdateBatch) -> Float[Tensor, "B T"]:
    """Return the batch's entropies, which the trainer measures for controls whose `needs` name them."""
    assert batch.entropy is not None
    return batch.entropy


def mean_entropy(batch: UpdateBatch) -> float:
    """Return the token mean of the entropy over the update batch of all ranks, in nats."""
    total = batch.total(F.masked_sum(entropies(batch).double(), batch.mask))
    return float(total) / max(batch.moments().num_tokens, 1)


def required(control: EntropyControl, setting: str, hint: str) -> None:
    """Refuse a control without a setting that has no default."""
    if getattr(control, setting) is None:
        raise UserError(f"{control.name} needs {setting}: {hint}")


# TRL's own settings.


def clip_higher(args: Any, settings: Mapping[str, Any]) -> None:
    """epsilon_high = 0.28."""
    if args.epsilon_high in (None, args.epsilon):
        args.epsilon_high = 0.28  # arXiv:2505.22617, Section 4.2, after DAPO


def clip_lower(args: Any, settings: Mapping[str, Any]) -> None:
    """A bound epsilon below epsilon_high."""
    if args.epsilon_high is None or not args.epsilon < args.epsilon_high:
        raise UserError(
            f"clip_lower needs a lower bound that is tighter than the upper one, got epsilon={args.epsilon} and "
            f"epsilon_high={args.epsilon_high}: clipping punished tokens sooner raises entropy. Give for example "
            "--epsilon 0.1 --epsilon_high 0.2"
        )


def entropy_bonus(args: Any, settings: Mapping[str, Any]) -> None:
    """entropy_coef."""
    if settings.get("coef") is None:
        raise UserError("entropy_bonus needs coef, for example --coef 1e-3 (the paper compares 1e-4 to 1e-2)")
    args.entropy_coef = settings["coef"]


def adaptive_entropy(args: Any, settings: Mapping[str, Any]) -> None:
    """use_adaptive_entropy=True, with entropy_target, entropy_coef and entropy_coef_delta."""
    args.use_adaptive_entropy = True
    args.entropy_target = settings.get("target", args.entropy_target)
    args.entropy_coef = settings.get("coef", args.entropy_coef)


def cispo(args: Any, settings: Mapping[str, Any]) -> None:
    """loss_type='cispo' with epsilon_high=5.0."""
    args.loss_type = "cispo"
    if args.epsilon_high in (None, args.epsilon):
        args.epsilon_high = 5.0  # TRL's recommendation, after arXiv:2510.13786


def gspo(args: Any, settings: Mapping[str, Any]) -> None:
    """importance_sampling_level='sequence' with epsilon=3e-4 and epsilon_high=4e-4."""
    args.importance_sampling_level = "sequence"
    args.loss_type = "grpo"  # the mean over responses of their token means
    if args.epsilon_high is None and args.epsilon == type(args).epsilon:
        args.epsilon, args.epsilon_high = 3e-4, 4e-4


ENGINE_CONTROLS: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "clip_higher": clip_higher,
    "clip_lower": clip_lower,
    "entropy_bonus": entropy_bonus,
    "adaptive_entropy": adaptive_entropy,
    "cispo": cispo,
    "gspo": gspo,
}
ENGINE_SETTINGS = {"entropy_bonus": ("coef",), "adaptive_entropy": ("target", "coef")}


def apply_engine_control(name: str, settings: Mapping[str, Any], training_args: Any) -> None:
    """Write the fields of TRL's configuration that the named control stands for."""
    unused = [key for key in settings if key not in ENGINE_SETTINGS.get(name, ())]
    if unused:
        raise UserError(f"entropy_control {name} does not use {', '.join(unused)}: leave it out, or choose clip_cov")
    ENGINE_CONTROLS[name](training_args, settings)
