"""The entropy law, fitted while a run is under way: how much is left to gain, and should it stop?

    R = -a exp(H) + b          remaining gain at the present entropy:  (b - a) - R(H) = a (exp(H) - 1)

The callback keeps no state of its own: it reads the points back from the run's `metrics.jsonl` or, without one, from
the trainer's `log_history`, which both survive a resume. Entropy and reward are the columns that `autotelic forecast`
takes by itself: validation's where there is one, else `policy/entropy` and `reward/mean`.

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 1; the fit is `autotelic.functional.fit_entropy_law`.
Deviations: stopping is ours. It looks at the upper end of a's 95 % interval, and only where nothing speaks against the
law: under an intervention, with a rebounding entropy or too few points the run goes on.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autotelic.errors import UserError
from autotelic.functional import EntropyLaw, fit_entropy_law, global_max
from autotelic.functional.entropy_law import MIN_POINTS
from autotelic.runs.callbacks import MetricsFile
from autotelic.runs.logs import Curve, log_from_rows, pick_curve


class EntropyLawCallback(TrainerCallback):
    """Fits the law at every new point and logs `law/*`; can stop the run.

    Args:
        metrics_file: where points are read and `law/*` is written; place the callback after it. None uses the trainer's
            own log history.
        min_points: evaluations before the first fit, 3 at least.
        stop_when_remaining_below: stop once the upper bound of the remaining gain is below this; None never stops.
        intervention: what acts on entropy in this run, if anything; then it never stops.
        entropy_column: name of the entropy in the log; None takes the first known one.
        reward_column: name of the reward, likewise.
    """

    def __init__(
        self,
        metrics_file: MetricsFile | None = None,
        *,
        min_points: int = MIN_POINTS,
        stop_when_remaining_below: float | int | None = None,
        intervention: str | None = None,
        entropy_column: str | None = None,
        reward_column: str | None = None,
    ):
        if min_points < 3:
            raise UserError(f"min_points must be at least 3, got {min_points}: a line with an interval needs three")
        if stop_when_remaining_below is not None and not stop_when_remaining_below > 0:
            raise UserError(
                f"stop_when_remaining_below must be above 0, got {stop_when_remaining_below}: it is a gain in the "
                "units of the reward, for example 0.01"
            )
        self.metrics_file, self.min_points = metrics_file, min_points
        self.stop_below, self.intervention = stop_when_remaining_below, intervention
        self.columns = {"entropy_column": entropy_column, "reward_column": reward_column}
        self.law: EntropyLaw | None = None
        self.stopped = False
        self._rows: list[dict[str, Any]] = []
        self._position = self._num_points = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Forget what was read: a resumed run has another history."""
        self._rows, self._position, self._num_points = [], 0, 0
        self.law, self.stopped = None, False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Fit again if there is a new point; every process learns whether to stop."""
        stop = state.is_world_process_zero and self.update(state)
        if self.stop_below is not None:
            stop = bool(global_max(torch.tensor(int(stop), device=args.device)))
        if stop and not self.stopped:
            self.stopped = control.should_training_stop = control.should_save = True

    def update(self, state: TrainerState) -> bool:
        """Read new rows, fit and log; return whether the run should stop."""
        self._rows += self._new_rows(state)
        curve = self._curve()
        if curve is None or len(curve.step) == self._num_points or len(curve.step) < self.min_points:
            return False
        self._num_points = len(curve.step)
        try:
            self.law = fit_entropy_law(curve.entropy, curve.reward, intervention=self.intervention)
        except UserError:
            return False  # the entropy has not moved yet
        row = {"step": state.global_step, **self.law.metrics(float(curve.entropy[-1]))}
        if self.metrics_file is None:
            state.log_history.append(row)
        else:
            self.metrics_file.append(row)
        high = row["law/remaining_high"]
        if self.stop_below is None or self.law.warnings or not high < self.stop_below:
            return False
        print(
            f"autotelic: the entropy law leaves at most {high:.4f} to gain (95 %), below {self.stop_below:g}: stopping "
            f"at step {state.global_step}",
            file=sys.stderr,
        )
        return True

    def _new_rows(self, state: TrainerState) -> list[dict[str, Any]]:
        """Return what was logged since the last call, without rows of our own."""
        if self.metrics_file is None:
            rows = list(state.log_history[self._position :])
            self._position = len(state.log_history)
        else:
            rows, self._position = read_from(self.metrics_file.path, self._position)
        return [row for row in rows if "law/a" not in row]

    def _curve(self) -> Curve | None:
        if not self._rows:
            return None
        try:
            return pick_curve(log_from_rows(Path("this run"), self._rows, None), **self.columns)
        except UserError:
            return None  # no entropy or no reward has been logged yet


def read_from(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines of a JSON-lines file from a byte position on, and the position after them."""
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:end].splitlines()], position + end
