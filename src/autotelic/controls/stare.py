"""STARE: reweight the most surprising tokens while entropy is below its target.

Reference: arXiv:2606.19236; the equation and its source are in `autotelic.functional.stare`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Rewritten, UpdateBatch, mean_entropy
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Stare(AdvantageControl):
    """STARE: reweight the most surprising tokens while entropy is below its target (arXiv:2606.19236)."""

    target: float = setting(0.3, "the gate is open while entropy is below it", unit="nats")
    fraction: float = setting(0.1, "share of the tokens with an advantage of one sign", unit="share")
    positive_weight: float = setting(1.1, "factor on positive advantages")
    negative_weight: float = setting(0.9, "factor on negative advantages, in variant C2")
    variant: Literal["O1", "C2"] = setting("O1", "O1 reweights positive advantages only")

    name: ClassVar[str] = "stare"
    label: ClassVar[str] = "STARE"
    purpose: ClassVar[str] = "weigh the most surprising tokens up while entropy is below its target"
    paper: ClassVar[str] = "arXiv:2606.19236"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __post_init__(self) -> None:
        super().__post_init__()
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]

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
            **batch.choice(),
        )
        return advantages, None, {}
