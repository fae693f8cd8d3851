"""Ends entropy minimisation when one update has destroyed the policy, with the weights from before that update.

A learning rate that suits 7 billion parameters is too large for a small model: one update takes almost all entropy, and
accuracy with it, and nothing afterwards brings it back. Runs that gained accuracy here lost at most 76 % in an update.
"""

import sys
from typing import Any

import torch
from transformers import TrainerCallback

METRIC = "train/em_loss"


class EntropyGuard(TrainerCallback):
    """Compares the entropy of each update's rollouts with that of the update before.

    One copy of the trained weights is kept in the memory of the CPU (under FSDP: of this rank's part).

    Args:
        trainer: logs `train/em_loss`, the mean over all processes, for every micro-batch.
        factor: largest ratio of the entropies of two successive updates; above 1.
    """

    def __init__(self, trainer: Any, factor: float):
        self.trainer, self.factor = trainer, factor
        self.entropy: float | None = None
        self.kept: dict[str, torch.Tensor] = {}
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a resumed run's last entropy from its log: what its last update did is watched too."""
        logged = [row[METRIC] for row in state.log_history if METRIC in row]
        self.entropy = logged[-1] if logged else None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the weights whose rollouts were sound; put them back, and stop, where these are not."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        values = self.trainer._metrics["train"][METRIC][-self.trainer.current_gradient_accumulation_steps :]
        before, self.entropy = self.entropy, sum(values) / len(values)
        if before is None or self.entropy * self.factor >= before:
            self.kept = {name: local(p).to("cpu", copy=True) for name, p in trained(model)}
            return
        for name, p in trained(model) if self.kept else ():
            local(p).copy_(self.kept[name])
        optimizer.zero_grad(set_to_none=True)  # this step moves nothing
        control.should_training_stop = self.stopped = True
        end = "The run ends with the weights from before that update; lower it"
        if not self.kept:
            end = "The run ends here; lower it, and go on from a checkpoint before that update"
        if state.is_world_process_zero:
            print(
                f"autotelic: entropy fell from {before:.2g} to {self.entropy:.2g} nats a token in update "
                f"{state.global_step}: learning_rate {args.learning_rate:g} is too large for this model. {end} "
                "(docs/papers/one_shot_em.md has a rule).",
                file=sys.stderr,
                flush=True,
            )


def trained(model: Any) -> list[tuple[str, Any]]:
    """Return the parameters that training moves."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def local(parameter: Any) -> torch.Tensor:
    """Return this process's part of a parameter, without gradient."""
    value = parameter.detach()
    return value.to_local() if hasattr(value, "to_local") else value
