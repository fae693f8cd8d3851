"""Cluster sampled answers by meaning: semantic entropy and label-free rewards for a file of samples.

FILE holds one JSON object a line: {"prompt": ..., "responses": [...], "answer": ... (optional), "id": ... (optional)}.
Samples of lm-evaluation-harness, OpenAI batches, vLLM, verl, TRL and of `autotelic eval --output` are read too.
The output has one row per prompt: id, clusters (an integer per response, -1 where unparseable), semantic_entropy
(nats), rewards, kept (the decision of the thresholds). Answers in the file reach the printed summary only.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotelic.cli.options import (
    add_columns,
    add_equivalence,
    add_output,
    as_json,
    columns_of,
    finite,
    say,
    say_written,
)
from autotelic.cli.progress_line import ProgressLine
from autotelic.errors import UserError, one_of
from autotelic.tasks.samples import read_samples

REWARDS = ("empo", "majority_vote", "srt", "srt_soft", "evol_rl", "format", "random", "constant")
"""Rewards that need nothing but the responses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", type=Path, help="samples, one JSON object a line")
    parser.add_argument("--reward", default="empo", help=f"one of {', '.join(REWARDS)} (default: %(default)s)")
    parser.add_argument("--low", type=finite, help="keep prompts above this entropy, whatever the reward (default: 0)")
    parser.add_argument("--high", type=finite, help="keep prompts below this entropy (default: the largest)")
    parser.add_argument(
        "--units",
        choices=("nats", "fraction_of_log_G", "p_max"),
        help="unit of --low and --high (default: fraction_of_log_G)",
    )
    parser.add_argument(
        "--denominator",
        choices=("group", "parseable"),
        help="what the EMPO reward divides by: all responses, or those with a readable answer (default: group)",
    )
    parser.add_argument(
        "--linkage",
        default="union_find",
        choices=("union_find", "greedy", "complete"),
        help="how pairs of equal answers become clusters (default: %(default)s)",
    )
    add_equivalence(parser)
    add_columns(parser, responses=True, hub=False)
    add_output(parser, out="write the rows here; only the summary is printed without it")


def run(args: argparse.Namespace) -> int:
    """Score the file, write the rows, print the summary."""
    if args.reward not in REWARDS:
        raise UserError(f"unknown reward {args.reward!r}{one_of(args.reward, REWARDS)}")
    from autotelic.answers import warm_up
    from autotelic.runs.files import replacing

    reward = _reward(args)
    warm_up(reward.equivalence)
    samples = read_samples(args.file, columns=columns_of(args), say=lambda text: say(args, text))
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(replacing(args.out)) if args.out else None
        started = time.perf_counter()
        groups, result = _score(samples, reward, ProgressLine("prompts", quiet=args.quiet))
        rows = _rows(samples, groups, result, args)
        if out is not None:
            for row in rows:
                out.write(json.dumps(row) + "\n")
    summary = _summary(samples, groups, rows, result, time.perf_counter() - started, reward.equivalence)
    print(as_json(summary) if args.json else _text(summary))
    say_written(args, args.out)
    return 0


def _thresholds(args: argparse.Namespace) -> dict[str, Any]:
    """Return the thresholds that were given; the defaults are EMPO's."""
    return {name: getattr(args, name) for name in ("low", "high", "units") if getattr(args, name) is not None}


def _reward(args: argparse.Namespace) -> Any:
    """Build the chosen reward, with the thresholds where it has them."""
    from autotelic import rewards

    grouping = {"linkage": args.linkage, "equivalence": args.equivalence}
    if args.reward == "empo":
        denominator = {"denominator": args.denominator} if args.denominator else {}
        return rewards.EMPO(**_thresholds(args), **denominator, **grouping)
    if args.denominator:
        raise UserError(f"--denominator is of the EMPO reward, and this is {args.reward}: leave it out")
    return dataclasses.replace(getattr(rewards, args.reward), **grouping)


def _score(samples: Sequence[dict[str, Any]], reward: Any, progress: ProgressLine) -> tuple[list[Any], Any]:
    """Return the groups and their rewards."""
    from autotelic.answers import extract
    from autotelic.rewards import Group
    from autotelic.rewards.groups import prompt_key

    groups = []
    for sample in samples:
        texts = sample["responses"]
        groups.append(Group.of(prompt_key(sample["prompt"]), texts, [extract(text) for text in texts]))
    result = reward.score(groups, progress=progress)
    progress.close()
    return groups, result


def _rows(
    samples: Sequence[dict[str, Any]], groups: Sequence[Any], result: Any, args: argparse.Namespace
) -> list[dict]:
    """Return the output rows; `kept` is the thresholds' decision whatever the reward."""
    from autotelic.functional import semantic_entropy
    from autotelic.rewards import EMPO

    thresholds = EMPO(**_thresholds(args))
    rows = []
    for p, (sample, group) in enumerate(zip(samples, groups, strict=True)):
        size = len(group.rows)
        clusters = result.clusters[p, :size]
        rows.append(
            {
                "id": sample.get("id", str(p)),
                "clusters": clusters.tolist(),
                "semantic_entropy": float(semantic_entropy(clusters.unsqueeze(0))[0]),
                "rewards": result.rewards[p, :size].tolist(),
                "kept": bool(thresholds.keeps(clusters.unsqueeze(0))[0]),
            }
        )
    return rows


def _summary(
    samples: Sequence[dict[str, Any]],
    groups: Sequence[Any],
    rows: Sequence[dict],
    result: Any,
    seconds: float,
    equivalence: Any,
) -> dict[str, Any]:
    """Return what is printed; labels are read here and nowhere else."""
    total = sum(len(row["clusters"]) for row in rows)
    summary: dict[str, Any] = {
        "prompts": len(rows),
        "responses": total,
        "parse_rate": sum(c >= 0 for row in rows for c in row["clusters"]) / total,
        "semantic_entropy": sum(row["semantic_entropy"] for row in rows) / len(rows),
        "kept": sum(row["kept"] for row in rows),
        "undecided_pairs": int(result.diagnostics.get("semantic/undecided", 0)),
        "timeouts": int(result.diagnostics.get("semantic/timeouts", 0)),
        "seconds": seconds,
    }
    labelled = [p for p, sample in enumerate(samples) if sample.get("answer") is not None]
    if labelled:
        summary |= _against_labels(samples, groups, rows, labelled, equivalence)
    return summary


def _text(summary: Mapping[str, Any]) -> str:
    """Return the summary for people."""
    lines = [
        f"prompts                  {summary['prompts']} with {summary['responses']} responses",
        f"parse rate               {summary['parse_rate']:.3f}",
        f"semantic entropy         {summary['semantic_entropy']:.3f} nats (mean over prompts)",
        f"kept by the thresholds   {summary['kept']} of {summary['prompts']}",
        f"undecided pairs          {summary['undecided_pairs']} (they count as different)",
        f"answer timeouts          {summary['timeouts']}",
    ]
    if "labelled" in summary:
        correct, labelled, area = summary["largest_cluster_correct"], summary["labelled"], summary["auroc"]
        lines += [
            f"largest cluster correct  {correct / labelled:.3f} ({correct:g} of {labelled} labelled)",
            "AUROC of entropy         " + ("undefined: one class only" if area is None else f"{area:.3f}"),
        ]
    seconds = summary["seconds"]
    lines.append(f"time                     {seconds:.1f} s, {summary['responses'] / max(seconds, 1e-9):.0f} answers/s")
    return "\n".join(lines)


def _against_labels(
    samples: Sequence[dict[str, Any]],
    groups: Sequence[Any],
    rows: Sequence[dict],
    labelled: Sequence[int],
    equivalence: Any,
) -> dict[str, Any]:
    """Return how often the largest cluster is right, tied ones equally likely to win, and what entropy tells of it."""
    import numpy as np

    from autotelic.evaluation import majority_at_k
    from autotelic.rewards.label_reader import is_right, read_label, unread_labels

    unread, note = unread_labels(
        [samples[p]["answer"] for p in labelled], needed=False, free_text=equivalence is not None
    )
    if note:
        print(f"warning: {note}: these prompts count as unlabelled", file=sys.stderr)
    labelled = [p for place, p in enumerate(labelled) if place not in set(unread)]
    if not labelled:
        return {}
    right = []
    for p in labelled:
        accepted = read_label(samples[p]["answer"], free_text=equivalence is not None)
        asked = groups[p].question
        verdicts = {row.answer: is_right(row.answer, accepted, equivalence, asked) for row in groups[p].rows}
        correct = np.array([[verdicts[row.answer] for row in groups[p].rows]])
        right.append(float(majority_at_k(correct, np.array([rows[p]["clusters"]]))[0]))
    area = _auroc([-rows[p]["semantic_entropy"] for p in labelled], right)
    return {"labelled": len(labelled), "largest_cluster_correct": sum(right), "auroc": area}


def _auroc(scores: Sequence[float], positive: Sequence[float]) -> float | None:
    """Return P(score of a positive > score of a negative), ties counting half; None with one class only.

    Args:
        scores: one per prompt.
        positive: share of each prompt that is positive, in [0, 1]; what is left of it is negative.
    """
    import numpy as np

    right = np.asarray(positive, dtype=float)
    wrong = 1 - right
    _, place = np.unique(np.round(scores, 12), return_inverse=True)
    at = np.bincount(place, wrong)
    below = np.cumsum(at) - at
    pairs = float(right.sum() * wrong.sum() - (right * wrong).sum())  # a prompt is no pair with itself
    wins = float((right * (below[place] + 0.5 * (at[place] - wrong))).sum())
    return wins / pairs if pairs > 1e-9 else None
