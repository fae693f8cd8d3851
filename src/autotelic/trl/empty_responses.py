"""Ends a run whose responses are nearly all empty: there is nothing to learn from, and the metrics hardly show it."""

from autotelic.errors import UserError
from autotelic.functional import global_sum
from autotelic.trl.seam import Part, Rollout

SHARE = 0.95
"""Share of a rollout's responses, over all processes, from which it is nearly all of them."""


class NotEmpty(Part):
    """Stops at the first rollout in which nearly every response is empty, with one line that says why."""

    def on_responses(self, rollout: Rollout) -> None:
        """Count the responses without any text."""
        if not rollout.training or not rollout.response_ids:
            return
        import torch

        tokenizer = getattr(self.trainer.processing_class, "tokenizer", self.trainer.processing_class)
        texts = tokenizer.batch_decode(rollout.response_ids, skip_special_tokens=True)
        device = self.trainer.accelerator.device
        empty, total = global_sum(torch.tensor([sum(not text.strip() for text in texts), len(texts)], device=device))
        if int(empty) < SHARE * int(total):
            return
        plain = isinstance(rollout.rows[0].get("prompt"), str) and getattr(tokenizer, "chat_template", None)
        reason = (
            "this is a chat model and its prompts are plain text, so put them through its template (--chat on)"
            if plain
            else "look at the prompts, the end token and --max_completion_length, or start from an earlier checkpoint"
        )
        raise UserError(
            f"{int(empty)} of {int(total)} responses at step {self.trainer.state.global_step} are empty: "
            f"the model ends at once, and nothing can be learned from that; {reason}"
        )
