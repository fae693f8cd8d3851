"""Policy-labelled preferences on the small world: behaviours, pairs, runs over seeds, and the table of docs/log/.

    python benchmarks/evidence_ppl.py pairs --output runs/ppl_pairs              # checkpoints and pairs: some minutes
    python benchmarks/evidence_ppl.py run benchmarks/recipes/evidence_ppl.yaml --output runs/evidence/ppl
    python benchmarks/evidence_ppl.py table runs/evidence/ppl

Three behaviours: `strong`, the carried model after 60 updates of GRPO; `weak`, the carried model itself; `noisy`, the
carried model at temperature 1.5. Both sides of a pair answer the same prompt. Two judges:

* `outcome`: whole responses; the right one is preferred (pairs where both or none is right are dropped).
* `regret`: the judge sees the first step of each response, and rates the behaviour: how often the *same policy* would
  reach the right answer from there (16 continuations). The row records the rest of the response, its look-ahead.

A finished run is never run again, so the commands can be stopped and repeated.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from evidence import interval, records

BEHAVIORS: dict[str, dict[str, Any]] = {
    "strong": {"temperature": 1.0},
    "weak": {"temperature": 1.0},
    "noisy": {"temperature": 1.5},
}
CONTINUATIONS = 16


def make_strong(folder: Path) -> Path:
    """Train the strong behaviour, once."""
    from autotelic.cli.train import train

    if not (folder / "model.safetensors").exists():
        recipe = Path(__file__).parent.parent / "recipes" / "tiny_grpo.yaml"
        options = {"max_steps": 60, "validation_steps": 0, "log_rollouts": 0, "seed": 100, "output_dir": folder}
        flags = [item for key, value in options.items() for item in (f"--{key}", str(value))]
        train("grpo", ["--config", str(recipe), *flags, "--overwrite", "true", "--quiet", "true"])
    return folder


def load(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def first_step(response: str) -> str | None:
    """The first rewrite of the sum with its `=`, where more follows; None for an answer in one go."""
    head, equals, rest = response.partition("=")
    return head + equals if equals and rest else None


def is_right(response: str, answer: str) -> bool:
    from autotelic.tasks.chain_sums import final_answer

    return final_answer(response) == answer


def answer_all(models: dict[str, Any], tokenizer: Any, prompts: list[tuple[str, str]], seed: int) -> list[Any]:
    """Sample one response for each (policy, text); the text may be a prompt with the beginning of a response."""
    from autotelic.lm.sampling import sample

    texts: list[Any] = [None] * len(prompts)
    for name, settings in BEHAVIORS.items():
        own = [i for i, (policy, _) in enumerate(prompts) if policy == name]
        sampled = sample(
            models[name],
            tokenizer,
            [prompts[i][1] for i in own],
            temperature=settings["temperature"],
            max_new_tokens=32,
            batch_size=512,
            seed=seed,
            statistics=(),
        )
        for i, text, length in zip(own, sampled.texts, sampled.num_tokens, strict=True):
            texts[i] = text if length < 32 else None  # cut at the limit: it has no end token
    return texts


def make_pairs(output: Path, num_prompts: int, heldout_prompts: int) -> None:
    """Write pairs of both judges, the held-out ones, and the table of behaviours."""
    from autotelic.preferences.pairs import write_pairs
    from autotelic.tasks import load_problems, model_path

    output.mkdir(parents=True, exist_ok=True)
    strong = make_strong(output / "strong")
    base, tokenizer = load(model_path("any_pair"))
    models = {"strong": load(strong)[0], "weak": base, "noisy": base}
    table = {name: {"model": "any_pair", **settings} for name, settings in BEHAVIORS.items()}
    table["strong"]["model"] = str(strong)
    (output / "policies.json").write_text(json.dumps(table, indent=1) + "\n")
    problems = load_problems("chain_sums:train", limit=num_prompts + heldout_prompts, seed=1, require_answer=True)
    generator = random.Random(0)
    names = list(BEHAVIORS)
    sides = [(generator.choice(names), row["prompt"]) for row in problems for _ in range(2)]
    responses = answer_all(models, tokenizer, sides, seed=1)
    steps = [None if text is None else first_step(text) for text in responses]
    values = step_values(models, tokenizer, sides, steps, [row["answer"] for row in problems])
    accuracy = {name: [] for name in names}
    for i, (name, _) in enumerate(sides):
        accuracy[name].append(responses[i] is not None and is_right(responses[i], problems[i // 2]["answer"]))
    print({name: round(float(np.mean(rows)), 3) for name, rows in accuracy.items()}, file=sys.stderr)
    rows: dict[str, list[dict[str, Any]]] = {"outcome": [], "regret": []}
    heldout: dict[str, list[dict[str, Any]]] = {"outcome": [], "regret": []}
    for p, problem in enumerate(problems):
        both = (2 * p, 2 * p + 1)
        if any(responses[i] is None for i in both) or responses[both[0]] == responses[both[1]]:
            continue
        target = rows if p < num_prompts else heldout
        right = [float(is_right(responses[i], problem["answer"])) for i in both]
        judged = {"outcome": right}
        if all(steps[i] is not None for i in both):
            judged["regret"] = [values[i] for i in both]
        for judge, (first, second) in judged.items():
            if first == second:
                continue
            best, worst = both if first > second else both[::-1]
            row: dict[str, Any] = {"prompt": problem["prompt"]}
            for side, i in (("chosen", best), ("rejected", worst)):
                row |= {side: responses[i], f"{side}_policy_id": sides[i][0]}
                if judge == "regret":
                    row[f"{side}_segment_tokens"] = len(tokenizer(steps[i], add_special_tokens=False)["input_ids"])
            target[judge].append(row)
    for judge in rows:
        write_pairs(output / f"{judge}.jsonl", rows[judge])
        write_pairs(output / f"{judge}_heldout.jsonl", heldout[judge])
        print(f"{judge}: {len(rows[judge])} pairs, {len(heldout[judge])} held out", file=sys.stderr)


def step_values(models: Any, tokenizer: Any, sides: Any, steps: Any, answers: list[str]) -> list[float]:
    """How often each side's own policy reaches the right answer from its first step."""
    asked = [i for i, step in enumerate(steps) if step is not None for _ in range(CONTINUATIONS)]
    texts = [(sides[i][0], sides[i][1] + steps[i]) for i in asked]
    ends = answer_all(models, tokenizer, texts, seed=2)
    totals = [0.0] * len(steps)
    for i, end in zip(asked, ends, strict=True):
        totals[i] += end is not None and is_right(steps[i] + end, answers[i // 2])
    return [total / CONTINUATIONS for total in totals]


def run(recipe: Path, output: Path, only: list[str], seeds: int | None) -> None:
    """Train and evaluate every run of the recipe that has no result yet."""
    import os

    experiment = yaml.safe_load(recipe.read_text())
    output.mkdir(parents=True, exist_ok=True)
    (output / "experiment.json").write_text(json.dumps(experiment, indent=2))
    for seed in range(seeds or experiment["seeds"]):
        for name, settings in experiment["runs"].items():
            folder = output / f"{name}-seed{seed}"
            if only and name not in only:
                continue
            folder.mkdir(exist_ok=True)
            try:
                os.close(os.open(folder / "claimed", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue  # finished, or in the hands of another process (remove `claimed` after a crash)
            run_one(experiment, name, dict(settings or {}), seed, folder)


def run_one(experiment: dict[str, Any], name: str, settings: dict[str, Any], seed: int, folder: Path) -> None:
    from autotelic.cli.train import train
    from autotelic.evaluation import evaluate_model
    from autotelic.tasks import load_problems, model_path

    started = time.monotonic()
    path, metrics = model_path("any_pair"), {}
    if settings.pop("method", "ppl") != "base":
        options = dict(experiment["common"]) | settings
        options |= {"seed": seed, "output_dir": folder / "run", "overwrite": True, "quiet": True}
        summary = train("ppl", [item for key, value in options.items() for item in (f"--{key}", str(value))])
        path, metrics = folder / "run", summary["metrics"]
    model, tokenizer = load(path)
    wanted = experiment["evaluation"]
    problems = load_problems("chain_sums:test", limit=wanted["problems"], require_answer=True)
    result = evaluate_model(model, tokenizer, problems, k=wanted["k"], max_new_tokens=32, seed=seed)
    evaluation = {key: estimate.as_dict() for key, estimate in result.metrics.items()}
    heldout = {key: value for key, value in metrics.items() if key.startswith("preference/heldout")}
    record = {"name": name, "seed": seed, "seconds": time.monotonic() - started}
    record |= {"evaluation": evaluation, "heldout": heldout}
    (folder / "result.tmp").write_text(json.dumps(record))
    (folder / "result.tmp").replace(folder / "result.json")
    (folder / "run" / "model.safetensors").unlink(missing_ok=True)
    shown = {key: round(evaluation[key]["value"], 3) for key in (f"mean@{wanted['k']}", "greedy", "entropy")}
    shown |= {key.split("/")[1]: round(value, 4) for key, value in heldout.items()}
    print(f"{name} seed {seed}: {shown} in {record['seconds']:.0f} s", file=sys.stderr, flush=True)


COLUMNS = ("mean@8", "greedy", "pass@8", "entropy", "heldout_nll", "heldout_nll_no_lookahead", "heldout_accuracy")


def value_of(record: dict[str, Any], column: str) -> float:
    if column in record["evaluation"]:
        return float(record["evaluation"][column]["value"])
    return float(record["heldout"].get(f"preference/{column}", math.nan))


def table(output: Path) -> str:
    """Means over seeds with 95 % Student intervals, then differences to each judge's DPO, paired by seed."""
    found = records(output)
    order = [name for name in json.loads((output / "experiment.json").read_text())["runs"] if name in found]
    lines = ["| run | seeds | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for name in order:
        cells = [span([value_of(row, column) for row in found[name]]) for column in COLUMNS]
        lines.append(f"| {name} | {len(found[name])} | " + " | ".join(cells) + " |")
    paired = ("mean@8", "greedy", "heldout_nll")
    lines += ["", "| run minus its DPO, paired | " + " | ".join(paired) + " |", "| --- " * (len(paired) + 1) + "|"]
    for name in order:
        rival = f"{name.split('_')[0]}_dpo"
        if rival not in found or name == rival:
            continue
        base = {row["seed"]: row for row in found[rival]}
        pairs = [(row, base[row["seed"]]) for row in found[name] if row["seed"] in base]
        cells = [span([value_of(a, c) - value_of(b, c) for a, b in pairs], signed=True) for c in paired]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(values: list[float], signed: bool = False) -> str:
    if any(math.isnan(value) for value in values):
        return "–"
    mean, half = interval(values)
    return f"{mean:{'+' if signed else ''}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("pairs")
    maker.add_argument("--output", type=Path, required=True)
    maker.add_argument("--prompts", type=int, default=2400)
    maker.add_argument("--heldout-prompts", type=int, default=600)
    runner = commands.add_parser("run")
    runner.add_argument("recipe", type=Path)
    runner.add_argument("--output", type=Path, required=True)
    runner.add_argument("--only", nargs="*", default=[])
    runner.add_argument("--seeds", type=int, default=None)
    shower = commands.add_parser("table")
    shower.add_argument("output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "pairs":
        make_pairs(args.output, args.prompts, args.heldout_prompts)
    elif args.command == "run":
        run(args.recipe, args.output, args.only, args.seeds)
    else:
        print(table(args.output))


if __name__ == "__main__":
    main()
