"""STEER: damp the tokens whose update would change entropy most.

Reference: arXiv:2510.10150; the equation and its source are in `autotelic.functional.steer`.
"""

from dataclasses import dataclass
from typing import ClassVar

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Rewritten, UpdateBatch, entropies
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Steer(AdvantageControl):
    """STEER: damp the tokens whose update would change entropy most (arXiv:2510.10150)."""

    min_weight: float = setting(0.8, "weight of the token whose estimated change is largest", unit="(0, 1]")

    name: ClassVar[str] = "steer"
    label: ClassVar[str] = "STEER"
    purpose: ClassVar[str] = "damp the tokens that would change entropy most"
    paper: ClassVar[str] = "arXiv:2510.10150"
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
