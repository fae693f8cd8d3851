"""Readers of training logs: ours, verl's, TRL's, ms-swift's, LLaMA-Factory's, TensorBoard, W&B and other CSV files.

Every reader returns a `Log`: for each column its steps and values. Nothing is interpreted here but names; what had to
be chosen or left out stands in the log's notes.
"""

import ast
import contextlib
import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autotelic.errors import UserError, closest

ENTROPY_COLUMNS = (
    r"eval/entropy",
    r"policy/entropy",
    r"(train/|rollout/)?entropy",
    r"actor/entropy(_loss)?",  # verl, new and old
    r"entropy/(all/)?mean",  # prime-rl, ms-swift
    r"policy/policy_entropy",  # SkyRL
    r"(ppo_)?actor/entropy/avg",  # AReaL
    r"(train|policy|actor)/(policy_)?entropy_loss",  # slime, OpenRLHF: the mean entropy, not a loss
)
"""What engines call the entropy of the policy, in nats a token; whole names, in the order of preference."""

VALIDATION_COLUMNS = (
    r"eval/mean_at_k",
    r"eval/(accuracy|reward)",
    r"val-core/.+/acc/mean@\d+",  # verl
    r"val-core/.+/mean@\d+",
    r"val/test_score/.+",  # verl before 0.3
    r"eval_(reward|accuracy)",  # transformers, TRL, ms-swift
    r"eval_(.+_)?(accuracy|rewards?|score|acc)(/.+)?(?<!std)",
    r"eval/.+/(avg|mean|pass)@\d+",  # prime-rl
    r"eval/(eval_)?.+_(pass1|accuracy|reward|score)",  # OpenRLHF
    r"eval/[\w.-]+",  # slime: eval/DATASET
    r"val(idation)?[/_](.+[/_])?(accuracy|acc|reward|score)(/mean(@\d+)?)?",
)
TRAINING_COLUMNS = (
    r"reward/(all/)?mean",
    r"(train/|rollout/)?(raw_)?reward",
    r"critic/score/mean",
    r"critic/rewards/mean",
    r"reward/avg_(raw_)?reward",  # SkyRL
    r"(ppo_actor/task_)?reward/avg",  # AReaL
    r"(train/)?accuracy",
    r"rewards/.*accuracy.*/mean",
)
REWARD_COLUMNS = VALIDATION_COLUMNS + TRAINING_COLUMNS
"""What engines call the reward, accuracy or score: of validation first."""

NOT_REWARDS = re.compile(
    r".*(loss|length|entropy|runtime|per_second|std|kl|num_|no_response|clip|truncat|tokens|time|epoch|step).*"
)
"""What a pattern of a whole family, such as `eval/DATASET`, must not take for a reward."""

STEP_COLUMNS = (
    "step",
    "Step",
    "_step",
    "global_step",
    "train/global_step",
    "trainer/global_step",
    "training/global_step",
    "current_steps",  # LLaMA-Factory
    "global_step/max_steps",  # ms-swift: "10/400"
    "train/step",
    "rollout/step",
    "iteration",
    "epoch",
)
LOG_FILES = ("metrics.jsonl", "trainer_state.json", "logging.jsonl", "trainer_log.jsonl")
"""Logs in a run folder: ours, transformers', ms-swift's, LLaMA-Factory's."""
_PRINTED = re.compile(r"\{'[^{}]*\}")
_NOT_FINITE = re.compile(r"(?<=: )-?(?:nan|inf)(?=[,}])")
_CONSOLE = re.compile(r"\bstep:(\d+(?:\.\d+)?)((?: - [^\s:]+:\S+)+)")


@dataclass(frozen=True)
class Log:
    """Columns of one log: name -> (steps, values), steps increasing; and what had to be decided in reading it."""

    source: Path
    columns: dict[str, tuple[np.ndarray, np.ndarray]]
    notes: tuple[str, ...] = ()
    not_finite: Mapping[str, int] = field(default_factory=dict)
    """How many values of a column are NaN or infinite, and left out."""


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
        path: `metrics.jsonl`, a run folder that holds it, `trainer_state.json`, a TensorBoard folder, a CSV file, or
            what verl prints on the console.
        step_column: name of the step column; None looks for the usual ones, and else counts rows.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a metrics.jsonl, trainer_state.json, TensorBoard folder or CSV")
    if path.is_dir():
        for name in LOG_FILES:
            if (path / name).exists():
                return read_log(path / name, step_column=step_column)
        states = sorted(path.glob("checkpoint-*/trainer_state.json"), key=lambda file: file.stat().st_mtime)
        return (
            read_log(states[-1], step_column=step_column) if states else read_tensorboard(path, step_column=step_column)
        )
    if path.name.startswith("events.out.tfevents"):
        return read_tensorboard(path, step_column=step_column)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return log_from_rows(path, [unwrapped(row) for row in read_jsonl(path)], step_column)
    if suffix == ".json":
        return read_trainer_state(path, step_column)
    if suffix in {".csv", ".tsv"}:
        return read_csv(path, step_column=step_column)
    if suffix in {".log", ".txt", ".out"}:
        return read_console(path, step_column=step_column)
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
            except (ValueError, RecursionError):
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


def read_trainer_state(path: Path, step_column: str | None = None) -> Log:
    """Read the `log_history` of transformers' `trainer_state.json`, or a list of rows."""
    try:
        state = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":  # one object a line, called .json
            return log_from_rows(path, [unwrapped(row) for row in read_jsonl(path)], step_column)
        raise UserError(f"{path} is not JSON; a trainer_state.json of transformers was expected") from None
    history = state.get("log_history") if isinstance(state, dict) else state
    if not isinstance(history, list):
        raise UserError(f"{path} has no log_history; a trainer_state.json of transformers was expected")
    return log_from_rows(path, [row for row in history if isinstance(row, dict)], step_column)


def read_csv(path: Path, *, step_column: str | None = None) -> Log:
    """Read a CSV or TSV with a header; W&B's `run - metric` columns lose the run's name where that stays unique."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            header = file.readline()
            file.seek(0)
            delimiter = next((mark for mark in "\t;" if mark in header and "," not in header), ",")
            delimiter = "\t" if path.suffix.lower() == ".tsv" else delimiter
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, delimiter=delimiter) if line]
        except csv.Error as error:
            raise UserError(f"{path} is not a CSV file: {error}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    if len(lines) < 2:
        raise UserError(f"{path} is empty; a header and at least one row are needed")
    if delimiter == ";":  # where a comma may be the decimal mark
        lines[1:] = [[cell.replace(",", ".") for cell in line] for line in lines[1:]]
    rows = [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]
    names = [name for name in lines[0] if name and not name.endswith(("__MIN", "__MAX"))]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has two columns {twice!r}; give each its own name")
    short = {name: name.rsplit(" - ", 1)[-1] for name in names}
    renamed = {name: s if list(short.values()).count(s) == 1 else name for name, s in short.items()}
    return log_from_rows(path, [{renamed[n]: row.get(n) for n in names} for row in rows], step_column)


def read_console(path: Path, *, step_column: str | None = None) -> Log:
    """Read what verl prints, `step:4 - actor/entropy:0.67 - ...`, or transformers, `{'loss': 0.1, 'entropy': 0.67}`."""
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            found = _CONSOLE.search(line)
            if found:
                pairs = [pair.rsplit(":", 1) for pair in found.group(2).split(" - ") if ":" in pair]
                rows.append({"step": found.group(1)} | {name: number_in(value) for name, value in pairs})
            elif (printed := _PRINTED.search(line)) is not None:
                with contextlib.suppress(ValueError, SyntaxError, RecursionError):
                    rows.append(ast.literal_eval(_NOT_FINITE.sub(r"'\g<0>'", printed.group())))
    if not rows:
        raise UserError(
            f"{path} is not a log that can be read: it has no line such as 'step:4 - actor/entropy:0.6 - ...' or "
            "a printed dict; give .jsonl, .json, .csv, .tsv or a TensorBoard folder"
        )
    return log_from_rows(path, rows, step_column)


def number_in(text: str) -> str:
    """Return the number of a printed value such as `np.float64(0.4)`, or the text itself."""
    found = re.fullmatch(r"np\.\w+\(([^()]+)\),?", text)
    return found.group(1) if found else text.rstrip(",")


def read_tensorboard(path: Path, *, step_column: str | None = None) -> Log:
    """Read the scalars of a TensorBoard folder (needs the `tensorboard` package); its steps are no column."""
    files = [path] if path.is_file() else sorted(path.rglob("events.out.tfevents*"))
    if not files:
        raise UserError(
            f"{path} holds no metrics.jsonl, trainer_state.json or TensorBoard events; give a log or its folder"
        )
    if step_column is not None:
        raise UserError(f"{path} holds TensorBoard events, which count their own steps: leave --step-column out")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise UserError("reading TensorBoard events needs the package: pip install tensorboard") from None
    found: dict[str, dict[float, float]] = {}
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
    found: dict[str, dict[float, float]] = {}
    steps: list[float] = []
    not_finite: dict[str, int] = {}
    for number, row in enumerate(rows):
        step = number if step_name is None else as_step(row.get(step_name))
        if step is None:
            continue
        steps.append(float(step))
        for name, raw in row.items():
            value = as_number(raw)
            if name != step_name and value is not None:
                found.setdefault(name, {})[step] = value
            elif is_not_finite(raw):
                not_finite[name] = not_finite.get(name, 0) + 1
    if not steps and step_name is not None:
        raw = next((row[step_name] for row in rows if row.get(step_name) not in (None, "")), None)
        raise UserError(
            f"{path}: column {step_name!r} holds no number (the first is {raw!r}); --step-column names another"
        )
    notes = notes_on_steps(steps, step_name)
    if len(steps) < len(rows):
        notes.append(f"{len(rows) - len(steps)} of {len(rows)} rows have no number in {step_name} and are left out")
    return Log(path, to_columns(found), tuple(notes), not_finite)


def notes_on_steps(steps: Sequence[float], name: str | None) -> list[str]:
    """Say how steps were counted, and where a resumed run took some of them again."""
    if name is None:
        return ["no step column was found: rows are counted; --step-column names one"]
    back = [i for i in range(1, len(steps)) if steps[i] < steps[i - 1]]
    if not back:
        return []
    where = "; ".join(f"{steps[i - 1]:g} to {steps[i]:g}" for i in back[:3])
    return [f"{name} goes back {len(back)} time(s) ({where}): of a step that comes twice, the later row is kept"]


def is_not_finite(raw: Any) -> bool:
    """Tell whether a value is a number, and NaN or infinite."""
    try:
        return isinstance(raw, float | str) and not math.isfinite(float(raw))
    except ValueError:
        return False


def as_number(raw: Any) -> float | None:
    """Return a finite number, or None; `45.2%` is .452."""
    if raw is None or isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    scale = 1.0
    if isinstance(raw, str):
        raw = raw.strip()
        if raw.endswith("%"):
            raw, scale = raw[:-1], 0.01
    try:
        value = float(raw) * scale
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def as_step(raw: Any) -> float | None:
    """Return a step, or None; `10/400`, a step of so many, is 10."""
    return as_number(raw.split("/")[0] if isinstance(raw, str) and re.fullmatch(r"\d+/\d+", raw) else raw)


def to_columns(found: Mapping[str, Mapping[Any, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sort each column by step; steps are integers unless one is a fraction."""
    columns = {}
    for name, values in found.items():
        steps = sorted(values)
        kind = np.int64 if all(float(step).is_integer() and abs(step) < 2**53 for step in steps) else np.float64
        columns[name] = (np.array(steps, dtype=kind), np.array([values[s] for s in steps], dtype=np.float64))
    return columns


def pick_curve(log: Log, *, entropy_column: str | None = None, reward_column: str | None = None) -> Curve:
    """Pair an entropy with a reward: the named columns, or the first known name of each, validation first.

    Where the reward is logged at steps without an entropy, the entropy is interpolated linearly, and a note says so.
    """
    entropy_name, _ = choose(log, entropy_column, ENTROPY_COLUMNS, "entropy")
    reward_name, others = choose(log, reward_column, REWARD_COLUMNS, "reward")
    if entropy_name == reward_name:
        raise UserError(f"{entropy_name!r} is given as the entropy and as the reward: name two columns")
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
    if others:
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        notes.append(
            f"{reward_name} is taken as the reward (most points, then by name), not {shown}: "
            "--reward-column names another"
        )
    for name in (entropy_name, reward_name):
        if count := log.not_finite.get(name):
            notes.append(f"{count} values of {name} are NaN or infinite and are left out")
    entropy = np.interp(steps, h_steps, h_values)
    return Curve(steps, entropy, rewards, entropy_name, reward_name, (*notes, *log.notes))


def choose(log: Log, name: str | None, known: Iterable[str], role: str) -> tuple[str, list[str]]:
    """Return the column asked for, or the first known one that the log has, and the others that are as good.

    Of several that one name fits, the one with the most points is taken, then the first by name.
    """
    if name is not None:
        if name not in log.columns:
            raise UserError(missing_column(log.source, name, role, log.columns))
        return name, []
    for pattern in known:
        fitting = [
            column
            for column in log.columns
            if re.fullmatch(pattern, column)
            and (role != "reward" or not NOT_REWARDS.fullmatch(column.rsplit("/", 1)[-1]))
        ]
        if fitting:
            ranked = sorted(fitting, key=lambda column: (-len(log.columns[column][0]), column))
            return ranked[0], ranked[1:]
    raise UserError(missing_column(log.source, None, role, log.columns))


def is_training_reward(column: str) -> bool:
    """Whether a column is the reward that training used, and not a validation."""
    return not any(re.fullmatch(pattern, column) for pattern in VALIDATION_COLUMNS)


def missing_column(path: Path, name: str | None, role: str, present: Iterable[str]) -> str:
    """Say which column is missing, what is there, and which option names another."""
    names = sorted(present)
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    what = f"no column {name!r}" if name else f"no {role} column that is known by name"
    hint = closest(name, names) if name else ""
    return f"{path} has {what}; it has: {shown or 'no numeric column'}; name one with --{role}-column{hint}"
