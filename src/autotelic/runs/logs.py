"""Readers of training logs: our `metrics.jsonl`, verl's, `trainer_state.json`, TensorBoard, W&B and other CSV files.

Every reader returns a `Log`: for each column its steps and values. Nothing is interpreted here but names.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotelic.errors import UserError, closest

ENTROPY_COLUMNS = ("eval/entropy", "policy/entropy", "entropy", "train/entropy", "actor/entropy", "actor/entropy_loss")
REWARD_COLUMNS = (
    "eval/mean_at_k",
    "eval/accuracy",
    "eval/reward",
    "eval_reward",
    "reward/mean",
    "reward",
    "train/reward",
    "critic/score/mean",
    "critic/rewards/mean",
)
STEP_COLUMNS = ("step", "Step", "_step", "global_step", "train/global_step", "trainer/global_step")


@dataclass(frozen=True)
class Log:
    """Columns of one log: name -> (steps, values), steps increasing."""

    source: Path
    columns: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Curve:
    """Entropy and reward at the same steps, with the names of the columns that they came from."""

    step: np.ndarray
    entropy: np.ndarray
    reward: np.ndarray
    entropy_column: str
    reward_column: str
    notes: tuple[str, ...] = ()


def read_log(path: Path, *, step_column: str | None = None) -> Log:
    """Read any supported log, recognised by what it is rather than by an option.

    Args:
        path: `metrics.jsonl`, a run folder that holds it, `trainer_state.json`, a TensorBoard folder, or a CSV file.
        step_column: name of the step column of a CSV; None looks for the usual ones, and else counts rows.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a metrics.jsonl, trainer_state.json, TensorBoard folder or CSV")
    if path.is_dir():
        for name in ("metrics.jsonl", "trainer_state.json"):
            if (path / name).exists():
                return read_log(path / name, step_column=step_column)
        return read_tensorboard(path)
    if path.name.startswith("events.out.tfevents"):
        return read_tensorboard(path)
    if path.suffix == ".jsonl":
        return log_from_rows(path, [unwrapped(row) for row in read_jsonl(path)], step_column)
    if path.suffix == ".json":
        return read_trainer_state(path)
    if path.suffix in {".csv", ".tsv"}:
        return read_csv(path, step_column=step_column)
    raise UserError(f"{path} is not a log that can be read: give .jsonl, .json, .csv, .tsv or a TensorBoard folder")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; a last line torn by a killed run is dropped, any other bad line is refused."""
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                if not line.endswith(b"\n"):
                    break
                raise UserError(f"{path}, line {number} is not JSON; a log holds one JSON object a line") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number} is not a JSON object; a log holds one object a line")
            rows.append(row)
    return rows


def unwrapped(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of verl's file tracker, {"step", "data": {...}}, as one flat row; any other row as it is."""
    data = row.get("data")
    return {"step": row.get("step")} | data if isinstance(data, dict) else row


def read_trainer_state(path: Path) -> Log:
    """Read the `log_history` of transformers' `trainer_state.json`."""
    try:
        state = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path} is not JSON; a trainer_state.json of transformers was expected") from None
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise UserError(f"{path} has no log_history; a trainer_state.json of transformers was expected")
    return log_from_rows(path, [row for row in history if isinstance(row, dict)], None)


def read_csv(path: Path, *, step_column: str | None = None) -> Log:
    """Read a CSV or TSV with a header; W&B's `run - metric` columns lose the run's name where that stays unique."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        try:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        except csv.Error as error:
            raise UserError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        raise UserError(f"{path} is empty; a header and at least one row are needed")
    names = [name for name in rows[0] if name and not name.endswith(("__MIN", "__MAX"))]
    short = {name: name.rsplit(" - ", 1)[-1] for name in names}
    renamed = {name: s if list(short.values()).count(s) == 1 else name for name, s in short.items()}
    return log_from_rows(path, [{renamed[n]: row.get(n) for n in names} for row in rows], step_column)


def read_tensorboard(path: Path) -> Log:
    """Read the scalars of a TensorBoard folder (needs the `tensorboard` package)."""
    files = [path] if path.is_file() else sorted(path.rglob("events.out.tfevents*"))
    if not files:
        raise UserError(
            f"{path} holds no metrics.jsonl, trainer_state.json or TensorBoard events; give a log or its folder"
        )
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise UserError("reading TensorBoard events needs the package: pip install tensorboard") from None
    found: dict[str, dict[int, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        for tag in events.Tags().get("scalars", []):
            found.setdefault(tag, {}).update({e.step: float(e.value) for e in events.Scalars(tag)})
        for tag in events.Tags().get("tensors", []):
            values = {e.step: scalar_of(e.tensor_proto) for e in events.Tensors(tag)}
            found.setdefault(tag, {}).update({step: v for step, v in values.items() if v is not None})
    return Log(path, to_columns(found))


def scalar_of(proto: Any) -> float | None:
    """Return a tensor summary's one number, or None where it holds something else."""
    from tensorboard.util.tensor_util import make_ndarray

    array = make_ndarray(proto)
    return float(array) if array.size == 1 and array.dtype.kind in "fiu" else None


def log_from_rows(path: Path, rows: Sequence[Mapping[str, Any]], step_column: str | None) -> Log:
    """Gather rows into columns; the last value of a step wins, and what is not a finite number is left out."""
    names = {name for row in rows for name in row}
    if not rows:
        raise UserError(f"{path} is empty; nothing has been logged yet")
    if step_column is not None and step_column not in names:
        raise UserError(missing_column(path, step_column, "step", names))
    step_name = step_column or next((name for name in STEP_COLUMNS if name in names), None)
    found: dict[str, dict[int, float]] = {}
    for number, row in enumerate(rows):
        step = number if step_name is None else as_number(row.get(step_name))
        if step is None:
            continue
        for name, raw in row.items():
            value = as_number(raw)
            if name != step_name and value is not None:
                found.setdefault(name, {})[int(step)] = value
    return Log(path, to_columns(found))


def as_number(raw: Any) -> float | None:
    """Return a finite number, or None."""
    if raw is None or isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    try:
        value = float(raw)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def to_columns(found: Mapping[str, Mapping[int, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sort each column by step."""
    columns = {}
    for name, values in found.items():
        steps = sorted(values)
        columns[name] = (np.array(steps, dtype=np.int64), np.array([values[s] for s in steps], dtype=np.float64))
    return columns


def pick_curve(log: Log, *, entropy_column: str | None = None, reward_column: str | None = None) -> Curve:
    """Pair an entropy with a reward: the named columns, or the first known name of each, validation first.

    Where the reward is logged at steps without an entropy, the entropy is interpolated linearly, and a note says so.
    """
    entropy_name = choose(log, entropy_column, ENTROPY_COLUMNS, "entropy")
    reward_name = choose(log, reward_column, REWARD_COLUMNS, "reward")
    (h_steps, h_values), (r_steps, r_values) = log.columns[entropy_name], log.columns[reward_name]
    inside = (r_steps >= h_steps[0]) & (r_steps <= h_steps[-1])
    steps, rewards = r_steps[inside], r_values[inside]
    if not len(steps):
        raise UserError(
            f"{entropy_name!r} and {reward_name!r} in {log.source} share no step; choose columns logged together"
        )
    notes = []
    between = int((~np.isin(steps, h_steps)).sum())
    if between:
        notes.append(f"{between} of {len(steps)} steps have no {entropy_name}: interpolated between its neighbours")
    if len(steps) < len(r_steps):
        notes.append(f"{len(r_steps) - len(steps)} steps lie outside the steps of {entropy_name} and are left out")
    entropy = np.interp(steps, h_steps, h_values)
    return Curve(steps, entropy, rewards, entropy_name, reward_name, tuple(notes))


def choose(log: Log, name: str | None, known: Iterable[str], role: str) -> str:
    """Return the column asked for, or the first known one that the log has."""
    if name is not None:
        if name not in log.columns:
            raise UserError(missing_column(log.source, name, role, log.columns))
        return name
    for candidate in known:
        if candidate in log.columns:
            return candidate
    raise UserError(missing_column(log.source, None, role, log.columns))


def missing_column(path: Path, name: str | None, role: str, present: Iterable[str]) -> str:
    """Say which column is missing, what is there, and which option names another."""
    names = sorted(present)
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    what = f"no column {name!r}" if name else f"no {role} column that is known by name"
    hint = closest(name, names) if name else ""
    return f"{path} has {what}; it has: {shown or 'no numeric column'}; name one with --{role}-column{hint}"
