"""One pass of the policy for two losses: TRL's, which logs, and ours, which may replace it."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from autotelic import functional as F
from autotelic.lm.head import output_class


class RecordedPolicy:
    """The policy as TRL's loss calls it: scores the whole response, keeps the output, and shows TRL the judged tokens.

    Attributes:
        output: of the one scoring pass, over all tokens of the responses.
    """

    def __init__(self, trainer: Any, model: Any, inputs: Mapping[str, Any]):
        self.trainer, self.model, self.inputs = trainer, model, inputs
        self.output: Any = None

    def __call__(self, *, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        """Answer TRL's scoring pass; any other call, such as the logits of `compute_metrics`, goes to the model."""
        if not fused_lm_head:
            return self.model(**kwargs)
        partly_judged = self.inputs.get("response_mask")
        if partly_judged is not None:
            kwargs["labels"] = kwargs["input_ids"].masked_fill(partly_judged == 0, -100)
        self.output = self.trainer.token_scores(self.model, self.trainer.top_ids(self.inputs), **kwargs)
        if partly_judged is None:
            return self.output
        judged = self.inputs["completion_mask"][:, 1:].bool()
        shown = self.output.log_probs[:, -judged.shape[1] :].masked_fill(~judged, 0.0)
        return type(self.output)(**{**self.output, "log_probs": shown})


def scores_of_logits(model: Any, top_ids: Tensor, labels: Tensor, **kwargs: Any) -> Any:
    """Return what a fused head returns, and log pi of other tokens, from logits of the labelled places alone."""
    output, targets = model(**kwargs), labels[:, 1:]
    mask = targets != -100
    z = output.logits[:, -targets.shape[1] - 1 : -1][mask].float()  # (labelled tokens, V): no padding is kept
    log_z = z.logsumexp(-1, keepdim=True)
    taken = z.gather(-1, targets[mask].unsqueeze(-1))
    others = z.gather(-1, top_ids[mask]) - log_z
    with torch.no_grad():
        further = {
            "entropy": F.token_entropy(z),
            "mean_logits": z.mean(-1),
            "is_top1": z.argmax(-1) == targets[mask],
            "log_sum_sq_probs": (2 * (z - log_z)).logsumexp(-1),
        }
    values = {"log_probs": (taken - log_z).squeeze(-1), "other_log_probs": others, **further}
    found = {name: scattered(value, mask) for name, value in values.items()}
    return output_class()(label_mask=mask, aux_loss=getattr(output, "aux_loss", None), **found)


def scattered(values: Tensor, mask: Bool[Tensor, "B T"]) -> Tensor:
    """Put one value (or row) per true place of the mask back in its place; 0 elsewhere."""
    return values.new_zeros(*mask.shape, *values.shape[1:]).index_put(mask.nonzero(as_tuple=True), values)
