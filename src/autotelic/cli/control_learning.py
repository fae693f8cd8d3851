"""`autotelic control data | train | online`: options from the settings' own fields, recipes, progress.

A recipe is one YAML file with the sections `data`, `train`, `online` and `pebble`; each command reads its own, and the
command line overrides it.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from autotelic.cli.config import fields_of, find_recipe, from_mapping, read_yaml
from autotelic.cli.options import Parser, add_output, as_json, bias_said_once, finite, say
from autotelic.errors import UserError, one_of
from autotelic.runs.files import check_writable

T = TypeVar("T")
METHODS = ("sft", "cpl", "ppl", "ppl_d", "dpo", "p_iql")
ONLINE_METHODS = ("cpl", "ppl", "ppl_d", "pebble")
SECTIONS = ("data", "train", "online", "pebble", "seeds", "last", "tasks", "arms", "paired")
DESCRIPTIONS = {
    "data": "Collect episodes of several behaviours and a judge's preferences; again in the same folder: label anew.",
    "train": "Train one method on a data folder, evaluate it, and write a run folder.",
    "online": "Collect, compare, update, in rounds: success against the number of answers.",
}


class LazyParser(Parser):
    """A parser that declares its options when it is used: they are fields of settings whose import needs torch."""

    declare: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore
        """Declare, once, and parse."""
        declare, self.declare = self.declare, None
        if declare is not None:
            declare(self)
        return super().parse_known_args(args, namespace)


def add_commands(commands: Any) -> None:
    """Declare the three commands without their options; `commands` makes `LazyParser`s."""
    for name, text in DESCRIPTIONS.items():
        parser = commands.add_parser(name, help=text, description=text)
        parser.declare = partial(declare, name)


def settings_classes(what: str) -> list[type]:
    """The settings classes whose fields are a command's options."""
    from autotelic.control.settings import DataSettings, OnlineSettings, PebbleSettings, TrainSettings

    online = [OnlineSettings, TrainSettings, PebbleSettings]
    return {"data": [DataSettings], "train": [TrainSettings], "online": online}[what]


def declare(what: str, parser: argparse.ArgumentParser) -> None:
    """Add a command's options: its own, then one per field of its settings (default None: a recipe stands below)."""
    if what == "train":
        parser.add_argument("method", choices=METHODS)
        parser.add_argument("--data", type=Path, required=True, help="folder that `autotelic control data` wrote")
        parser.add_argument("--resume", action="store_true", help="continue the run in --output")
        parser.add_argument("--no-frames", action="store_true", help="do not draw a rollout of the trained policy")
    if what == "online":
        parser.add_argument("method", choices=ONLINE_METHODS)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--config", dest="recipe", help="YAML file, or a recipe's name: these options, by section")
    add_output(parser)
    taken = {"method"}
    for kind in settings_classes(what):
        texts = attribute_texts(kind)
        for field in dataclasses.fields(kind):
            if field.name not in taken:
                taken.add(field.name)
                _add_option(parser, field, texts.get(field.name, ""))


def run(args: argparse.Namespace) -> int:
    """Run one of the commands."""
    sections = read_recipe(find_recipe(args.recipe)) if args.recipe else {}
    with bias_said_once(partial(say, args)):
        result, text = {"data": _data, "train": _train, "online": _online}[args.what](args, sections)
    print(as_json(result) if args.json else text)
    follow = f"train ppl --data {args.output} --output runs/ppl" if args.what == "data" else ""
    say(args, f"next: autotelic {'control ' + follow if follow else f'report {args.output}'}")
    return 0


def attribute_texts(kind: type) -> dict[str, str]:
    """The descriptions in a class's `Attributes:` section and its bases'."""
    text = "\n".join(base.__doc__ or "" for base in kind.__mro__)
    found = re.findall(r"^\s{4,8}(\w+): (.+(?:\n\s{12,}.+)*)", text, flags=re.M)
    return {name: " ".join(text.split()).replace("%", "%%") for name, text in found}


def _add_option(parser: argparse.ArgumentParser, field: Any, text: str) -> None:
    name, kind = f"--{field.name.replace('_', '-')}", field.type
    shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    options: dict[str, Any] = {"dest": field.name, "help": f"{text} ({shown})"}
    if get_origin(kind) is tuple:
        parser.add_argument(name, nargs="+", type=get_args(kind)[0], **options)
    elif kind is bool:
        parser.add_argument(name, type=_boolean, metavar="true|false", **options)
    else:
        parser.add_argument(name, type=kind if kind in (int, str) else finite, **options)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe; its sections are checked when they meet their settings."""
    recipe = read_yaml(path)
    for name, section in recipe.items():
        if name not in SECTIONS:
            raise UserError(f"{path}: unknown section {name!r}{one_of(name, SECTIONS)}")
        if name in SECTIONS[:4] and not isinstance(section, dict):
            raise UserError(f"{path}: the section {name} must be a mapping, got {section!r}.")
    return recipe


def build_settings(kind: type[T], section: dict[str, Any], given: dict[str, Any], source: str = "the recipe") -> T:
    """The class's defaults, under the recipe's section, under the command line; each value of its field's type."""
    words = {name: value for name in fields_of(kind) if (value := given.get(name)) is not None}
    return from_mapping(kind, section | words, source)


def _settings(index: int, name: str, args: argparse.Namespace, sections: dict[str, Any]) -> Any:
    section = {key: value for key, value in sections.get(name, {}).items() if key != "method"}
    return build_settings(settings_classes(args.what)[index], section, vars(args), f"{args.recipe}, {name}")


def _data(args: argparse.Namespace, sections: dict[str, Any]) -> tuple[Any, str]:
    from autotelic.control.collection import build_data

    settings = _settings(0, "data", args, sections)
    check_writable(args.output / "data.json", "choose another --output")
    description = build_data(settings, args.output, partial(say, args))
    rates = ", ".join(f"{rate:.0%}" for rate in description["success"])
    text = f"{description['num_episodes']} episodes (success {rates}), {description['pairs']} pairs: {args.output}"
    return description, text


def _train(args: argparse.Namespace, sections: dict[str, Any]) -> tuple[Any, str]:
    from autotelic.control.render import try_frames
    from autotelic.control.training import train

    settings = _settings(0, "train", args, sections)
    check_writable(args.output / "run.json", "choose another --output")
    result = train(settings, args.data, args.output, args.resume, partial(say, args))
    if not args.no_frames:
        say(args, try_frames(args.output))
    low, high = result["eval/success_low"], result["eval/success_high"]
    return result, f"{args.method}: success {result['eval/success']:.0%} [{low:.0%}, {high:.0%}], {result['seconds']} s"


def _online(args: argparse.Namespace, sections: dict[str, Any]) -> tuple[Any, str]:
    from autotelic.control.online import run_online

    online, training, pebble = (_settings(i, n, args, sections) for i, n in enumerate(("online", "train", "pebble")))
    check_writable(args.output / "run.json", "choose another --output")
    rows = run_online(online, training, args.output, partial(say, args), pebble)
    text = "{feedback/labels} answers, {feedback/env_steps} steps: success {eval/success:.0%}, return {eval/return:.1f}"
    return rows, "\n".join(text.format(**row) for row in rows)
