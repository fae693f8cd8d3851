"""AEM: turns of low entropy weigh more than turns of high entropy, within a prompt's responses.

For multi-turn training: a turn is an uninterrupted run of the model's own tokens. A response of one turn has one
weight.

Reference: arXiv:2605.00425; the equation is `autotelic.functional.aem_weights`.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.controls.entropy_control import AdvantageControl, Rewritten, UpdateBatch, entropies
from autotelic.runs.method_settings import setting


@dataclass(frozen=True)
class Aem(AdvantageControl):
    """AEM: the advantage of each turn is weighed by its entropy among the prompt's turns (arXiv:2605.00425)."""

    coef: float = setting(1.0, "lambda, how strongly entropy decides the weight")
    min_range: float = setting(0.1, "prompts whose turns differ by less keep their advantages", unit="nats")

    name: ClassVar[str] = "aem"
    label: ClassVar[str] = "AEM"
    purpose: ClassVar[str] = "weigh the turns of a response by their entropy"
    paper: ClassVar[str] = "arXiv:2605.00425"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def at_rollout(self, batch: UpdateBatch) -> Float[Tensor, "B T"]:
        """Return each token's weight: it needs all responses of a prompt, which updates may split."""
        prompts = batch.row_ids // batch.group_size
        return F.aem_weights(
            entropies(batch),
            batch.mask,
            prompts,
            num_prompts=int(batch.largest(prompts.amax())) + 1,
            coef=self.coef,
            min_range=self.min_range,
            across_ranks=batch.across_ranks,
        )

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Multiply by the turn's weight."""
        weights = self.at_rollout(batch) if batch.prepared is None else batch.prepared
        return batch.advantages * weights, None, {}
