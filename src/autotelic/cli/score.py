"""Cluster sampled answers by meaning: semantic entropy and label-free rewards for a file of samples.

FILE holds one JSON object a line: {"prompt": ..., "responses": [...], "answer": ... (optional), "id": ... (optional)}.
The output has one row per prompt: id, clusters (an integer per response, -1 where unparseable), semantic_entropy
(nats), rewards, kept (the decision of the thresholds). Answers in the file reach the printed summary only.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autotelic.errors import UserError, closest

REWARDS = ("empo", "majority_vote", "srt", "srt_soft", "evol_rl", "format", "random", "constant")
"""Rewards that need nothing but the responses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", type=Path, help="samples, one JSON object a line")
    parser.add_argument("--out", type=Path, help="where to write the rows; only the summary is printed without it")
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


def run(args: argparse.Namespace) -> int:
    """Score the file, write the rows, print the summary."""
    if args.reward not in REWARDS:
        raise UserError(f"unknown reward {args.reward!r}{closest(args.reward, REWARDS)}: use {', '.join(REWARDS)}")
    samples = read_samples(args.file)
    reward = _reward(args)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(replacing(args.out)) if args.out else None
        started = time.perf_counter()
        groups, result = _score(samples, reward)
        rows = _rows(samples, groups, result, args)
        if out is not None:
            for row in rows:
                out.write(json.dumps(row) + "\n")
    print(_summary(samples, groups, rows, result, time.perf_counter() - started))
    if args.out:
        print(f"written to {args.out}")
    return 0


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read and check the samples; every complaint names its line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}") from error
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}): give one JSON object a line") from error
        samples.append(_checked(row, f"{path}, line {number}"))
    if not samples:
        raise UserError(f"{path} is empty: give one JSON object a line with a prompt and its responses")
    return samples


def _checked(row: Any, where: str) -> dict[str, Any]:
    """Return the row if it is a sample."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object but {type(row).__name__}: give {{prompt, responses, ...}}")
    for column in ("prompt", "responses"):
        if column not in row:
            raise UserError(f"{where} has no column {column!r}, it has {sorted(row)}{closest(column, row)}")
    responses = row["responses"]
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise UserError(f"{where}: 'responses' must be a list of strings")
    if len(responses) < 2:
        raise UserError(f"{where} has a group of {len(responses)}: agreement needs at least 2 responses to a prompt")
    return row


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """Open a temporary file beside `path` that takes its place only when everything went well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "it is a directory")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            yield out
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _reward(args: argparse.Namespace) -> Any:
    """Build the chosen reward, with the thresholds where it has them."""
    from autotelic import rewards

    thresholds = {"low": args.low, "high": args.high, "units": args.units}
    if args.reward == "empo":
        return rewards.EMPO(**thresholds, denominator=args.denominator, linkage=args.linkage)
    return type(getattr(rewards, args.reward))(linkage=args.linkage)


def _score(samples: Sequence[dict[str, Any]], reward: Any) -> tuple[list[Any], Any]:
    """Return the groups and their rewards, with a progress line where somebody watches."""
    from autotelic.answers import extract
    from autotelic.rewards import Group

    groups = []
    for number, sample in enumerate(samples, start=1):
        texts = sample["responses"]
        groups.append(Group.of(str(sample["prompt"]), texts, [extract(text) for text in texts]))
        if sys.stderr.isatty():
            print(f"\r{number}/{len(samples)} prompts", end="", file=sys.stderr)
    result = reward.score(groups)
    if sys.stderr.isatty():
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
) -> str:
    """Return the printed summary; labels are read here and nowhere else."""
    total = sum(len(row["clusters"]) for row in rows)
    parsed = sum(c >= 0 for row in rows for c in row["clusters"])
    timeouts = int(result.diagnostics.get("semantic/timeouts", 0))
    mean_entropy = sum(row["semantic_entropy"] for row in rows) / len(rows)
    lines = [
        f"prompts                  {len(rows)} with {total} responses",
        f"parse rate               {parsed / total:.3f}",
        f"semantic entropy         {mean_entropy:.3f} nats (mean over prompts)",
        f"kept by the thresholds   {sum(row['kept'] for row in rows)} of {len(rows)}",
        f"answer timeouts          {timeouts}",
    ]
    labelled = [p for p, sample in enumerate(samples) if sample.get("answer") is not None]
    if labelled:
        correct = [_majority_is_right(groups[p], rows[p]["clusters"], str(samples[p]["answer"])) for p in labelled]
        area = _auroc([-rows[p]["semantic_entropy"] for p in labelled], correct)
        lines += [
            f"largest cluster correct  {sum(correct) / len(correct):.3f} ({sum(correct)} of {len(correct)} labelled)",
            "AUROC of entropy         " + ("undefined: one class only" if area is None else f"{area:.3f}"),
        ]
    lines.append(f"time                     {seconds:.1f} s, {total / max(seconds, 1e-9):.0f} answers/s")
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
