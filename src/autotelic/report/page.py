"""Writes the page: the data as JSON in a script element that is never executed, our script, our style, and plotly.js.

Nothing a model wrote can become markup: the JSON is escaped so that it cannot end its element, the script puts text in
the page through `textContent` only, and the page's content security policy forbids every request.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from autotelic.errors import UserError
from autotelic.report.correctness import with_verdicts
from autotelic.report.figure_page import embed_json, plotly_js
from autotelic.report.payload import build_payload
from autotelic.report.run_folders import Run, find_json, find_runs, load_run, matching
from autotelic.runs.files import write_output


def write_report(
    runs: Sequence[Path | str],
    output: Path | str,
    *,
    results: Mapping[str, Any] | None = None,
    title: str = "autotelic report",
    refresh: int | None = None,
    group_by: str | None = None,
    only: Sequence[str] = (),
    labels: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write one self-contained page and return its path.

    Args:
        runs: run folders, or folders that hold run folders.
        output: the page; written beside itself first and renamed, so that a reader never sees half of it.
        results: `{method: {metric: {"value", "interval"}}}`, with `base` for the untrained model; None looks for a
            `results.json` in the given folders. A `logits.json` there is drawn as well.
        title: of the page.
        refresh: seconds after which an open page loads itself anew; None: never.
        group_by: a setting whose values make the groups, or `run`; None: method and all settings but the seed.
        only: what a run must match to be on the page, all of it: `SETTING=VALUE`, or a pattern of folder names.
        labels: problems with `prompt` and `answer`; responses to them are shown as right or wrong.
    """
    paths = [Path(run) for run in runs]
    if not paths:
        raise UserError("no run to report on; give at least one run folder")
    output = Path(output)
    loaded: list[Run] = with_verdicts(matching([load_run(path) for path in find_runs(paths)], only), labels)
    found = results if results is not None else find_json(paths, "results.json")
    payload = build_payload(loaded, found, title, logits=find_json(paths, "logits.json"), group_by=group_by)
    write_output(output, render(payload, refresh), "choose another place with -o")
    return output


def render(payload: Mapping[str, Any], refresh: int | None = None) -> str:
    """Return the page as HTML."""
    assets = resources.files("autotelic.report") / "assets"
    parts = {
        "TITLE": escape(str(payload["title"])),
        "REFRESH": f'<meta http-equiv="refresh" content="{int(refresh)}">' if refresh else "",
        "STYLE": (assets / "page.css").read_text(encoding="utf-8"),
        "DATA": embed_json(payload),
        "PLOTLY": plotly_js(),
        "SCRIPT": (assets / "page.js").read_text(encoding="utf-8"),
    }
    pieces = (assets / "page.html").read_text(encoding="utf-8").split("%%")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))
