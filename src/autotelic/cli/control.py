"""Preference learning for control: the exact experiments on finite MDPs, and robots.

autotelic control tree     the mismatch of CPL on a two-step tree, for infinite data and over seeds
autotelic control lqr      linear-Gaussian control in closed form: which estimator of the look-ahead, under which judge
autotelic control mdp      KL to the optimal policy on random MDPs, by judge, label model and number of pairs
autotelic control data     episodes of several behaviours and a judge's preferences, on point-reach or MetaWorld
autotelic control train    sft, cpl, ppl, ppl_d, dpo or p_iql on such data
autotelic control online   collect, compare, update: success against the number of answers
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from autotelic.cli import control_learning
from autotelic.cli.config import find_recipe, read_yaml
from autotelic.cli.options import add_output, as_json, bias_said_once, finite, say, say_written
from autotelic.errors import UserError, one_of
from autotelic.runs.files import check_writable, write_output

JUDGES = ("regret", "advantage", "return")
LQR_SETS, LQR_JUDGES = ("same", "mono", "anti"), ("regret", "regret_tail", "advantage", "return")
DEFAULTS: dict[str, dict[str, Any]] = {
    "tree": {
        "p_bad": [0, 0.25, 0.5, 0.9],
        "slip": 0.0,
        "judge": "regret",
        "temperature": 1.0,
        "pairs": 1000,
        "seeds": 40,
    },
    "mdp": {"pairs": [500, 2000, 8000], "judges": list(JUDGES), "seeds": 20},
    "lqr": {
        "sets": list(LQR_SETS),
        "segments": [1, 8, 32],
        "judges": list(LQR_JUDGES),
        "pairs": 1000,
        "slip": 0.0,
        "seeds": 20,
    },
}
SETUP = {  # options of `mdp` that are fields of random_mdps.Setup, where their defaults are
    "num_states": (int, "states of each MDP"),
    "num_actions": (int, "actions in each state"),
    "segment_length": (int, "scored steps of a segment"),
    "rollout_length": (int, "recorded steps, for the observed look-ahead"),
    "branching": (int, "next states per action; 1 is deterministic"),
    "gamma": (finite, "discount"),
    "temperature": (finite, "of the judge, in units of reward"),
    "l2": (finite, "penalty of the fits on |logits|^2 / 2"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the commands. Options default to None here, so that a recipe can stand between them and DEFAULTS."""
    names = "{tree,mdp,lqr,data,train,online}"
    lazy = control_learning.LazyParser
    commands = parser.add_subparsers(dest="what", metavar=names, required=True, parser_class=lazy)
    tree = commands.add_parser("tree", help="the two-step tree", description="The mismatch of CPL on a two-step tree.")
    tree.add_argument("--p-bad", type=finite, nargs="+", help="shares of bad behaviour (0 .25 .5 .9)")
    tree.add_argument("--slip", type=finite, help="chance that an action has the other's effect (0)")
    tree.add_argument("--judge", choices=JUDGES, help="what the preferences follow (regret)")
    tree.add_argument("--temperature", type=finite, help="of the judge, in units of reward (1)")
    tree.add_argument("--pairs", type=int, help="comparisons per sampled fit; 0: infinite data only (1000)")
    tree.add_argument("--seeds", type=int, help="sampled fits per row (40)")
    mdp = commands.add_parser("mdp", help="random MDPs", description="KL(pi* || fit) on random MDPs.")
    mdp.add_argument("--pairs", type=int, nargs="+", help="comparisons per fit (500 2000 8000)")
    mdp.add_argument("--judges", nargs="+", choices=JUDGES, help="what the preferences follow (all three)")
    mdp.add_argument("--seeds", type=int, help="random MDPs (20)")
    for name, (kind, text) in SETUP.items():
        mdp.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    lqr = commands.add_parser("lqr", help="linear-Gaussian control", description="CPL and PPL in closed form.")
    lqr.add_argument("--sets", nargs="+", choices=LQR_SETS, help="behaviours (all three)")
    lqr.add_argument("--segments", type=int, nargs="+", help="steps of a segment (1 8 32)")
    lqr.add_argument("--judges", nargs="+", choices=LQR_JUDGES, help="what the preferences follow (all four)")
    lqr.add_argument("--pairs", type=int, help="comparisons per fit (1000)")
    lqr.add_argument("--temperature", type=finite, help="of the judge, in units of cost; 0 never errs (alpha, .12)")
    lqr.add_argument("--slip", type=finite, help="standard deviation of the noise on actions (0)")
    lqr.add_argument("--seeds", type=int, help="data sets per cell (20)")
    for command in (tree, mdp, lqr):
        command.add_argument("--methods", nargs="+", help="some of the label models (all)")
        command.add_argument("--config", dest="recipe", help="YAML file, or a recipe's name, with any of these options")
        add_output(command, out="write rows and settings to this JSON file", plot="draw the table into this SVG file")
    control_learning.add_commands(commands)
    parser.set_defaults(parsers={"tree": tree, "mdp": mdp, "lqr": lqr})


def run(args: argparse.Namespace) -> int:
    """Run one of the commands; an experiment prints its table, and writes JSON and SVG where asked."""
    if args.what in control_learning.DESCRIPTIONS:
        return control_learning.run(args)
    settings = _settings(args)
    if settings["seeds"] < 1:
        raise UserError(f"seeds is {settings['seeds']}: give 1 or more; an interval needs 3.")
    for path in filter(None, (args.out, args.plot)):
        check_writable(path)
    started = time.perf_counter()
    with bias_said_once(partial(say, args)):
        rows, text, chart = {"tree": _tree, "mdp": _mdp, "lqr": _lqr}[args.what](settings, partial(say, args))
    seconds = round(time.perf_counter() - started, 2)
    result = {"settings": settings, "seconds": seconds, "rows": rows}
    print(as_json(result) if args.json else text)
    say(args, f"{seconds} s")
    if args.out:
        write_output(args.out, json.dumps(result, indent=1) + "\n")
    if args.plot:
        write_output(args.plot, chart)
    say_written(args, args.out, args.plot)
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Options of the command line over those of the recipe over the defaults."""
    parser: argparse.ArgumentParser = args.parsers[args.what]
    names = [a.dest for a in parser._actions if a.dest not in ("help", "recipe", "json", "quiet", "out", "plot")]
    recipe = _read_recipe(find_recipe(args.recipe), args.what, names, parser) if args.recipe else {}
    settings = {**dict.fromkeys(names), **DEFAULTS[args.what], **recipe}
    return {**settings, **{n: v for n in names if (v := getattr(args, n)) is not None}}


def _read_recipe(path: Path, what: str, names: list[str], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Read a recipe through the command line's own parser, so that its values meet the same checks."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{path}: {message}")

    recipe = read_yaml(path)
    if recipe.pop("experiment", None) != what:
        refuse(f"no recipe for `control {what}`: it needs `experiment: {what}`.")
    words: list[str] = []
    for name, value in recipe.items():
        if name not in names:
            refuse(f"unknown option {name!r}{one_of(str(name), names)}")
        if value is not None and value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    parser.error = refuse
    parsed = parser.parse_args(words)
    return {n: v for n in names if (v := getattr(parsed, n)) is not None}


def _tree(settings: dict[str, Any], progress: Any) -> tuple[list[dict[str, Any]], str, str]:
    from autotelic.control.mdp.tables import format_table, tree_table
    from autotelic.control.mdp.tree import METHODS
    from autotelic.control.plot import line_chart

    pairs, seeds = settings["pairs"], settings["seeds"]
    if pairs < 0:
        raise UserError(f"pairs is {pairs}: give the number of comparisons, or 0 for infinite data only.")
    names, temperature = tuple(settings["methods"] or METHODS), settings["temperature"]
    rows = tree_table(
        settings["p_bad"], settings["slip"], settings["judge"], pairs, seeds, names, temperature, progress
    )
    columns = [("p_bad", "{p_bad:g}"), ("method", "{method}"), ("infinite data", "{population:.4f}")]
    if pairs:
        columns.append((f"pi(up), {pairs} pairs x {seeds}", "{text}"))
        columns.append(("arg max right", "{right:.0%} [{right_low:.0%}, {right_high:.0%}]"))
    truth = rows[0]["truth"]
    head = f"pi(up) at the root; the truth is {truth:.4f}; judged by {settings['judge']}, slip {settings['slip']:g}\n"
    series = {n: [(r["p_bad"], r["population"], 0.0, 0.0) for r in rows if r["method"] == n] for n in names}
    title = f"Two-step tree, judged by {settings['judge']}, infinite data"
    chart = line_chart(series, title, "share of bad behaviour", "fitted pi(up); dashed: truth", truth=truth)
    return rows, head + format_table(rows, columns), chart


def _mdp(settings: dict[str, Any], progress: Any) -> tuple[list[dict[str, Any]], str, str]:
    from dataclasses import replace

    from autotelic.control.mdp.random_mdps import DEFAULT
    from autotelic.control.mdp.tables import format_table, mdp_table
    from autotelic.control.plot import line_chart

    if min(settings["pairs"]) < 2:
        raise UserError(f"pairs is {min(settings['pairs'])}: a held-out split needs 2 or more.")
    setup = replace(DEFAULT, **{name: settings[name] for name in SETUP if settings[name] is not None})
    rows = mdp_table(settings["pairs"], settings["judges"], settings["seeds"], settings["methods"], setup, progress)
    columns = [
        ("judge", "{judge}"),
        ("pairs", "{pairs}"),
        ("method", "{method}"),
        ("KL(pi* || fit)", "{text}"),
        ("minus CPL, paired", "{minus_cpl_text}"),
    ]
    picks = [
        f"auto picked PPL on {r['auto_is_ppl']:.0%} of seeds ({r['judge']}, {r['pairs']} pairs)"
        for r in rows
        if "auto_is_ppl" in r
    ]
    judge = settings["judges"][0]
    series = {
        r["method"]: [
            (float(q["pairs"]), q["mean"], q["low"] or 0.0, q["high"] or 0.0)
            for q in rows
            if q["method"] == r["method"] and q["judge"] == judge
        ]
        for r in rows
    }
    title = f"Random MDPs, judged by {judge}"
    chart = line_chart(series, title, "pairs", "KL(pi* || fit), nats", log_x=True, log_y=True)
    return rows, "\n".join([format_table(rows, columns), *picks]), chart


def _lqr(settings: dict[str, Any], progress: Any) -> tuple[list[dict[str, Any]], str, str]:
    from autotelic.control.mdp.tables import format_table, lqr_chart, lqr_table

    sets, segments, judges, pairs, temperature, slip, seeds, methods = (
        settings[n] for n in ("sets", "segments", "judges", "pairs", "temperature", "slip", "seeds", "methods")
    )
    rows = lqr_table(sets, segments, judges, pairs, temperature, slip, seeds, methods, progress)
    columns = [
        ("set", "{set}"),
        ("segment", "{segment}"),
        ("judge", "{judge}"),
        ("method", "{method}"),
        ("excess cost", "{text}"),
        ("minus CPL, paired", "{minus_cpl_text}"),
        ("chance in a label, nats", "{label_entropy:.3f}"),
    ]
    return rows, format_table(rows, columns), lqr_chart(rows, settings["judges"][0])
