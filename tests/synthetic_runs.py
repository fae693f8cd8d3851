"""Run folders of the documented format, made from formulas: what the report's tests read."""

import json
import math
import random
from pathlib import Path
from typing import Any

METHODS = ("grpo", "clip_cov", "kl_cov", "empo", "one_shot_em", "random_reward")
ALPHABET = "0123456789+-=? "
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028&amp;"


def write_run(
    folder: Path,
    method: str,
    *,
    seed: int = 0,
    steps: int = 60,
    every: int = 5,
    prompts: int = 3,
    responses: int = 8,
    rollout_every: int = 20,
    text: str | None = None,
    temperature: float = 1.0,
    followed: int = 0,
    evaluated: bool = False,
    timed: bool = False,
) -> Path:
    """Write one run whose reward obeys R = -a exp(H) + b up to noise; `text` replaces every token of every response.

    `followed` prompts come back at every look; `evaluated` adds what `autotelic eval --output` writes; `timed` logs
    seconds and tokens of every update.
    """
    rng = random.Random(f"{method} {seed}")
    folder.mkdir(parents=True)
    control = method if method in {"clip_cov", "kl_cov"} else None
    trainer = method if method in {"empo", "one_shot_em"} else "grpo"
    own: dict[str, Any] = {"entropy_control": control or "none", "reward": "verifier"}
    if method == "random_reward":
        own["reward"] = "random"
    if method == "empo":
        own |= {"reward": {"name": "empo", "low": 0.2, "high": 0.9, "units": "fraction_of_log_G"}}
    training = {"learning_rate": 2e-4, "seed": seed, "output_dir": str(folder), "num_generations": responses}
    training["temperature"] = temperature
    run = {
        "method": f"{trainer}+{control}" if control else trainer,
        "seed": seed,
        "config": {"run": own, "training": training},
        "versions": {"autotelic": "0.1.0", "torch": "2.13.0"},
        "started": "2026-11-20T10:00:00Z",
    }
    (folder / "run.json").write_text(json.dumps(run))
    speed = {"grpo": 40, "one_shot_em": 15, "empo": 50, "random_reward": 300}.get(method, 120)
    rows = []
    for step in range(steps + 1):
        entropy = 0.12 + 0.5 * math.exp(-step / speed) + rng.gauss(0, 0.006)
        accuracy = -0.45 * math.exp(entropy) + 1.05 + rng.gauss(0, 0.012)
        if step:
            row: dict[str, Any] = {
                "step": step,
                "policy/entropy": max(entropy, 0.0),
                "reward/mean": accuracy + rng.gauss(0, 0.05),
                "reward/std": 0.4,
                "completions/mean_length": 14 + 3 * math.sin(step / 9) + rng.gauss(0, 0.3),
                "policy/k3": 0.002 * step / steps + abs(rng.gauss(0, 2e-4)),
                "train/loss": rng.gauss(0, 0.02),
                "train/grad_norm": 0.5 + abs(rng.gauss(0, 0.1)),
                "clip/share": 0.01 + abs(rng.gauss(0, 0.002)),
            }
            if method == "one_shot_em":
                row |= {
                    "train/em_loss": max(entropy, 0.0),
                    "probe/diversity": 0.9 * entropy,
                    "probe/majority_share": 0.6,
                }
            for name, size in (("0_02", 3.0), ("0_2", 1.8), ("2", 0.9), ("20", 0.3), ("50", 0.1)):
                row[f"covariance/top_{name}"] = size * (0.3 + entropy) + rng.gauss(0, 0.03)
            row["covariance/mean"] = 0.01 * entropy
            row |= {f"covariance/accuracy_{level}": 0.02 * entropy for level in ("low", "mid", "high")}
            if timed:
                row |= {"train/step_time": 20.0, "trl/num_tokens": 1000 * step}
            if control:
                row["selected/share"] = 0.02
                shares = [0.1, 0.25, 0.05, 0.6]
                for name, share in zip(
                    ("positive_likely", "positive_unlikely", "negative_likely", "negative_unlikely"),
                    shares,
                    strict=True,
                ):
                    row[f"selected/{name}"] = share
            rows.append(row)
        if step % every == 0:
            rows.append(
                {
                    "step": step,
                    "eval/mean_at_k": accuracy,
                    "eval/greedy": min(1.0, accuracy + 0.15),
                    "eval/pass_at_k": min(1.0, accuracy + 0.3),
                    "eval/maj_at_k": min(1.0, accuracy + 0.1),
                    "eval/entropy": max(entropy, 0.0),
                }
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "rollouts.jsonl").open("w") as file:
        for step in range(0, steps + 1, rollout_every):
            for p in range(prompts):
                file.write(json.dumps(rollout_row(rng, step, p, responses, control, text)) + "\n")
    if followed:
        with (folder / "followed.jsonl").open("w") as file:
            for step in range(0, steps + 1, rollout_every):
                for p in range(followed):
                    row = rollout_row(rng, step, p, responses, None, text)
                    for response in row["responses"]:
                        for name in ("covariance", "reward", "advantage"):
                            del response[name]
                    file.write(json.dumps(row | {"prompt_id": f"f{p}", "prompt": f"{p}+{p}="}) + "\n")
    if evaluated:
        (folder / "evaluation.json").write_text(json.dumps(evaluation(temperature)))
    return folder


def evaluation(trained_at: float) -> dict[str, Any]:
    """Return the file of `autotelic eval`: the hotter, the less accurate."""
    found = {}
    for t in (0.3, 0.6, 1.0, 1.5):
        mean = max(0.02, 0.8 - 0.4 * t / (0.5 + trained_at))
        estimates = {"mean@4": mean, "pass@1": mean, "pass@4": 1 - (1 - mean) ** 2.5, "entropy": 0.4 * t}
        found[str(t)] = {
            name: {"value": value, "interval": [value - 0.03, value + 0.03]} for name, value in estimates.items()
        } | {"settings": {"temperature": t}, "num_prompts": 20, "warnings": [], "samples": [{"responses": ["x"]}]}
    return found


def logits(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the file of `autotelic logits`: bell curves, the later the further right."""
    models = {}
    for i, name in enumerate(names):
        counts = [round(1000 * math.exp(-((j - 40 - 4 * i) ** 2) / 200)) for j in range(90)]
        moment = {"value": 0.1 * i, "interval": [0.1 * i - 0.02, 0.1 * i + 0.02]}
        models[name] = {
            **dict.fromkeys(("mean", "std", "skewness"), moment),
            **({"shift": dict.fromkeys(("mean", "std", "skewness"), moment)} if i else {}),
            "num_sequences": 12,
            "num_positions": 100,
            "histogram": {"low": -10.0, "bin_width": 0.25, "counts": counts},
            "ranks": {"rank": [1, 2, 4, 8, 18], "mean": [9.0 + i, 5.0, 2.0, 0.0, -4.0]},
        }
    return {"settings": {"prompts": "chain_sums:test", "compat": "none"}, "models": models}


def write_preference_run(folder: Path, method: str = "ppl", *, seed: int = 0, steps: int = 40) -> Path:
    """Write one run of preference learning: its loss falls, its accuracy rises."""
    rng = random.Random(f"{method} {seed}")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"method": method, "seed": seed, "config": {"objective": method}}))
    rows = []
    for step in range(1, steps + 1):
        falling = math.exp(-step / 15)
        row = {"step": step, "preference/train_nll": 0.3 + 0.4 * falling + rng.gauss(0, 0.01)}
        row["preference/train_accuracy"] = 0.9 - 0.4 * falling + rng.gauss(0, 0.01)
        if step % 10 == 0:
            row["preference/heldout_nll"] = 0.35 + 0.35 * falling
            success = 0.9 - 0.6 * falling
            row |= {"eval/success": success, "eval/success_low": success - 0.1, "eval/success_high": success + 0.05}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_online_run(folder: Path, method: str = "online_ppl", *, updates: int = 200) -> Path:
    """Write one run that asks 100 comparisons a round."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"method": method, "seed": 0, "config": {}}))
    rows = [
        {
            "step": updates * i,
            "feedback/labels": 100 * i,
            "feedback/env_steps": 1600 * (i + 1),
            "eval/success": 0.1 + 0.05 * i,
        }
        for i in range(6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rollout_row(rng: random.Random, step: int, p: int, responses: int, control: str | None, text: str | None) -> dict:
    """Return one row of `rollouts.jsonl`."""
    rows = []
    for _ in range(responses):
        wrong = rng.random() < 0.5 * math.exp(-step / 40)
        answer = 14 + p if not wrong else rng.choice([13, 15, 16])
        tokens = [*f"?19-5={answer}", "<eos>"]
        if text is not None:
            tokens = [text] * 3
        cluster = -1 if rng.random() < 0.06 else answer - 13
        entropy = [abs(rng.gauss(0.4 * math.exp(-step / 60), 0.35)) for _ in tokens]
        row = {
            "text": "".join(tokens),
            "tokens": tokens,
            "entropy": entropy,
            "surprisal": [h * rng.random() * 2 for h in entropy],
            "covariance": [rng.gauss(0, 0.4) * h for h in entropy],
            "reward": float(not wrong),
            "advantage": 0.6 if not wrong else -1.4,
            "cluster": cluster,
        }
        if control:
            row["selected"] = [rng.random() < 0.12 for _ in tokens]
        rows.append(row)
    return {"step": step, "prompt_id": f"p{p}", "prompt": f"12+{7 + p}-5=", "responses": rows}


def results() -> dict[str, Any]:
    """Return what the demo measures: every method with its intervals."""
    rng = random.Random(1)

    def estimate(value: float) -> dict[str, Any]:
        width = 0.03 + 0.02 * rng.random()
        return {"value": value, "interval": [max(0.0, value - width), min(1.0, value + width)]}

    found = {}
    for i, method in enumerate(("base", *METHODS)):
        mean = [0.18, 0.48, 0.46, 0.45, 0.27, 0.09, 0.17][i]
        found[method] = {
            "mean@8": estimate(mean),
            "greedy": estimate(min(0.95, mean + 0.3)),
            "maj@8": estimate(min(0.95, mean + 0.25)),
            "entropy": estimate([0.42, 0.16, 0.29, 0.22, 0.2, 0.03, 0.41][i]),
            **{f"pass@{k}": estimate(1 - (1 - mean) ** (k * 0.6)) for k in (1, 2, 4, 8)},
        }
    return found


def write_metrics(folder: Path, rows: list[dict[str, Any]], **description: Any) -> Path:
    """Write a run of these rows, and nothing else."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(description))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def grouped(*folders: Path) -> Any:
    """Return the groups in which the page draws the runs of these folders."""
    from autotelic.report import data
    from autotelic.report.run_folders import load_run

    return data.group_runs([load_run(folder) for folder in folders])
