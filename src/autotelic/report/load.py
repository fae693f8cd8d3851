"""Read run folders: `run.json`, `metrics.jsonl`, `rollouts.jsonl`. What a run lacks is a note, not an error."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotelic.diagnostics.logs import as_number, read_jsonl
from autotelic.errors import UserError
from autotelic.report.methods import method_of

RUN_FILES = ("run.json", "metrics.jsonl", "rollouts.jsonl")


@dataclass(frozen=True)
class RolloutRow:
    """Where one row of `rollouts.jsonl` lies, and what is needed of every row: the clusters of its responses."""

    step: int
    prompt_id: str
    offset: int
    clusters: tuple[int, ...]


@dataclass
class Run:
    """One run folder: its description, its metrics by name as step -> value, and the index of its rollouts."""

    path: Path
    method: str
    seed: int | None
    description: dict[str, Any]
    metrics: dict[str, dict[int, float]]
    rollouts: list[RolloutRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among `paths`, directly below them or in their `runs/`, each once, in the given order."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give run folders ({', '.join(RUN_FILES)}) or a folder of them")
        below = sorted(child for child in (*path.glob("*"), *path.glob("runs/*")) if child.is_dir() and is_run(child))
        folders = [path] if is_run(path) else below
        if not folders:
            raise UserError(f"{path} holds no run: none of {', '.join(RUN_FILES)} in it or in the folders below it")
        found += [folder for folder in folders if folder.resolve() not in {f.resolve() for f in found}]
    return found


def is_run(path: Path) -> bool:
    """Tell whether a folder holds any file of a run."""
    return any((path / name).is_file() for name in RUN_FILES)


def find_results(paths: Sequence[Path]) -> dict[str, Any] | None:
    """Return the first `results.json` in one of the folders, as `autotelic demo` leaves it."""
    for path in paths:
        file = path / "results.json"
        if file.is_file():
            try:
                results = json.loads(file.read_bytes())
            except ValueError:
                raise UserError(f"{file} is not JSON; remove it or write it anew") from None
            if isinstance(results, dict):
                return results
    return None


def load_run(path: Path) -> Run:
    """Read one run folder."""
    notes = []
    description: dict[str, Any] = {}
    if (path / "run.json").is_file():
        try:
            description = json.loads((path / "run.json").read_bytes())
        except ValueError:
            raise UserError(f"{path / 'run.json'} is not JSON; remove it or write it anew") from None
        if not isinstance(description, dict):
            raise UserError(f"{path / 'run.json'} is not a JSON object; remove it or write it anew")
    else:
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
    rollouts = index_rollouts(path / "rollouts.jsonl")
    if not rollouts:
        notes.append("no rollouts: it is not in the rollout viewer, and has no semantic entropy")
    seed = as_number(description.get("seed"))
    return Run(
        path,
        method_of(description, path.name),
        None if seed is None else int(seed),
        description,
        {name: dict(sorted(values.items())) for name, values in metrics.items()},
        rollouts,
        notes,
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
                index.append(RolloutRow(int(row["step"]), str(row["prompt_id"]), start, clusters))
            except (ValueError, KeyError, TypeError, AttributeError):
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


def read_rollout(path: Path, row: RolloutRow) -> dict[str, Any]:
    """Read one row again, in full."""
    with path.open("rb") as file:
        file.seek(row.offset)
        return json.loads(file.readline())
