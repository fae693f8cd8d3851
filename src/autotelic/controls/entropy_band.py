"""An entropy bonus that follows a schedule, or acts only outside a band.

    L = L_policy - c(t) mean H          without a band
    c(t) where H < low(t),  -c(t) where H > high(t),  0 in between

H is the token mean over the update batch, measured at the rollout.

Reference: the bonus is that of He et al. 2025, arXiv:2505.22312; schedule and band are ours, after Entrocraft's.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControl, Plan, UpdateBatch, mean_entropy
from autotelic.errors import UserError
from autotelic.functional.schedules import Schedule, value_at
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class EntropyBand(EntropyControl):
    """An entropy bonus with a schedule; with a band it raises entropy below it and lowers entropy above it."""

    coef: float | Schedule | None = setting(
        None, "the bonus's coefficient", needed="a number or a schedule, for example coef=linear:0.01:0"
    )
    low: float | Schedule | None = setting(None, "the bonus acts below it only", unit="nats")
    high: float | Schedule | None = setting(None, "above it the bonus is a penalty", unit="nats")

    name: ClassVar[str] = "entropy_band"
    label: ClassVar[str] = "entropy band"
    purpose: ClassVar[str] = "an entropy bonus with a schedule, or one that keeps entropy in a band"
    paper: ClassVar[str] = "He et al. 2025, arXiv:2505.22312"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is not None and self.high is not None:
            for progress in (0.0, 0.5, 1.0):
                if not value_at(self.low, progress) <= value_at(self.high, progress):
                    raise UserError(f"entropy_band: the band is empty: low={self.low} lies above high={self.high}")

    def plan(self, batch: UpdateBatch) -> Plan:
        """Choose the coefficient of this update; no advantage changes."""
        assert self.coef is not None
        coef = value_at(self.coef, batch.progress)
        if self.low is not None or self.high is not None:
            low = -torch.inf if self.low is None else value_at(self.low, batch.progress)
            high = torch.inf if self.high is None else value_at(self.high, batch.progress)
            coef = -coef * F.band_side(mean_entropy(batch), low, high)
        covariance = self.covariance(batch, batch.moments())
        return Plan(torch.zeros_like(batch.mask), covariance, term_coef=coef, term_tokens=batch.mask)

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return the advantages as they are."""
        return advantages
