"""The 80/20 rule: only the tokens of highest entropy are trained on.

Reference: Wang et al. 2025, arXiv:2506.01939; the equation is `autotelic.functional.high_entropy`.
Deviations: the sum is divided by all response tokens, as TRL's own `top_entropy_quantile` does (which takes its
quantile over a micro-batch of all ranks; this one over the update).
"""

from dataclasses import dataclass
from typing import ClassVar

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Plan, UpdateBatch, entropies
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class HighEntropy(AdvantageControl):
    """The 80/20 rule: only the `fraction` of tokens of highest entropy are trained on (arXiv:2506.01939)."""

    fraction: float = setting(0.2, "share of the response tokens that are trained on", unit="share")

    name: ClassVar[str] = "high_entropy"
    label: ClassVar[str] = "80/20 mask"
    purpose: ClassVar[str] = "train on the fifth of tokens of highest entropy only (the 80/20 rule)"
    paper: ClassVar[str] = "Wang et al. 2025, arXiv:2506.01939"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    silences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]

    @property
    def silent_share(self) -> float:
        """Return the share that is not trained on."""
        return 1 - self.fraction

    def plan(self, batch: UpdateBatch) -> Plan:
        """Silence every token but those of highest entropy, those without an advantage too."""
        advantages, kept = F.high_entropy(
            batch.advantages, entropies(batch), batch.mask, fraction=self.fraction, **batch.choice()
        )
        moments = batch.moments()
        return Plan(batch.mask & ~kept, self.covariance(batch, moments), advantages=advantages)
