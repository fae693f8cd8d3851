"""Run an experiment of several methods and seeds, and write its table: what `docs/log/` quotes.

    python benchmarks/evidence.py run recipes/evidence_entropy.yaml --output runs/evidence/entropy
    python benchmarks/evidence.py table runs/evidence/entropy

A finished run (method, seed) is never run again, so the command can be stopped and repeated, and several processes can
share the work. Each run is `autotelic train`, followed by an evaluation on problems that no run trains on.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats


def run(recipe: Path, output: Path, only: list[str], max_seeds: int | None) -> None:
    experiment = yaml.safe_load(recipe.read_text())
    output.mkdir(parents=True, exist_ok=True)
    (output / "experiment.json").write_text(json.dumps(experiment, indent=2))
    for seed in range(max_seeds or experiment["seeds"]):
        for name, settings in experiment["runs"].items():
            if not only or name in only:
                run_one(experiment, name, settings or {}, seed, output)


def run_one(experiment: dict[str, Any], name: str, settings: dict[str, Any], seed: int, output: Path) -> None:
    folder = output / f"{name}-seed{seed}"
    result = folder / "result.json"
    claim = folder / "claimed"
    folder.mkdir(exist_ok=True)
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return  # finished, or in the hands of another process (remove `claimed` after a crash)
    started = time.monotonic()
    options = dict(experiment.get("common", {})) | settings
    method = options.pop("method", "grpo")
    if method != "base":
        from autotelic.cli.config import to_options
        from autotelic.cli.train import train

        options |= {"seed": seed, "output_dir": folder / "run", "overwrite": True, "quiet": True}
        train(method, to_options(options))
    evaluation = evaluate(experiment["evaluation"], None if method == "base" else folder / "run", seed)
    record = {"name": name, "seed": seed, "seconds": time.monotonic() - started, "evaluation": evaluation}
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(result)
    (folder / "run" / "model.safetensors").unlink(missing_ok=True)
    values = {
        key: round(value["value"], 3) for key, value in evaluation.items() if key in ("mean@8", "greedy", "entropy")
    }
    print(f"{name} seed {seed}: {values} in {record['seconds']:.0f} s", file=sys.stderr, flush=True)


def evaluate(settings: dict[str, Any], folder: Path | None, seed: int) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autotelic.evaluation import evaluate_model
    from autotelic.tasks import load_problems, model_path

    path = folder or model_path("any_pair")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    problems = load_problems("chain_sums:test", limit=settings["problems"], require_answer=True)
    result = evaluate_model(model, tokenizer, problems, k=settings["k"], max_new_tokens=32, seed=seed)
    return {name: estimate.as_dict() for name, estimate in result.metrics.items()}


def records(output: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(output.glob("*/result.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["name"], []).append(record)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95 % Student interval."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float(array.mean()), math.nan
    return float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))


def cell(values: list[float]) -> str:
    """A mean and its interval, as a table shows them; one seed has no interval."""
    mean, half = interval(values)
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def collect(output: Path, target: Path) -> None:
    """Write every run's evaluation and the experiment's settings to one file."""
    runs = [record for rows in records(output).values() for record in rows]
    experiment = json.loads((output / "experiment.json").read_text())
    target.write_text(json.dumps({"experiment": experiment, "runs": runs}, separators=(",", ":")) + "\n")


def table(output: Path, names: list[str]) -> str:
    experiment = json.loads((output / "experiment.json").read_text())
    found = records(output)
    lines = ["| run | seeds | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for name in experiment["runs"]:
        rows = found.get(name, [])
        if not rows:
            continue
        cells = []
        for metric in names:
            cells.append(cell([row["evaluation"][metric]["value"] for row in rows]))
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves(output: Path, metric: str, steps: list[int]) -> str:
    """Mean over seeds of a logged metric at some updates, with the interval's half-width."""
    experiment = json.loads((output / "experiment.json").read_text())
    lines = [f"| {metric} | " + " | ".join(str(step) for step in steps) + " |", "| --- " * (len(steps) + 1) + "|"]
    for name in experiment["runs"]:
        values: dict[int, list[float]] = {step: [] for step in steps}
        for path in sorted(output.glob(f"{name}-seed*/run/metrics.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            seen = {row["step"]: row[metric] for row in rows if metric in row}
            for step in steps:
                if step in seen:
                    values[step].append(seen[step])
        if any(values.values()):
            cells = (cell(v) if v else "" for v in values.values())
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def dynamics(output: Path) -> str:
    """Predicted against realised change of entropy: correlation and slope per seed, summarised over seeds."""
    lines = ["| prediction | seeds | correlation | slope of realised on predicted |", "| --- | --- | --- | --- |"]
    for name in ("predicted_covariance", "predicted_sampled"):
        correlations, slopes = [], []
        for path in sorted(output.glob("*/run/metrics.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            pairs = [
                (row[f"dynamics/{name}"], row["dynamics/realised"])
                for row in rows
                if f"dynamics/{name}" in row and "dynamics/realised" in row
            ]
            predicted, realised = np.asarray(pairs).T
            correlations.append(float(np.corrcoef(predicted, realised)[0, 1]))
            slopes.append(float(np.polyfit(predicted, realised, 1)[0]))
        (r, r_half), (slope, slope_half) = interval(correlations), interval(slopes)
        lines.append(f"| {name} | {len(slopes)} | {r:.2f} ± {r_half:.2f} | {slope:.3f} ± {slope_half:.3f} |")
    return "\n".join(lines)


def law(output: Path, names: list[str]) -> str:
    """The law fitted to each run's validation points, and its forecast from the first 15 %, over seeds."""
    from autotelic.functional import fit_entropy_law
    from autotelic.functional.entropy_law import forecast
    from autotelic.runs.logs import pick_curve, read_log

    heads = ["run", "seeds", "a", "b", "ceiling", "R²"]
    heads += ["RMSE after 15 %", "last value", "linear in H", "linear in step"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name in names:
        columns: list[list[float]] = [[] for _ in range(8)]
        for path in sorted(output.glob(f"{name}-seed*/run/metrics.jsonl")):
            curve = pick_curve(read_log(path))
            fit = fit_entropy_law(curve.entropy, curve.reward)
            errors = list(forecast(curve.step, curve.entropy, curve.reward, share=0.15).rmse.values())
            for column, value in zip(columns, [fit.a, fit.b, fit.ceiling, fit.r_squared, *errors], strict=True):
                column.append(value)
        if columns[0]:
            cells = (cell(column) for column in columns)
            lines.append(f"| {name} | {len(columns[0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("recipe", type=Path)
    runner.add_argument("--output", type=Path, required=True)
    runner.add_argument("--only", nargs="*", default=[])
    runner.add_argument("--seeds", type=int, default=None)
    shower = commands.add_parser("table")
    shower.add_argument("output", type=Path)
    shower.add_argument("--metrics", nargs="*", default=["mean@8", "greedy", "pass@8", "maj@8", "entropy"])
    shower.add_argument("--curve", default=None)
    shower.add_argument("--steps", type=int, nargs="*", default=[0, 40, 80, 120, 160, 200])
    changes = commands.add_parser("dynamics")
    changes.add_argument("output", type=Path)
    fits = commands.add_parser("law")
    fits.add_argument("output", type=Path)
    fits.add_argument("--runs", nargs="*", default=["grpo"])
    collector = commands.add_parser("collect")
    collector.add_argument("output", type=Path)
    collector.add_argument("target", type=Path)
    args = parser.parse_args()
    if args.command == "run":
        import torch

        torch.set_num_threads(1)
        run(args.recipe, args.output, args.only, args.seeds)
    elif args.command == "dynamics":
        print(dynamics(args.output))
    elif args.command == "collect":
        collect(args.output, args.target)
    elif args.command == "law":
        print(law(args.output, args.runs))
    elif args.curve:
        print(curves(args.output, args.curve, args.steps))
    else:
        print(table(args.output, args.metrics))


if __name__ == "__main__":
    main()
