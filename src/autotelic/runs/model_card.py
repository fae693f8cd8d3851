"""The model card of a run: what was trained, on what, with labels or without, and what became of the entropy.

It is made of `run.json` and `metrics.jsonl` alone, so it says what was run and nothing more.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotelic.errors import UserError
from autotelic.functional import fit_entropy_law
from autotelic.runs.files import write_atomically
from autotelic.runs.logs import log_from_rows, pick_curve, read_jsonl
from autotelic.runs.training_methods import COMMON_DEFAULTS, METHODS

PAPERS = {"empo": "2504.05812", "one_shot_em": "2505.20282"}
"""Of the methods; controls bring their own."""
CURVES = {
    "policy/entropy": "entropy, nats per token",
    "eval/entropy": "entropy on validation problems, nats per token",
    "reward/mean": "reward",
    "eval/greedy": "accuracy, greedy",
    "eval/mean_at_k": "accuracy, mean of k samples",
    "eval/pass_at_k": "accuracy, best of k samples",
    "completions/mean_length": "response length, tokens",
}


def write_model_card(folder: Path, *, base_model: str | None, adapter: bool) -> bool:
    """Write README.md into a run's folder, and return True; without a run.json there is nothing to tell."""
    if not (folder / "run.json").exists():
        return False
    record = json.loads((folder / "run.json").read_text())
    rows = read_jsonl(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    write_atomically(folder / "README.md", model_card(record, rows, base_model=base_model, adapter=adapter))
    return True


def model_card(
    record: dict[str, Any], rows: Sequence[dict[str, Any]], *, base_model: str | None = None, adapter: bool = False
) -> str:
    """Return the card as Markdown with the hub's YAML header.

    Args:
        record: what `run.json` holds.
        rows: those of `metrics.jsonl`.
        base_model: name or path of the model that was trained; a path of this machine stays out of the card.
        adapter: whether the weights are a LoRA adapter.
    """
    from huggingface_hub import ModelCardData

    run, training = record["config"]["run"], record["config"]["training"]
    names = record["method"].split("+")
    local = base_model is not None and (Path(base_model).is_absolute() or Path(base_model).exists())
    header = ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=None if local else base_model,
        tags=["autotelic", "trl", *names, *[f"arxiv:{paper}" for paper in map(paper_of, names) if paper]],
    )
    purpose = METHODS[names[0]].purpose if names[0] in METHODS else "see run.json"
    last = max((row["step"] for row in rows), default=0)
    name = Path(base_model).name if base_model and local else base_model or "a model"
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {Path(training['output_dir']).name}",
        f"{code(name)} after {last} updates of {' + '.join(code(part) for part in names)}"
        f"{' (a LoRA adapter)' if adapter else ''}: {purpose}.",
        f"## Data and labels\n\n{data(run)}\n\n{labels(run)}",
        f"## What changed\n\n{changes(rows)}\n\n{law(rows)}",
        f"## How\n\n{settings(run, training, names)}",
        "## With what\n\n" + ", ".join(f"{part} {version}" for part, version in record["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def paper_of(name: str) -> str:
    """Return the arXiv number of a method or control; empty where there is none."""
    from autotelic.controls.table import methods

    return PAPERS.get(name) or (methods()[name].paper.rpartition("arXiv:")[2] if name in methods() else "")


def code(text: Any) -> str:
    """Return text as inline code on one line: what comes from users or data cannot become Markdown or HTML."""
    flat = " ".join(str(text).split()).replace("`", "'")
    return f"`{flat if len(flat) <= 200 else flat[:200] + ' ...'}`"


def data(run: dict[str, Any]) -> str:
    """Say what was trained on."""
    if run["prompt"] is not None:
        return f"One prompt: {code(run['prompt'])}"
    limit = f", the first {run['dataset_limit']}" if run["dataset_limit"] else ""
    return f"Prompts of {code(run['dataset'])}{limit}."


def labels(run: dict[str, Any]) -> str:
    """Say whether labels trained the model, or measured it."""
    several = run["reward"] if isinstance(run["reward"], list) else [run["reward"]]
    names = [one["name"] if isinstance(one, dict) else str(one) for one in several]
    reward = " + ".join(names)
    if "verifier" in names:
        text = f"**Labels were used**: the reward compares answers with the column {code(run['answer_column'])}."
    elif "." in reward:
        text = f"The reward is {code(reward)}, from outside: whether it used labels is for its author to say."
    else:
        text = f"**No labels were used in training.** Reward: {code(reward)}."
    if run["validation_dataset"] and run["validation_steps"]:
        text += f" Accuracy was measured on {code(run['validation_dataset'])}; those labels reached the metrics only."
    return text


def changes(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of first and last values."""
    lines = ["| | first | last |", "| --- | ---: | ---: |"]
    for name, meaning in CURVES.items():
        values = [row[name] for row in rows if name in row]
        if values:
            lines.append(f"| {meaning} | {values[0]:.4g} | {values[-1]:.4g} |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing was logged."


def law(rows: Sequence[dict[str, Any]]) -> str:
    """Return the entropy law of the run, R = -a exp(H) + b, as it was logged or as the whole run gives it."""
    logged = [row for row in rows if "law/ceiling" in row]
    if logged:
        a, b, ceiling = (logged[-1][f"law/{key}"] for key in ("a", "b", "ceiling"))
    else:
        try:
            curve = pick_curve(log_from_rows(Path("this run"), rows, None))
            found = fit_entropy_law(curve.entropy, curve.reward)
        except UserError:
            return "The entropy law cannot be fitted to this run."
        if found.warnings:
            return f"The entropy law does not describe this run: {found.warnings[0]}"
        a, b, ceiling = found.a, found.b, found.ceiling
    return f"Entropy law R = -a exp(H) + b: a = {a:.4g}, b = {b:.4g}, ceiling at H = 0: {ceiling:.4g}."


def settings(run: dict[str, Any], training: dict[str, Any], names: Sequence[str]) -> str:
    """Return the settings that the method depends on, as a table; all of them are in run.json."""
    defaults = METHODS[names[0]].defaults if names[0] in METHODS else {}
    keys = [key for key in defaults if key not in COMMON_DEFAULTS]
    keys += ["temperature", "max_completion_length", "max_steps", "seed"]
    shown = {key: (run | training)[key] for key in dict.fromkeys(keys) if key in run or key in training}
    control = run.get("entropy_control")
    shown |= {key: value for key, value in control.items() if key != "name"} if isinstance(control, dict) else {}
    lines = [f"| {key} | {code(value)} |" for key, value in shown.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *lines])
