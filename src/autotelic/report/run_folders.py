"""Read run folders. What a run lacks is a note, not an error.

`run.json`, `metrics.jsonl`, `rollouts.jsonl` and `followed.jsonl` are what training leaves. `evaluation.json` is what
`autotelic eval RUN --temperature ... --output RUN/evaluation.json` adds; a folder with nothing else is the base model.
Beside the runs may lie `results.json` (`autotelic demo`) and `logits.json` (`autotelic logits ... --output`).
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from autotelic.errors import UserError, closest
from autotelic.report.method_styles import method_of, settings_of
from autotelic.runs.logs import as_number, read_jsonl

RUN_FILES = ("run.json", "metrics.jsonl", "rollouts.jsonl", "followed.jsonl", "evaluation.json")
MAX_SETTING_CHARACTERS = 80
BELOW = ("*", "runs/*", "*/run", "trials/*/run")  # where run folders lie in a folder of them: demo, evidence, sweep


@dataclass(frozen=True)
class RolloutRow:
    """Where one row of rollouts lies, and what is needed of every row: the clusters of its responses.

    `right`: whether each response is right, where labels were given to the report.
    """

    step: int
    prompt_id: str
    offset: int
    clusters: tuple[int, ...]
    file: str = "rollouts.jsonl"
    right: tuple[bool, ...] = ()


@dataclass
class Run:
    """One run folder: its description, its metrics by name as step -> value, the index of its rollouts.

    `followed`: rollouts of prompts that come back at every look. `evaluation`: temperature -> metric -> estimate.
    """

    path: Path
    method: str
    seed: int | None
    description: dict[str, Any]
    metrics: dict[str, dict[int, float]]
    rollouts: list[RolloutRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    followed: list[RolloutRow] = field(default_factory=list)
    evaluation: dict[float, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name; that of the folder around it where it is just `run`."""
        return self.path.name if self.path.name != "run" else self.path.parent.name


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among `paths`, directly below them or in their `runs/`, each once, in the given order."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give run folders ({', '.join(RUN_FILES)}) or a folder of them")
        children = {child for pattern in BELOW for child in path.glob(pattern)}
        below = sorted(child for child in children if child.is_dir() and is_run(child))
        folders = [path] if is_run(path) else below
        if not folders:
            raise UserError(f"{path} holds no run: none of {', '.join(RUN_FILES)} in it or in the folders below it")
        found += [folder for folder in folders if folder.resolve() not in {f.resolve() for f in found}]
    return found


def matching(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """Return the runs that match every pattern: `SETTING=VALUE`, or the folder's name with `*` and `?`."""
    found = list(runs)
    for pattern in only:
        name, mark, value = pattern.partition("=")
        if mark:
            found = [run for run in found if setting_of(run, name.strip(), runs) == value.strip()]
        else:
            found = [run for run in found if fnmatch(run.name, pattern)]
        if not found:
            names = ", ".join(run.name for run in runs[:8]) + (", ..." if len(runs) > 8 else "")
            raise UserError(f"--only {pattern}: no run is left of {names}")
    return found


def setting_of(run: Run, name: str, runs: Sequence[Run]) -> str | None:
    """Return the value of a setting as text; None where this run has not set it. One of the runs must know the name."""
    known = {each for other in runs for each in all_settings(other)}
    if name not in known:
        raise UserError(f"no run has a setting {name!r}{closest(name, known)}")
    return all_settings(run).get(name)


def all_settings(run: Run) -> dict[str, str]:
    """Return every setting of a run as text, nested names joined by dots, and its method and seed."""
    own = {"method": run.method} | ({} if run.seed is None else {"seed": str(run.seed)})
    return flat(settings_of(run.description)) | own


def flat(settings: Mapping[str, Any], start: str = "") -> dict[str, str]:
    """Return nested settings as one level of text, names joined by dots; a long value is cut, None is left out."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{start}{name}.")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            found[start + name] = text if len(text) <= MAX_SETTING_CHARACTERS else f"{text[:MAX_SETTING_CHARACTERS]}…"
    return found


def is_run(path: Path) -> bool:
    """Tell whether a folder holds any file of a run."""
    return any((path / name).is_file() for name in RUN_FILES)


def find_json(paths: Sequence[Path], name: str) -> dict[str, Any] | None:
    """Return the first file of this name in one of the folders."""
    return next((read_object(path / name) for path in paths if (path / name).is_file()), None)


def read_object(file: Path) -> dict[str, Any]:
    """Read one JSON object."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise UserError(f"{file} is not JSON; remove it or write it anew") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is not a JSON object; remove it or write it anew")
    return found


def read_evaluation(file: Path) -> dict[float, dict[str, Any]]:
    """Return temperature -> metric -> estimate of what `autotelic eval --output` wrote; the samples are left out."""
    found: dict[float, dict[str, Any]] = {}
    for name, result in (read_object(file) if file.is_file() else {}).items():
        try:
            temperature = float(name)
        except ValueError:
            continue  # "samples": a file of responses, whose temperature is not known
        if isinstance(result, dict) and math.isfinite(temperature):
            found[temperature] = {
                metric: estimate
                for metric, estimate in result.items()
                if isinstance(estimate, dict) and as_number(estimate.get("value")) is not None
            }
    return dict(sorted(found.items()))


def load_run(path: Path) -> Run:
    """Read one run folder."""
    notes = []
    description = read_object(path / "run.json") if (path / "run.json").is_file() else {}
    evaluation = read_evaluation(path / "evaluation.json")
    if not description:
        notes.append("no run.json: method, seed and settings are not known, the folder's name stands for the method")
    metrics: dict[str, dict[int, float]] = defaultdict(dict)
    rows = read_jsonl(path / "metrics.jsonl") if (path / "metrics.jsonl").is_file() else []
    for row in rows:
        step = as_number(row.get("step"))
        if step is None:
            continue
        for name, raw in row.items():
            value = as_number(raw)
            if name != "step" and value is not None:
                metrics[name][int(step)] = value
    if not metrics:
        notes.append("no metrics: the curves and the law leave it out")
    rollouts, followed = (index_rollouts(path / name) for name in ("rollouts.jsonl", "followed.jsonl"))
    if not rollouts and not followed:
        notes.append("no rollouts: it is not in the rollout viewer, and has no semantic entropy")
    if evaluation and not (description or metrics or rollouts or followed):
        notes = ["an evaluation only: it is in the temperature heat map"]
    seed = as_number(description.get("seed"))
    return Run(
        path,
        method_of(description, path.name if path.name != "run" else path.parent.name),
        None if seed is None else int(seed),
        description,
        {name: dict(sorted(values.items())) for name, values in metrics.items()},
        rollouts,
        notes,
        followed,
        evaluation,
    )


def index_rollouts(path: Path) -> list[RolloutRow]:
    """Read every row once and keep its place, its step, its prompt and its clusters; a torn last line is dropped."""
    index: list[RolloutRow] = []
    if not path.is_file():
        return index
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                clusters = clusters_of(row["responses"])
                index.append(RolloutRow(int(row["step"]), str(row["prompt_id"]), start, clusters, path.name))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                if not line.endswith(b"\n"):
                    break
                raise UserError(
                    f"{path}, line {number} is not a rollout (step, prompt_id, prompt, responses)"
                ) from None
    return index


def clusters_of(responses: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Return the recorded clusters; where there are none, responses whose answers read the same share a cluster."""
    if any("cluster" in response for response in responses):
        return tuple(int(response.get("cluster", -1)) for response in responses)
    from autotelic.answers import extract

    answers = [extract(str(response.get("text", ""))) for response in responses]
    numbers: dict[str, int] = {}
    return tuple(-1 if a is None else numbers.setdefault(a.strip(), len(numbers)) for a in answers)


def as_text(prompt: Any) -> str:
    """Return a prompt as text, the messages of a conversation one below the other."""
    if isinstance(prompt, list):
        return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in prompt if isinstance(m, dict))
    return "" if prompt is None else str(prompt)


def read_rollout(folder: Path, row: RolloutRow) -> dict[str, Any]:
    """Read one row again, in full."""
    with (folder / row.file).open("rb") as file:
        file.seek(row.offset)
        return json.loads(file.readline())
