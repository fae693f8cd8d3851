"""EntroPIC: a proportional-integral controller holds the entropy at a target.

Reference: arXiv:2511.15248; the equation and its source are in `autotelic.functional.entropic`.
"""

from dataclasses import dataclass
from typing import ClassVar

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Rewritten, UpdateBatch, mean_entropy
from autotelic.errors import UserError
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Entropic(AdvantageControl):
    """EntroPIC: the weights of likely tokens hold entropy at a target. The error sum is kept with each checkpoint."""

    target: float | None = setting(
        None,
        "the entropy to hold; the authors' script uses 0.1 for an 8B model",
        unit="nats",
        needed="the entropy to hold, in nats per token; for example 0.1",
    )
    threshold: float | None = setting(
        None,
        "tokens of a probability above it are reweighted; the authors' value could not be established",
        unit="probability",
        needed="the probability above which tokens are reweighted; for example 0.9",
    )
    proportional: float = setting(1.0, "K_p", unit="1 / nat")
    integral: float = setting(0.01, "K_i", unit="1 / nat")

    name: ClassVar[str] = "entropic"
    label: ClassVar[str] = "EntroPIC"
    purpose: ClassVar[str] = "hold entropy at a target by weighing likely tokens"
    paper: ClassVar[str] = "arXiv:2511.15248"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __post_init__(self) -> None:
        super().__post_init__()
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
