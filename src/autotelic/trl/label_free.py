"""Prompts that a label-free reward leaves out: zero advantage, and out of the loss's denominator.

A reward of `autotelic.rewards` keeps its `last_result` with a prompt mask (EMPO's entropy thresholds). Its rewards in a
masked group are equal, so TRL's advantage there is zero already; this mixin also takes the group's tokens out of
`num_items_in_batch`, the denominator of TRL's token-mean losses (`dapo`, `cispo`, `vespo`).
"""

from typing import Any

import torch

from autotelic.diagnostics.metrics import METRICS


class PromptMaskMixin:
    """Removes masked prompts from the denominator and logs the reward's diagnostics."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        for reward in self.reward_funcs:
            result = getattr(reward, "last_result", None)
            if result is None:
                continue
            mode = "train" if self.model.training else "eval"
            for name, value in result.metrics().items():
                if name in METRICS:
                    self._metrics[mode][name].append(value)
            if len(self.reward_funcs) == 1:
                self._leave_out(output, result.prompt_mask)
        return output

    def _leave_out(self, output: dict[str, Any], prompt_mask: torch.Tensor) -> None:
        """Set advantages of masked prompts to zero, and count the tokens of the others only."""
        rows = output["completion_ids"].shape[0]
        group = self.num_generations if self.model.training else self.num_generations_eval
        first = self.accelerator.process_index * rows
        keep = prompt_mask.repeat_interleave(group)[first : first + rows].to(output["advantages"].device)
        mask = output["completion_mask"] * output["tool_mask"] if "tool_mask" in output else output["completion_mask"]
        output["advantages"] = output["advantages"] * keep
        output["num_items_in_batch"] = self.accelerator.gather((mask * keep.unsqueeze(1)).sum()).sum()


def with_prompt_masks(trainer_class: type) -> type:
    """Return a subclass of GRPOTrainer that honours the prompt masks of `autotelic.rewards`."""
    return type(f"LabelFree{trainer_class.__name__}", (PromptMaskMixin, trainer_class), {})
