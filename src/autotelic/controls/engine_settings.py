"""TRL's own settings that act on entropy, by name: each writes fields of a GRPOConfig and needs no control.

A field that the user set is kept, unless the control's own setting is given.

References: clip-higher: Yu et al. 2025, arXiv:2503.14476; clip-lower: Park et al. 2025, arXiv:2509.26114; entropy bonus
and adaptive bonus: He et al. 2025, arXiv:2505.22312; CISPO: arXiv:2506.13585, with the bound of arXiv:2510.13786; GSPO:
Zheng et al. 2025, arXiv:2507.18071.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from autotelic.errors import UserError
from autotelic.runs.method_settings import check_settings, setting


@dataclass(frozen=True)
class EngineControl:
    """Base of the controls that are settings of TRL."""

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    purpose: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    intervenes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)

    def apply(self, args: Any) -> None:
        """Write the fields of TRL's configuration that this control stands for."""
        raise NotImplementedError  # abstract


@dataclass(frozen=True)
class ClipHigher(EngineControl):
    """A wider upper bound of the PPO clip, so that unlikely tokens can still rise."""

    high: float | None = setting(None, "TRL's epsilon_high; 0.28 where neither is given")

    name: ClassVar[str] = "clip_higher"
    label: ClassVar[str] = "clip-higher"
    purpose: ClassVar[str] = "a wider upper PPO clip, so that unlikely tokens can rise"
    paper: ClassVar[str] = "Yu et al. 2025, arXiv:2503.14476"

    def apply(self, args: Any) -> None:
        """Set epsilon_high."""
        if self.high is not None:
            args.epsilon_high = self.high
        elif args.epsilon_high in (None, args.epsilon):
            args.epsilon_high = 0.28  # arXiv:2505.22617, Section 4.2, after DAPO


@dataclass(frozen=True)
class ClipLower(EngineControl):
    """A tighter lower bound of the PPO clip: punished tokens are clipped sooner, which raises entropy."""

    low: float | None = setting(None, "TRL's epsilon; it must be below epsilon_high")
    high: float | None = setting(None, "TRL's epsilon_high")

    name: ClassVar[str] = "clip_lower"
    label: ClassVar[str] = "clip-lower"
    purpose: ClassVar[str] = "a tighter lower PPO clip, which raises entropy"
    paper: ClassVar[str] = "Park et al. 2025, arXiv:2509.26114"

    def apply(self, args: Any) -> None:
        """Set both bounds; refuse a lower bound that is not the tighter one."""
        args.epsilon = args.epsilon if self.low is None else self.low
        args.epsilon_high = args.epsilon_high if self.high is None else self.high
        if args.epsilon_high is None or not args.epsilon < args.epsilon_high:
            raise UserError(
                f"clip_lower needs a lower bound that is tighter than the upper one, got low={args.epsilon} and "
                f"high={args.epsilon_high}: clipping punished tokens sooner raises entropy. Give for example "
                "clip_lower,low=0.1,high=0.2"
            )


@dataclass(frozen=True)
class EntropyBonus(EngineControl):
    """A fixed entropy bonus in the loss."""

    coef: float | None = setting(
        None,
        "TRL's entropy_coef; the paper compares 1e-4 to 1e-2",
        needed="for example entropy_bonus,coef=1e-3 (the paper compares 1e-4 to 1e-2)",
    )

    name: ClassVar[str] = "entropy_bonus"
    label: ClassVar[str] = "entropy bonus"
    purpose: ClassVar[str] = "a fixed entropy bonus in the loss"
    paper: ClassVar[str] = "He et al. 2025, arXiv:2505.22312"

    def apply(self, args: Any) -> None:
        """Set entropy_coef."""
        args.entropy_coef = self.coef


@dataclass(frozen=True)
class AdaptiveEntropy(EngineControl):
    """TRL's adaptive entropy bonus: the coefficient rises while entropy is below its target."""

    target: float | None = setting(None, "TRL's entropy_target", unit="nats")
    coef: float | None = setting(None, "TRL's entropy_coef, the first coefficient")
    delta: float | None = setting(None, "TRL's entropy_coef_delta, the step of the coefficient")

    name: ClassVar[str] = "adaptive_entropy"
    label: ClassVar[str] = "adaptive entropy bonus"
    purpose: ClassVar[str] = "TRL's entropy bonus with a target: the coefficient rises while entropy is below it"
    paper: ClassVar[str] = "He et al. 2025, arXiv:2505.22312"

    def apply(self, args: Any) -> None:
        """Switch the bonus on and set what is given."""
        args.use_adaptive_entropy = True
        given = {"entropy_target": self.target, "entropy_coef": self.coef, "entropy_coef_delta": self.delta}
        for field, value in given.items():
            if value is not None:
                setattr(args, field, value)


@dataclass(frozen=True)
class Cispo(EngineControl):
    """CISPO: the ratio is a clipped weight, and every token keeps its gradient."""

    high: float | None = setting(None, "TRL's epsilon_high; 5.0 where neither is given")

    name: ClassVar[str] = "cispo"
    label: ClassVar[str] = "CISPO"
    purpose: ClassVar[str] = "clip the weight of a token and keep its gradient"
    paper: ClassVar[str] = "arXiv:2506.13585"

    def apply(self, args: Any) -> None:
        """Set loss_type and epsilon_high."""
        args.loss_type = "cispo"
        if self.high is not None:
            args.epsilon_high = self.high
        elif args.epsilon_high in (None, args.epsilon):
            args.epsilon_high = 5.0  # TRL's recommendation, after arXiv:2510.13786


@dataclass(frozen=True)
class Gspo(EngineControl):
    """GSPO: one ratio for the whole response."""

    low: float | None = setting(None, "TRL's epsilon; 3e-4 where none is given")
    high: float | None = setting(None, "TRL's epsilon_high; 4e-4 where none is given")

    name: ClassVar[str] = "gspo"
    label: ClassVar[str] = "GSPO"
    purpose: ClassVar[str] = "one ratio for the whole response in place of one a token"
    paper: ClassVar[str] = "Zheng et al. 2025, arXiv:2507.18071"

    def apply(self, args: Any) -> None:
        """Set importance_sampling_level, loss_type and both bounds."""
        args.importance_sampling_level = "sequence"
        args.loss_type = "grpo"  # the mean over responses of their token means
        if self.low is None and self.high is None:
            if args.epsilon_high is None and args.epsilon == type(args).epsilon:
                args.epsilon, args.epsilon_high = 3e-4, 4e-4
            return
        args.epsilon = 3e-4 if self.low is None else self.low
        args.epsilon_high = 4e-4 if self.high is None else self.high
