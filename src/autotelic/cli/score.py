"""Cluster sampled answers by meaning: semantic entropy and label-free rewards for a file of samples.

FILE holds one JSON object a line: {"prompt": ..., "responses": [...], "answer": ... (optional), "id": ... (optional)}.
The output has one row per prompt: id, clusters (an integer per response, -1 where unparseable), semantic_entropy
(nats), rewards, kept (the decision of the thresholds). Answers in the file reach the printed summary only.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotelic.cli.options import add_output, read_samples, say_written
from autotelic.errors import UserError, closest

REWARDS = ("empo", "majority_vote", "srt", "srt_soft", "evol_rl", "format", "random", "constant")
"""Rewards that need nothing but the responses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", type=Path, help="samples, one JSON object a line")
    parser.add_argument("--reward", default="empo", help=f"one of {', '.join(REWARDS)} (default: %(default)s)")
    parser.add_argument("--low", type=float, default=0.0, help="keep prompts above this entropy (default: %(default)s)")
    parser.add_argument(
        "--high", type=float, default=1.0, help="keep prompts below this entropy (default: %(default)s)"
    )
    parser.add_argument(
        "--units",
        default="fraction_of_log_G",
        choices=("nats", "fraction_of_log_G", "p_max"),
        help="what low and high are measured in (default: %(default)s)",
    )
    parser.add_argument("--denominator", default="group", choices=("group", "parseable"), help="of the EMPO reward")
    parser.add_argument("--linkage", default="union_find", choices=("union_find", "greedy", "complete"))
    add_output(parser, out="write the rows here; only the summary is printed without it")


def run(args: argparse.Namespace) -> int:
    """Score the file, write the rows, print the summary."""
    if args.reward not in REWARDS:
        raise UserError(f"unknown reward {args.reward!r}{closest(args.reward, REWARDS)}: use {', '.join(REWARDS)}")
    from autotelic.runs.files import replacing

    samples = read_samples(args.file)
    reward = _reward(args)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(replacing(args.out)) if args.out else None
        started = time.perf_counter()
        groups, result = _score(samples, reward, watched=sys.stderr.isatty() and not args.quiet)
        rows = _rows(samples, groups, result, args)
        if out is not None:
            for row in rows:
                out.write(json.dumps(row) + "\n")
    summary = _summary(samples, groups, rows, result, time.perf_counter() - started)
    print(json.dumps(summary) if args.json else _text(summary))
    say_written(args, args.out)
    return 0


def _reward(args: argparse.Namespace) -> Any:
    """Build the chosen reward, with the thresholds where it has them."""
    from autotelic import rewards

    thresholds = {"low": args.low, "high": args.high, "units": args.units}
    if args.reward == "empo":
        return rewards.EMPO(**thresholds, denominator=args.denominator, linkage=args.linkage)
    return type(getattr(rewards, args.reward))(linkage=args.linkage)


def _score(samples: Sequence[dict[str, Any]], reward: Any, *, watched: bool) -> tuple[list[Any], Any]:
    """Return the groups and their rewards, with a progress line where somebody watches."""
    from autotelic.answers import extract
    from autotelic.rewards import Group

    groups = []
    for number, sample in enumerate(samples, start=1):
        texts = sample["responses"]
        groups.append(Group.of(str(sample["prompt"]), texts, [extract(text) for text in texts]))
        if watched:
            print(f"\r{number}/{len(samples)} prompts", end="", file=sys.stderr)
    result = reward.score(groups)
    if watched:
        print(file=sys.stderr)
    return groups, result


def _rows(
    samples: Sequence[dict[str, Any]], groups: Sequence[Any], result: Any, args: argparse.Namespace
) -> list[dict]:
    """Return the output rows; `kept` is the thresholds' decision whatever the reward."""
    from autotelic.functional import semantic_entropy
    from autotelic.rewards import EMPO

    thresholds = EMPO(low=args.low, high=args.high, units=args.units)
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
    samples: Sequence[dict[str, Any]], groups: Sequence[Any], rows: Sequence[dict], result: Any, seconds: float
) -> dict[str, Any]:
    """Return what is printed; labels are read here and nowhere else."""
    total = sum(len(row["clusters"]) for row in rows)
    summary: dict[str, Any] = {
        "prompts": len(rows),
        "responses": total,
        "parse_rate": sum(c >= 0 for row in rows for c in row["clusters"]) / total,
        "semantic_entropy": sum(row["semantic_entropy"] for row in rows) / len(rows),
        "kept": sum(row["kept"] for row in rows),
        "timeouts": int(result.diagnostics.get("semantic/timeouts", 0)),
        "seconds": seconds,
    }
    labelled = [p for p, sample in enumerate(samples) if sample.get("answer") is not None]
    if labelled:
        correct = [_majority_is_right(groups[p], rows[p]["clusters"], str(samples[p]["answer"])) for p in labelled]
        area = _auroc([-rows[p]["semantic_entropy"] for p in labelled], correct)
        summary |= {"labelled": len(labelled), "largest_cluster_correct": sum(correct), "auroc": area}
    return summary


def _text(summary: Mapping[str, Any]) -> str:
    """Return the summary for people."""
    lines = [
        f"prompts                  {summary['prompts']} with {summary['responses']} responses",
        f"parse rate               {summary['parse_rate']:.3f}",
        f"semantic entropy         {summary['semantic_entropy']:.3f} nats (mean over prompts)",
        f"kept by the thresholds   {summary['kept']} of {summary['prompts']}",
        f"answer timeouts          {summary['timeouts']}",
    ]
    if "labelled" in summary:
        correct, labelled, area = summary["largest_cluster_correct"], summary["labelled"], summary["auroc"]
        lines += [
            f"largest cluster correct  {correct / labelled:.3f} ({correct} of {labelled} labelled)",
            "AUROC of entropy         " + ("undefined: one class only" if area is None else f"{area:.3f}"),
        ]
    seconds = summary["seconds"]
    lines.append(f"time                     {seconds:.1f} s, {summary['responses'] / max(seconds, 1e-9):.0f} answers/s")
    return "\n".join(lines)


def _majority_is_right(group: Any, clusters: Sequence[int], label: str) -> bool:
    """Return whether the largest cluster's answer is the label (of several largest, the first to appear)."""
    from autotelic.answers import equivalent, extract

    parsed = [c for c in clusters if c >= 0]
    if not parsed:
        return False
    largest = max(dict.fromkeys(parsed), key=parsed.count)
    answer = group.rows[list(clusters).index(largest)].answer
    return equivalent(answer, extract(label, methods=("boxed", "hashes")) or label)


def _auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Return P(score of a positive > score of a negative), ties counting half; None with one class only."""
    above = [s for s, p in zip(scores, positive, strict=True) if p]
    below = [s for s, p in zip(scores, positive, strict=True) if not p]
    if not above or not below:
        return None
    wins = sum((a > b + 1e-12) + 0.5 * (abs(a - b) <= 1e-12) for a in above for b in below)
    return wins / (len(above) * len(below))
