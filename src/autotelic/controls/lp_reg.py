"""Lp-Reg: unlikely tokens that the policy itself would keep are not pushed out of it.

Reference: arXiv:2510.03222, Eq. 6; the equations are in `autotelic.functional.low_probability`.
Deviations: which tokens are protected, and their proxy, is decided on the rollout's policy, once per update.
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
class LpReg(EntropyControl):
    """Lp-Reg: a penalty holds punished, unlikely tokens near the policy without its tail (arXiv:2510.03222)."""

    fraction: float = setting(
        0.01, "the least likely share (code: of the punished tokens); the paper: 0.005 for 32B", unit="share"
    )
    coef: float = setting(1.0, "beta, the penalty's factor")
    kappa: float = setting(0.02, "the proxy keeps tokens above this share of the largest probability", unit="share")
    form: Literal["paper", "code"] = setting(
        "paper", "paper: KL of the proxy over the vocabulary, one more forward pass; code: k3 of the sampled token"
    )
    max_ratio: float = setting(10.0, "U, the ratio above which a token gets no gradient")

    name: ClassVar[str] = "lp_reg"
    label: ClassVar[str] = "Lp-Reg"
    purpose: ClassVar[str] = "keep unlikely tokens alive: a penalty where a punished one would vanish"
    paper: ClassVar[str] = "arXiv:2510.03222"
    needs: ClassVar[frozenset[str]] = frozenset({"proxy"})
    silences: ClassVar[bool] = False
    replaces_clip: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]

    def plan(self, batch: UpdateBatch) -> Plan:
        """Choose the punished tokens among the least likely ones that the proxy keeps."""
        assert batch.proxy is not None
        punished = batch.mask & (batch.advantages < 0)
        ranked = punished if self.form == "code" else batch.mask
        unlikely = F.select(-batch.logprobs, ranked, ranked, fraction=self.fraction, **batch.choice())
        selected = unlikely & punished & (batch.proxy > -torch.inf)
        return Plan(selected, self.covariance(batch, batch.moments()), old=torch.where(selected, batch.proxy, 0.0))

    def rewrite(
        self, advantages: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], plan: Plan
    ) -> Float[Tensor, "B T"]:
        """Return clip(r, 0, U) A; in the code's form also the penalty, as an advantage."""
        assert plan.old is not None
        ratio = log_ratio.exp()
        gradient = advantages * ratio * (ratio < self.max_ratio)
        if self.form == "code":
            now = plan.old if plan.logprobs is None else plan.logprobs
            held = plan.selected & (now < plan.old)
            gradient = gradient - self.coef * torch.where(held, F.lp_reg_gradient(plan.old, now), 0.0)
        return self.with_gradient(gradient, log_ratio, plan)

    @property
    def has_vocabulary_term(self) -> bool:
        """Whether the penalty is the paper's."""
        return self.form == "paper"

    def vocabulary_term(self, logits: Float[Tensor, "N V"], temperature: float | int) -> Float[Tensor, " N"]:
        """Return the paper's penalty on each selected token: its gradient is that of KL(pi_proxy || pi)."""
        return -self.coef * F.kept_log_mass(logits, kappa=self.kappa, temperature=temperature)
