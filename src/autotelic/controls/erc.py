"""ERC: a token trains only while its entropy stays near that of the rollout.

Reference: arXiv:2512.05591; the mask and its source are in `autotelic.functional.entropy_ratio_mask`.
Deviations: the PPO clip stays as configured, as in the code; its likelihood term on correct responses is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControl, Plan, UpdateBatch, entropies
from autotelic.errors import UserError
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Erc(EntropyControl):
    """ERC: no gradient where a token's entropy has left a band about the rollout's (arXiv:2512.05591)."""

    low: float = setting(0.95, "lower end of H / H_old, exclusive; the code's default is 0.8, its recipe 0.95")
    high: float = setting(1.05, "upper end, exclusive; the code's default is 1.2, its recipe 1.05")

    name: ClassVar[str] = "erc"
    label: ClassVar[str] = "ERC"
    purpose: ClassVar[str] = "no gradient on tokens whose entropy has left a band about the rollout's"
    paper: ClassVar[str] = "arXiv:2512.05591"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    silences: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low < 1 < self.high:
            raise UserError(f"erc: 1 must lie between low and high, got {self.low} and {self.high}")

    def check(self, updates_per_rollout: float | int, importance_sampling_level: str, *, clipped: bool = False) -> None:
        """Refuse one update per rollout, where every entropy ratio is 1."""
        if updates_per_rollout <= 1:
            raise UserError(
                "erc needs at least two updates per rollout: in the first one every token's entropy is that of the "
                "rollout, so nothing is masked. Raise steps_per_generation above gradient_accumulation_steps, or "
                "num_iterations above 1"
            )
        super().check(updates_per_rollout, importance_sampling_level, clipped=clipped)

    def plan(self, batch: UpdateBatch) -> Plan:
        """Remember the rollout's entropies; what is masked depends on the policy in training."""
        nothing = torch.zeros_like(batch.mask)
        old = torch.where(batch.mask, entropies(batch), 0.0)
        return Plan(nothing, self.covariance(batch, batch.moments()), old=old)

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return zero where the entropy ratio has left the band."""
        assert plan.old is not None and plan.entropy is not None
        kept = F.entropy_ratio_mask(plan.entropy, plan.old, low=self.low, high=self.high)
        return torch.where(kept, advantages, 0.0)
