"""`autotelic COMMAND`: finds the command, runs it, and turns a user's error into one line and exit code 2.

No command is imported before it is chosen, so that `autotelic --help` answers at once.
"""

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from autotelic import __version__
from autotelic.cli.options import Parser, check_places
from autotelic.errors import UserError, closest

COMMANDS = {
    "demo": "evaluate the carried model, train it seven ways, write one page (about three minutes)",
    "train": "train with grpo, empo, one_shot_em, ... on TRL's trainer",
    "list": "every method, reward, advantage, control and guard: needs, purpose, settings, paper",
    "score": "cluster sampled answers by meaning: semantic entropy and label-free rewards",
    "select": "rank prompts by how much a model can learn from them, with or without labels",
    "logits": "what training changed in the logits: moments, histograms and ranks on shared text",
    "sweep": "run a recipe with several seeds and settings on Ray Tune; can be resumed",
    "eval": "mean@k, pass@k, maj@k, greedy and entropy of a model or of a file of samples",
    "forecast": "fit the entropy law to a training log: the ceiling of accuracy, and what is left to gain",
    "report": "one page, in one file, about one or several runs",
    "pretrain": "rebuild the small base model that the repository carries",
    "doctor": "what works on this machine, what does not, and the command that fixes it",
    "control": "preference learning for control: exact problems (tree, random MDPs, linear-Gaussian), robots",
    "completion": "print the completion script of bash or zsh",
}


def build_parser() -> Parser:
    """Return the top-level parser: it knows the commands' names, not their options."""
    listing = "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="autotelic",
        description="Post-train language models and control policies without reward labels.",
        epilog=f"commands:\n{listing}\n\n`autotelic COMMAND --help` describes one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"autotelic {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    parser.add_argument("command", metavar="COMMAND", nargs="?")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal or a pipe cannot show is shown as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return run_words([word for word in words if word != "--debug"])
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"autotelic: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autotelic: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `autotelic ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_words(words: list[str]) -> int:
    """Run the command that the words name; `help` and `version` are understood as words, too."""
    parser = build_parser()
    args = parser.parse_args(words)
    if args.command in ("help", "version"):
        return run_words(["--version"] if args.command == "version" else [*args.arguments, "--help"])
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    if args.command not in COMMANDS:
        hint = closest(args.command, COMMANDS) or ";"
        raise UserError(f"unknown command {args.command!r}{hint} see `autotelic --help`")
    return run_command(args.command, args.arguments)


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Import one command's module, parse its own arguments, and run it.

    A function that is named on the command line (a reward, a tool) may lie in the folder where the command is given.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    module = importlib.import_module(f"autotelic.cli.{name}")
    parser = Parser(
        prog=f"autotelic {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    args = parser.parse_args(arguments if name == "train" else hyphenated(arguments))
    check_places(args)
    return module.run(args)


def hyphenated(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--a_b` written `--a-b`: the two are the same everywhere."""
    words = []
    for place, word in enumerate(arguments):
        if word == "--":
            return [*words, *arguments[place:]]
        option, equals, value = word.partition("=")
        words.append(option.replace("_", "-") + equals + value if word.startswith("--") else word)
    return words
