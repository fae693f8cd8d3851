"""Clip_B: no gradient on punished tokens whose entropy discriminator is far below the batch's mean.

Reference: arXiv:2602.03392; the equation and its source are in `autotelic.functional.clip_b`.
"""

from dataclasses import dataclass
from typing import ClassVar

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Rewritten, UpdateBatch, entropies
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class ClipB(AdvantageControl):
    """Clip_B: no gradient on punished tokens whose discriminator is far below the mean (arXiv:2602.03392)."""

    mu: float = setting(2.5, "how far below the batch's mean counts as far", unit="standard deviations")

    name: ClassVar[str] = "clip_b"
    label: ClassVar[str] = "Clip_B"
    purpose: ClassVar[str] = "hold entropy: no gradient on punished tokens whose discriminator is far below the mean"
    paper: ClassVar[str] = "Wang et al. 2026, arXiv:2602.03392"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    silences: ClassVar[bool] = True

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Zero the outliers."""
        advantages, _ = F.clip_b(
            batch.advantages, batch.logprobs, entropies(batch), batch.mask, mu=self.mu, across_ranks=batch.across_ranks
        )
        return advantages, None, {}
