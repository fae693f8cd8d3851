"""mean@k, pass@k, maj@k, greedy and entropy of a model or of a file of samples, with 95 % intervals over prompts.

MODEL_OR_FILE is a model (a carried name, a model or run folder, a LoRA adapter, OWNER/NAME of the hub), or a file of
samples: {"prompt": ..., "responses": [...], "answer": ..., "greedy": ... (optional), "id": ... (optional)}, one object
a line. Samples of lm-evaluation-harness, OpenAI batches, vLLM, verl, TRL and of `eval --output` are read too.

    autotelic eval any_pair --problems chain_sums:test --limit 100
    autotelic eval runs/mine --problems openai/gsm8k:test --dataset-config main --max-new-tokens 512
    autotelic eval samples.jsonl --json
    autotelic eval any_pair --temperature 0.6 1.0 1.4
    autotelic eval OWNER/NAME --engine http://localhost:8000 --problems problems.jsonl
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from autotelic.cli.options import (
    add_batch_size,
    add_chat,
    add_columns,
    add_engine,
    add_equivalence,
    add_output,
    add_sampling,
    as_json,
    columns_of,
    finite,
    open_model,
    read_problems,
    refuse_unread,
    say,
    say_chat,
    say_watched,
    say_written,
)
from autotelic.errors import UserError
from autotelic.tasks.samples import read_samples

DEFAULT_PROBLEMS = "chain_sums:test"
SAMPLING = ("k", "max_new_tokens", "batch_size", "engine", "temperature", "top_p", "chat", "dataset_config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="MODEL_OR_FILE", help="what to evaluate")
    parser.add_argument("--problems", help=f"problems with answers, for a model (default: {DEFAULT_PROBLEMS})")
    parser.add_argument(
        "--limit", type=int, default=200, help="at most this many problems (default: %(default)s; of a file, all)"
    )
    add_equivalence(parser)
    add_columns(parser, responses=True)
    add_sampling(parser, k=8)
    add_batch_size(parser)
    add_engine(parser)
    parser.add_argument(
        "--temperature",
        type=finite,
        nargs="+",
        default=[1.0],
        help="sampling temperature; several: one evaluation each (default: 1.0)",
    )
    parser.add_argument(
        "--top-p",
        type=finite,
        default=1.0,
        help="sample from the likeliest tokens that have this probability together (default: %(default)s)",
    )
    add_chat(parser)
    parser.add_argument("--no-greedy", action="store_true", help="skip greedy decoding")
    add_output(parser, out="also write the figures and every response to this JSON file")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print; an interrupted evaluation prints and writes what was sampled."""
    from contextlib import nullcontext

    from autotelic.runs.files import replacing

    with replacing(args.out) if args.out else nullcontext() as out:
        results = evaluate(args)
        if out is not None:
            json.dump({str(t): result.as_dict(samples=True) for t, result in results.items()}, out, ensure_ascii=False)
    for temperature, result in results.items():
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if not args.json:
            print(table(result, None if len(results) == 1 else temperature))
    if args.json:
        parts = {str(t): result.as_dict() for t, result in results.items()}
        print(as_json(next(iter(parts.values())) if len(parts) == 1 else parts))
    say_written(args, args.out)
    if any(result.unscored for result in results.values()):
        again = f"autotelic eval {args.out}" if args.out else "give --out FILE to keep them"
        print(f"not every response was compared with its answer: {again}", file=sys.stderr)
    if args.out and args.out.resolve().parent == Path(args.source).resolve():
        say(args, f"next: autotelic report {args.source}")
    return 130 if any(result.interrupted for result in results.values()) else 0


def evaluate(args: argparse.Namespace) -> dict[Any, Any]:
    """Return one evaluation per temperature; a file of samples has one, under the key "samples"."""
    from autotelic.answers import equivalence, warm_up
    from autotelic.cli.progress_line import ProgressLine
    from autotelic.evaluation import check_sampling, evaluate_samples, temperature_sweep

    if args.limit < 1:
        raise UserError(f"--limit must be at least 1, got {args.limit}")
    path, same = Path(args.source), equivalence(args.equivalence)
    warm_up(same)
    if path.exists() and not path.is_dir() and path.suffix != ".gguf":
        if args.problems:
            raise UserError("--problems is for a model: a file of samples brings its own prompts and answers")
        refuse_unread(args, SAMPLING, f"{path} is a file of samples, and nothing is sampled")
        if args.no_greedy:
            raise UserError("--no-greedy is for a model: a file of samples has what it has")
        rows = read_samples(path, answers=True, least=1, columns=columns_of(args), say=lambda text: say(args, text))
        rows = rows[: args.limit if "limit" in getattr(args, "given", {}) else None]
        progress = ProgressLine("prompts", quiet=args.quiet)
        result = evaluate_samples(rows, seed=args.seed, equivalence=same, progress=progress)
        progress.close()
        return {"samples": result}
    refuse_unread(args, ["response_column"], f"{args.source} is a model, whose responses are sampled")
    for temperature in args.temperature:
        check_sampling(args.k, temperature, args.top_p, args.max_new_tokens, args.batch_size)
    problems = read_problems(args, args.problems or DEFAULT_PROBLEMS, seed=args.seed, require_answer=True)
    say_watched(args, f"loading {args.source}")
    model, tokenizer = open_model(args, args.source)
    say(args, f"{len(problems)} problems x {args.k} samples ...")
    say_chat(args, [row["prompt"] for row in problems], tokenizer)
    progress = ProgressLine(quiet=args.quiet)
    try:
        return dict(
            temperature_sweep(
                model,
                tokenizer,
                problems,
                args.temperature,
                k=args.k,
                top_p=args.top_p,
                max_new_tokens=args.max_new_tokens,
                batch_size=args.batch_size,
                seed=args.seed,
                greedy=not args.no_greedy,
                chat=args.chat,
                progress=progress,
                keep_interrupted=True,
                equivalence=same,
            )
        )
    finally:
        progress.close()


def table(result: Any, temperature: float | None = None) -> str:
    """Return the figures with their intervals, one a line."""
    from autotelic.evaluation import FEWEST_PROMPTS

    settings = ", ".join(f"{k} = {v}" for k, v in result.settings.items())
    title = f"{len(result.samples)} prompts, {settings}"
    lines = [title if temperature is None else f"temperature {temperature}: {title}"]
    units = {"entropy": "nats per token", "length": "tokens"}
    width = max(map(len, result.metrics), default=0)
    for name, estimate in result.metrics.items():
        interval = f"[{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.low == estimate.low else ""
        lines.append(f"  {name:<{width}}  {estimate.value:8.3f}  {interval:<18}  {units.get(name, '')}".rstrip())
    few = len(result.samples) < FEWEST_PROMPTS
    lines.append(f"  no interval: fewer than {FEWEST_PROMPTS} prompts" if few else "  intervals: 95 %, over prompts")
    return "\n".join(lines)
