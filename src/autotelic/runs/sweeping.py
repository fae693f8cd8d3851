"""Many small runs: a grid of settings times seeds, one atomic result file per trial, a table, a strip plot.

A trial is a function of (settings, folder) that returns numbers. Its identity is a hash of function and settings, so
that a finished one is never run again, whoever ran it and however the driver ended.
"""

import hashlib
import importlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotelic.errors import UserError, closest
from autotelic.runs.files import write_atomically

TrialFunction = Callable[[dict[str, Any], Path], Mapping[str, Any]]
TRAIN = "autotelic.cli.sweep.train_trial"


@dataclass(frozen=True)
class Trial:
    """One run: which function, with which settings, and the part of them that the grid varies."""

    function: str
    settings: dict[str, Any]
    cell: dict[str, Any]
    seed: int

    @property
    def key(self) -> str:
        """Return the identity: equal for equal work."""
        identity = json.dumps([self.function, self.settings, self.seed], sort_keys=True, default=str)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Return the cell as text, such as `learning_rate=0.0002, temperature=0.5`."""
        return ", ".join(f"{name}={value}" for name, value in self.cell.items()) or "all"


def make_trials(function: str, settings: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], num_seeds: int) -> list:
    """Return the trials of a grid, seed by seed, so that early results cover every cell."""
    if num_seeds < 1:
        raise UserError(f"the number of seeds must be at least 1, got {num_seeds}")
    for name, values in grid.items():
        if not values or len(set(map(str, values))) < len(values):
            raise UserError(f"grid: {name} needs different values, got {list(values)}")
        if name == "seed":
            raise UserError("grid: the seed is not a grid setting; use --seeds")
    cells = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [
        Trial(function, {**settings, **cell, "seed": seed}, cell, seed) for seed in range(num_seeds) for cell in cells
    ]


class TrialStore:
    """Results on disk: `folder/trials/KEY/result.json`, written whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            (folder / "trials").mkdir(parents=True, exist_ok=True)
            probe = folder / ".write_test"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error

    def read(self, trial: Trial) -> dict[str, Any] | None:
        """Return the numbers of a finished trial, or None."""
        path = self.place(trial) / "result.json"
        return json.loads(path.read_text())["metrics"] if path.exists() else None

    def write(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        """Record a finished trial."""
        path = self.place(trial) / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"function": trial.function, "settings": trial.settings, "cell": trial.cell, "metrics": dict(metrics)}
        write_atomically(path, json.dumps(record, default=str) + "\n")

    def place(self, trial: Trial) -> Path:
        """Return the trial's own folder."""
        return self.folder / "trials" / trial.key

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that have no result yet, in order."""
        return [trial for trial in trials if not (self.place(trial) / "result.json").exists()]


def find_function(name: str) -> TrialFunction:
    """Return the function `package.module.function`."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import the trial function {name!r}: {error}; write package.module.function") from error


def run_trial(trial: Trial, store: TrialStore) -> str | None:
    """Run one trial and record it; return what went wrong, or None. A failed trial leaves `error.txt`, no result."""
    import traceback

    place = store.place(trial)
    place.mkdir(parents=True, exist_ok=True)
    try:
        metrics = find_function(trial.function)(dict(trial.settings), place)
    except Exception as error:  # whatever it is, the other trials go on
        (place / "error.txt").write_text(traceback.format_exc())
        return f"{trial.label}, seed {trial.seed}: {type(error).__name__}: {error}"
    store.write(trial, metrics)
    (place / "error.txt").unlink(missing_ok=True)
    return None


def summarize(trials: Sequence[Trial], store: TrialStore, metric: str) -> list[dict[str, Any]]:
    """Return one row per cell: count, mean with 95 % t-interval over seeds, sd, best and worst of n, the values."""
    from scipy.stats import t as student

    values: dict[str, list[float]] = {}
    for trial in trials:
        found = store.read(trial)
        values.setdefault(trial.label, [])
        if found is None:
            continue
        if metric not in found:
            raise UserError(
                f"the trials have no metric {metric!r}{closest(metric, found)}; they have {', '.join(sorted(found))}"
            )
        values[trial.label].append(float(found[metric]))
    rows = []
    for label, row in values.items():
        n = len(row)
        mean = float(np.mean(row)) if n else math.nan
        sd = float(np.std(row, ddof=1)) if n > 1 else math.nan
        half = float(student.ppf(0.975, n - 1)) * sd / math.sqrt(n) if n > 1 else math.nan
        best, worst = (max(row), min(row)) if n else (math.nan, math.nan)
        rows.append(
            {"cell": label, "n": n, "mean": mean, "low": mean - half, "high": mean + half, "sd": sd}
            | {"best": best, "worst": worst, "values": row}
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Return the rows as text."""
    width = max(len("cell"), *(len(row["cell"]) for row in rows))
    lines = [f"{metric}, 95 % intervals over seeds"]
    lines.append(f"{'cell':<{width}}  {'n':>3}  {'mean':>7}  {'interval':<18}  {'sd':>7}  {'best':>7}  {'worst':>7}")
    for row in rows:
        interval = f"[{row['low']:.4f}, {row['high']:.4f}]" if row["n"] > 1 else "none"
        numbers = (f"{row[name]:>7.4f}" if row["n"] else f"{'-':>7}" for name in ("mean", "sd", "best", "worst"))
        mean, sd, best, worst = numbers
        lines.append(f"{row['cell']:<{width}}  {row['n']:>3}  {mean}  {interval:<18}  {sd}  {best}  {worst}")
    return "\n".join(lines)


def strip_plot(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Return a figure for `autotelic.report.figure_page`: a strip of points per cell, its mean and its interval."""
    traces: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        spread = np.linspace(-0.2, 0.2, max(row["n"], 1))[: row["n"]]
        points = {"x": [i + float(s) for s in spread], "y": row["values"], "mode": "markers", "name": row["cell"]}
        traces.append({**points, "marker": {"opacity": 0.6}})
        if row["n"] > 1:
            bars = {"type": "data", "array": [row["high"] - row["mean"]], "symmetric": True}
            mean = {"x": [i + 0.3], "y": [row["mean"]], "error_y": bars, "mode": "markers", "showlegend": False}
            traces.append({**mean, "marker": {"color": "black"}})
    ticks = {"tickvals": list(range(len(rows))), "ticktext": [row["cell"] for row in rows]}
    return {
        "title": "One point per seed",
        "traces": traces,
        "layout": {"xaxis": ticks, "yaxis": {"title": {"text": metric}}},
    }
