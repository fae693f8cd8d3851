"""What the commands have in common: the same options under the same names, and one way to talk to whoever watches.

The result goes to stdout, as text or with `--json` as one JSON value; all else goes to stderr, and `--quiet` stops it.
"""

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from autotelic.errors import UserError, closest


class Store(argparse._StoreAction):
    """Stores an option's value and notes in `given` that it was given; a second, different value is refused."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store the value."""
        if option_string is not None:
            given: dict[str, str] = vars(namespace).setdefault("given", {})
            former = getattr(namespace, self.dest)
            if self.dest in given and former != values:
                raise UserError(f"{option_string} is given twice, as {shown(former)} and as {shown(values)}: give one")
            given[self.dest] = self.option_strings[-1]
        super().__call__(parser, namespace, values, option_string)


def shown(value: Any) -> str:
    """Return what was written on the command line for a value."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are the user's errors: one line, in place of a usage that may fill the screen."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, Store)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, what may have been meant, and where the options are listed."""
        kind, _, words = message.partition(": ")
        option = words.split(" ")[0] if kind == "unrecognized arguments" else ""
        hint = closest(option, self._option_string_actions) or ";"
        raise UserError(f"{message}{hint} see `{self.prog} --help`")


def finite(text: str) -> float:
    """Return a number; "nan" and "inf" are none that an option could use."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def from_zero(text: str) -> int:
    """Return a whole number that is not negative."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return number


def refuse_unread(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse options that were given and would not be read here."""
    found = [option for name, option in getattr(args, "given", {}).items() if name in names]
    if found:
        raise UserError(f"{', '.join(found)} would not be read: {why}")


def check_places(args: argparse.Namespace) -> None:
    """Refuse to write over a file that the command reads, and to write two things to one place."""
    values = {name: value for name, value in vars(args).items() if name not in ("given", "json", "quiet")}
    written = [path for name in ("out", "output", "plot") if isinstance(path := values.pop(name, None), Path)]
    read = [each for value in values.values() for each in (value if isinstance(value, list) else [value])]
    files = [path for each in read if isinstance(each, str | Path) and each and (path := Path(each)).is_file()]
    for number, path in enumerate(written):
        if path == Path("-"):
            raise UserError("cannot write to -: name a file; standard output is /dev/stdout")
        if path.is_file() and any(path.samefile(other) for other in files):
            raise UserError(f"cannot write {path}: this command reads it; choose another place")
        if any(path.resolve() == other.resolve() for other in written[:number]):
            raise UserError(f"two results cannot both be written to {path}: choose another place for one")


def as_json(value: Any, **options: Any) -> str:
    """Return a result as JSON, which has neither NaN nor infinity: both are null."""
    return json.dumps(with_null(value), **options)


def with_null(value: Any) -> Any:
    """Return the value with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {name: with_null(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_null(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def add_output(parser: argparse.ArgumentParser, *, out: str | None = None, plot: str | None = None) -> None:
    """Declare --json and --quiet, and --output and --plot where their help is given."""
    if out:
        parser.add_argument("--output", dest="out", type=Path, metavar="FILE", help=out)
    if plot:
        parser.add_argument("--plot", type=Path, metavar="FILE", help=plot)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing but the result and errors")


def add_sampling(parser: argparse.ArgumentParser, *, k: int, k_help: str = "samples of each prompt") -> None:
    """Declare how a model is sampled."""
    parser.add_argument("--k", type=int, default=k, help=f"{k_help} (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="longest response, in tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=from_zero, default=0, help="seed of sampling and of the bootstrap (default: %(default)s)"
    )


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
    parser.add_argument(
        "--batch-size", type=int, default=256, help="sequences generated at once (default: %(default)s)"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Declare what samples."""
    parser.add_argument(
        "--engine",
        default="transformers",
        metavar="NAME",
        help="what samples: transformers; vllm, also with settings of its LLM class, such as "
        "vllm,tensor_parallel_size=4; or the address of a server with OpenAI's interface that serves the model, such "
        "as http://localhost:8000 (key: OPENAI_API_KEY). Only transformers gives entropies (default: %(default)s)",
    )


def open_model(args: argparse.Namespace, name: str) -> tuple[Any, Any]:
    """Return the model, or the engine that has it, and its tokenizer (None: a server keeps it)."""
    if args.engine == "transformers":
        from autotelic.lm.load import load_model

        return load_model(name, device="auto")
    import yaml

    from autotelic.lm.engines import open_engine

    engine, *pairs = (part.strip() for part in args.engine.split(","))
    if wrong := [pair for pair in pairs if not all(pair.partition("="))]:
        raise UserError(f"--engine {args.engine}: {wrong[0]!r} is no setting, which is written key=value")
    try:
        settings = {key.strip(): yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    except yaml.YAMLError as error:
        raise UserError(f"--engine {args.engine}: a value cannot be read ({' '.join(str(error).split())})") from error
    found = open_engine(engine, name, settings)
    return found, found.tokenizer


def add_columns(
    parser: argparse.ArgumentParser, *, answers: bool = True, responses: bool = False, hub: bool = True
) -> None:
    """Declare the names of columns that a command reads, and the configuration of a hub data set."""
    parser.add_argument("--prompt-column", default="prompt", help="column with the prompts (default: %(default)s)")
    if answers:
        parser.add_argument("--answer-column", default="answer", help="column with the labels (default: %(default)s)")
    if responses:
        parser.add_argument(
            "--response-column", default="responses", help="column with the responses (default: %(default)s)"
        )
    if hub:
        parser.add_argument(
            "--dataset-config", metavar="NAME", help="configuration of a hub data set, such as main for gsm8k"
        )


def add_equivalence(parser: argparse.ArgumentParser) -> None:
    """Declare when two answers are the same."""
    parser.add_argument(
        "--equivalence",
        default="math",
        metavar="NAME",
        help="when answers are the same: math, nli, judge,url=URL,model=M, embedding, or package.module.function "
        "(default: %(default)s)",
    )


def columns_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the columns that were named, by role."""
    options = {"prompt": "prompt_column", "answer": "answer_column", "responses": "response_column"}
    named = {role: getattr(args, option) for role, option in options.items() if hasattr(args, option)}
    return {role: column for role, column in named.items() if column != role}


def read_problems(args: argparse.Namespace, source: str, **more: Any) -> list[dict[str, Any]]:
    """Return the problems of a source as the options of `add_columns` and `--limit` say (`load_problems`)."""
    from autotelic.tasks import load_problems

    named = {"columns": columns_of(args), "config": args.dataset_config, "say": lambda text: say(args, text)}
    return load_problems(source, limit=args.limit, **named, **more)


def say(args: argparse.Namespace, text: str) -> None:
    """Print progress or a remark to stderr, where it is wanted."""
    if not args.quiet:
        print(text, file=sys.stderr, flush=True)


def say_watched(args: argparse.Namespace, text: str) -> None:
    """Print to stderr what only somebody who waits wants to know, such as what is being loaded."""
    if sys.stderr.isatty():
        say(args, text)


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


@contextmanager
def bias_said_once(tell: Callable[[str], None]) -> Iterator[None]:
    """Hand on the warning of a biased look-ahead as one line, once per estimator."""
    from autotelic.functional.lookahead import BiasedLookaheadWarning

    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not issubclass(category, BiasedLookaheadWarning):
            shown(message, category, *rest, **more)
        elif str(message) not in said:
            said.add(str(message))
            tell(f"warning: {message}")

    with warnings.catch_warnings():
        shown, warnings.showwarning = warnings.showwarning, show
        warnings.simplefilter("always", BiasedLookaheadWarning)
        yield
