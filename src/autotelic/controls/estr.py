"""ESTR: how far a token may move from the sampler grows with the sampler's entropy there.

Reference: arXiv:2607.22186; the mask and its source are in `autotelic.functional.estr_mask`.
Deviations: the PPO clip stays as configured. The paper's tau could not be established, so it has no default.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControl, Plan, UpdateBatch, entropies
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Estr(EntropyControl):
    """ESTR: no gradient where the squared log-ratio to the sampler is large against its entropy (arXiv:2607.22186)."""

    tau: float | None = setting(
        None,
        "the largest (ln pi / mu)^2 / (H_mu + eps) that trains",
        unit="nats",
        needed="the largest squared log-ratio per nat of entropy; for example 0.1",
    )
    eps: float = setting(0.01, "added to the sampler's entropy", unit="nats")

    name: ClassVar[str] = "estr"
    label: ClassVar[str] = "ESTR"
    purpose: ClassVar[str] = "no gradient on tokens whose ratio is large for their entropy"
    paper: ClassVar[str] = "arXiv:2607.22186"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    silences: ClassVar[bool] = False

    def plan(self, batch: UpdateBatch) -> Plan:
        """Remember the sampler's log-probabilities and entropies; what is masked depends on the policy in training."""
        nothing = torch.zeros_like(batch.mask)
        entropy = torch.where(batch.mask, entropies(batch), 0.0)
        return Plan(nothing, self.covariance(batch, batch.moments()), old=batch.anchor(), bound=entropy)

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return zero where the token has moved too far."""
        assert self.tau is not None and plan.old is not None and plan.bound is not None
        now = plan.old + log_ratio if plan.logprobs is None else plan.logprobs
        kept = F.estr_mask(now, plan.old, plan.bound, tau=self.tau, eps=self.eps)
        return torch.where(kept, advantages, 0.0)
