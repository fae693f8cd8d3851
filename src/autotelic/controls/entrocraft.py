"""Entrocraft: a band of entropy, held by leaving out responses.

Above the band only rewarded responses are trained on, below it only punished ones, within it all. The loss is divided
by what is kept.

Reference: arXiv:2604.26326, Alg. 1; the equations are in `autotelic.functional.response_weights`.
Deviations: the entropy is that of the rollout on all ranks, measured where the old log-probabilities are.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Plan, Rewritten, UpdateBatch, mean_entropy
from autotelic.errors import UserError
from autotelic.functional.masking import wide
from autotelic.functional.schedules import Schedule, value_at
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Entrocraft(AdvantageControl):
    """Entrocraft: keep rewarded responses above a band of entropy, punished ones below it (arXiv:2604.26326)."""

    low: float | Schedule = setting(
        Schedule(0.6, 0.4), "lower end of the band; the paper: linear:0.6:0.4, in long runs linear:0.6:0.1", unit="nats"
    )
    high: float | Schedule = setting(
        Schedule(0.7, 0.5), "upper end; the paper: linear:0.7:0.5, in long runs linear:0.7:0.2", unit="nats"
    )

    name: ClassVar[str] = "entrocraft"
    label: ClassVar[str] = "Entrocraft"
    purpose: ClassVar[str] = "keep entropy in a band by leaving out responses"
    paper: ClassVar[str] = "arXiv:2604.26326"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    whole_responses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for progress in (0.0, 0.5, 1.0):
            low, high = value_at(self.low, progress), value_at(self.high, progress)
            if not low <= high:
                raise UserError(f"entrocraft: the band is empty: low={self.low} lies above high={self.high}")

    def at_rollout(self, batch: UpdateBatch) -> Float[Tensor, "B T"]:
        """Return the rollout's mean entropy, one number for all of its updates."""
        return torch.full_like(batch.logprobs, mean_entropy(batch))

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Leave out what would move entropy further from the band, and divide by what is kept."""
        entropy = mean_entropy(batch) if batch.prepared is None else float(batch.prepared[0, 0])
        side = F.band_side(entropy, value_at(self.low, batch.progress), value_at(self.high, batch.progress))
        kept = batch.mask & F.entrocraft_keep(batch.advantages, side)
        weight = wide(batch.mask)
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1) if batch.by_response else weight
        whole, part = batch.total(torch.stack([weight.sum(), weight[kept].sum()])).tolist()
        return torch.where(kept, batch.advantages * (whole / part if part else 1.0), 0.0), None, {}

    def plan(self, batch: UpdateBatch) -> Plan:
        """Rewrite the update's advantages; the responses that are left out count as selected."""
        advantages, _, state = self.rewritten(batch)
        dropped = batch.mask & (advantages == 0) & (batch.advantages != 0)
        return Plan(dropped, self.covariance(batch, batch.moments()), advantages=advantages, state=state)
