"""Rank prompts by how much a model can learn from them: by variance of correctness, or without labels.

SOURCE is a data set (as for `train`) with --model, or a JSONL file of samples:
{"prompt": ..., "responses": [...], "answer": ... (optional), "temperatures": [...] (optional), "entropy": ...
(optional, nats per token), "id": ... (optional)}, one object a line.

    autotelic select chain_sums:train --limit 200 --model any_pair --k 16 --temperatures 1.0 0.5 --output ranked.jsonl
    autotelic select samples.jsonl --by semantic_entropy --take 1 --output chosen.jsonl
    autotelic train one_shot_em --dataset chosen.jsonl --model_name_or_path any_pair

Scores to rank by: variance, mean (labels); majority_variance, semantic_entropy, token_entropy, disagreement (none).
Ties go to the smaller id.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from autotelic.errors import UserError, one_of
from autotelic.tasks.conversations import question_text
from autotelic.tasks.samples import read_samples

if TYPE_CHECKING:
    from autotelic.lm.sampling import Responses

SAMPLING = ("k", "max_new_tokens", "seed", "batch_size", "engine", "chat", "temperatures", "dataset_config")
COLUMNS = ("mean", "variance", "majority_share", "majority_variance", "semantic_entropy", "token_entropy", "agreement")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="SOURCE", help="a data set (with --model), or a JSONL file of samples")
    parser.add_argument("--model", help="a carried model, a model folder or a hub name, to sample from")
    parser.add_argument("--by", help="the score to rank by (default: variance with labels, else majority_variance)")
    parser.add_argument("--reverse", action="store_true", help="least promising first")
    parser.add_argument("--limit", type=int, help="at most this many prompts")
    add_sampling(parser, k=16, k_help="samples of each prompt and temperature")
    add_batch_size(parser)
    add_engine(parser)
    add_chat(parser)
    parser.add_argument(
        "--temperatures",
        type=finite,
        nargs="+",
        default=[1.0],
        help="sampling temperatures: scores come from the first; `disagreement` compares them (default: 1.0)",
    )
    add_columns(parser, responses=True)
    add_equivalence(parser)
    parser.add_argument("--top", type=int, default=10, help="rows that are shown (default: %(default)s)")
    parser.add_argument(
        "--take", type=int, help="write only so many prompts, the best, to --output, ready for training"
    )
    add_output(parser, out="write the ranking here, one JSON object a line", plot="write a picture here (HTML)")


def run(args: argparse.Namespace) -> int:
    """Sample or read, score, rank, write."""
    from contextlib import ExitStack

    from autotelic.answers import equivalence, warm_up
    from autotelic.cli.progress_line import ProgressLine
    from autotelic.diagnostics.prompt_selection import BY_LABELS, LABEL_FREE, compare_scores, rank
    from autotelic.runs.files import replacing

    for name in ("k", "top", "take", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    if args.take and not args.out:
        raise UserError("--take says how many prompts are written: give --output FILE too, or --top for the table")
    if any(not t > 0 or math.isinf(t) for t in args.temperatures):
        raise UserError(f"temperatures must be above 0, got {args.temperatures}")
    if args.by and args.by not in (*BY_LABELS, *LABEL_FREE):
        raise UserError(f"cannot rank by {args.by!r}{one_of(args.by, (*BY_LABELS, *LABEL_FREE))}")
    with ExitStack() as stack:
        out = stack.enter_context(replacing(args.out)) if args.out else None
        plot = stack.enter_context(replacing(args.plot)) if args.plot else None
        same = equivalence(args.equivalence)
        warm_up(same)
        samples, progress = sampled(args) if args.model else read(args), ProgressLine("prompts", quiet=args.quiet)
        rows = score(samples, same, progress)
        progress.close()
        labelled = all(row.get("variance") is not None for row in rows)
        by = args.by or ("variance" if labelled else "majority_variance")
        ranked = rank(rows, by, reverse=args.reverse)
        comparison = compare_scores(rows, num_top=args.top) if labelled else {}
        if out is not None:
            for row in ranked[: args.take]:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        if plot is not None:
            plot.write(picture(ranked, by))
    if args.json:
        print(as_json({"by": by, "ranking": ranked[: args.top], "comparison": comparison}))
    else:
        print(table(ranked[: args.top], by, len(ranked)))
        print(comparison_table(comparison, args.top), end="")
    say_written(args, args.out, args.plot)
    if args.out:
        say(args, f"next: autotelic train empo --model_name_or_path MODEL --dataset {args.out}")
    return 130 if getattr(args, "interrupted", None) else 0


def read(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the samples of a file."""
    path = Path(args.source)
    if not path.exists() or path.is_dir():
        raise UserError(f"{path} is not a file of samples; to sample from a data set, say which model: --model NAME")
    refuse_unread(args, SAMPLING, f"without --model, {path} is a file of samples, and nothing is sampled")
    rows = read_samples(path, columns=columns_of(args), say=lambda text: say(args, text))[: args.limit]
    for number, row in enumerate(rows, start=1):
        row["id"] = str(row.get("id", f"{number}"))
    return rows


def sampled(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Sample every prompt of a data set k times at each temperature; an interruption keeps the complete prompts."""
    from autotelic.cli.progress_line import ProgressLine
    from autotelic.lm.chat import prompt_texts
    from autotelic.lm.sampling import Engine, sample

    refuse_unread(args, ["response_column"], f"with --model, the responses to {args.source} are sampled")
    problems = read_problems(args, args.source)
    say_watched(args, f"loading {args.model}")
    model, tokenizer = open_model(args, args.model)
    if args.by == "token_entropy" and isinstance(model, Engine):
        raise UserError(f"cannot rank by 'token_entropy': {model.name} gives tokens, and not their distributions")
    asked = [row["prompt"] for row in problems]
    say_chat(args, asked, tokenizer)
    prompts = prompt_texts(asked, tokenizer, args.chat)
    rows = [
        {**row, "id": str(row.get("id", number)), "responses": [], "temperatures": []}
        for number, row in enumerate(problems)
    ]
    temperatures = list(dict.fromkeys(args.temperatures))
    total, progress = len(rows) * args.k * len(temperatures), ProgressLine(quiet=args.quiet)
    options = {"k": args.k, "max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "seed": args.seed}
    for index, temperature in enumerate(temperatures):
        say(args, f"{len(rows)} prompts x {args.k} samples at temperature {temperature} ...")
        before = index * len(rows) * args.k
        found = sample(
            model,
            tokenizer,
            prompts,
            temperature=temperature,
            statistics=("entropy",) if index == 0 else (),
            progress=lambda done, before=before: progress(before + done, total),
            keep_interrupted=True,
            **options,
        )
        progress.close()
        if index == 0 and found.entropy is None:
            say(args, f"no token_entropy: {model.name} gives tokens, and not the distributions that they came from")
        missing = add_responses(rows, found, temperature, args.k)
        if missing:
            args.interrupted = f"interrupted: {len(rows) - missing} of {len(rows)} prompts at temperature {temperature}"
            args.interrupted += f" ({found.stopped})" if found.stopped else ""
            if not any(row["responses"] for row in rows):
                found.end()
            print(args.interrupted, file=sys.stderr)
            break
    return [row for row in rows if row["responses"]]


def add_responses(rows: list[dict[str, Any]], found: "Responses", temperature: float, k: int) -> int:
    """Add what was sampled at a temperature to the rows; return how many prompts an interruption left out."""
    done = found.complete(k)
    for p in (place for place, is_done in enumerate(done) if is_done):
        own = found.of_prompt(p, k)
        rows[p]["responses"] += own.texts
        rows[p]["temperatures"] += [temperature] * k
        if own.entropy is not None:
            rows[p]["entropy"] = own.entropy
    return done.count(False)


def score(samples: Sequence[Mapping[str, Any]], same: Any = None, progress: Any = None) -> list[dict[str, Any]]:
    """Return one row of scores per prompt; the labelled ones only where there is an answer.

    Args:
        samples: with `id`, `prompt`, `responses`, and optionally `answer`, `temperatures`, `entropy`.
        same: equivalence of answers; None is mathematics.
        progress: called with the prompts that are scored, and how many there are.
    """
    from autotelic.answers import cluster, extract
    from autotelic.diagnostics.prompt_selection import label_free_scores, labelled_scores
    from autotelic.evaluation import score_prompt
    from autotelic.rewards.label_reader import unread_labels

    labelled = [sample for sample in samples if sample.get("answer") is not None]
    places, note = unread_labels([sample["answer"] for sample in labelled], needed=False, free_text=same is not None)
    unread = {labelled[place]["id"] for place in places}
    if note:
        print(f"warning: {note}: these prompts count as unlabelled", file=sys.stderr)
    repeated = next((name for name, count in Counter(sample["id"] for sample in samples).items() if count > 1), None)
    if repeated is not None:
        raise UserError(f"two prompts have the id {repeated!r}: ids must differ, ties are broken by them")
    rows = []
    for sample in samples:
        row: dict[str, Any] = {"id": sample["id"], "prompt": sample["prompt"], "num_samples": len(sample["responses"])}
        found = [extract(text) for text in sample["responses"]]
        clusters = cluster(found, equivalence=same, question=question_text(sample["prompt"]))
        more = {"temperatures": sample.get("temperatures"), "token_entropy": sample.get("entropy")}
        row |= label_free_scores(clusters, **more)
        if sample.get("answer") is not None and sample["id"] not in unread:
            scored = score_prompt(sample, at_first_temperature(sample), index=0, equivalence=same)
            row |= labelled_scores(scored.correct) | {"answer": sample["answer"]}
        rows.append(row)
        if progress is not None:
            progress(len(rows), len(samples))
    return rows


def at_first_temperature(sample: Mapping[str, Any]) -> list[str]:
    """Return the responses that were drawn at the first temperature: all of them where none is told."""
    temperatures = sample.get("temperatures")
    if not temperatures:
        return list(sample["responses"])
    return [text for text, t in zip(sample["responses"], temperatures, strict=True) if t == temperatures[0]]


def table(rows: Sequence[Mapping[str, Any]], by: str, total: int) -> str:
    """Return the best prompts with their scores."""
    columns = [name for name in COLUMNS if all(row.get(name) is not None for row in rows)]
    width = max(len("id"), *(len(str(row["id"])) for row in rows))
    lines = [f"{total} prompts, ranked by {by}", f"rank  {'id':<{width}}  " + "  ".join(columns) + "  prompt"]
    for row in rows:
        values = "  ".join(f"{row[name]:>{len(name)}.3f}" for name in columns)
        text = " ".join(question_text(row["prompt"]).split())
        text = text if len(text) <= 60 else text[:59] + "…"
        lines.append(f"{row['rank']:>4}  {row['id']!s:<{width}}  {values}  {text}")
    return "\n".join(lines)


def comparison_table(comparison: Mapping[str, Mapping[str, float | None]], num_top: int) -> str:
    """Return how each label-free score compares with the labelled variance."""
    if not comparison:
        return ""
    lines = [f"\nagainst the variance of correctness   Spearman   its top {num_top} found (chance)"]
    for name, row in comparison.items():
        rho = "undefined" if row["spearman"] is None else f"{row['spearman']:+.3f}"
        lines.append(f"  {name:<34}  {rho:>9}   {row['top_overlap']:.2f} ({row['chance']:.2f})")
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """Return a page: the ranking, and each label-free score against the labelled variance where there are labels."""
    from autotelic.diagnostics.prompt_selection import LABEL_FREE
    from autotelic.report.figure_page import figure_page

    labelled = all(row.get("variance") is not None for row in rows)
    against = "variance" if labelled else "majority_share"
    scores = [name for name in LABEL_FREE if name != by and all(row.get(name) is not None for row in rows)]
    hover = [f"{row['id']}: {question_text(row['prompt'])[:80]}" for row in rows]

    def figure(title: str, x: str, y: str) -> dict[str, Any]:
        points = {"x": [row[x] for row in rows], "y": [row[y] for row in rows], "text": hover, "mode": "markers"}
        return {
            "title": title,
            "traces": [{**points, "marker": {"opacity": 0.6}}],
            "layout": {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "hovermode": "closest"},
        }

    ranking = figure(f"Ranking by {by}", "rank", by)
    return figure_page(f"{len(rows)} prompts", [ranking, *(figure(name, name, against) for name in scores)])
