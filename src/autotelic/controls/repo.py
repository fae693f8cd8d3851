"""REPO: the advantage less a term in the log-probability, which rewards the unlikely.

Reference: arXiv:2603.11682; the equation and its sources are in `autotelic.functional.repo`.
"""

from dataclasses import dataclass
from typing import ClassVar

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Rewritten, UpdateBatch, entropies, mean_entropy
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Repo(AdvantageControl):
    """REPO: the advantage less `coef` (|A|) (ln pi + H). There is no default: the paper's could not be established."""

    coef: float | None = setting(None, "beta; zeta where rescale", needed="it multiplies ln pi + H; for example 0.01")
    rescale: bool = setting(True, "REPO-R: the term is proportional to |A|")
    adapt: bool = setting(False, "double coef while entropy is below target, else halve it, after every update")
    target: float | None = setting(None, "the entropy that adapt compares with; that of the first update", unit="nats")

    name: ClassVar[str] = "repo"
    label: ClassVar[str] = "REPO"
    purpose: ClassVar[str] = "lower the advantage of likely tokens, which raises entropy"
    paper: ClassVar[str] = "arXiv:2603.11682"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Subtract the term, and adapt its coefficient for the next update."""
        assert self.coef is not None
        coef = batch.state.get("coef", self.coef)
        advantages = F.repo(
            batch.advantages, batch.logprobs, entropies(batch), batch.mask, coef=coef, rescale=self.rescale
        )
        if not self.adapt:
            return advantages, None, {}
        entropy = mean_entropy(batch)
        target = batch.state.get("target", entropy if self.target is None else self.target)
        return advantages, None, {"coef": F.doubling_coef(coef, entropy, target), "target": target}
