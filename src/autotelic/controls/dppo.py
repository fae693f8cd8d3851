"""DPPO: a bound on how far the policy moves from the sampler, in place of PPO's bound on the ratio.

The ratio of an unlikely token is large after a tiny change of its probability, that of a likely one small after a large
change: DPPO bounds the change itself, and anchors it to the policy that wrote the token.

Reference: arXiv:2602.04879; the masks and their sources are in `autotelic.functional.dppo_mask`.
Deviations: with `max_ratio` the weight of the gradient is min(r, max_ratio), as in the code of Stable-RL and verl; the
default has no such bound, as in those of SkyRL and prime-rl.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import EntropyControl, Plan, UpdateBatch
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Dppo(EntropyControl):
    """DPPO: tokens that have moved too far from the sampler's probability get no gradient (arXiv:2602.04879)."""

    divergence: Literal["tv", "kl"] = setting("tv", "total variation or KL, of this token against all others")
    low: float | None = setting(None, "bound for punished tokens, tv only; that of high where not given")
    high: float | None = setting(None, "bound; 0.15 for tv, 0.05 nats for kl (verl's); SkyRL and prime-rl: 0.2")
    max_ratio: float | None = setting(None, "weight of the gradient is min(r, this); Stable-RL 10, verl 1e4")

    name: ClassVar[str] = "dppo"
    label: ClassVar[str] = "DPPO"
    purpose: ClassVar[str] = "no gradient on tokens that moved too far from the sampler's probability"
    paper: ClassVar[str] = "arXiv:2602.04879"
    silences: ClassVar[bool] = False
    replaces_clip: ClassVar[bool] = True

    def plan(self, batch: UpdateBatch) -> Plan:
        """Remember the sampler's log-probabilities; what is masked depends on the policy in training."""
        nothing = torch.zeros_like(batch.mask)
        return Plan(nothing, self.covariance(batch, batch.moments()), old=batch.anchor())

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return zero where the token has moved too far."""
        assert plan.old is not None
        now = plan.old + log_ratio if plan.logprobs is None else plan.logprobs
        high = {"tv": 0.15, "kl": 0.05}[self.divergence] if self.high is None else self.high
        kept = F.dppo_mask(
            advantages, now, plan.old, divergence=self.divergence, low=high if self.low is None else self.low, high=high
        )
        weight = log_ratio.exp() * kept
        if self.max_ratio is not None:
            weight = weight * (self.max_ratio * (plan.old - now).exp()).clamp(max=1.0)
        return self.with_gradient(advantages * weight, log_ratio, plan)
