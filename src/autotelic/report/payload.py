"""Everything that the page draws, as plain data, with notes on what is missing or left out."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from autotelic.report import data, pictures
from autotelic.report import law_panel as law
from autotelic.report.rollout_viewer import rollouts
from autotelic.report.run_folders import Run

PACKAGES = ("autotelic", "torch", "transformers", "trl")
ADDED_BY = {
    "heat": "no temperature heat map: autotelic eval RUN --temperature T1 T2 ... --output RUN/evaluation.json",
    "logits": "no logit histograms: autotelic logits BASE RUN ... --output FOLDER/logits.json",
    "seeds": "no picture of single seeds: it needs three runs of one setting with validation",
}
"""Parts of the page that a command adds, and the command."""


def build_payload(
    runs: Sequence[Run],
    results: Mapping[str, Any] | None,
    title: str,
    *,
    logits: Mapping[str, Any] | None = None,
    group_by: str | None = None,
) -> dict[str, Any]:
    """Return everything that the page draws."""
    groups = data.group_runs(runs, group_by)
    drawn, unlogged = data.charts(groups)
    preferences, online = data.preference_learning(groups)
    viewer, cuts = rollouts(groups)
    page: dict[str, Any] = {
        "title": title,
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(runs),
        "groups": [group.as_dict() | {"axes": data.axes(group)} for group in groups],
        "table": table(results, groups),
        "differences": data.differences(groups),
        "charts": drawn,
        "probes": data.charts(groups, data.PROBES)[0],
        "preferences": preferences,
        "online": online,
        "frames": pictures.frames(runs),
        "heat": pictures.heat_maps(groups),
        "logits": pictures.logits(logits, groups),
        "seeds": pictures.seeds(groups),
        "decoupling": pictures.decoupling(groups),
        "law": law.laws(groups),
        "covariance": data.covariance(groups),
        "semantic": data.semantic(groups),
        "pass": data.pass_curves(results, groups) if results else [],
        "rollouts": viewer,
        "configs": [configuration(run) for run in runs],
    }
    page["absent"] = [f"{run.name}: {note}" for run in runs for note in run.notes]
    page["absent"] += missing_curves(page, unlogged) + law.without_accuracy(groups)
    page["absent"] += missing_parts(page) + missing_results(page, results)
    page["cuts"] = cuts + thinned(runs)
    return page


def table(results: Mapping[str, Any] | None, groups: Sequence[data.Group]) -> dict[str, Any] | None:
    """Return the table of results, from `results.json` or from the runs' own validation; None where it has no row."""
    found = data.table_from_results(results, groups) if results else data.table_from_runs(groups)
    return found if found and found["rows"] else None


def missing_curves(page: Mapping[str, Any], unlogged: Sequence[str]) -> list[str]:
    """Return one note on the curves that no run has logged."""
    missing = [*unlogged]
    missing += [] if page["probes"] else ["probes without labels (--stop_rule)"]
    learning = page["preferences"] or page["online"]
    missing += [] if learning else ["preference learning (autotelic train ppl, autotelic control)"]
    return [f"no run has logged: {', '.join(missing)}"] if missing else []


def missing_parts(page: Mapping[str, Any]) -> list[str]:
    """Return a note for every part that another command or option would add."""
    notes = [note for part, note in ADDED_BY.items() if not page[part]]
    prompts = [prompt for run in page["rollouts"]["runs"] for prompt in run["prompts"]]
    if prompts and not any(prompt["followed"] for prompt in prompts):
        notes.append("no prompt was followed through training: --follow_prompts 4")
    if prompts and not any("k" in r for prompt in prompts for step in prompt["steps"] for r in step["responses"]):
        notes.append("no response is marked right or wrong: autotelic report --labels SOURCE")
    return notes


def missing_results(page: Mapping[str, Any], results: Mapping[str, Any] | None) -> list[str]:
    """Return a note on what `results.json` would add."""
    if results is None:
        return ["no results.json: the table shows the runs' own validation, and there are no pass@k curves"]
    return [] if page["pass"] else ["no pass@k curves: results.json has pass@k at one value of k only"]


def thinned(runs: Sequence[Run]) -> list[str]:
    """Return a note where curves are drawn at fewer points than were logged."""
    longest = max((len(values) for run in runs for values in run.metrics.values()), default=0)
    if longest <= data.MAX_POINTS:
        return []
    return [f"curves are drawn at {data.MAX_POINTS} of up to {longest} logged steps, evenly spaced"]


def versions(runs: Sequence[Run]) -> dict[str, str]:
    """Return the versions that the runs recorded, or else those installed here."""
    recorded: dict[str, str] = {}
    for run in runs:
        found = run.description.get("versions")
        if isinstance(found, Mapping):
            recorded.update({str(k): str(v) for k, v in found.items()})
    if recorded:
        return recorded
    here = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            here[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return here


def configuration(run: Run) -> dict[str, Any]:
    """Return a run's settings as text for the page's foot, bounded; what is not configuration comes first."""
    ordered = dict(sorted(run.description.items(), key=lambda item: item[0] == "config"))
    text = json.dumps(ordered, indent=2, ensure_ascii=False, default=str) if ordered else ""
    if len(text) > data.MAX_CONFIG_CHARACTERS:
        text = text[: data.MAX_CONFIG_CHARACTERS] + "\n... (cut)"
    return {"run": run.name, "started": str(run.description.get("started", "")), "text": text}
