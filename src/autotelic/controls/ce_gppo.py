"""CE-GPPO: tokens beyond PPO's bounds keep a bounded gradient instead of none.

Reference: arXiv:2509.20712; the weights and their source are in `autotelic.functional.ce_gppo_weight`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControl, Plan, UpdateBatch
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class CeGppo(EntropyControl):
    """CE-GPPO: beyond the clip the gradient keeps the boundary's weight, times a factor (arXiv:2509.20712)."""

    beta_low: float = setting(0.25, "factor on punished tokens below the lower bound; 7B: 0.75, 1.5B: 0.5")
    beta_high: float = setting(1.0, "factor on rewarded tokens above the upper bound")
    low: float = setting(0.2, "the lower bound is 1 - low")
    high: float = setting(0.2, "the upper bound is 1 + high")
    dual_clip: float = setting(10.0, "ratio above which a punished token gets no gradient")

    name: ClassVar[str] = "ce_gppo"
    label: ClassVar[str] = "CE-GPPO"
    purpose: ClassVar[str] = "hold entropy: tokens beyond the PPO clip keep part of their gradient"
    paper: ClassVar[str] = "arXiv:2509.20712"
    silences: ClassVar[bool] = False
    replaces_clip: ClassVar[bool] = True

    def plan(self, batch: UpdateBatch) -> Plan:
        """Choose nothing: the weights depend on the policy in training."""
        return Plan(torch.zeros_like(batch.mask), self.covariance(batch, batch.moments()))

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return the advantage whose gradient in the trainer's loss has CE-GPPO's weight."""
        weight = F.ce_gppo_weight(
            advantages,
            log_ratio,
            beta_low=self.beta_low,
            beta_high=self.beta_high,
            low=self.low,
            high=self.high,
            dual_clip=self.dual_clip,
        )
        return self.with_gradient(advantages * weight, log_ratio, plan)
