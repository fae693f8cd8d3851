"""Stops a run by a rule that needs no labels, and keeps the last checkpoint before the rule spoke.

The probe, a function from model to `ProbeStatistics`, comes from outside (`autotelic.diagnostics.probing`). At every
probe that passes, the weights are kept in `output_dir/best`; when a rule trips, the run ends, and with `rollback` the
final model is that one.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autotelic.diagnostics.probe_statistics import ProbeStatistics, Rule, drift
from autotelic.diagnostics.stopping import first_tripped
from autotelic.errors import UserError
from autotelic.runs.files import write_atomically
from autotelic.runs.glossary import check_declared

Probe = Callable[[Any], ProbeStatistics]


class StopRules(TrainerCallback):
    """Evaluates rules on probe prompts every `every` updates.

    Args:
        probe: measures a model, without labels.
        rules: name -> rule; the first that trips is the reason.
        every: updates between probes.
        folder: the run's folder; `probes.jsonl` (a resumed run reads it back) and `best/` are written there.
        append: adds a row to `metrics.jsonl`.
        rollback: end with the weights of the last probe that passed, not with the current ones.
    """

    def __init__(
        self,
        probe: Probe,
        rules: dict[str, Rule],
        every: int,
        folder: Path,
        append: Callable[[dict[str, Any]], None],
        rollback: bool = False,
    ):
        self.probe, self.rules, self.every, self.rollback = probe, rules, every, rollback
        self.folder, self.append = folder, append
        self.history: list[ProbeStatistics] = []
        self.steps: list[int] = []
        self.tripped: tuple[str, str] | None = None
        self.turn_ratio: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Probe the starting point, or read back what was probed before an interruption."""
        if state.global_step == 0 or not (self.folder / "probes.jsonl").exists():
            self.measure(state, control, kwargs["model"])
            return
        for line in (self.folder / "probes.jsonl").read_text().splitlines():
            row = json.loads(line)
            step = row.pop("step")
            if step <= state.global_step:
                self.steps.append(step)
                self.history.append(ProbeStatistics(**row | {"majority": tuple(row["majority"])}))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Keep how the entropy of the last turn compares with the first, where responses have several turns."""
        logs = kwargs.get("logs") or {}
        first, last = (logs.get(f"policy/entropy_{turn}_turn") for turn in ("first", "last"))
        if first and last is not None:
            self.turn_ratio = last / first

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Probe on schedule."""
        if state.global_step % self.every == 0:
            self.measure(state, control, kwargs["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Put the kept weights back, where that was asked for."""
        if self.tripped is not None and self.rollback:
            load_weights(kwargs["model"], self.folder / "best")

    def measure(self, state: TrainerState, control: TrainerControl, model: Any) -> None:
        """Probe without disturbing training, write the row, and stop or keep the weights."""
        import torch

        from autotelic.runs.processes import preserved_rng

        training = model.training
        with preserved_rng(), torch.no_grad():
            found = replace(self.probe(model), turn_ratio=self.turn_ratio)
        model.train(training)
        self.history.append(found)
        self.steps.append(state.global_step)
        self.tripped = first_tripped(self.rules, self.history)
        metrics = found.metrics() | {"probe/majority_drift": drift(self.history[0], found)}
        check_declared(metrics)
        if state.is_world_process_zero:
            self.append({"step": state.global_step, **metrics})
            self.write_probes()
        if self.tripped is None:
            save_weights(model, self.folder / "best", state.global_step, write=state.is_world_process_zero)
            return
        control.should_training_stop = True
        name, reason = self.tripped
        ending = "rolling back to the probe before" if self.rollback else "the probe before is in best/"
        if state.is_world_process_zero:
            print(f"autotelic: {name} at step {state.global_step}: {reason}; {ending}", file=sys.stderr, flush=True)
            if self.rules[name].advice:
                print(f"autotelic: what may help: {self.rules[name].advice}", file=sys.stderr, flush=True)

    @property
    def stopped(self) -> bool:
        """Tell whether a rule ended the run: it is finished, not interrupted."""
        return self.tripped is not None

    def write_probes(self) -> None:
        """Write all probes, whole or not at all."""
        rows = [{"step": step, **asdict(found)} for step, found in zip(self.steps, self.history, strict=True)]
        write_atomically(self.folder / "probes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def save_weights(model: Any, folder: Path, step: int, write: bool = True) -> None:
    """Write the weights (with LoRA: the adapter's) to one file, atomically, and the step beside them.

    Where the model is sharded every process calls this, and parts are put together; one of them writes.
    """
    from safetensors.torch import save_file

    kept = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = whole(parameter)
            if write:
                kept[name] = value.contiguous().cpu().clone()
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(kept, folder / "weights.tmp", metadata={"step": str(step)})
        (folder / "weights.tmp").replace(folder / "weights.safetensors")


def load_weights(model: Any, folder: Path) -> None:
    """Put kept weights back into the model, sharded as it is; every process calls this."""
    import torch
    from safetensors.torch import load_file
    from torch.distributed.tensor import DTensor, distribute_tensor

    kept = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in kept:
                continue
            value = kept[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                parameter.copy_(distribute_tensor(value, parameter.device_mesh, parameter.placements))
            else:
                parameter.copy_(value)


def whole(parameter: Any) -> Any:
    """Return a parameter's full value: where FSDP2 shards it, put together.

    Raises:
        UserError: FSDP1, which flattens several parameters into one.
    """
    if type(parameter).__name__ == "FlatParameter":
        raise UserError("stop rules cannot keep weights under FSDP1: set fsdp_version: 2")
    value = parameter.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value
