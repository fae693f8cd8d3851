"""Writes the page: the data as JSON in a script element that is never executed, our script, our style, and plotly.js.

Nothing a model wrote can become markup: the JSON is escaped so that it cannot end its element, the script puts text in
the page through `textContent` only, and the page's content security policy forbids every request.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from autotelic.errors import UserError
from autotelic.report import data, pictures
from autotelic.report import law_panel as law
from autotelic.report.rollout_viewer import rollouts
from autotelic.report.run_folders import Run, find_json, find_runs, load_run
from autotelic.runs.files import write_output

PACKAGES = ("autotelic", "torch", "transformers", "trl")


def write_report(
    runs: Sequence[Path | str],
    output: Path | str,
    *,
    results: Mapping[str, Any] | None = None,
    title: str = "autotelic report",
    refresh: int | None = None,
) -> Path:
    """Write one self-contained page and return its path.

    Args:
        runs: run folders, or folders that hold run folders.
        output: the page; written beside itself first and renamed, so that a reader never sees half of it.
        results: `{method: {metric: {"value", "interval"}}}`, with `base` for the untrained model; None looks for a
            `results.json` in the given folders. A `logits.json` there is drawn as well.
        title: of the page.
        refresh: seconds after which an open page loads itself anew; None: never.
    """
    paths = [Path(run) for run in runs]
    if not paths:
        raise UserError("no run to report on; give at least one run folder")
    output = Path(output)
    loaded = [load_run(path) for path in find_runs(paths)]
    found = results if results is not None else find_json(paths, "results.json")
    payload = build_payload(loaded, found, title, logits=find_json(paths, "logits.json"))
    write_output(output, render(payload, refresh), "choose another place with -o")
    return output


def build_payload(
    runs: Sequence[Run], results: Mapping[str, Any] | None, title: str, *, logits: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return everything that the page draws, as plain data, with notes on what is missing or left out."""
    groups = data.group_runs(runs)
    drawn, missing = data.charts(groups)
    probes = data.charts(groups, data.PROBES)[0]
    preferences, online = data.preference_learning(groups)
    heat, histograms, seeds = pictures.heat_maps(groups), pictures.logits(logits, groups), pictures.seeds(groups)
    viewer, cuts = rollouts(groups)
    table = data.table_from_results(results, groups) if results else data.table_from_runs(groups)
    if table is not None and not table["rows"]:
        table = None
    absent = [f"{run.name}: {note}" for run in runs for note in run.notes]
    missing += [] if probes else ["probes without labels (--stop_rule)"]
    missing += [] if preferences or online else ["preference learning (autotelic train ppl, autotelic control)"]
    if missing:
        absent.append(f"no run has logged: {', '.join(missing)}")
    if not heat:
        absent.append(
            "no temperature heat map: autotelic eval RUN --temperature T1 T2 ... --output RUN/evaluation.json"
        )
    if not histograms:
        absent.append("no logit histograms: autotelic logits BASE RUN ... --output FOLDER/logits.json")
    if not seeds:
        absent.append("no picture of single seeds: it needs three runs of one setting with validation")
    if viewer["runs"] and not any(prompt["followed"] for run in viewer["runs"] for prompt in run["prompts"]):
        absent.append("no prompt was followed through training: --follow_prompts 4")
    if results is None:
        absent.append("no results.json: the table shows the runs' own validation, and there are no pass@k curves")
    curves = data.pass_curves(results, groups) if results else []
    if results and not curves:
        absent.append("no pass@k curves: results.json has pass@k at one value of k only")
    longest = max((len(v) for run in runs for v in run.metrics.values()), default=0)
    if longest > data.MAX_POINTS:
        cuts.append(f"curves are drawn at {data.MAX_POINTS} of up to {longest} logged steps, evenly spaced")
    return {
        "title": title,
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(runs),
        "groups": [group.as_dict() for group in groups],
        "table": table,
        "differences": data.differences(groups),
        "charts": drawn,
        "probes": probes,
        "preferences": preferences,
        "online": online,
        "frames": pictures.frames(runs),
        "heat": heat,
        "logits": histograms,
        "seeds": seeds,
        "decoupling": pictures.decoupling(groups),
        "law": law.laws(groups),
        "covariance": data.covariance(groups),
        "semantic": data.semantic(groups),
        "pass": curves,
        "rollouts": viewer,
        "configs": [configuration(run) for run in runs],
        "absent": absent,
        "cuts": cuts,
    }


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
    """Return a run's settings as text for the page's foot, bounded."""
    text = json.dumps(run.description, indent=2, ensure_ascii=False, default=str) if run.description else ""
    if len(text) > data.MAX_CONFIG_CHARACTERS:
        text = text[: data.MAX_CONFIG_CHARACTERS] + "\n... (cut)"
    return {"run": run.name, "started": str(run.description.get("started", "")), "text": text}


def render(payload: Mapping[str, Any], refresh: int | None = None) -> str:
    """Return the page as HTML."""
    from plotly.offline import get_plotlyjs

    assets = resources.files("autotelic.report") / "assets"
    parts = {
        "TITLE": escape(str(payload["title"])),
        "REFRESH": f'<meta http-equiv="refresh" content="{int(refresh)}">' if refresh else "",
        "STYLE": (assets / "page.css").read_text(encoding="utf-8"),
        "DATA": embed_json(payload),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": (assets / "page.js").read_text(encoding="utf-8"),
    }
    pieces = (assets / "page.html").read_text(encoding="utf-8").split("%%")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def embed_json(payload: Mapping[str, Any]) -> str:
    """Return JSON that is safe inside a script element: no `<`, `>`, `&`, and no line separator of JavaScript."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # a lone surrogate, as a token cut inside a character gives, cannot be written as UTF-8
    return (
        "".join(c if not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in text)
        if has_surrogate(text)
        else text
    )


def has_surrogate(text: str) -> bool:
    """Tell whether the text holds half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
