"""Settings x seeds of a recipe, on Ray Tune: resumable, with means, intervals, best-of-n and a strip plot.

    autotelic sweep --config recipes/sweep_one_shot_em.yaml --seeds 16 --grid learning_rate=1e-4,2e-4
    autotelic sweep --config MY.yaml --grid entropy_control.fraction=0.02,0.1              # a setting of a method
    autotelic sweep --config recipes/sweep_one_shot_em.yaml --seeds 16 --address auto      # a running Ray cluster

The recipe is a mapping: `method` (of `autotelic train`), `config` (its options), and optionally `seeds`, `grid`,
`metric`, or in place of `method` a `function`: package.module.function of (settings, folder) -> numbers.

A trial's result is one file under OUTPUT/trials, written whole; the same command continues where a sweep ended,
however it ended, and never runs a finished trial again. Worker processes stay warm from trial to trial.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotelic.cli.config import read_yaml, to_options
from autotelic.cli.options import add_output, as_json, finite, refuse_unread, say, say_written
from autotelic.errors import UserError, closest
from autotelic.report.figure_page import figure_page
from autotelic.runs.files import write_output

KEYS = ("method", "config", "function", "seeds", "grid", "metric")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config", dest="recipe", metavar="RECIPE", required=True, type=Path, help="the recipe, as above"
    )
    parser.add_argument("--seeds", type=int, help="seeds 0 to N - 1 for every cell of the grid")
    parser.add_argument(
        "--grid", nargs="+", default=[], metavar="NAME=V1,V2", help="settings to vary; replaces the recipe's grid"
    )
    parser.add_argument("--metric", help="the number that the table is about (default: the recipe's, else eval/greedy)")
    parser.add_argument(
        "--output", dest="out", type=Path, metavar="FOLDER", help="folder of the results (default: runs/RECIPE's name)"
    )
    parser.add_argument("--workers", type=int, help="trials at a time (default: one per core)")
    parser.add_argument("--gpus-per-trial", type=finite, default=0.0, help="share of a GPU (default: %(default)s)")
    parser.add_argument("--address", help="address of a Ray cluster that can read the folder (default: this machine)")
    parser.add_argument("--table-only", action="store_true", help="run nothing; show the finished trials")
    add_output(parser, plot="strip plot (default: strip.html there)")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then print the table; 1 when trials failed."""
    from autotelic.runs import sweeping

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be at least 1, got {args.workers}")
    if args.gpus_per_trial < 0:
        raise UserError(f"--gpus-per-trial must not be negative, got {args.gpus_per_trial}")
    if args.table_only:
        refuse_unread(args, ["workers", "gpus_per_trial", "address"], "--table-only runs nothing")
    recipe = read_recipe(args.recipe)
    function = recipe.get("function", sweeping.TRAIN)
    settings = dict(recipe.get("config") or {}) | ({"method": recipe["method"]} if "method" in recipe else {})
    grid = parse_grid(args.grid) or recipe.get("grid") or {}
    seeds = args.seeds if args.seeds is not None else int(recipe.get("seeds", 4))
    metric = args.metric or recipe.get("metric", "eval/greedy")
    trials = sweeping.make_trials(function, settings, grid, seeds)
    if function == sweeping.TRAIN:
        check_training(trials)
    else:
        sweeping.find_function(function)
    out = args.out or Path("runs") / args.recipe.stem
    store = sweeping.TrialStore(out.absolute())
    missing = [] if args.table_only else store.missing(trials)
    say(args, f"{len(trials)} trials, {len(store.missing(trials))} without a result")
    failures = run_on_ray(missing, store, args) if missing else []
    rows = sweeping.summarize(trials, store, metric)
    plot, table = args.plot or out / "strip.html", out / "table.json"
    write_output(plot, figure_page(f"Sweep: {metric}", [sweeping.strip_plot(rows, metric)]))
    write_output(table, json.dumps({"metric": metric, "rows": rows}) + "\n")
    print(as_json({"metric": metric, "rows": rows}) if args.json else sweeping.table(rows, metric))
    say_written(args, table, plot)
    for failure in failures[:3]:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} trials failed (error.txt in their folders); the same command retries", file=sys.stderr)
    return 1 if failures else 0


def read_recipe(path: Path) -> dict[str, Any]:
    """Read and check a recipe."""
    recipe = read_yaml(path)
    if ("method" in recipe) == ("function" in recipe):
        raise UserError(f"the recipe {path} must be a mapping with either `method` or `function`")
    for key in recipe:
        if key not in KEYS:
            raise UserError(f"the recipe {path} has an unknown key {key!r}{closest(str(key), KEYS)}")
    if not isinstance(recipe.get("grid") or {}, dict) or not isinstance(recipe.get("config") or {}, dict):
        raise UserError(f"the recipe {path}: `grid` and `config` must be mappings")
    return recipe


def parse_grid(parts: Sequence[str]) -> dict[str, list[Any]]:
    """Read `name=v1,v2`; values are read as YAML does, numbers such as 1e-4 included."""
    grid = {}
    for part in parts:
        name, equals, values = part.partition("=")
        if not equals or not name or not values:
            raise UserError(f"--grid {part}: write NAME=VALUE,VALUE")
        grid[name] = [number(value) for value in values.split(",")]
    return grid


def number(text: str) -> Any:
    """Return an int, a float, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_training(trials: Sequence[Any]) -> None:
    """Refuse what `autotelic train` would refuse, before the first worker starts."""
    from autotelic.cli.train import parse

    seen = set()
    for trial in trials:
        if trial.label not in seen:
            seen.add(trial.label)
            method, options = train_options(trial.settings, Path("unused"))
            parse(method, options)


def train_options(settings: Mapping[str, Any], folder: Path) -> tuple[str, list[str]]:
    """Return method and command-line options of one trial."""
    settings = {"save_strategy": "no", "quiet": True} | dict(settings) | {"output_dir": folder / "run"}
    method = settings.pop("method")
    settings["overwrite"] = True
    return method, to_options(settings)


def train_trial(settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """Train once; return the last value of every metric, and the best of every evaluation as `best/...`.

    The model is not kept: a thousand of them would fill the disk. `metrics.jsonl` is.
    """
    from autotelic.cli.train import train
    from autotelic.runs.callbacks import read_rows

    summary = train(*train_options(settings, folder))
    best: dict[str, float] = {}
    for row in read_rows(folder / "run" / "metrics.jsonl"):
        for name, value in row.items():
            if name.startswith("eval/"):
                best[f"best/{name}"] = max(value, best.get(f"best/{name}", value))
    for weights in (folder / "run").rglob("*.safetensors"):
        weights.unlink()
    return {name: value for name, value in summary["metrics"].items() if name != "step"} | best


def run_on_ray(trials: Sequence[Any], store: Any, args: argparse.Namespace) -> list[str]:
    """Run the trials with Ray Tune; return what failed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our results are on disk already
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        import ray
        from ray import tune
    except ImportError as error:
        raise UserError("sweep needs Ray Tune: pip install 'autotelic[sweep]'") from error
    workers = args.workers if args.workers is not None else os.cpu_count() or 1
    options: dict[str, Any] = {"address": args.address, "log_to_driver": False, "logging_level": logging.ERROR}
    if not args.address:
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 100_000_000}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"cannot reach the Ray cluster {args.address}: {error}") from error
    failures: list[str] = []
    try:
        tuner = tune.Tuner(
            tune.with_resources(warm_worker(tune, store), {"cpu": 1, "gpu": args.gpus_per_trial}),
            param_space={"index": tune.grid_search(list(range(len(trials)))), "trials": ray.put(list(trials))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=workers),
            run_config=tune.RunConfig(
                storage_path=str(store.folder / "ray"),
                name=time.strftime("%Y%m%d-%H%M%S"),
                verbose=0,
                callbacks=[progress(tune, len(trials), failures, args.quiet)],
            ),
        )
        tuner.fit()
    finally:
        ray.shutdown()
    return failures


def warm_worker(tune: Any, store: Any) -> type:
    """Return the Tune class that runs one trial a step and is handed the next without a new process."""

    class Worker(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import torch

            torch.set_num_threads(1)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            import ray

            self.trial_settings = ray.get(new_config["trials"])[new_config["index"]]
            return True

        def step(self) -> dict[str, Any]:
            from autotelic.runs.sweeping import run_trial

            return {"failure": run_trial(self.trial_settings, store) or "", "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            return None

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    return Worker


def progress(tune: Any, total: int, failures: list[str], quiet: bool) -> Any:
    """Return a Tune callback that counts, collects failures, and says now and then how long it will take."""
    started = time.monotonic()

    class Progress(tune.Callback):
        done, shown = 0, started

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            self.done += 1
            if result.get("failure"):
                failures.append(result["failure"])
            now = time.monotonic()
            if not quiet and (now - self.shown >= 10 or self.done == total):
                left = (now - started) / self.done * (total - self.done)
                print(f"sweep: {self.done}/{total} trials, about {left:.0f} s left", file=sys.stderr, flush=True)
                self.shown = now

    return Progress()
