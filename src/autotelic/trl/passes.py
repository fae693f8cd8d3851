"""How the trainers of this package pass their model: our head, and the prompt of a group computed once.

The head is `autotelic.lm.head`; prompts are shared in training by `autotelic.lm.shared_prefix` and in generation by
`autotelic.lm.shared_prefill`. Each is off by itself where it would lose, and refused where it would not be exact.
"""

from typing import Any

import torch
from torch import Tensor

from autotelic.errors import UserError
from autotelic.lm.head import MODES, use_fused_head
from autotelic.lm.packing import rows_of
from autotelic.lm.shared_prefill import share_prefill
from autotelic.lm.shared_prefix import Sharing, share_prefix
from autotelic.runs.trainer_base import TrainerBase
from autotelic.trl.update_order import SUMS_OVER_ROWS, regrouped, update_window


class FusedHeadMixin(TrainerBase):
    """Gives a TRL trainer our head and shared prompts; the mixins of this package build on it.

    Keyword Args:
        fused_head: `auto` where it pays, `on` everywhere (refused where it cannot be exact), `off` nowhere.
        shared_prefix: the prompt of a group is computed once: `auto` where it pays, `on` wherever rows share a prompt
            (refused where it cannot be exact), `off` nowhere.
    """

    def __init__(self, *args: Any, fused_head: str = "auto", shared_prefix: str = "auto", **kwargs: Any):
        for name, mode in (("fused_head", fused_head), ("shared_prefix", shared_prefix)):
            if mode not in MODES:
                raise UserError(f"unknown {name} {mode!r}: use {', '.join(MODES)}")
        self._regrouped: Any = None
        super().__init__(*args, **kwargs)
        settings: dict[str, Any] = {
            "temperature": getattr(self, "temperature", 1.0),
            "cast_to_fp32": getattr(self.args, "cast_lm_head_to_fp32", False),
        }
        sharing: dict[str, Any] = settings | {"mode": shared_prefix, "head": fused_head}
        reference = getattr(self, "ref_model", None)
        models = [self.model] if reference is None else [self.model, reference]
        precision: dict[str, Any] = {"autocast": self.accelerator.autocast}
        self.fused_head_refusal: str | None = use_fused_head(*models, mode=fused_head, **settings, **precision)
        shared = share_prefix(self.model, **sharing, **precision)
        self._sharing: Any = shared if isinstance(shared, Sharing) else None
        self.shared_prefix_refusal: str | None = None if isinstance(shared, Sharing) else shared
        elsewhere = getattr(self, "use_vllm", False) or getattr(self, "use_transformers_continuous_batching", False)
        self.shared_prefill_refusal: str | None = (
            "generation is not transformers' own" if elsewhere else share_prefill(self.model, mode=shared_prefix)
        )
        if reference is not None:
            share_prefix(reference, **sharing, **precision)

    def _fused_statistics(self) -> bool:
        """Return whether `statistics` serves this trainer's model: not where FSDP 2 holds its parameters in shards."""
        return self.fused_head_refusal is None and not hasattr(next(self.model.parameters()), "full_tensor")

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Let the rows of a prompt meet in one micro-batch, once for each new generation batch."""
        inputs = super()._prepare_inputs(generation_batch)
        buffered = getattr(self, "_buffered_inputs", None)
        if not self.model.training or not buffered or buffered is self._regrouped:
            return inputs
        if self._sharing is not None and not self._split_matters():
            self._buffered_inputs = self._by_prompt(buffered)
        self._regrouped = self._buffered_inputs
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _by_prompt(self, buffered: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the micro-batches regrouped within each update, where sharing then pays."""
        window = update_window(self.args.steps_per_generation, self.args.gradient_accumulation_steps)
        if window == 1:
            return buffered
        moved = regrouped(buffered, window)
        pays = any(self._sharing.packs(rows_of(*scored_tokens(micro))) for micro in moved)
        return moved if pays else buffered

    def _split_matters(self) -> bool:
        """Return whether the gradient of an update depends on how its rows are split into micro-batches."""
        losses = [kind.__module__ for kind in type(self).__mro__ if "_compute_loss" in vars(kind)]
        return (
            self.loss_type not in SUMS_OVER_ROWS
            or self.top_entropy_quantile < 1  # a quantile of each micro-batch
            or getattr(self, "_entropy_bonus_enabled", False)  # a mean of micro-batch means
            or not all(name.startswith(("trl.trainer.", "autotelic.")) for name in losses)  # a loss that we do not know
        )


def scored_tokens(micro: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels of a micro-batch, as TRL gives them to the model."""
    ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], dim=1)
    attention = torch.cat([micro["prompt_mask"], micro["completion_mask"]], dim=1)
    labels = ids.masked_fill(attention == 0, -100)
    labels[:, : micro["prompt_ids"].shape[1]] = -100
    return ids, attention, labels
