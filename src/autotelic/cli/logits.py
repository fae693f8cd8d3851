"""What training changed in the logits: the base model against tuned ones, on shared text.

Raw logits over the whole vocabulary, teacher-forced: mean, std and skewness with intervals (bootstrap over sequences,
paired with the base), histograms on shared axes, mean logit per rank. The text is sampled from the base model, or given
as a column `response` (or `responses`) of the prompt file.

    autotelic logits any_pair runs/one_shot_em runs/grpo --prompts chain_sums:test --limit 50 --plot shift.html
    autotelic logits base em rl em_then_rl --prompts prompts.jsonl --compat official

`--compat official` is the published plot instead: the 50 largest scores divided by 0.6, each model on its own text.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autotelic.cli.options import (
    add_batch_size,
    add_chat,
    add_columns,
    add_output,
    add_sampling,
    as_json,
    columns_of,
    finite,
    read_problems,
    refuse_unread,
    say,
    say_chat,
    say_written,
)
from autotelic.cli.progress_line import ProgressLine
from autotelic.errors import UserError
from autotelic.tasks.samples import read_samples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("models", metavar="MODEL", nargs="+", help="the base model, then the tuned ones")
    parser.add_argument("--prompts", default="chain_sums:test", help="a data set or a file (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=50, help="at most this many prompts (default: %(default)s)")
    add_sampling(parser, k=4)
    add_batch_size(parser)
    add_chat(parser)
    add_columns(parser, answers=False, responses=True)
    parser.add_argument(
        "--temperature",
        type=finite,
        default=1.0,
        help="sampling temperature of the text; 0: greedy (default: %(default)s)",
    )
    parser.add_argument("--compat", choices=("none", "official"), default="none", help="official: the published plot")
    add_output(parser, out="write every figure here (JSON)", plot="write a picture here (HTML)")


def run(args: argparse.Namespace) -> int:
    """Make the text, measure every model, write."""
    from contextlib import ExitStack

    from autotelic.runs.files import replacing

    if args.limit < 1 or args.k < 1 or args.max_new_tokens < 1 or args.temperature < 0:
        raise UserError("limit, k and max-new-tokens must be at least 1, and temperature not negative")
    with ExitStack() as stack:
        out = stack.enter_context(replacing(args.out)) if args.out else None
        plot = stack.enter_context(replacing(args.plot)) if args.plot else None
        result = measure(args)
        if out is not None:
            json.dump(result, out)
        if plot is not None:
            plot.write(picture(result))
    print(as_json(result) if args.json else table(result))
    say_written(args, args.out, args.plot)
    if args.out and args.out.name == "logits.json":
        say(args, f"next: autotelic report {args.out.parent}")
    return 130 if getattr(args, "interrupted", False) else 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return {"settings", "models": {name: statistics}}; every model is looked at before anything is sampled."""
    from autotelic.diagnostics.logit_shift import OFFICIAL, RAW, logit_shift
    from autotelic.lm.chat import prompt_texts
    from autotelic.lm.load import load_weights

    if len(set(args.models)) < len(args.models):
        raise UserError("a model is named twice: name each once")
    official = args.compat == "official"
    given = None if official else given_responses(args)
    if given:
        unread = ("k", "max_new_tokens", "batch_size", "temperature", "dataset_config")
        refuse_unread(args, unread, f"{args.prompts} brings its responses, and nothing is sampled")
    else:
        refuse_unread(args, ["response_column"], "the text is sampled; only a .jsonl file brings responses")
    rows = given or read_problems(args, args.prompts, seed=args.seed)
    tokenizer = common_tokenizer(args.models)
    say_chat(args, [row["prompt"] for row in rows], tokenizer)
    prompts = prompt_texts([row["prompt"] for row in rows], tokenizer, args.chat)
    say(args, f"{len(rows)} prompts, text of {'each model' if official else 'the file' if given else args.models[0]}")
    if given:
        shared = given_sequences(prompts, [row["responses"] for row in given], tokenizer)
        sequences = dict.fromkeys(args.models, shared)
    else:
        writers = args.models if official else args.models[:1]
        texts = [sample(load_weights(name, device="auto"), tokenizer, prompts, args) for name in writers]
        sequences = dict(zip(args.models, texts if official else texts * len(args.models), strict=True))

    def load(name: str) -> Any:
        say(args, f"{name} ...")
        return load_weights(name, device="auto")

    loaders = {name: partial(load, name) for name in args.models}
    progress = ProgressLine("sequences", quiet=args.quiet)
    results = logit_shift(
        loaders,
        sequences,
        form=OFFICIAL if official else RAW,
        seed=args.seed,
        pad_id=tokenizer.pad_token_id or 0,
        progress=progress,
    )
    progress.close()
    if len(results) < len(args.models):
        args.interrupted = True
        print(f"interrupted: {len(results)} of {len(args.models)} models were measured", file=sys.stderr)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings.pop("given", None)
    return {"settings": settings, "models": results}


def common_tokenizer(models: Sequence[str]) -> Any:
    """Return the first model's tokenizer; refuse models of another vocabulary, whose logits cannot be compared."""
    from autotelic.lm.load import load_tokenizer

    first, *others = [(name, load_tokenizer(name)) for name in models]
    for name, tokenizer in others:
        if tokenizer.get_vocab() != first[1].get_vocab():
            raise UserError(f"{name} has another vocabulary than {first[0]}: logits cannot be compared")
    return first[1]


def given_responses(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Return the rows of the prompt file, where it has responses (`responses`, or one text `response`)."""
    path = Path(args.prompts)
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig") as file:
            row = json.loads(next((line for line in file if line.strip()), "{}"))
    except (OSError, ValueError, RecursionError):
        return None  # the reader of data sets says what is wrong
    if not isinstance(row, dict):
        return None
    columns = columns_of(args)
    if isinstance(row.get("response"), str):
        columns["responses"] = "response"
    if columns.get("responses", "responses") not in row:
        return None
    return read_samples(path, least=1, columns=columns)[: args.limit]


def given_sequences(
    prompts: list[str], responses: list[list[str]], tokenizer: Any
) -> list[tuple[list[int], list[int]]]:
    """Turn prompts and their responses into token ids, as pairs that can be compared."""
    from autotelic.lm.sampling import encode

    asked = [encode(prompt, tokenizer) for prompt in prompts]
    return [
        (ids, tokenizer(text, add_special_tokens=False)["input_ids"])
        for ids, texts in zip(asked, responses, strict=True)
        for text in texts
    ]


def sample(model: Any, tokenizer: Any, prompts: list[str], args: argparse.Namespace) -> list:
    """Return the text that a model writes, as token ids; an interruption ends it early."""
    from autotelic.lm import sampling

    k = args.k if args.temperature > 0 else 1
    total, progress = len(prompts) * k, ProgressLine(quiet=args.quiet)
    found = sampling.sample(
        model,
        tokenizer,
        prompts,
        k=k,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
        statistics=(),
        progress=lambda done: progress(done, total),
        keep_interrupted=True,
    )
    progress.close()
    if not found.done.any():
        raise KeyboardInterrupt
    if not found.done.all():
        args.interrupted = True
        print(f"interrupted: the models are compared on {int(found.done.sum())} of {total} responses", file=sys.stderr)
    asked = [sampling.encode(prompt, tokenizer) for prompt in prompts for _ in range(k)]
    pairs = zip(asked, found.without_end(), found.done, strict=True)
    return [(ids, tokens) for ids, tokens, done in pairs if done]


def table(result: Mapping[str, Any]) -> str:
    """Return the moments of every model, and their shift from the base."""
    models = result["models"]
    width = max(len("model"), *map(len, models))
    lines = [f"{'model':<{width}}" + "".join(f"{name:>26}" for name in ("mean", "std", "skewness", "skewness - base"))]
    for name, row in models.items():
        cells = [cell(row["mean"]), cell(row["std"]), cell(row["skewness"])]
        cells.append(cell(row["shift"]["skewness"]) if "shift" in row else "")
        lines.append(f"{name:<{width}}" + "".join(f"{text:>26}" for text in cells))
    first = next(iter(models.values()))
    lines.append(
        f"{first['num_sequences']} sequences, {first['num_positions']} positions; 95 % bootstrap over sequences"
    )
    return "\n".join(lines)


def cell(estimate: Mapping[str, Any]) -> str:
    """Return a value with its interval."""
    interval = estimate["interval"]
    return f"{estimate['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def picture(result: Mapping[str, Any]) -> str:
    """Return a page: histograms on shared axes, and the mean logit per rank."""
    from autotelic.report.figure_page import figure_page
    from autotelic.report.method_styles import PALETTE

    densities, ranks = [], []
    for i, (name, row) in enumerate(result["models"].items()):
        bins, common = row["histogram"], {"mode": "lines", "line": {"color": PALETTE[i % len(PALETTE)]}}
        total = sum(bins["counts"]) * bins["bin_width"]
        x = [bins["low"] + (j + 0.5) * bins["bin_width"] for j in range(len(bins["counts"]))]
        density = {"x": x, "y": [c / total for c in bins["counts"]], **common}
        density["line"] = common["line"] | {"shape": "hvh"}
        densities.append({**density, "name": f"{name} (skewness {row['skewness']['value']:.2f})"})
        ranks.append({"x": row["ranks"]["rank"], "y": row["ranks"]["mean"], "name": name, **common})
    axes = {"xaxis": {"title": {"text": "logit"}}, "yaxis": {"title": {"text": "density"}}}
    rank_axes = {"xaxis": {"title": {"text": "rank, 1 is the likeliest token"}, "type": "log"}}
    return figure_page(
        "Logit shift",
        [
            {"title": "Density of the logits", "traces": densities, "layout": axes},
            {"title": "Mean logit per rank", "traces": ranks, "layout": rank_axes},
        ],
    )
