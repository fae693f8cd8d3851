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
from autotelic.trl.mixin import FORWARD_KEYS, ROW_IDS, EntropyControlMixin, response_mask


class RolloutLogMixin(EntropyControlMixin):
    """Logs the first prompts of a rollout now and then; only the main process writes.

    Keyword Args:
        rollout_log: (path, number of prompts, updates between logged rollouts), or None.
    """

    def __init__(self, *args: Any, rollout_log: tuple[Path, int, int] | None = None, **kwargs: Any):
        self.rollout_log: Any = rollout_log
        self._logged: dict[int, dict[str, Any]] = {}
        self._logged_prompts: list[dict[str, Any]] = []
        self._next_logged_step = 0
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the rollout that was logged last, and take a sample of this one if it is due."""
        output = super()._generate_and_score_completions(inputs)
        if self.rollout_log is None or not self.model.training:
            return output
        self.flush_rollouts()
        if self.state.global_step >= self._next_logged_step:
            self._next_logged_step = self.state.global_step + self.rollout_log[2]
            self._take_sample(inputs, output)  # on every process: a sharded model needs them all for a forward pass
        return output

    def _take_sample(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> None:
        group = self.num_generations
        rows = min(self.rollout_log[1] * group, output["completion_ids"].shape[0])
        sample = {key: value[:rows] for key, value in output.items() if isinstance(value, torch.Tensor) and value.dim()}
        ids = torch.cat([sample["prompt_ids"], sample["completion_ids"]], dim=1)
        attention = torch.cat([sample["prompt_mask"], sample["completion_mask"]], dim=1)
        extras = {key: sample[key] for key in FORWARD_KEYS if key in sample}
        keep = sample["completion_ids"].shape[1]
        with torch.no_grad():
            logprobs, entropies, *_ = self._get_per_token_logps_and_entropies(
                self.model, ids, attention, keep, compute_entropy=True, **extras
            )
        mask = response_mask(sample)
        decode = self.processing_class.decode
        for row in range(rows):
            kept = mask[row]
            token_ids = sample["completion_ids"][row][kept].tolist()
            if row % group == 0:
                prompt = inputs[row]
                text = prompt["prompt"] if isinstance(prompt["prompt"], str) else json.dumps(prompt["prompt"])
                self._logged_prompts.append(
                    {
                        "step": self.state.global_step,
                        "prompt_id": str(prompt.get("id", text)),
                        "prompt": text,
                        "responses": [],
                    }
                )
            advantage = sample["advantages"][row]
            response = {
                "text": decode(token_ids, skip_special_tokens=True),
                "tokens": [decode([token]) for token in token_ids],
                "entropy": rounded(entropies[row][kept]),
                "surprisal": rounded(-logprobs[row][kept]),
                "advantage": round(float(advantage if advantage.dim() == 0 else advantage[kept].mean()), 4),
                "reward": round(self._reward_of(row, output["completion_ids"].shape[0]), 4),
            }
            self._logged_prompts[-1]["responses"].append(response)
            self._logged[int(output[ROW_IDS][row])] = response
        for logged in self._logged_prompts:
            clusters = cluster([extract(response["text"]) for response in logged["responses"]])
            for response, number in zip(logged["responses"], clusters, strict=True):
                response["cluster"] = number

    def _reward_of(self, row: int, local_rows: int) -> float:
        """Return the weighted reward of a local row, from TRL's own record of the last batch of all ranks."""
        total = 0.0
        for name, weight in zip(self.reward_func_names, self.reward_weights.tolist(), strict=True):
            rewards = list(self._logs["rewards"][name])[-local_rows * self.accelerator.num_processes :]
            value = rewards[self.accelerator.process_index * local_rows + row]
            total += weight * value if value == value else 0.0
        return total

    def _on_plan(self, micro_batches: list[dict[str, Any]], plans: list[Any]) -> None:
        """Fill in covariance and selection of logged rows that the planned update holds."""
        super()._on_plan(micro_batches, plans)
        for micro, plan in zip(micro_batches, plans, strict=True):
            for i, row_id in enumerate(micro[ROW_IDS].tolist()):
                if row_id in self._logged and "selected" not in self._logged[row_id]:
                    kept = response_mask(micro)[i]
                    self._logged[row_id]["covariance"] = rounded(plan.covariance[i][kept])
                    self._logged[row_id]["selected"] = plan.selected[i][kept].tolist()

    def flush_rollouts(self) -> None:
        """Append the sampled rollout to the file."""
        if self._logged_prompts and self.accelerator.is_main_process:
            with self.rollout_log[0].open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in self._logged_prompts)
        self._logged_prompts, self._logged = [], {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write what is still held back: a run that resumes from this checkpoint does not sample it again."""
        if self.rollout_log is not None:
            self.flush_rollouts()
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Forget what was logged after the checkpoint, and go on in its rhythm."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.rollout_log is None:
            return
        path, _, every = self.rollout_log
        rows = read_jsonl(path) if path.exists() else []
        kept = [row for row in rows if row["step"] < self.state.global_step]
        self._next_logged_step = kept[-1]["step"] + every if kept else 0
        if self.accelerator.is_main_process:
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.accelerator.wait_for_everyone()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and write what is still held back at the end."""
        result = super().train(*args, **kwargs)
        if self.rollout_log is not None:
            self.flush_rollouts()
        return result


def rounded(values: torch.Tensor) -> list[float]:
    """Return four decimals, which is what a picture needs."""
    return [round(float(value), 4) for value in values]


def with_rollout_log(trainer_class: type) -> type:
    """Return a subclass of an entropy-controlled trainer that takes `rollout_log=`."""
    return type(f"Logged{trainer_class.__name__}", (RolloutLogMixin, trainer_class), {})
