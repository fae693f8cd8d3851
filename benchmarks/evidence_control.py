"""Control experiments of several tasks, arms and seeds, and their tables: what docs/log/ quotes.

    python benchmarks/evidence_control.py run benchmarks/recipes/control_point_reach.yaml
    python benchmarks/evidence_control.py table runs/evidence/control_point_reach
    python benchmarks/evidence_control.py online recipes/control_online.yaml

A finished run (task, arm, seed) is never run again, so the command can be stopped and repeated, and several processes
can share the work. Arms of one seed share data, clone, held-out pairs and evaluation starts: differences are paired.
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from autotelic.cli.control_learning import build_settings
from autotelic.control.collection import build_data
from autotelic.control.environments import make
from autotelic.control.intervals import mean_interval
from autotelic.control.online import run_online
from autotelic.control.settings import DataSettings, OnlineSettings, PebbleSettings, TrainSettings
from autotelic.control.training import train


def say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


def claim(folder: Path) -> bool:
    """Take a piece of work; False where another process has it or had it (remove `claimed` after a crash)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / "claimed", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def by_judge(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with `judges` has every task under each of them, named task-judge."""
    if "judges" not in recipe:
        return recipe
    pairs = [(task, judge) for task in recipe["tasks"] for judge in recipe["judges"]]
    tasks = {
        f"{task}-{judge}": recipe["tasks"][task] | {"judge": judge, "like": f"{task}-{recipe['judges'][0]}"}
        for task, judge in pairs
    }
    return {name: value for name, value in recipe.items() if name != "judges"} | {"tasks": tasks}


def data_settings(recipe: dict[str, Any], task: str, seed: int) -> DataSettings:
    changes = {name: value for name, value in recipe["tasks"][task].items() if name != "like"}
    return build_settings(DataSettings, recipe.get("data", {}) | changes, {"seed": seed})


def collect(settings: DataSettings, data: Path, like: Path) -> None:
    """Write the data, labelled anew from the episodes in `like` if that is another folder; or wait for who does."""
    if claim(data):
        if like != data:
            shutil.copytree(like, data, dirs_exist_ok=True)
        build_data(settings, data, say)
        (data / "ready").touch()
    while not (data / "ready").is_file():
        time.sleep(5)


def run(recipe: dict[str, Any], output: Path, tasks: list[str], arms: list[str], seeds: list[int]) -> None:
    recipe = by_judge(recipe)
    output.mkdir(parents=True, exist_ok=True)
    (output / "experiment.json").write_text(json.dumps(recipe, indent=1))
    for seed in seeds or range(recipe["seeds"]):
        for task in tasks or recipe["tasks"]:
            like = recipe["tasks"][task].get("like", task)
            place = output / f"{like}-seed{seed}" / "data"
            collect(data_settings(recipe, like, seed), place, place)
            settings, data = data_settings(recipe, task, seed), output / f"{task}-seed{seed}" / "data"
            collect(settings, data, place)
            environment = None
            for arm in arms or recipe["arms"]:
                folder = data.parent / arm
                if claim(folder):
                    copies = settings.num_envs or None, settings.horizon or None
                    environment = environment or make(settings.env, *copies, settings.random_hand)
                    section = recipe.get("train", {}) | recipe["arms"][arm]
                    if settings.judge == "regret_tail":
                        section = {"weights": "tail"} | section
                    one = build_settings(TrainSettings, section, {"seed": seed})
                    result = train(one, data, folder / "run", resume=True, environment=environment)
                    say(f"{task} seed {seed} {arm}: success {result['eval/success']:.2f} in {result['seconds']} s")


def online_settings(recipe: dict[str, Any], task: str, arm: str, seed: int) -> tuple[Any, Any, Any]:
    """A task changes the rounds; an arm changes training, and PEBBLE's own settings."""
    own = {field.name for field in fields(PebbleSettings)}
    changes = recipe["arms"][arm]
    pebble = recipe.get("pebble", {}) | {name: value for name, value in changes.items() if name in own}
    train = recipe["train"] | {name: value for name, value in changes.items() if name not in own}
    return (
        build_settings(OnlineSettings, recipe["online"] | recipe["tasks"][task], {}),
        build_settings(TrainSettings, train, {"seed": seed}),
        build_settings(PebbleSettings, pebble, {}),
    )


def online(recipe: dict[str, Any], output: Path, tasks: list[str], arms: list[str], seeds: list[int]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "experiment.json").write_text(json.dumps(recipe, indent=1))
    for seed in seeds or range(recipe["seeds"]):
        for task, arm in [(task, arm) for task in tasks or recipe["tasks"] for arm in arms or recipe["arms"]]:
            folder = output / f"{task}-online-seed{seed}" / arm
            if claim(folder):
                settings, training, pebble = online_settings(recipe, task, arm, seed)
                started = time.process_time()
                rows = run_online(settings, training, folder / "run", pebble=pebble)
                (folder / "rows.json").write_text(json.dumps(rows))
                shown = [round(row["eval/success"], 2) for row in rows]
                say(f"{task} online seed {seed} {arm}: {shown}, {time.process_time() - started:.0f} s of CPU")


def online_table(output: Path) -> str:
    """Success and return at some budgets of answers, steps at the end, and the paired differences there."""
    recipe = json.loads((output / "experiment.json").read_text())
    runs: dict[tuple[str, str], dict[int, list[dict[str, float]]]] = {}
    for path in output.glob("*-online-seed*/*/rows.json"):
        task, seed = path.parents[1].name.rsplit("-online-seed", 1)
        runs.setdefault((task, path.parent.name), {})[int(seed)] = json.loads(path.read_text())
    lines = []
    for metric in ("eval/success", "eval/return"):
        answers = [int(row["feedback/labels"]) for row in next(iter(next(iter(runs.values())).values()))]
        columns = sorted({round(i * (len(answers) - 1) / 5) for i in range(6)})
        head = " | ".join(f"{answers[i]} answers" for i in columns)
        lines += [f"| {metric} | arm | seeds | {head} | steps |", "| --- " * (len(columns) + 4) + "|"]
        for task, arm in [(task, arm) for task in recipe["tasks"] for arm in recipe["arms"]]:
            if found := list(runs.get((task, arm), {}).values()):
                cells = [interval(np.array([run[i][metric] for run in found])) for i in columns]
                steps = f"{found[0][-1]['feedback/env_steps']:.0f}"
                lines.append(f"| {task} | {arm} | {len(found)} | " + " | ".join(cells) + f" | {steps} |")
        lines.append("")
    lines += ["| task | paired difference at the end | seeds | success | return |", "| --- " * 5 + "|"]
    for task, (first, second) in [(task, pair) for task in recipe["tasks"] for pair in recipe.get("paired", [])]:
        one, two = runs.get((task, first), {}), runs.get((task, second), {})
        if both := sorted(set(one) & set(two)):
            cells = [
                interval(np.array([one[s][-1][m] - two[s][-1][m] for s in both]), sign=True)
                for m in ("eval/success", "eval/return")
            ]
            lines.append(f"| {task} | {first} - {second} | {len(both)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(values: np.ndarray, sign: bool = False) -> str:
    return mean_interval(np.asarray(values, dtype=float)).short(3, sign)


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def averaged(run: Path, last: int) -> dict[str, Any]:
    """The run's final figures, its success averaged over the last evaluations."""
    result = json.loads((run / "result.json").read_text())
    rows = read_rows(run)[1:][-last:]  # the first is the clone's
    return result | {"eval/success": float(np.mean([row["eval/success"] for row in rows]))}


def own_nll(result: dict[str, Any]) -> float:
    """Held-out preference NLL under the label model that the method was trained with."""
    return result.get("preference/nll_ppl" if result["method"].startswith("ppl") else "preference/nll_cpl", np.nan)


def table(output: Path) -> str:
    """Success per task and arm, and the paired differences that the recipe names (`paired: [[a, b], ...]`).

    Success is the mean of a run's last evaluations, as many as the recipe says (`last`, 1).
    """
    recipe = json.loads((output / "experiment.json").read_text())
    results: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in output.glob("*-seed*/*/run/result.json"):
        task, seed = path.parents[2].name.rsplit("-seed", 1)
        results.setdefault((task, path.parents[1].name), {})[int(seed)] = averaged(path.parent, recipe.get("last", 1))
        results.setdefault((task, "the clone"), {})[int(seed)] = read_rows(path.parent)[0] | {"method": "clone"}
    lines = ["| task | arm | seeds | success | held-out preference NLL, own score | accuracy |", "| --- " * 6 + "|"]
    for task, arm in [(task, arm) for task in recipe["tasks"] for arm in ("the clone", *recipe["arms"])]:
        if rows := list(results.get((task, arm), {}).values()):
            cells = [[r["eval/success"] for r in rows], [own_nll(r) for r in rows]]
            cells.append([r.get("preference/accuracy", np.nan) for r in rows])
            shown = [interval(np.array(cell)) for cell in cells]
            lines.append(f"| {task} | {arm} | {len(rows)} | " + " | ".join(shown) + " |")
    lines += ["", "| task | paired difference | seeds | success | held-out preference NLL |", "| --- " * 5 + "|"]
    for task in recipe["tasks"]:
        for first, second in recipe.get("paired", []):
            one, two = results.get((task, first), {}), results.get((task, second), {})
            if both := sorted(set(one) & set(two)):
                success = np.array([one[s]["eval/success"] - two[s]["eval/success"] for s in both])
                nll = np.array([own_nll(one[s]) - own_nll(two[s]) for s in both])
                cells = f"{interval(success, sign=True)} | {interval(nll, sign=True)}"
                lines.append(f"| {task} | {first} - {second} | {len(both)} | {cells} |")
    return "\n".join([*lines, "", *data_table(output)])


def data_table(output: Path) -> list[str]:
    """What `control data` reports, per task: mean over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(output.glob("*-seed*/data/data.json")):
        data = json.loads(path.read_text())
        rates = {f"success of behaviour {i + 1}": rate for i, rate in enumerate(data["success"])}
        found.setdefault(path.parents[1].name.rsplit("-seed", 1)[0], []).append(rates | data.get("report", {}))
    lines = []
    for task, rows in found.items():
        shown = {name: [row[name] for row in rows if row[name] is not None] for name in rows[0] if name in rows[0]}
        text = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in shown.items() if values)
        lines.append(f"- {task}: {text}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "online", "table"))
    parser.add_argument("path", type=Path, help="a recipe, or the output folder for `table`")
    parser.add_argument("--output", type=Path, help="folder for the runs")
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--arms", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[])
    args = parser.parse_args()
    if args.what == "table":
        print(online_table(args.path) if list(args.path.glob("*-online-seed*")) else table(args.path))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    recipe, output = yaml.safe_load(args.path.read_text()), args.output or Path("runs/evidence") / args.path.stem
    if args.what == "online":
        online(recipe, output, args.tasks, args.arms, args.seeds)
        print(online_table(output))
    else:
        run(recipe, output, args.tasks, args.arms, args.seeds)
        print(table(output))


if __name__ == "__main__":
    main()
