"""What the commands have in common: the same options under the same names, and one way to talk to whoever watches.

The result goes to stdout, as text or with `--json` as one JSON value; all else goes to stderr, and `--quiet` stops it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotelic.errors import UserError, closest


def add_output(parser: argparse.ArgumentParser, *, out: str | None = None, plot: str | None = None) -> None:
    """Declare --json and --quiet, and --out and --plot where their help is given."""
    if out:
        parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    if plot:
        parser.add_argument("--plot", type=Path, metavar="FILE", help=plot)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing but the result and errors")


def add_sampling(parser: argparse.ArgumentParser, *, k: int, k_help: str = "samples of each prompt") -> None:
    """Declare how a model is sampled."""
    parser.add_argument("--k", type=int, default=k, help=f"{k_help} (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest response (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and bootstrap (default: %(default)s)")


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Declare whether text prompts go through the model's chat template."""
    parser.add_argument(
        "--chat",
        nargs="?",
        choices=("auto", "on", "off"),
        const="on",
        default="auto",
        help="chat template of the model; auto: where it has one and the prompts are plain questions (default)",
    )


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """Declare how many sequences are generated at once."""
    parser.add_argument("--batch-size", type=int, default=256, help="sequences at once (default: %(default)s)")


def say(args: argparse.Namespace, text: str) -> None:
    """Print progress or a remark to stderr, where it is wanted."""
    if not args.quiet:
        print(text, file=sys.stderr, flush=True)


def say_chat(args: argparse.Namespace, prompts: Sequence[Any], tokenizer: Any) -> None:
    """Say once whether the prompts go through the chat template."""
    from autotelic.lm.chat import chat_note

    note = chat_note(prompts, tokenizer, args.chat)
    if note:
        say(args, note)


def say_written(args: argparse.Namespace, *paths: Path | None) -> None:
    """Name the files that were written."""
    for path in paths:
        if path:
            say(args, f"written to {path}")


def read_samples(path: Path, *, answers: bool = False, least: int = 2) -> list[dict[str, Any]]:
    """Read samples, one JSON object a line with a prompt and its responses; every complaint names its line.

    Args:
        path: the file.
        answers: every row must have an answer.
        least: responses that a row must have.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    columns = ("prompt", "responses", *(["answer"] if answers else []))
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}): give one JSON object a line") from None
        samples.append(checked(row, f"{path}, line {number}", columns, least))
    if not samples:
        raise UserError(f"{path} is empty: give one JSON object a line with {', '.join(columns)}")
    return samples


def checked(row: Any, where: str, columns: Sequence[str], least: int) -> dict[str, Any]:
    """Return the row if it is a sample."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object but {type(row).__name__}: give {', '.join(columns)}")
    for column in columns:
        if row.get(column) is None:
            raise UserError(f"{where} has no column {column!r}, it has {', '.join(sorted(row))}{closest(column, row)}")
    responses = row["responses"]
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise UserError(f"{where}: 'responses' must be a list of strings")
    if len(responses) < least:
        raise UserError(
            f"{where} has a group of {len(responses)}: agreement needs at least {least} responses to a prompt"
            if least > 1
            else f"{where} has no responses: give a list of at least one string"
        )
    return row
