"""Evaluate a model, train it several ways on a CPU, and write one page.

    autotelic demo                    the small world's model, seven ways: about three minutes on two cores
    autotelic demo --model smollm2    SmolLM2-135M-Instruct on word problems, four ways: about a quarter of an hour

Writes DIR/results.json, DIR/report.html and DIR/runs/ (one folder per method). Two worker processes share the runs.
Everything is measured on the same problems, which no run trains on; intervals are over prompts, for one seed:
`docs/log/` has the same comparisons over several seeds.
"""

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotelic.cli.config import to_options
from autotelic.cli.options import add_output, as_json, say
from autotelic.errors import UserError
from autotelic.runs.files import write_atomically

REPORTED = ("mean@8", "greedy", "pass@8", "entropy")


@dataclass(frozen=True)
class Job:
    """One run of a demo: a method of `autotelic train` and what differs from its defaults."""

    name: str
    method: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Demo:
    """A model, the problems that it is measured on, and the runs that start from it.

    Args:
        model: the model's name.
        problems: source of the problems.
        num_problems: how many.
        max_tokens: longest response.
        jobs: the runs.
        story: what to look at in the table, and what one run of it showed; several seeds are in `docs/log/`.
        bfloat16: pass the model in bfloat16 where the CPU is quick at it.
        temperatures: further temperatures at which the model is measured before training.
        memory: gigabytes that one process needs at most.
    """

    model: str
    problems: str
    num_problems: int
    max_tokens: int
    jobs: tuple[Job, ...]
    story: str
    bfloat16: bool = False
    temperatures: tuple[float, ...] = ()
    memory: float = 1.0

    @property
    def dtype(self) -> str:
        """Return the numbers that the model is passed in; weights are trained in float32."""
        from autotelic.kernels.cpu_matmul import bfloat16_is_fast

        return "bfloat16" if self.bfloat16 and bfloat16_is_fast() else "float32"

    @property
    def common(self) -> dict[str, Any]:
        """Return the options of every run."""
        return {
            "model_name_or_path": self.model,
            "max_completion_length": self.max_tokens,
            "save_strategy": "no",
            "seed": 0,
            "bf16": self.dtype == "bfloat16",
        }


EMPO = {"importance_sampling_level": "token", "epsilon": 0.2, "epsilon_high": 0.2}
SMALL_EMPO = EMPO | {"loss_type": "dapo"}
"""After 80 updates here greedy accuracy is .67 with it, and .46 with the `grpo` of EMPO's authors; the base has .74."""
SMALL_ROLLOUT = {  # 16 prompts x 8 responses, two updates a rollout
    "dataset": "chain_sums:train",
    "dataset_limit": 4000,
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "steps_per_generation": 2,
    "learning_rate": 2e-4,
    "max_steps": 64,
    "log_rollouts": "4,steps=8",
    "follow_prompts": "4,steps=8",
}
SMALL_LOOKS = {"validation_dataset": "chain_sums:test", "validation_limit": 60, "validation_k": 4}
SMALL_RUN = SMALL_ROLLOUT | SMALL_LOOKS | {"validation_steps": 8}
SMALL_EM = {"prompt": "3+9-10=?", "learning_rate": 2e-4, "log_rollouts": "1,steps=1"}
"""The base model is right half of the time on this prompt: see docs/world.md."""

CHAT_ROLLOUT = {  # 4 prompts x 8 responses an update, in two parts to save memory; two updates a rollout
    "dataset": "word_sums:train",
    "dataset_limit": 2000,
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "learning_rate": 1e-5,
    "max_steps": 8,
    "log_rollouts": "2,steps=4",
}
CHAT_EM = {  # one problem; the paper's 2e-5 at temperature 0.5 is too much for a small model
    "dataset": "word_sums:validation",
    "dataset_limit": 1,
    "num_generations": 64,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "learning_rate": 2e-6,
    "temperature": 1.0,
    "max_steps": 6,
    "log_rollouts": "1,steps=2",
}

DEMOS = {
    "any_pair": Demo(
        model="any_pair",
        problems="chain_sums:test",
        num_problems=200,
        max_tokens=32,
        jobs=(
            Job("grpo", "grpo", SMALL_RUN),
            Job("clip_cov", "grpo", SMALL_RUN | {"entropy_control": "clip_cov,fraction=0.15,low=0.3,high=9"}),
            Job("kl_cov", "grpo", SMALL_RUN | {"entropy_control": "kl_cov,fraction=0.2,coef=1"}),
            Job("empo", "empo", SMALL_RUN | SMALL_EMPO),
            Job("empo+kl_cov", "empo", SMALL_RUN | SMALL_EMPO | {"entropy_control": "kl_cov,fraction=0.2,coef=1"}),
            Job("random_reward", "grpo", SMALL_RUN | {"reward": "random"}),
            Job("one_shot_em", "one_shot_em", SMALL_EM | SMALL_LOOKS | {"validation_steps": 2}),
        ),
        story="With labels GRPO gains most and spends most entropy; Clip-Cov and KL-Cov trade some of the gain for "
        "entropy. Without labels EMPO raises sampled accuracy, and with KL-Cov beside it keeps greedy accuracy too. "
        "A random reward only harms.",
    ),
    "smollm2": Demo(
        model="smollm2",
        problems="word_sums:test",
        num_problems=64,
        max_tokens=24,
        jobs=(
            Job("grpo", "grpo", CHAT_ROLLOUT),
            Job("empo", "empo", CHAT_ROLLOUT | EMPO | {"max_steps": 12}),
            Job("kl_cov", "grpo", CHAT_ROLLOUT | {"entropy_control": "kl_cov,fraction=0.02,coef=1"}),
            Job("one_shot_em", "one_shot_em", CHAT_EM),
        ),
        story="With labels GRPO gains most. What EMPO and one-shot EM gain without labels in so few updates is less "
        "than sharpening alone gives: compare them with the base at T = 0.6.",
        bfloat16=True,
        temperatures=(0.6,),  # the sharpening control: what a lower temperature alone gives
        memory=6.0,  # weights, gradients and two moments in float32: 2.2 GB; the rest are activations and logits
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and where to write."""
    parser.add_argument(
        "--model", choices=tuple(DEMOS), default="any_pair", help="model to train (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the runs (default: runs/demo, or runs/demo-MODEL)"
    )
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo; print the table and where the page is."""
    output = args.output or Path("runs/demo" if args.model == "any_pair" else f"runs/demo-{args.model}")
    results = run_demo(output, DEMOS[args.model], quiet=args.quiet)
    print(as_json(results) if args.json else f"{table(results)}\n\n{DEMOS[args.model].story}")
    say(args, f"page: {(output / 'report.html').resolve().as_uri()}")
    return 0


def run_demo(output: str | Path, demo: Demo = DEMOS["any_pair"], *, quiet: bool = False) -> dict[str, Any]:
    """Evaluate, train, evaluate again; write `results.json` and `report.html`; return the results."""
    from autotelic.report import write_report
    from autotelic.tasks import model_path

    started = time.monotonic()
    output = Path(output)
    runs = output / "runs"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        (output / "results.json").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}; choose another --output") from error
    model_path(demo.model)  # where it is still to be converted, before two processes ask for it
    results = measure(demo, runs, quiet=quiet)
    write_atomically(output / "results.json", json.dumps(results, indent=2) + "\n")
    folders = [runs / job.name for job in demo.jobs]
    write_report(folders, output / "report.html", results=results, title=f"autotelic demo: {demo.model}")
    if not quiet:
        print(f"{time.monotonic() - started:.0f} s on {os.cpu_count()} cores", file=sys.stderr)
    return results


def measure(demo: Demo, runs: Path, *, quiet: bool) -> dict[str, Any]:
    """Run every job in one of two fresh processes (where memory allows) and return its evaluation; show progress."""
    import psutil

    context = multiprocessing.get_context("spawn")
    workers = num_workers(demo.memory, psutil.virtual_memory().available)
    with ProcessPoolExecutor(max_workers=workers, mp_context=context, initializer=single_threaded) as pool:
        trained = {job.name: pool.submit(run_job, demo, job, runs / job.name) for job in demo.jobs}
        before = {"base": pool.submit(evaluate, demo, demo.model)}
        for temperature in demo.temperatures:
            before[f"base at T = {temperature}"] = pool.submit(evaluate, demo, demo.model, temperature)
        futures = before | trained
        try:
            show_progress(futures, demo.jobs, runs, quiet=quiet)
            return {name: future.result() for name, future in futures.items()}
        except BaseException:  # Ctrl-C too: nobody waits for a run that nobody wants
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.kill()
            raise


def num_workers(memory: float, available: int) -> int:
    """Return how many processes of `memory` gigabytes share the runs, given the bytes that are free: one or two."""
    return 2 if available >= 2 * memory * 1e9 else 1


def single_threaded() -> None:
    """Give each worker one core: the models are far too small to share."""
    import torch

    torch.set_num_threads(1)


def run_job(demo: Demo, job: Job, folder: Path) -> dict[str, Any]:
    """Train one method and evaluate the model that it leaves."""
    from autotelic.cli.train import train
    from autotelic.controls.entropy_control import EntropyControlWarning

    options = demo.common | job.options | {"output_dir": folder, "overwrite": True, "quiet": True}
    with warnings.catch_warnings(action="ignore", category=EntropyControlWarning):  # shares for a small model
        # TRL asks transformers for a property by its former name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        train(job.method, to_options(options))
    gc.collect()  # a trainer refers to itself, and its optimizer is twice as large as the model
    return evaluate(demo, str(folder))


def evaluate(demo: Demo, model_name: str, temperature: float = 1.0) -> dict[str, Any]:
    """Return mean@8, greedy, pass@8 and entropy of a model, each with its interval over prompts."""
    from autotelic.evaluation import evaluate_model
    from autotelic.lm.load import load_model
    from autotelic.tasks import load_problems

    problems = load_problems(demo.problems, limit=demo.num_problems, require_answer=True)
    model, tokenizer = load_model(model_name, dtype=demo.dtype)
    result = evaluate_model(model, tokenizer, problems, k=8, temperature=temperature, max_new_tokens=demo.max_tokens)
    return {name: estimate.as_dict() for name, estimate in result.metrics.items()}


def show_progress(futures: dict[str, Future], jobs: Sequence[Job], runs: Path, *, quiet: bool) -> None:
    """Print where every run stands until all are done: one line that rewrites itself on a terminal."""
    from autotelic.runs.callbacks import read_rows

    started, every = time.monotonic(), 2.0 if sys.stderr.isatty() else 20.0
    total = sum(int(job.options.get("max_steps", 10)) for job in jobs)
    while True:
        _, pending = wait(futures.values(), timeout=every, return_when="FIRST_EXCEPTION")
        steps = {
            job.name: max((row["step"] for row in read_rows(runs / job.name / "metrics.jsonl")), default=0)
            for job in jobs
        }
        done, elapsed = sum(steps.values()), time.monotonic() - started
        left = f"about {elapsed / done * (total - done):.0f} s left" if done else "starting"
        active = "  ".join(f"{name} {step}" for name, step in steps.items() if step and not futures[name].done())
        finished = sum(future.done() for future in futures.values())
        if not quiet:
            line = f"demo: {finished}/{len(futures)} done  {active}  {left}"
            print(
                f"\r\033[K{line}" if sys.stderr.isatty() else line,
                end="" if sys.stderr.isatty() else "\n",
                file=sys.stderr,
                flush=True,
            )
        if not pending or any(future.done() and future.exception() for future in futures.values()):
            break
    if sys.stderr.isatty() and not quiet:
        print(file=sys.stderr)


def table(results: dict[str, Any]) -> str:
    """Return the results as a text table: a value and its 95 % interval over prompts."""
    width = max(14, 2 + max(map(len, results)))
    lines = [f"{'':<{width}}" + "".join(f"{name:>21}" for name in REPORTED)]
    for name, row in results.items():
        cells = ((row[metric]["value"], *row[metric]["interval"]) for metric in REPORTED)
        lines.append(
            f"{name:<{width}}" + "".join(f"{f'{value:.3f} [{low:.2f}, {high:.2f}]':>21}" for value, low, high in cells)
        )
    return "\n".join(lines)
