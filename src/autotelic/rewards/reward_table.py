"""The one table of rewards: every class of this folder that has a name. A new reward is one file here, and its test.

The command line, recipes, reports and documents read it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

from autotelic import rewards
from autotelic.errors import UserError
from autotelic.rewards.label_free_reward import LabelFreeReward
from autotelic.rewards.verifiers import takes_messages
from autotelic.runs.method_settings import Spec, make, read

VERIFIER = "verifier"
"""The reward with labels: not one of the label-free classes, and no place for settings."""


@cache
def methods() -> dict[str, type[LabelFreeReward]]:
    """Return every label-free reward by name, in the order of `autotelic.rewards`."""
    found = (value for value in vars(rewards).values() if isinstance(value, type))
    return {cls.name: cls for cls in found if issubclass(cls, LabelFreeReward) and getattr(cls, "name", "")}


def read_reward(
    spec: Spec, *, seed: int = 0, num_generations: int | None = None, equivalence: Any = None
) -> Callable[..., Any]:
    """Return the reward that `name,key=value`, `{name: ..., key: value}` or `package.module.function` stands for.

    Args:
        spec: What was written.
        seed: Of the rewards that draw, unless the spec gives it.
        num_generations: G, likewise.
        equivalence: When two answers are the same (`autotelic.answers.equivalence`), likewise.

    Raises:
        UserError: An unknown name or setting, or a value that cannot be used.
    """
    name, given = read(spec, "reward")
    if name == VERIFIER or "." in name:
        if given:
            raise UserError(f"reward {name} has no settings, got {', '.join(given)}")
        return rewards.verifier if name == VERIFIER else imported(name)
    known = {**methods(), VERIFIER: LabelFreeReward}
    reward = make("reward", {"name": name, **given}, known)
    names = {field.name for field in fields(reward)}
    ours: Mapping[str, Any] = {"seed": seed, "num_generations": num_generations, "equivalence": equivalence}
    return replace(reward, **{key: value for key, value in ours.items() if key in names and key not in given})


def imported(path: str) -> Callable[..., Any]:
    """Return the function `package.module.function`; those of TRL, which read messages, take texts too."""
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import the reward {path!r}: {error}") from error
    return takes_messages(found) if module.startswith("trl.rewards") else found
