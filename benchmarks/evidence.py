"""Run an experiment of several methods and seeds, and write its table: what `docs/log/` quotes.

    python benchmarks/evidence.py run benchmarks/recipes/evidence_entropy.yaml --output runs/evidence/entropy
    python benchmarks/evidence.py table runs/evidence/entropy

A finished run (method, seed) is never run again, and one that was killed goes on from its last checkpoint: the command
can be stopped and repeated. `--processes 2` shares the runs over processes; so does starting the command twice.
Each run is `autotelic train`, followed by an evaluation on problems that no run trains on.
"""

import argparse
import gc
import json
import math
import multiprocessing
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout
from scipy import stats

from autotelic.runs.files import write_atomically


def single_threaded(*given: Any) -> None:
    import torch

    torch.set_num_threads(1)
    run(*given)


def run(recipe: Path, output: Path, only: list[str], max_seeds: int | None) -> None:
    experiment = yaml.safe_load(recipe.read_text())
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "experiment.json", json.dumps(experiment, indent=2))
    pretrain_models(experiment.get("models", {}), output)
    first = experiment.get("first_seed", 0)
    for place in range(max_seeds or experiment["seeds"]):
        write_problems(experiment.get("problems", {}), output, first + place)
        for name in experiment["runs"]:
            if place < options_of(experiment, name).get("seeds", place + 1) and (not only or name in only):
                run_one(experiment, name, first + place, output)


def options_of(experiment: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what a run is given: the recipe's common options, and its own over them."""
    return experiment.get("common", {}) | (experiment["runs"][name] or {})


def write_problems(sets: dict[str, Any], output: Path, seed: int) -> None:
    """Write the recipe's own problem sets, OUTPUT/problems/NAME-seedN.jsonl.

    A set has a split, a count, and where it needs them: rows to skip, settings of the world, and `per_seed: true` for
    other problems at every seed.
    """
    from autotelic.tasks.chain_sums import ChainSums, problems

    for name, given in sets.items():
        world, count = ChainSums(**given.get("world", {})), given["count"]
        skip = given.get("skip", 0) + (seed * count if given.get("per_seed") else 0)
        rows = problems(world, given["split"], skip + count)[skip:]
        (output / "problems").mkdir(exist_ok=True)
        target = output / "problems" / f"{name}-seed{seed}.jsonl"
        write_atomically(target, "".join(json.dumps(row) + "\n" for row in rows))


def pretrain_models(models: dict[str, Any], output: Path) -> None:
    """Pretrain the recipe's own models that are missing, OUTPUT/models/NAME, with the settings given over the recipe's.

    Another process that is at one of them is waited for.
    """
    from autotelic.cli.config import from_mapping
    from autotelic.tasks import pretraining

    for name, settings in models.items():
        (output / "models").mkdir(exist_ok=True)
        with FileLock(output / "models" / f"{name}.lock"):
            if not (output / "models" / name / "model.safetensors").exists():
                given = yaml.safe_load(Path("recipes/pretrain_tiny.yaml").read_text()) | {"name": name} | settings
                recipe = from_mapping(pretraining.PretrainRecipe, given, f"the model {name}")
                model, losses = pretraining.pretrain(recipe, progress=False)
                pretraining.save(model, recipe, losses, output / "models" / name)


def located(value: Any, output: Path, seed: int) -> Any:
    """Return an option's value.

    `problems/NAME` is one of the recipe's own sets, `models/NAME` a model of its own, `runs/NAME` the model that its
    run NAME trained at the same seed.
    """
    if isinstance(value, str) and value.startswith("problems/"):
        return str(output / f"{value}-seed{seed}.jsonl")
    if isinstance(value, str) and value.startswith("runs/"):
        return str(output / f"{value.removeprefix('runs/')}-seed{seed}" / "run")
    return str(output / value) if isinstance(value, str) and value.startswith("models/") else value


def run_one(experiment: dict[str, Any], name: str, seed: int, output: Path) -> None:
    """Train and evaluate one run, unless it is finished or another process has it; go on from its last checkpoint."""
    folder = output / f"{name}-seed{seed}"
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / "lock", blocking=False):  # a process that dies gives it up
            if not (folder / "result.json").exists():
                measure(experiment, name, seed, folder)
    except Timeout:
        return
    for other in experiment["runs"]:
        if not needed(experiment, other, seed, output):
            discard(output / f"{other}-seed{seed}" / "run")


def starts_from(experiment: dict[str, Any], name: str) -> str | None:
    """Return the run whose model a run starts from, if it names one: `model_name_or_path: runs/NAME`."""
    model = options_of(experiment, name)["model_name_or_path"]
    return model.removeprefix("runs/") if model.startswith("runs/") else None


def needed(experiment: dict[str, Any], name: str, seed: int, output: Path) -> bool:
    """Whether a run's weights are still to be evaluated, or some run that starts from them is not finished."""
    place = seed - experiment.get("first_seed", 0)
    later = [run for run in experiment["runs"] if starts_from(experiment, run) == name]
    later = [run for run in later if place < options_of(experiment, run).get("seeds", experiment["seeds"])]
    return not all((output / f"{run}-seed{seed}" / "result.json").exists() for run in (name, *later))


def discard(trained: Path) -> None:
    for large in (trained / "model.safetensors", *trained.glob("checkpoint-*")):
        shutil.rmtree(large) if large.is_dir() else large.unlink(missing_ok=True)


def trained_model(experiment: dict[str, Any], name: str, seed: int, output: Path) -> str:
    """Return the model of a run at a seed: trained now, or gone on with, unless it is there."""
    start = starts_from(experiment, name)
    if start is not None:
        (output / f"{start}-seed{seed}").mkdir(exist_ok=True)
        with FileLock(output / f"{start}-seed{seed}" / "lock"):  # two runs may start from it at once
            trained_model(experiment, start, seed, output)
    options = {key: located(value, output, seed) for key, value in options_of(experiment, name).items()}
    for key in ("seeds", "evaluation_temperature", "evaluation_k"):
        options.pop(key, None)
    method, folder = options.pop("method", "grpo"), output / f"{name}-seed{seed}"
    if method == "base":
        return options["model_name_or_path"]
    trained = folder / "run"
    if not any((trained / file).exists() for file in ("model.safetensors", "adapter_model.safetensors")):
        from autotelic.cli.config import to_options
        from autotelic.cli.train import train
        from autotelic.runs.checkpoints import last_complete

        again = "resume" if trained.exists() and last_complete(trained) else "overwrite"
        options |= {"seed": seed, "output_dir": str(trained), again: True, "quiet": True}
        started = time.process_time()
        if not train(method, to_options(options))["finished"]:  # its last checkpoint is no result
            raise SystemExit(f"{name} seed {seed} was stopped; the same command goes on with it")
        write_atomically(folder / "training.json", json.dumps({"cpu_seconds": time.process_time() - started}))
        gc.collect()  # a trainer refers to itself, and its optimizer is twice as large as the model
    return str(trained)


def measure(experiment: dict[str, Any], name: str, seed: int, folder: Path) -> None:
    started, cpu = time.monotonic(), time.process_time()
    source = trained_model(experiment, name, seed, folder.parent)
    options, asked = options_of(experiment, name), dict(experiment["evaluation"])
    temperature = options.get("evaluation_temperature", 1.0)
    asked["k"] = options.get("evaluation_k", asked["k"])
    evaluation, details = {}, {}
    for title, problems in {"": asked.get("source", "chain_sums:test"), **asked.pop("also", {})}.items():
        place = asked | {"source": located(problems, folder.parent, seed)}
        values, found = evaluate(place, source, temperature, seed, folder)
        evaluation |= {f"{title}/{key}" if title else key: value for key, value in values.items()}
        details = details or found
    record = {"name": name, "seed": seed, "evaluation": evaluation, "details": details}
    record |= {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
    if (folder / "training.json").exists():
        record["training_cpu_seconds"] = json.loads((folder / "training.json").read_text())["cpu_seconds"]
    write_atomically(folder / "result.json", json.dumps(record))
    values = {
        key: round(value["value"], 3) for key, value in evaluation.items() if key in ("mean@8", "greedy", "entropy")
    }
    print(f"{name} seed {seed}: {values} in {record['seconds']:.0f} s", file=sys.stderr, flush=True)


def evaluate(
    settings: dict[str, Any], source: str, temperature: float, seed: int, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the estimates, and what each prompt gave; entropy is that of the distribution that was sampled from."""
    from autotelic.evaluation import bootstrap, evaluate_samples
    from autotelic.lm.chat import prompt_texts
    from autotelic.lm.load import load_model
    from autotelic.lm.sampling import sample
    from autotelic.tasks import load_problems

    model, tokenizer = load_model(source, dtype=settings.get("dtype", "float32"))
    problems = load_problems(
        settings.get("source", "chain_sums:test"),
        limit=settings["problems"],
        require_answer=True,
        keep=settings.get("keep", ()),
    )
    texts = prompt_texts([row["prompt"] for row in problems], tokenizer, "auto")
    k, limits = settings["k"], {"max_new_tokens": settings.get("max_new_tokens", 32), "seed": seed}
    sampled = sample(
        model, tokenizer, texts, k=k, temperature=temperature, statistics_temperature=temperature, **limits
    )
    rows = [row | {"responses": sampled.texts[p * k : (p + 1) * k]} for p, row in enumerate(problems)]
    if temperature == 1:  # elsewhere it is the same
        greedy = sample(model, tokenizer, texts, temperature=0, statistics=(), **limits)
        rows = [row | {"greedy": text} for row, text in zip(rows, greedy.texts, strict=True)]
    write_atomically(folder / "responses.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = evaluate_samples(rows, seed=seed)
    tokens, nats = (x.reshape(-1, k).sum(1) for x in (sampled.num_tokens, sampled.entropy_sum))
    estimates = result.metrics | {"entropy": bootstrap(nats / tokens, tokens.astype(float), seed=seed)}
    details = {
        "operator": [row.get("operator", "") for row in problems],
        "correct": [sum(one.correct) for one in result.samples],
        "greedy": [one.greedy_correct for one in result.samples],
        "distinct_of_4": [len({c for c in one.clusters[:4] if c >= 0}) for one in result.samples],
        "tokens": tokens.tolist(),
        "first_token": [
            [tokenizer.decode(row[:1]) for row in sampled.tokens[p * k : (p + 1) * k]] for p in range(len(problems))
        ],
        "first_operator": [[first_operator(text) for text in row["responses"]] for row in rows],
    }
    return {name: estimate.as_dict() for name, estimate in estimates.items()}, details


def first_operator(text: str) -> str:
    """Return the first of + - * in a response, or an empty string."""
    return next((character for character in text if character in "+-*"), "")


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


def collect(output: Path, target: Path, curves: list[str]) -> None:
    """Write every run's evaluation and the experiment's settings to one file.

    With `curves`, prefixes of metrics such as `eval/`, the logged points of these take the place of each prompt's own
    details.
    """
    runs = [record for rows in records(output).values() for record in rows]
    for record in runs if curves else ():
        del record["details"]
        log = output / f"{record['name']}-seed{record['seed']}/run/metrics.jsonl"
        rows = log.read_text().splitlines() if log.exists() else []  # the base has none
        points = [
            {key: float(f"{value:.5g}") for key, value in row.items() if key == "step" or key.startswith(tuple(curves))}
            for row in map(json.loads, rows)
        ]
        record["curve"] = [point for point in points if len(point) > 1]
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


def paired(output: Path, names: list[str], against: str) -> str:
    """Each run's difference from another one, paired by seed: its mean over seeds and the interval's half-width."""
    found = records(output)
    base = {row["seed"]: row["evaluation"] for row in found[against]}
    lines = [f"| minus {against} | seeds | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for name, rows in found.items():
        both = [(row["evaluation"], base[row["seed"]]) for row in rows if row["seed"] in base]
        if name == against or not both:
            continue
        cells = [signed([own[metric]["value"] - other[metric]["value"] for own, other in both]) for metric in names]
        lines.append(f"| {name} | {len(both)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def signed(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:+.3f}" if math.isnan(half) else f"{mean:+.3f} ± {half:.3f}"


def best(output: Path, metric: str = "eval/mean_at_k") -> str:
    """The best of each run's validation points, its update, and what the last point has lost since, over seeds."""
    lines = ["| run | seeds | best | at update | last | lost |", "| --- | --- | --- | --- | --- | --- |"]
    for name in json.loads((output / "experiment.json").read_text())["runs"]:
        columns: list[list[float]] = [[] for _ in range(4)]
        for path in sorted(output.glob(f"{name}-seed*/run/metrics.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            points = {row["step"]: row[metric] for row in rows if metric in row}
            if points:
                top, last = max(points, key=lambda step: points[step]), points[max(points)]
                values = (points[top], float(top), last, points[top] - last)
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
        if columns[0]:
            value, step, last, lost = columns
            cells = f"{cell(value)} | {sum(step) / len(step):.0f} | {cell(last)} | {cell(lost)}"
            lines.append(f"| {name} | {len(value)} | {cells} |")
    return "\n".join(lines)


def stops(output: Path, metric: str = "eval/mean_at_k") -> str:
    """Where each stop rule would have ended each run, and what was lost: against the peak, and against going on."""
    from autotelic.diagnostics.probe_statistics import ProbeStatistics
    from autotelic.diagnostics.stopping import RULES

    heads = "| run | rule | trips in | at update | below the peak | above the end |"
    lines = [heads, "| --- " * 6 + "|"]
    for name in json.loads((output / "experiment.json").read_text())["runs"]:
        folders = [path.parent for path in sorted(output.glob(f"{name}-seed*/run/probes.jsonl"))]
        for rule_name, rule_class in RULES.items():
            rule, columns = rule_class(), [[], [], []]  # pyright: ignore[reportCallIssue]
            for folder in folders:
                rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                curve = {row["step"]: row[metric] for row in rows if metric in row}
                steps, history = [], []
                for line in (folder / "probes.jsonl").read_text().splitlines():
                    row = json.loads(line)
                    steps.append(row.pop("step"))
                    history.append(ProbeStatistics(**row | {"majority": tuple(row["majority"])}))
                    if rule.reason(history) is not None:
                        kept = curve[steps[-2] if len(steps) > 1 else steps[0]]  # the weights that rollback ends with
                        for column, value in zip(
                            columns, (steps[-1], max(curve.values()) - kept, kept - curve[max(curve)]), strict=True
                        ):
                            column.append(float(value))
                        break
            if columns[0]:
                cells = f"{sum(columns[0]) / len(columns[0]):.0f} | {cell(columns[1])} | {signed(columns[2])}"
                lines.append(f"| {name} | {rule_name} | {len(columns[0])} of {len(folders)} | {cells} |")
    return "\n".join(lines)


def by_kind(output: Path, first: int = 10) -> str:
    """Covariance by rank and by difficulty: mean over the first updates of each run, and over runs."""
    heads = [*(f"top_{name}" for name in ("0_2", "2", "20", "50")), "mean"]
    heads += [f"accuracy_{name}" for name in ("low", "mid", "high")]
    lines = ["| run | seeds | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 2) + "|"]
    for name in json.loads((output / "experiment.json").read_text())["runs"]:
        columns: list[list[float]] = [[] for _ in heads]
        for path in sorted(output.glob(f"{name}-seed*/run/metrics.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for column, head in zip(columns, heads, strict=True):
                values = [row[f"covariance/{head}"] for row in rows if f"covariance/{head}" in row][:first]
                column.append(sum(values) / len(values))
        lines.append(f"| {name} | {len(columns[0])} | " + " | ".join(cell(column) for column in columns) + " |")
    return "\n".join(lines)


def sizes(output: Path) -> str:
    """The law across the recipe's own models: what `autotelic forecast ... --across size` prints for plain runs."""
    from autotelic.cli.forecast_across import across_sizes, across_text, size_of
    from autotelic.functional import fit_entropy_law
    from autotelic.runs.logs import pick_curve, read_log

    experiment = json.loads((output / "experiment.json").read_text())
    results, known, lines = [], [], ["| model | parameters | seeds | a | b | ceiling |", "| --- " * 6 + "|"]
    for name in sorted(experiment["models"], key=lambda name: size_of(output / "models" / name) or 0):
        curves = [pick_curve(read_log(path)) for path in sorted(output.glob(f"{name}-seed*/run/metrics.jsonl"))]
        fits = [fit_entropy_law(curve.entropy, curve.reward) for curve in curves]
        size = size_of(output / "models" / name) or 0
        results += [{"a": fit.a, "b": fit.b, "ceiling": fit.ceiling} for fit in fits]
        known += [float(size)] * len(fits)
        cells = " | ".join(cell([getattr(fit, key) for fit in fits]) for key in ("a", "b", "ceiling"))
        lines.append(f"| {name} | {size:,} | {len(fits)} | {cells} |")
    return "\n".join(lines) + "\n\n" + across_text(across_sizes(results, known, []))


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
    lines = ["| run | prediction | seeds | correlation | same sign | slope of realised on predicted |"]
    lines.append("| --- " * 6 + "|")
    runs = list(json.loads((output / "experiment.json").read_text())["runs"])
    for run_name, name in [(r, p) for r in runs for p in ("predicted_covariance", "predicted_sampled")]:
        correlations, slopes, signs = [], [], []
        for path in sorted(output.glob(f"{run_name}-seed*/run/metrics.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            pairs = [
                (row[f"dynamics/{name}"], row["dynamics/realised"])
                for row in rows
                if f"dynamics/{name}" in row and "dynamics/realised" in row
            ]
            predicted, realised = np.asarray(pairs).T
            correlations.append(float(np.corrcoef(predicted, realised)[0, 1]))
            slopes.append(float(np.polyfit(predicted, realised, 1)[0]))
            signs.append(float(np.mean(np.sign(predicted) == np.sign(realised))))
        if slopes:
            cells = f"{cell(correlations)} | {cell(signs)} | {cell(slopes)}"
            lines.append(f"| {run_name} | {name} | {len(slopes)} | {cells} |")
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
    runner.add_argument("--processes", type=int, default=1)
    shower = commands.add_parser("table")
    shower.add_argument("output", type=Path)
    shower.add_argument("--metrics", nargs="*", default=["mean@8", "greedy", "pass@8", "maj@8", "entropy"])
    shower.add_argument("--curve", default=None)
    shower.add_argument("--steps", type=int, nargs="*", default=[0, 40, 80, 120, 160, 200])
    shower.add_argument("--against", help="differences from this run, paired by seed")
    for name in ("dynamics", "best", "covariance", "sizes", "stops"):
        commands.add_parser(name).add_argument("output", type=Path)
    fits = commands.add_parser("law")
    fits.add_argument("output", type=Path)
    fits.add_argument("--runs", nargs="*", default=["grpo"])
    collector = commands.add_parser("collect")
    collector.add_argument("output", type=Path)
    collector.add_argument("target", type=Path)
    collector.add_argument("--curves", nargs="*", default=[], metavar="PREFIX", help="logged points, not each prompt")
    args = parser.parse_args()
    if args.command == "run":
        context = multiprocessing.get_context("spawn")
        given = (args.recipe, args.output, args.only, args.seeds)
        workers = [context.Process(target=single_threaded, args=given) for _ in range(args.processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    elif args.command in ("dynamics", "best", "covariance", "sizes", "stops"):
        shown = {"dynamics": dynamics, "best": best, "covariance": by_kind, "sizes": sizes, "stops": stops}
        print(shown[args.command](args.output))
    elif args.command == "collect":
        collect(args.output, args.target, args.curves)
    elif args.command == "law":
        print(law(args.output, args.runs))
    elif args.against:
        print(paired(args.output, args.metrics, args.against))
    elif args.curve:
        print(curves(args.output, args.curve, args.steps))
    else:
        print(table(args.output, args.metrics))


if __name__ == "__main__":
    main()
