"""How a trainer passes its model: our head, and the prompt of a group computed once.

The head is `autotelic.lm.head`; prompts are shared in training by `autotelic.lm.shared_prefix` and in generation by
`autotelic.lm.shared_prefill`. A trainer that is not asked for them is left as TRL made it. With `auto` each is off by
itself where it would lose, with `on` it is refused where it would not be exact.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from autotelic.errors import UserError
from autotelic.lm.head import MODES, use_fused_head
from autotelic.lm.head_choice import Choice
from autotelic.lm.packing import rows_of
from autotelic.lm.shared_prefill import share_prefill
from autotelic.lm.shared_prefix import Sharing, share_prefix
from autotelic.trl.seam import Micro, Part, forward_inputs
from autotelic.trl.update_order import SUMS_OVER_ROWS, regrouped, update_window


@dataclass(frozen=True)
class Installed:
    """What a trainer's model does faster now; a refusal says why it does not, None that it does."""

    head: Choice
    prefix_refusal: str | None
    prefill_refusal: str | None
    sharing: Sharing | None


def use_fast_passes(
    trainer: Any,
    fused_head: str = "auto",
    shared_prefix: str = "auto",
    statistics: bool = False,
    asked: str | None = None,
) -> Installed:
    """Give a trainer's model, and its reference model, our head and shared prompts.

    Args:
        trainer: of TRL, complete.
        fused_head: `auto` by the rule of `autotelic.lm.head_choice`, `on` for ours (refused where it cannot be exact),
            `off` for TRL's.
        shared_prefix: the prompt of a group is computed once: `auto` where it pays, `on` wherever rows share a prompt
            (refused where it cannot be exact), `off` nowhere.
        statistics: the trainer's loss also reads the mean logit, the arg max and sum p^2 (TRL's DPO).
        asked: why only our head will do; None where TRL's does too.

    Raises:
        UserError: an unknown mode, or `on` where it is refused.
    """
    for name, mode in (("fused_head", fused_head), ("shared_prefix", shared_prefix)):
        if mode not in MODES:
            raise UserError(f"unknown {name} {mode!r}: use {', '.join(MODES)}")
    settings: dict[str, Any] = {
        "temperature": getattr(trainer, "temperature", 1.0),
        "cast_to_fp32": getattr(trainer.args, "cast_lm_head_to_fp32", False),
    }
    sharing: dict[str, Any] = settings | {"mode": shared_prefix, "head": fused_head}
    reference = getattr(trainer, "ref_model", None)
    models = [trainer.model] if reference is None else [trainer.model, reference]
    precision: dict[str, Any] = {"autocast": trainer.accelerator.autocast}
    further: dict[str, Any] = {"statistics": statistics}
    head = use_fused_head(*models, mode=fused_head, asked=asked, **settings, **precision, **further)
    shared = share_prefix(trainer.model, **sharing, **precision, **further)
    elsewhere = getattr(trainer, "use_vllm", False) or getattr(trainer, "use_transformers_continuous_batching", False)
    prefill_refusal = (
        "generation is not transformers' own" if elsewhere else share_prefill(trainer.model, mode=shared_prefix)
    )
    if reference is not None:
        share_prefix(reference, **sharing, **precision)
    if isinstance(shared, Sharing):
        return Installed(head, None, prefill_refusal, shared)
    return Installed(head, shared, prefill_refusal, None)


class FastPasses(Part):
    """Our head and shared prompts for a GRPOTrainer or RLOOTrainer; see `use_fast_passes`.

    Rows of a prompt are moved into one micro-batch of their update, where the gradient does not depend on the split.
    """

    def __init__(self, fused_head: str = "auto", shared_prefix: str = "auto"):
        self.modes = (fused_head, shared_prefix)

    def check(self) -> None:
        """Change the model."""
        asked = next((part.only_our_head for part in self.trainer.parts if part.only_our_head), None)
        if asked is None and getattr(self.trainer, "top_entropy_quantile", 1.0) <= 0.5:
            asked = "top_entropy_quantile leaves most tokens without a gradient, and it skips them"
        self.installed = use_fast_passes(self.trainer, *self.modes, asked=asked)

    def on_generation(self, micro_batches: list[Micro]) -> list[Micro]:
        """Return the micro-batches regrouped within each update, where sharing then pays."""
        args, sharing = self.trainer.args, self.installed.sharing
        window = update_window(args.steps_per_generation, args.gradient_accumulation_steps)
        if sharing is None or window == 1 or split_matters(self.trainer):
            return micro_batches
        moved = regrouped(micro_batches, window)
        pays = any(sharing.packs(rows_of(*scored_tokens(micro))) for micro in moved)
        return moved if pays else micro_batches


def split_matters(trainer: Any) -> bool:
    """Return whether the gradient of an update depends on how its rows are split into micro-batches."""
    losses = [kind.__module__ for kind in type(trainer).__mro__ if "_compute_loss" in vars(kind)]
    return (
        any(part.split_matters for part in trainer.parts)
        or getattr(trainer, "loss_type", "rloo") not in SUMS_OVER_ROWS
        or getattr(trainer, "top_entropy_quantile", 1.0) < 1  # a quantile of each micro-batch
        or getattr(trainer, "_entropy_bonus_enabled", False)  # a mean of micro-batch means
        or getattr(trainer, "aux_loss_enabled", False)  # the router's loss is one of each micro-batch
        or not all(name.startswith(("trl.trainer.", "autotelic.")) for name in losses)  # a loss that we do not know
    )


def fast_passes(fused_head: str | None = None, shared_prefix: str | None = None) -> list[Part]:
    """Return the part of fast passes, if one of them is asked for."""
    if fused_head is None and shared_prefix is None:
        return []
    return [FastPasses(fused_head or "auto", shared_prefix or "off")]


def fused_statistics(trainer: Any) -> bool:
    """Return whether our head serves this trainer's model: not where FSDP 2 holds its parameters in shards."""
    installed = [part.installed for part in trainer.parts if isinstance(part, FastPasses)]
    sharded = hasattr(next(trainer.model.parameters()), "full_tensor")
    return bool(installed) and installed[0].head.ours and not sharded


def scored_tokens(micro: Micro) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels of a micro-batch, as TRL gives them to the model."""
    ids, attention, _ = forward_inputs(micro)
    labels = ids.masked_fill(attention == 0, -100)
    labels[:, : micro["prompt_ids"].shape[1]] = -100
    return ids, attention, labels
