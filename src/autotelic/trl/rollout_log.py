"""A small sample of rollouts with token statistics, for the report's viewer: `rollouts.jsonl`, bounded in size.

Rows: {"step", "prompt_id", "prompt", "responses": [{"text", "tokens", "entropy", "surprisal", "advantage", "reward",
"cluster", "covariance"?, "selected"?}]}. Entropy and surprisal cost one forward pass over the logged rows only;
covariance and selection are those that training used, and are filled in when the update that holds the row is planned.
"""

import json
from pathlib import Path
from typing import Any

import torch

from autotelic.answers import cluster, extract
from autotelic.runs.files import write_atomically
from autotelic.runs.logs import read_jsonl
from autotelic.trl.seam import ROW_IDS, Micro, Part, Rollout, Update, response_mask, score


class RolloutLog(Part):
    """Logs the first prompts of a rollout now and then; only the main process writes.

    Args:
        path: the file.
        num_prompts: of each logged rollout.
        every: updates between logged rollouts.
    """

    order = 2

    def __init__(self, path: Path, num_prompts: int, every: int):
        self.path, self.num_prompts, self.every = path, num_prompts, every
        self._next_step = 0
        self._forget()

    def _forget(self) -> None:
        self._prompts: list[dict[str, Any]] = []
        self._responses: dict[int, dict[str, Any]] = {}

    def on_rollout(self, rollout: Rollout) -> None:
        """Write the rollout that was logged last, and take a sample of this one if it is due."""
        if not rollout.training:
            return
        self.flush()
        step = self.trainer.state.global_step
        if step >= self._next_step:
            self._next_step = step + self.every
            self._take_sample(rollout)  # on every process: a sharded model needs them all for a forward pass

    def _take_sample(self, rollout: Rollout) -> None:
        output, group = rollout.output, self.trainer.num_generations
        rows = min(self.num_prompts * group, output["completion_ids"].shape[0])
        sample = first_rows(output, rows)
        logprobs, entropies = score(self.trainer, sample, entropy=True)
        kept = response_mask(sample)
        for row in range(rows):
            if row % group == 0:
                self._prompts.append(prompt_row(rollout.rows[row], self.trainer.state.global_step))
            response = self._response(sample, row, logprobs[row], entropies[row], kept[row])
            response["reward"] = round(reward_of(self.trainer, rollout, int(sample[ROW_IDS][row])), 4)
            self._prompts[-1]["responses"].append(response)
            self._responses[int(sample[ROW_IDS][row])] = response
        for prompt in self._prompts:
            clusters = cluster([extract(response["text"]) for response in prompt["responses"]])
            for response, number in zip(prompt["responses"], clusters, strict=True):
                response["cluster"] = number

    def _response(
        self, sample: Micro, row: int, logprobs: torch.Tensor, entropies: torch.Tensor, kept: torch.Tensor
    ) -> dict[str, Any]:
        ids, advantage = sample["completion_ids"][row][kept].tolist(), sample["advantages"][row]
        decode = self.trainer.processing_class.decode
        return {
            "text": decode(ids, skip_special_tokens=True),
            "tokens": [decode([token]) for token in ids],
            "entropy": rounded(entropies[kept]),
            "surprisal": rounded(-logprobs[kept]),
            "advantage": round(float(advantage if advantage.dim() == 0 else advantage[kept].mean()), 4),
        }

    def on_update(self, update: Update) -> None:
        """Fill in covariance and selection of logged rows that this update trains on."""
        for micro in update.micro_batches:
            if "plan" not in micro:
                continue
            for i, row in enumerate(micro[ROW_IDS].tolist()):
                if row in self._responses and "selected" not in self._responses[row]:
                    kept = response_mask(micro)[i]
                    self._responses[row]["covariance"] = rounded(micro["plan"].covariance[i][kept])
                    self._responses[row]["selected"] = micro["plan"].selected[i][kept].tolist()

    def flush(self) -> None:
        """Append the sampled rollout to the file."""
        if self._prompts and self.trainer.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in self._prompts)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Write what is held back: a run that resumes from this checkpoint does not sample it again."""
        self.flush()
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget what was logged after the checkpoint, and go on in its rhythm."""
        rows = read_jsonl(self.path) if self.path.exists() else []
        kept = [row for row in rows if row["step"] < self.trainer.state.global_step]
        self._next_step = kept[-1]["step"] + self.every if kept else 0
        if self.trainer.accelerator.is_main_process:
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.trainer.accelerator.wait_for_everyone()

    def on_train_end(self) -> None:
        """Write what is held back."""
        self.flush()


def prompt_row(row: dict[str, Any], step: int) -> dict[str, Any]:
    """Return a row of the file, its responses still to come."""
    text = json.dumps(row["prompt"], default=str)  # of an image, what it calls itself
    name = row["prompt"] if isinstance(row["prompt"], str) else text
    return {"step": step, "prompt_id": str(row.get("id", name)), "prompt": json.loads(text), "responses": []}


def first_rows(output: Micro, rows: int) -> Micro:
    """Return the first rows of a rollout; all of it, where it has images, which are not stored row by row."""
    if "pixel_values" in output:
        return output
    return {key: value[:rows] for key, value in output.items() if isinstance(value, torch.Tensor) and value.dim()}


def reward_of(trainer: Any, rollout: Rollout, row: int) -> float:
    """Return the weighted reward of a row of the batch of all ranks; 0 where no function gave one."""
    assert rollout.rewards is not None
    return float((rollout.rewards[row] * trainer.reward_weights.to(rollout.rewards.device)).nansum())


def rounded(values: torch.Tensor) -> list[float]:
    """Return four decimals, which is what a picture needs."""
    return [round(float(value), 4) for value in values]
