"""The same few prompts, sampled again and again while a run trains: `followed.jsonl`, for the report's viewer.

Rows are those of `rollouts.jsonl`, without reward and advantage: {"step", "prompt_id", "prompt", "responses": [{"text",
"tokens", "entropy", "surprisal", "cluster"}]}. The sampler, a function from model to rows, comes from outside
(`autotelic.diagnostics.probing.make_follower`); all processes call it, the main one writes. A run is the same with or
without it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autotelic.runs.callbacks import read_rows
from autotelic.runs.files import write_atomically
from autotelic.runs.processes import preserved_rng


class FollowedPrompts(TrainerCallback):
    """Calls `follow(model)` before the first update, every `every` updates, and after the last.

    Args:
        follow: returns rows {"prompt_id", "prompt", "responses"}.
        path: where they are written; a resumed run first drops rows past its checkpoint.
        every: updates between two looks.
    """

    def __init__(self, follow: Callable[[Any], list[dict[str, Any]]], path: Path, every: int):
        self.follow, self.path, self.every = follow, path, every
        self.last: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Look at the starting point of a fresh run; a resumed one goes on where its checkpoint is."""
        kept = [row for row in read_rows(self.path) if row["step"] <= state.global_step] if state.global_step else []
        self.last = kept[-1]["step"] if kept else None
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        if state.global_step == 0:
            self.look(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Look on schedule."""
        if state.global_step % self.every == 0:
            self.look(state, kwargs["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Look at the end point, once."""
        self.look(state, kwargs["model"])

    def look(self, state: TrainerState, model: Any) -> None:
        """Sample and write, with every random state put back."""
        if self.last == state.global_step:
            return
        self.last = state.global_step
        with preserved_rng():
            rows = self.follow(model)
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.writelines(json.dumps({"step": state.global_step, **row}) + "\n" for row in rows)
