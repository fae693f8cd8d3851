"""What a run leaves behind and shows: `metrics.jsonl`, progress, validation, and a clean stop when interrupted."""

import json
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autotelic.functional.distributed import global_max
from autotelic.runs.collapse_step import collapse_step, turning_step
from autotelic.runs.files import write_atomically
from autotelic.runs.glossary import METRICS, TRL_PREFIX, check_declared
from autotelic.runs.logs import read_jsonl
from autotelic.runs.processes import preserved_rng
from autotelic.runs.time_left import duration

TRL_NAMES = {
    "entropy": "policy/entropy",
    "kl": "policy/reference_kl",
    "reward": "reward/mean",
    "reward_std": "reward/std",
    "frac_reward_zero_std": "reward/zero_std_share",
    "completions/mean_length": "completions/mean_length",
    "completions/clipped_ratio": "completions/truncated_share",
    "clip_ratio/region_mean": "clip/share",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "step_time": "train/step_time",
    "epoch": "train/epoch",
    "entropy_coef": "train/entropy_coef",
}
"""TRL's names of quantities that the glossary describes. Everything else of TRL's keeps its name behind `trl/`."""


def to_glossary(logs: dict[str, Any]) -> dict[str, float]:
    """Rename one of TRL's log dictionaries; values that are not finite numbers are left out.

    Entropy minimisation has no reward: TRL's constant 0 in its place is left out too.
    """
    row: dict[str, float] = {}
    for name, value in logs.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        ours = name if name in METRICS else TRL_NAMES.get(name, f"{TRL_PREFIX}{name}")
        row[ours] = float(value)
    if "train/em_loss" in row and not row.get("reward/std"):
        row = {name: value for name, value in row.items() if not name.startswith("reward/")}
    check_declared(row)
    return row


class MetricsFile(TrainerCallback):
    """Appends one JSON object per log call to `metrics.jsonl`; a resumed run first drops rows past its checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Keep the rows up to the step that the run starts from, and nothing torn or later."""
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_rows(self.path) if row.get("step", 0) <= state.global_step]
        if state.global_step == 0:
            kept = []
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Write one row and flush it, so that a killed run keeps all but the row in flight."""
        if not state.is_world_process_zero:
            return
        row = to_glossary(kwargs.get("logs") or {})
        # TRL's closing summary (run time, samples per second) describes no step: it repeats the last one.
        if row and "trl/train_runtime" not in row:
            self.append({"step": state.global_step, **row})

    def append(self, row: dict[str, Any]) -> None:
        """Append one finished row."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a `metrics.jsonl` that may not exist yet; a last line torn by a kill is dropped."""
    return read_jsonl(path) if path.exists() else []


WATCHED = (
    ("entropy", "policy/entropy"),
    ("reward", "reward/mean"),
    ("accuracy", "eval/mean_at_k"),
    ("preference loss", "preference/train_nll"),
    ("held out", "preference/heldout_nll"),
)


class Progress(TrainerCallback):
    """One line with step, phase, entropy, reward and time left: a bar on a terminal, a line now and then elsewhere.

    Time left is by the pace since the first update began, with what lies between updates, such as validation.

    Args:
        label: what runs.
        quiet: say nothing.
        begins_with: the phase in which an update begins.
    """

    def __init__(self, label: str, quiet: bool = False, begins_with: str = "updating"):
        self.label, self.quiet, self.begins_with = label, quiet, begins_with
        self.bar: Any = None
        self.begun = self.shown = 0.0
        self.first_step = 0
        self.named: set[str] = set()
        self.latest: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Start the clock, and the bar where a terminal shows it."""
        self.shown, self.first_step = time.monotonic(), state.global_step
        if not state.is_world_process_zero or self.quiet:
            self.quiet = True
        elif sys.stderr.isatty():
            from tqdm import tqdm

            form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}"  # tqdm's own time counts validation
            total: dict[str, Any] = {"total": state.max_steps, "initial": state.global_step}
            self.bar = tqdm(**total, desc=self.label, leave=False, bar_format=form)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Start the clock with the first update, and name its first phase."""
        if state.global_step == self.first_step:
            self.begun = time.monotonic()
        self.phase(self.begins_with)

    def phase(self, text: str) -> None:
        """Say what the run does now; where no bar shows it, the first time only, since every update has its phases."""
        if self.bar is not None:
            self.bar.set_description_str(f"{self.label}: {text}")
        elif not self.quiet and text not in self.named:
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)
        self.named.add(text)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Remember the newest entropy and reward."""
        self.latest.update(to_glossary(kwargs.get("logs") or {}))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Advance the bar, or print a line every ten seconds."""
        now = time.monotonic()
        done = state.global_step - self.first_step
        left = duration((now - self.begun) / max(done, 1) * (state.max_steps - state.global_step))
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.status()}  {left} left", refresh=False)
            self.bar.update(state.global_step - self.bar.n)
        elif not self.quiet and now - self.shown >= 10:
            self.shown = now
            line = f"{self.label}: step {state.global_step}/{state.max_steps}  {self.status()}  {left} left"
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def status(self) -> str:
        """The numbers worth watching, such as ``entropy 0.31  reward 0.44``."""
        return "  ".join(f"{label} {self.latest[name]:.3f}" for label, name in WATCHED if name in self.latest)


VOTE = "eval/maj_at_k"


class Validation(TrainerCallback):
    """Calls `evaluate(model) -> metrics` every `every` updates, and before the first and after the last.

    The function comes from outside: training code cannot reach labels, and what it returns goes to the log only.
    """

    def __init__(
        self,
        evaluate: Callable[[Any], dict[str, float]],
        every: int,
        metrics_file: MetricsFile,
        announce: Callable[[str], None] | None = None,
    ):
        self.evaluate, self.every, self.metrics_file, self.announce = evaluate, every, metrics_file, announce
        self.last: int | None = None
        self.votes: dict[int, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure the starting point of a fresh run; a resumed one knows what was measured before."""
        if state.global_step == 0:
            self.measure(state, kwargs["model"])
        else:
            rows = read_rows(self.metrics_file.path)
            self.last = max((row["step"] for row in rows if any(key.startswith("eval/") for key in row)), default=None)
            self.votes = {row["step"]: row[VOTE] for row in rows if VOTE in row}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure on schedule."""
        if state.global_step % self.every == 0:
            self.measure(state, kwargs["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure the end point, once."""
        if self.last != state.global_step:
            self.measure(state, kwargs["model"])

    def measure(self, state: TrainerState, model: Any) -> None:
        """Evaluate without disturbing training: mode and random state are put back."""
        self.last = state.global_step
        if self.announce is not None:
            self.announce("validating")
        training = model.training
        model.eval()
        with preserved_rng(), torch.no_grad():
            metrics = self.evaluate(model)
        model.train(training)
        if state.is_world_process_zero:
            metrics = metrics | self.collapse(state.global_step, metrics)
            check_declared(metrics)
            self.metrics_file.append({"step": state.global_step, **metrics})

    def collapse(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Return the Model Collapse Step, in both readings, once it is known."""
        if VOTE not in metrics:
            return {}
        self.votes[step] = metrics[VOTE]
        steps, values = list(self.votes), list(self.votes.values())
        found = {"eval/collapse_step": collapse_step(steps, values), "eval/turning_step": turning_step(steps, values)}
        return {name: float(value) for name, value in found.items() if value is not None}


class StopCleanly(TrainerCallback):
    """Turns Ctrl-C or SIGTERM into a checkpoint at the next rollout boundary; a second Ctrl-C stops at once.

    Processes stop at the same boundary, whichever of them got the signal.
    """

    def __init__(self, updates_per_rollout: int):
        self.updates_per_rollout = updates_per_rollout
        self.requested = False
        self.previous: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Take over the signals while the run lasts."""
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self.request)
            except ValueError:  # not the main thread: whoever started us handles signals
                return

    def request(self, number: int, frame: Any) -> None:
        """First signal: finish the rollout's updates. Second: stop now."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nautotelic: stopping after this rollout's updates; once more to stop at once", file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Save and stop where a resumed run generates anew, so that it continues with the same numbers.

        Trainers save a checkpoint at the last step whatever `save_steps` says. The final model is written there anyway,
        so a run that is shorter than `save_steps` leaves that alone.
        """
        if state.global_step >= state.max_steps and state.global_step % max(int(state.save_steps or 1), 1):
            control.should_save = False
        if state.global_step % self.updates_per_rollout:
            return
        requested = torch.tensor(int(self.requested), device=args.device)
        if global_max(requested):
            self.requested = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Give the signals back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
