"""Every method, reward, advantage, control and guard: what it needs, what it is for, its settings, its paper.

autotelic list                          one line each
autotelic list controls                 one kind, with settings
autotelic list clip_cov                 one of them
"""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

from autotelic.cli.options import add_output, as_json
from autotelic.errors import UserError, closest
from autotelic.runs.method_settings import settings_of
from autotelic.runs.training_methods import ESTIMATORS, METHODS

KINDS = {
    "methods": "autotelic train METHOD",
    "rewards": "--reward NAME,key=value",
    "advantages": "--advantage NAME (grpo is TRL's own)",
    "rollouts": "--rollout key=value",
    "controls": "--entropy_control NAME,key=value",
    "guards": "--stop_rule NAME,key=value",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("what", nargs="?", metavar="KIND|NAME", help=f"{', '.join(KINDS)}, or one name (all of them)")
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    found = entries()
    if args.what is None or args.what in KINDS:
        chosen = [entry for entry in found if args.what in (None, entry["kind"])]
    else:
        chosen = [entry for entry in found if entry["name"] == args.what]
    if not chosen:
        names = [*KINDS, *(entry["name"] for entry in found)]
        raise UserError(f"nothing is called {args.what!r}{closest(str(args.what), names)}; `autotelic list` names all")
    print(as_json(chosen, default=str) if args.json else text(chosen, details=args.what is not None))
    return 0


def entries() -> list[dict[str, Any]]:
    """Return all methods of the one table of each kind."""
    from autotelic.controls.table import methods as controls
    from autotelic.diagnostics.stopping import RULES
    from autotelic.rewards.reward_table import VERIFIER
    from autotelic.rewards.reward_table import methods as rewards
    from autotelic.trl.arguments import TrainedRows

    found: list[dict[str, Any]] = [
        {"kind": "methods", "name": name, "needs": method.needs, "purpose": method.purpose, "paper": method.paper}
        | {"settings": []}
        for name, method in METHODS.items()
    ]
    verifier = "the supervised baseline: 1 where the answer means the same as the label, else 0"
    found.append(
        {"kind": "rewards", "name": VERIFIER, "needs": "labels", "purpose": verifier, "paper": "", "settings": []}
    )
    found += [entry("rewards", name, cls, "no labels") for name, cls in rewards().items()]
    plain = {"needs": "", "paper": "", "settings": []}
    found += [
        {"kind": "advantages", "name": name, **plain, "purpose": purpose, "paper": paper}
        for name, (purpose, paper) in ESTIMATORS.items()
    ]
    found += [
        {"kind": "rollouts", "name": each.name, **plain, "purpose": each.help} for each in settings_of(TrainedRows)
    ]
    found += [entry("controls", name, cls, "") for name, cls in controls().items()]
    found += [entry("guards", name, cls, "probe prompts") for name, cls in RULES.items()]
    return found


def entry(kind: str, name: str, cls: Any, needs: str) -> dict[str, Any]:
    """Return what is to be known of one class."""
    statistics = sorted({need.partition("_")[2] or need for need in getattr(cls, "needs", ())})
    wanted = [needs, *(f"token {each}" for each in statistics)] if kind == "rewards" else [needs, *statistics]
    paper = getattr(cls, "paper", "")
    settings = [
        {"name": each.name, "default": each.default, "unit": each.unit, "help": each.help}
        for each in settings_of(cls)
        if each.help and each.name not in ("refresh", "seed", "num_generations")
    ]
    purpose = cls.purpose or (inspect.getdoc(cls) or "").splitlines()[0].rstrip(".")
    return {
        "kind": kind,
        "name": name,
        "needs": ", ".join(filter(None, wanted)),
        "purpose": purpose,
        "paper": paper,
    } | {"settings": settings}


def text(chosen: list[dict[str, Any]], *, details: bool) -> str:
    """Return the table as text, kind by kind."""
    lines: list[str] = []
    width = max(len(each["name"]) for each in chosen)
    for kind, use in KINDS.items():
        members = [each for each in chosen if each["kind"] == kind]
        if members:
            lines += ["", f"{kind}: {use}"]
        for each in members:
            lines += line(each, width, details)
    if not details:
        lines += ["", "`autotelic list NAME` shows settings and paper."]
    return "\n".join(lines).strip()


def line(each: Mapping[str, Any], width: int, details: bool) -> list[str]:
    """Return one method: its line, and with details what it needs, its paper and its settings."""
    found = [f"  {each['name']:<{width}}  {each['purpose']}"]
    if not details:
        return found
    found += [f"  {'':<{width}}    needs {each['needs']}"] if each["needs"] else []
    found += [f"  {'':<{width}}    {each['paper']}"] if each["paper"] and each["paper"] not in each["purpose"] else []
    for setting in each["settings"]:
        default = setting["default"]
        value = "" if default is None else f"={str(default).lower() if isinstance(default, bool) else default}"
        unit = f" [{setting['unit']}]" if setting["unit"] else ""
        found.append(f"  {'':<{width}}    {setting['name']}{value}  {setting['help']}{unit}")
    return found
