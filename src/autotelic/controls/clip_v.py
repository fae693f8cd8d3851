"""Clip_V: no gradient on the punished tokens whose discriminator is furthest below its expectation.

It needs E_pi[S], a pass of its own over the full distribution.

Reference: arXiv:2602.03392; the equation and its source are in `autotelic.functional.clip_v`.
"""

from dataclasses import dataclass
from typing import ClassVar

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Rewritten, UpdateBatch, entropies
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class ClipV(AdvantageControl):
    """Clip_V: no gradient on the punished tokens whose E_pi[S] - S_a is largest (arXiv:2602.03392)."""

    mu: float = setting(8.5, "threshold of the difference", unit="standard deviations")
    fraction: float = setting(1e-4, "the most that may be zeroed, one token at least", unit="share")

    name: ClassVar[str] = "clip_v"
    label: ClassVar[str] = "Clip_V"
    purpose: ClassVar[str] = "hold entropy: no gradient on the punished tokens that lower it most"
    paper: ClassVar[str] = "Wang et al. 2026, arXiv:2602.03392"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy", "expected"})
    silences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        F.quota(self.fraction, 0)  # refuses a fraction outside (0, 1]

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Zero the outliers, up to the quota."""
        assert batch.expected is not None
        sampled = batch.logprobs.exp() * (entropies(batch) + batch.logprobs)
        advantages, _ = F.clip_v(
            batch.advantages,
            sampled,
            batch.expected,
            batch.mask,
            mu=self.mu,
            fraction=self.fraction,
            **batch.choice(),
        )
        return advantages, F.quota(self.fraction, batch.moments().num_tokens, at_least_one=True), {}
