"""One-shot entropy minimisation on the small world: curves, prompts, controls, order, temperature, stop rules.

    python benchmarks/evidence_one_shot_em.py run --output runs/evidence/one_shot_em    # 25 core-minutes
    python benchmarks/evidence_one_shot_em.py run --output runs/evidence/one_shot_em --share 1/2
    python benchmarks/evidence_one_shot_em.py table --output runs/evidence/one_shot_em

A finished trial is never run again (`autotelic.runs.sweeping`), so `run` can be killed and repeated. `table` writes
benchmarks/results/one_shot_em.json and .md from whatever there is.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.stats import t as student

from autotelic.runs.sweeping import Trial, TrialStore, run_trial

FUNCTION = "evidence_one_shot_em.trial"
RESULTS = Path(__file__).parent / "results"
SEEDS, FEW_SEEDS = 10, 5
PROMPT = "3+9-10=?"  # a training problem that the base model solves about half of the time: docs/world.md
LENGTH = 32
TEMPERATURES = (0.1, 0.4, 0.7, 1.0, 1.5)
RATES = (2e-4, 4e-4)
COMMON = {"model_name_or_path": "any_pair", "max_completion_length": LENGTH, "save_strategy": "no", "quiet": True}
EM = {"method": "one_shot_em", "prompt": PROMPT, "learning_rate": 2e-4, "max_steps": 10}
MANY = EM | {"prompt": None, "dataset": "chain_sums:train", "max_steps": 20}
RL = {"method": "grpo", "dataset": "chain_sums:train", "dataset_limit": 4000, "num_generations": 8}
RL |= {"per_device_train_batch_size": 64, "steps_per_generation": 2, "learning_rate": 2e-4, "max_steps": 24}
STRICTER = {"majority_drift": 0.3, "diversity": 0.9, "entropy_floor": 0.75, "length": 1.25, "logit_skew": 0.1}
SCORES = ("variance", "majority_variance", "semantic_entropy", "token_entropy", "disagreement", "chance")


def trials() -> list[Trial]:
    """All trials, seed by seed; what others start from comes first."""
    found = [make("selection", 0)]
    for seed in range(SEEDS):
        found += [make("base", seed), make("em", seed, **EM), make("rl", seed, **RL)]
        found.append(make("curve one prompt 0.0002", seed, curve=4, **EM | {"max_steps": 20}))
        found += [
            make(f"curve many prompts {rate:g}", seed, curve=2, **MANY | {"learning_rate": rate}) for rate in RATES
        ]
        found.append(make("many prompts", seed, **MANY | {"max_steps": 10}))
        found.append(make("random reward", seed, **RL | {"reward": "random", "max_steps": 12}))
        found.append(make("format reward", seed, **RL | {"reward": "format", "max_steps": 12}))
        found.append(make("em trained at T 1", seed, **EM | {"temperature": 1.0}))
        found.append(make("em then rl", seed, start="em", **RL))
        found.append(make("rl then em", seed, start="rl", **EM))
        found.append(make("worst prompt by variance", seed, select="variance", reverse=True, **EM | {"prompt": None}))
        found += [make(f"decoding {name}", seed, decoding=name) for name in ("em_inf", "adaptive_temperature")]
        found += [
            make(f"prompt by {score}", seed, select=score, **EM | {"prompt": None})
            for score in SCORES
            if seed < (SEEDS if score == "variance" else FEW_SEEDS)
        ]
    return found


def make(arm: str, seed: int, **settings: Any) -> Trial:
    return Trial(FUNCTION, {"arm": arm, "seed": seed, **settings}, {"arm": arm}, seed)


def place_of(arm: str, seed: int, folder: Path) -> Path:
    """The folder of the trial of another arm with the same seed."""
    return folder.parent / next(trial.key for trial in trials() if (trial.cell["arm"], trial.seed) == (arm, seed))


def needs(trial: Trial, folder: Path) -> Path | None:
    """The result that a trial waits for."""
    if "start" in trial.settings:
        return place_of(trial.settings["start"], trial.seed, folder) / "result.json"
    return place_of("selection", 0, folder) / "result.json" if "select" in trial.settings else None


def trial(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one trial: train, if there is something to train, then measure."""
    arm, seed = settings.pop("arm"), settings.pop("seed")
    started = time.process_time()
    if arm == "selection":
        return rank_prompts()
    extra: dict[str, Any] = {}
    decoding, start = settings.pop("decoding", None), settings.pop("start", None)
    score, reverse = settings.pop("select", None), settings.pop("reverse", False)
    curve = settings.pop("curve", 0)
    path = None
    if settings:
        if score:
            extra["prompt"] = settings["prompt"] = choose(score, reverse, seed, folder)
        train(settings, seed, folder / "run", place_of(start, seed, folder) / "run" if start else None, curve)
        path = folder / "run"
    if curve:
        extra |= {"rows": read(folder / "run" / "metrics.jsonl"), "probes": read(folder / "run" / "probes.jsonl")}
    else:
        extra |= measure(path, seed, decoding, arm)
    if arm not in ("em", "rl"):
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
    return extra | {"cpu_seconds": time.process_time() - started}


def train(settings: dict[str, Any], seed: int, output: Path, start: Path | None, curve: int) -> None:
    from autotelic.cli.config import to_options
    from autotelic.cli.train import train as run

    options = COMMON | {key: value for key, value in settings.items() if value is not None}
    options |= {"seed": seed, "output_dir": output, "overwrite": True}
    if settings.get("prompt") is None and settings["method"] == "one_shot_em":  # 8 new prompts x 8 an update
        options |= {"dataset_limit": 4000, "num_generations": 8}
    if start is not None:
        options["model_name_or_path"] = start
    if curve:  # a rule that never speaks, so that all probes are taken
        options |= {"stop_rule": "length,threshold=1000", "probe": f"dataset=chain_sums:train,steps={curve},k=8"}
        options |= {"validation_dataset": "chain_sums:test", "validation_limit": 50, "validation_k": 4}
        options["validation_steps"] = curve
    method = options.pop("method")
    run(method, to_options(options))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load(path: Path | None) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autotelic.tasks import model_path

    path = path or model_path("any_pair")
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


class Decoded:
    """A model that generates through one more logits processor, for `autotelic.evaluation`."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def generate(self, *, logits_processor: Any = (), **kwargs: Any) -> Any:
        return self.model.generate(**kwargs, logits_processor=[*logits_processor, self.processor])


def measure(path: Path | None, seed: int, decoding: str | None, arm: str) -> dict[str, Any]:
    """Accuracy, greedy and pass@k on the test problems; for the arms that are compared, temperature and skewness."""
    from autotelic.decoding import AdaptiveTemperature, EntropyMinimizer
    from autotelic.evaluation import evaluate_model
    from autotelic.tasks import load_problems

    model, tokenizer = load(path)
    if decoding:
        processors = {"em_inf": EntropyMinimizer(floor=0.1), "adaptive_temperature": AdaptiveTemperature(floor=0.1)}
        model = Decoded(model, processors[decoding])
    problems = load_problems("chain_sums:test", limit=100, require_answer=True)
    found = evaluate_model(model, tokenizer, problems, k=8, max_new_tokens=LENGTH, seed=seed)
    result: dict[str, Any] = {"figures": {name: estimate.value for name, estimate in found.metrics.items()}}
    if arm in ("base", "em", "rl", "em trained at T 1"):
        options = {"k": 4, "max_new_tokens": LENGTH, "seed": seed, "greedy": False}
        result["temperature"] = {
            str(t): evaluate_model(model, tokenizer, problems[:40], temperature=t, **options)["mean@4"].value
            for t in TEMPERATURES
        }
    if arm in ("base", "em", "rl", "em then rl", "rl then em"):
        result["skewness"] = skewness(model, tokenizer)
    return result


def skewness(model: Any, tokenizer: Any) -> float:
    """Skewness of the raw logits, teacher-forced on text of the base model that is the same for all."""
    from autotelic.diagnostics.logit_shift import LogitStatistics, response_logits
    from autotelic.lm.sampling import sample
    from autotelic.tasks import load_problems

    prompts = [row["prompt"] for row in load_problems("chain_sums:test", limit=40)]
    base, _ = load(None)
    texts = sample(base, tokenizer, prompts, max_new_tokens=LENGTH, statistics=()).texts
    statistics = LogitStatistics(num_ranks=1)
    pairs = [(tokenizer(p)["input_ids"], tokenizer(t)["input_ids"]) for p, t in zip(prompts, texts, strict=True)]
    for logits in response_logits(model, pairs):
        statistics.add(logits)
    return float(statistics.moments()[0, 2])


def rank_prompts() -> dict[str, Any]:
    """Score 60 training prompts with k = 16 at two temperatures."""
    from autotelic.cli.select import add_arguments, sampled, score
    from autotelic.diagnostics.prompt_selection import compare_scores

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["chain_sums:train", "--model", "any_pair", "--limit", "60", "--k", "16", "--quiet"]
    rows = score(
        sampled(parser.parse_args([*options, "--temperatures", "1.0", "0.5", "--max-new-tokens", str(LENGTH)]))
    )
    return {"rows": rows, "comparison": compare_scores(rows)}


def choose(score: str, reverse: bool, seed: int, folder: Path) -> str:
    """The prompt of rank seed + 1 by a score: an arm is a distribution over its best prompts, not one of them."""
    from autotelic.diagnostics.prompt_selection import rank

    rows = json.loads((place_of("selection", 0, folder) / "result.json").read_text())["metrics"]["rows"]
    if score == "chance":
        order = np.random.default_rng(0).permutation(len(rows))
        return rows[order[seed]]["prompt"]
    return rank(rows, score, reverse=reverse)[seed]["prompt"]


def run(output: Path, share: str) -> None:
    """Run what is missing, or this process's share of it."""
    import torch

    torch.set_num_threads(1)
    part, parts = (int(number) for number in share.split("/"))
    store = TrialStore(output.absolute())
    waiting = [trial for i, trial in enumerate(trials()) if i % parts == part - 1]
    total = len(waiting)
    waiting = store.missing(waiting)
    while waiting:
        ready = [t for t in waiting if (path := needs(t, store.place(t))) is None or path.exists()]
        if not ready:
            if all((path.parent / "error.txt").exists() for t in waiting if (path := needs(t, store.place(t)))):
                raise SystemExit("what the remaining trials start from has failed: see error.txt, then run again")
            time.sleep(5)  # another process has not finished what these start from
            continue
        failure = run_trial(ready[0], store)
        waiting.remove(ready[0])
        print(f"{total - len(waiting)}/{total} {failure or ready[0].label}", file=sys.stderr, flush=True)


def interval(values: list[float]) -> dict[str, float]:
    """Mean and 95 % t-interval over seeds."""
    n, mean = len(values), float(np.mean(values))
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


def shown(row: dict[str, float]) -> str:
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def table(output: Path) -> None:
    """Write the results of all finished trials as JSON and Markdown."""
    store = TrialStore(output.absolute())
    arms: dict[str, list[dict[str, Any]]] = {}
    for one in trials():
        found = store.read(one)
        if found is not None:
            arms.setdefault(one.cell["arm"], []).append(found)
    if not arms:
        raise SystemExit(f"no finished trial in {output}")
    figures = {
        arm: {name: interval([row["figures"][name] for row in rows]) for name in rows[0]["figures"]}
        for arm, rows in arms.items()
        if "figures" in rows[0]
    }
    heat = {
        arm: {t: interval([row["temperature"][t] for row in rows]) for t in map(str, TEMPERATURES)}
        for arm, rows in arms.items()
        if "temperature" in rows[0]
    }
    skew = {arm: interval([r["skewness"] for r in rows]) for arm, rows in arms.items() if "skewness" in rows[0]}
    curves = {arm: curve(rows) for arm, rows in arms.items() if "probes" in rows[0]}
    rules = {arm: stop_rules(rows) for arm, rows in arms.items() if "probes" in rows[0]}
    selection = arms["selection"][0]["comparison"] if "selection" in arms else {}
    seconds = sum(row.get("cpu_seconds", 0.0) for rows in arms.values() for row in rows)
    result = {"seeds": SEEDS, "cpu_seconds": seconds, "figures": figures, "temperature": heat, "skewness": skew}
    result |= {"curves": curves, "stop_rules": rules, "selection": selection}
    RESULTS.mkdir(exist_ok=True)
    for name, text in (("json", json.dumps(result, indent=1) + "\n"), ("md", markdown(result))):
        temporary = RESULTS / f"one_shot_em.{name}.tmp"
        temporary.write_text(text)
        temporary.replace(RESULTS / f"one_shot_em.{name}")
    if heat:
        heat_map(heat, RESULTS.parent.parent / "docs" / "img" / "one_shot_em_temperature.png")
    print(markdown(result))


def heat_map(rows: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Draw accuracy by model (base, EM at two training temperatures, RL) and evaluation temperature."""
    from matplotlib.figure import Figure

    labels = {"base": "base", "em": "EM, trained at T 0.5", "em trained at T 1": "EM, trained at T 1", "rl": "RL"}
    models = [arm for arm in labels if arm in rows]
    values = np.array([[rows[arm][str(t)]["mean"] for t in TEMPERATURES] for arm in models])
    figure = Figure(figsize=(7, 0.7 * len(models) + 1.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        axes.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes.set_xticks(range(len(TEMPERATURES)), [str(t) for t in TEMPERATURES])
    axes.set_yticks(range(len(models)), [labels[arm] for arm in models])
    axes.set_xlabel("sampling temperature in evaluation")
    figure.colorbar(image, ax=axes, label="accuracy (mean@4)")
    figure.savefig(path, dpi=110)


def by_step(row: dict[str, Any], name: str) -> dict[int, float]:
    return {r["step"]: r[name] for r in row["rows"] if name in r}


def curve(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy at each evaluated step, and the loss of each update, over seeds; where each seed's accuracy peaks."""
    result: dict[str, Any] = {}
    for name in ("eval/mean_at_k", "eval/greedy", "eval/pass_at_k", "train/em_loss"):
        steps = sorted(set.intersection(*(set(by_step(row, name)) for row in rows)))
        result[name] = {str(step): interval([by_step(row, name)[step] for row in rows]) for step in steps}
    accuracy = [by_step(row, "eval/mean_at_k") for row in rows]
    result["peak_steps"] = [max(found, key=lambda step: (found[step], -step)) for found in accuracy]
    return result


def stop_rules(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each rule, over seeds: the step of the checkpoint it keeps, and the accuracy lost against the run's best."""
    from autotelic.diagnostics.probe_statistics import ProbeStatistics
    from autotelic.diagnostics.stopping import RULES, stopping_point

    rules = {name: rule() for name, rule in RULES.items() if not rule.collapse}
    rules |= {f"{name}={limit} (stricter)": RULES[name](limit) for name, limit in STRICTER.items()}

    kept: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for row in rows:
        steps = [probe["step"] for probe in row["probes"]]
        history = [
            ProbeStatistics(
                **{k: v for k, v in probe.items() if k not in ("step", "majority")}, majority=tuple(probe["majority"])
            )
            for probe in row["probes"]
        ]
        choices = {
            "no training": 0,
            "step 10": max(i for i, step in enumerate(steps) if step <= 10),
            "last step": len(steps) - 1,
        }
        for name, rule in rules.items():
            point = stopping_point(rule, history)
            choices[name] = len(steps) - 1 if point is None else point - 1
        for name, index in choices.items():
            lost = {}
            for metric in ("eval/mean_at_k", "eval/greedy"):
                found = by_step(row, metric)
                lost[metric] = max(found.values()) - found[steps[index]]
            kept.setdefault(name, []).append((steps[index], lost))
    return {
        name: {
            "step": interval([float(step) for step, _ in found]),
            "lost_mean_at_k": interval([lost["eval/mean_at_k"] for _, lost in found]),
            "lost_greedy": interval([lost["eval/greedy"] for _, lost in found]),
        }
        for name, found in kept.items()
    }


def markdown(result: dict[str, Any]) -> str:
    """The same as tables."""
    lines = [
        "# One-shot entropy minimisation on the small world",
        "",
        f"{result['seeds']} seeds (5 for label-free prompt selection), 95 % t-intervals over seeds; 100 problems x "
        f"8 samples at temperature 1. {result['cpu_seconds'] / 60:.0f} core-minutes. "
        "`python benchmarks/evidence_one_shot_em.py`.",
        "",
        "| arm | n | mean@8 | greedy | pass@8 | maj@8 | entropy | skewness |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, row in result["figures"].items():
        skew = shown(result["skewness"][arm]) if arm in result["skewness"] else ""
        cells = [shown(row[name]) for name in ("mean@8", "greedy", "pass@8", "maj@8", "entropy")]
        lines.append(f"| {arm} | {row['mean@8']['n']} | " + " | ".join([*cells, skew]) + " |")
    lines += ["", "Accuracy (mean@4, 40 problems) by evaluation temperature:", ""]
    lines.append("| model | " + " | ".join(map(str, TEMPERATURES)) + " |")
    lines.append("| --- |" + " --- |" * len(TEMPERATURES))
    for arm, row in result["temperature"].items():
        lines.append(f"| {arm} | " + " | ".join(shown(row[str(t)]) for t in TEMPERATURES) + " |")
    for arm, row in result["curves"].items():
        lines += ["", f"Over the updates, {arm.removeprefix('curve ')} (learning rate; mean@4, 50 problems):", ""]
        lines += ["| update | mean@4 | greedy | pass@4 | loss |", "| --- | --- | --- | --- | --- |"]
        for step, accuracy in row["eval/mean_at_k"].items():
            loss = row["train/em_loss"].get(step)
            cells = [shown(accuracy), shown(row["eval/greedy"][step]), shown(row["eval/pass_at_k"][step])]
            lines.append(f"| {step} | " + " | ".join(cells) + f" | {shown(loss) if loss else ''} |")
        lines += ["", f"Peaks of mean@4, seed by seed: {row['peak_steps']}."]
    for arm, rules in result["stop_rules"].items():
        lines += [
            "",
            f"Stop rules, {arm.removeprefix('curve ')} (learning rate): accuracy below the run's own best checkpoint:",
            "",
        ]
        lines += ["| rule | kept step | mean@4 lost | greedy lost |", "| --- | --- | --- | --- |"]
        for name, row in rules.items():
            cells = " | ".join(shown(row[key]) for key in ("step", "lost_mean_at_k", "lost_greedy"))
            lines.append(f"| {name} | {cells} |")
    if result["selection"]:
        lines += ["", "Label-free scores against the variance of correctness, 60 prompts, k = 16:", ""]
        lines += ["| score | Spearman | top 10 found | by chance |", "| --- | --- | --- | --- |"]
        for name, row in result["selection"].items():
            lines.append(f"| {name} | {row['spearman']:.3f} | {row['top_overlap']:.2f} | {row['chance']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--output", type=Path, default=Path("runs/evidence/one_shot_em"))
    parser.add_argument("--share", default="1/1", help="I/N: this process runs every N-th trial, from the I-th")
    args = parser.parse_args()
    run(args.output, args.share) if args.command == "run" else table(args.output)


if __name__ == "__main__":
    main()
