"""Pictures beside the curves: temperature heat maps, logit histograms, seeds one by one, accuracy against the EM loss.

Each reads what a command of ours has written, and returns plain data; None or an empty list where there is nothing.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autotelic.errors import UserError
from autotelic.report.data import Group, band, short
from autotelic.report.method_styles import settings_of, style_of
from autotelic.report.run_folders import Run
from autotelic.runs.logs import as_number

MAX_BINS = 400
MAX_COLUMNS = 40
MAX_FRAMES, MAX_FRAME_BYTES = 6, 2_000_000
PNG = b"\x89PNG\r\n\x1a\n"
HEAT_KINDS = ("mean@", "pass@", "maj@")
HEAT_METRICS = (("mean@k", "eval/mean_at_k"), ("pass@k", "eval/pass_at_k"), ("maj@k", "eval/maj_at_k"))


def training_temperature(run: Run) -> float | None:
    """Return the temperature that a run sampled its rollouts at; None where it was not trained or does not say."""
    return as_number(settings_of(run.description).get("temperature"))


def by_temperature(groups: Sequence[Group]) -> list[tuple[Group, float | None, list[Run]]]:
    """Split groups by training temperature; rows of a heat map, in the order of the groups, cold before hot."""
    rows = []
    for group in groups:
        found: dict[float | None, list[Run]] = {}
        for run in group.runs:
            found.setdefault(training_temperature(run), []).append(run)
        rows += [(group, t, runs) for t, runs in sorted(found.items(), key=lambda item: item[0] or 0.0)]
    return rows


def row_label(group: Group, temperature: float | None, runs: Sequence[Run]) -> str:
    """Name one row: the method without its settings, and its training temperature."""
    label = group.label.split(" (")[0]
    own = label if temperature is None else f"{label}, T {temperature:g}"
    return f"{own}, n = {len(runs)}" if len(runs) > 1 else own


def heat_maps(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return accuracy over training temperature x evaluation temperature, and x training step."""
    maps = [evaluation_map(groups), step_map(groups)]
    return [found for found in maps if found]


def evaluation_map(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return the map of what `autotelic eval RUN --temperature ... --output` measured, where temperatures differ."""
    rows = [(g, t, [r for r in runs if r.evaluation]) for g, t, runs in by_temperature(groups)]
    rows = [row for row in rows if row[2]]
    columns = sorted({temperature for _, _, runs in rows for run in runs for temperature in run.evaluation})
    names = {name for _, _, runs in rows for run in runs for found in run.evaluation.values() for name in found}
    metrics = sorted((n for n in names if n.startswith(HEAT_KINDS)), key=metric_order)

    def value(run: Run, metric: str, column: float) -> float | None:
        return as_number(run.evaluation.get(column, {}).get(metric, {}).get("value"))

    if len({t for _, t, _ in rows if t is not None}.union(columns)) < 2:
        return None
    return heat_map("evaluation temperature", rows, columns, metrics, value)


def step_map(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return the map over training steps, from the runs' own validation; only where training temperatures differ."""
    metrics = {
        name: metric for name, metric in HEAT_METRICS if any(r.metrics.get(metric) for g in groups for r in g.runs)
    }
    rows = [
        (g, t, [r for r in runs if any(r.metrics.get(m) for m in metrics.values())])
        for g, t, runs in by_temperature(groups)
    ]
    rows = [row for row in rows if row[2]]
    if len({temperature for _, temperature, _ in rows if temperature is not None}) < 2:
        return None
    columns = sorted(
        {s for _, _, runs in rows for run in runs for m in metrics.values() for s in run.metrics.get(m, {})}
    )
    if len(columns) > MAX_COLUMNS:
        index = np.unique(np.linspace(0, len(columns) - 1, MAX_COLUMNS).round().astype(int))
        columns = [columns[i] for i in index]

    def value(run: Run, metric: str, column: float) -> float | None:
        return run.metrics.get(metrics[metric], {}).get(int(column))

    return heat_map("optimizer step", rows, [float(c) for c in columns], list(metrics), value)


def heat_map(
    axis: str,
    rows: Sequence[tuple[Group, float | None, list[Run]]],
    columns: Sequence[float],
    metrics: Sequence[str],
    value: Callable[[Run, str, float], float | None],
) -> dict[str, Any] | None:
    """Return one map: the mean over seeds in every cell, for every metric."""
    if not rows or not columns or not metrics:
        return None
    values: dict[str, list[list[float | None]]] = {}
    for metric in metrics:
        values[metric] = []
        for _, _, runs in rows:
            cells = [[v for run in runs if (v := value(run, metric, column)) is not None] for column in columns]
            values[metric].append([short([np.mean(cell)])[0] if cell else None for cell in cells])
    return {
        "axis": axis,
        "columns": list(columns),
        "rows": [{"method": g.key, "label": row_label(g, t, runs), "n": len(runs)} for g, t, runs in rows],
        "metrics": list(metrics),
        "values": values,
    }


def metric_order(name: str) -> tuple[int, int]:
    """Order mean@k, pass@1 ... pass@k, maj@k."""
    kind, _, k = name.partition("@")
    return HEAT_KINDS.index(f"{kind}@"), int(k) if k.isdigit() else 0


def logits(found: Mapping[str, Any] | None, groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return histograms, moments and mean logit per rank of what `autotelic logits --output` wrote."""
    if not found:
        return None
    known: dict[Any, Group] = {run.name: group for group in groups for run in group.runs}
    known |= {run.path.resolve(): group for group in groups for run in group.runs}
    models = []
    try:
        settings = found["settings"]
        for number, (name, row) in enumerate(found["models"].items()):
            group = known.get(Path(name).resolve(), known.get(Path(name).name))
            key = group.key if group else ("base" if number == 0 else Path(name).name)
            style = style_of(key, number)
            models.append(
                {
                    "name": name,
                    "method": key,
                    "label": group.label if group else f"{Path(name).name}{' (base)' if number == 0 else ''}",
                    "color": group.color if group else style.color,
                    "dash": group.dash if group else style.dash,
                    **histogram(row["histogram"]),
                    "ranks": {"rank": row["ranks"]["rank"], "mean": short(row["ranks"]["mean"])},
                    "moments": {moment: interval_of(row[moment]) for moment in ("mean", "std", "skewness")},
                    "shift": {moment: interval_of(e) for moment, e in row.get("shift", {}).items()},
                    "sequences": int(row["num_sequences"]),
                }
            )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            "logits.json is not what `autotelic logits --output` writes; remove it or write it anew"
        ) from None
    return {"models": models, "prompts": str(settings.get("prompts", "")), "form": str(settings.get("compat", "none"))}


def histogram(bins: Mapping[str, Any]) -> dict[str, Any]:
    """Return the density at the middle of each bin; neighbouring bins are put together where there are too many."""
    counts, width = np.asarray(bins["counts"], dtype=float), float(bins["bin_width"])
    merged = math.ceil(len(counts) / MAX_BINS)
    counts = np.pad(counts, (0, -len(counts) % merged)).reshape(-1, merged).sum(axis=1)
    width *= merged
    middle = float(bins["low"]) + width * (np.arange(len(counts)) + 0.5)
    return {"x": short(middle), "density": short(counts / max(counts.sum() * width, 1e-12))}


def interval_of(estimate: Mapping[str, Any]) -> list[float | None]:
    """Return value, lower and upper end of an estimate; the ends are None where there is no interval."""
    low, high = estimate.get("interval") or (None, None)
    return [as_number(estimate["value"]), as_number(low), as_number(high)]


def seeds(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return first, best and last validation of every run, of methods with three seeds or more."""
    for title, metric in (("mean@k", "eval/mean_at_k"), ("greedy accuracy", "eval/greedy")):
        rows = []
        for group in groups:
            curves = [run.metrics[metric] for run in group.runs if len(run.metrics.get(metric, {})) > 1]
            if len(curves) > 2:
                points = [list(curve.items()) for curve in curves]
                best = [max(items, key=lambda item: item[1]) for items in points]
                rows.append(
                    {
                        "method": group.key,
                        "first": short([items[0][1] for items in points]),
                        "best": short([value for _, value in best]),
                        "best_step": [step for step, _ in best],
                        "last": short([items[-1][1] for items in points]),
                        "runs": [run.name for run in group.runs if len(run.metrics.get(metric, {})) > 1],
                    }
                )
        if rows:
            return {"title": title, "metric": metric, "rows": rows}
    return None


def decoupling(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return accuracy against the entropy objective, step by step, of methods that minimise entropy."""
    found = []
    for group in groups:
        loss, accuracy = band(group.runs, "train/em_loss"), band(group.runs, "eval/mean_at_k")
        if loss is None or accuracy is None:
            continue
        losses = dict(zip(loss["x"], loss["y"], strict=True))
        points = [(s, losses[s], a) for s, a in zip(accuracy["x"], accuracy["y"], strict=True) if s in losses]
        if len(points) > 1:
            step, x, y = (list(values) for values in zip(*points, strict=True))
            found.append({"method": group.key, "step": step, "loss": x, "accuracy": y, "n": len(group.runs)})
    return found


def frames(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return the filmed rollouts of control runs (`rollout.png`) as base64: a few; no file that is large or no PNG."""
    found = []
    for run in runs:
        path = run.path / "rollout.png"
        if len(found) < MAX_FRAMES and path.is_file() and path.stat().st_size <= MAX_FRAME_BYTES:
            content = path.read_bytes()
            if content.startswith(PNG):
                found.append({"run": run.name, "png": base64.b64encode(content).decode()})
    return found
