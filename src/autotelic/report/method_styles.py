"""Methods as the page shows them: a name, a colour that the colour-blind can tell apart, and a dash for grey prints.

Entropy controls are named by their own table, and take palette and dashes in its order.

Reference: the palette is that of Okabe and Ito 2008 (Color Universal Design).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Style:
    """How one method is named and drawn."""

    label: str
    color: str
    dash: str


OTHER_METHODS: dict[str, Style] = {
    "base": Style("base model", "#767676", "dot"),
    "grpo": Style("GRPO", PALETTE[0], "solid"),
    "empo": Style("EMPO", PALETTE[3], "solid"),
    "one_shot_em": Style("one-shot EM", PALETTE[4], "dash"),
    "random_reward": Style("random reward", PALETTE[5], "dot"),
    "ppl": Style("PPL", PALETTE[4], "solid"),
    "cpl": Style("CPL", PALETTE[0], "dash"),
    "dpo": Style("DPO", PALETTE[2], "dashdot"),
    "ppl_d": Style("PPL-d", PALETTE[1], "longdash"),
    "repo_preference": Style("RePO", PALETTE[3], "longdashdot"),
    "repo_det": Style("RePO-det", PALETTE[5], "dash"),
    "p_iql": Style("P-IQL", PALETTE[3], "dot"),
    "sft": Style("SFT", "#767676", "dash"),
    "online_ppl": Style("PPL, online", PALETTE[4], "solid"),
    "online_cpl": Style("CPL, online", PALETTE[0], "dash"),
    "online_ppl_d": Style("PPL-d, online", PALETTE[1], "longdash"),
    "online_pebble": Style("PEBBLE, online", PALETTE[2], "dot"),
}


@cache
def styles() -> dict[str, Style]:
    """Return the style of every known method, in the order in which a page lists them."""
    from autotelic.controls.table import methods

    found = {name: OTHER_METHODS[name] for name in ("base", "grpo")}
    for i, (name, control) in enumerate(methods().items(), start=1):
        found[name] = Style(control.label, PALETTE[i % len(PALETTE)], DASHES[(i + i // len(PALETTE)) % len(DASHES)])
    return found | OTHER_METHODS


def style_of(key: str, index: int) -> Style:
    """Return the fixed style of a known method; others take the palette in turn, each round with another dash.

    A method under a control, `empo+kl_cov`, has the method's colour and the control's dash.
    """
    if key in styles():
        return styles()[key]
    parts = [styles()[part] for part in key.split("+") if part in styles()]
    if len(parts) > 1 and len(parts) == key.count("+") + 1:
        return Style(" + ".join(part.label for part in parts), parts[0].color, parts[-1].dash)
    return Style(key, PALETTE[index % len(PALETTE)], DASHES[(index // len(PALETTE) + index) % len(DASHES)])


def settings_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings in one dictionary, whether they are written flat or as `run` and `training`."""
    config = description.get("config")
    settings: dict[str, Any] = {}
    for name, value in (config if isinstance(config, Mapping) else {}).items():
        settings |= dict(value) if name in {"run", "training"} and isinstance(value, Mapping) else {name: value}
    return settings


def method_of(description: Mapping[str, Any], folder: str) -> str:
    """Return a run's method: its entropy control or objective, the random control run, else what it says itself."""
    settings = settings_of(description)
    method = str(description.get("method") or folder)
    objective = settings.get("objective")
    objective = objective.get("name") if isinstance(objective, Mapping) else objective
    objective = objective.partition(",")[0] if isinstance(objective, str) else None
    if objective is not None and method in {"ppl", objective}:
        return "repo_preference" if objective == "repo" else objective  # REPO is an entropy control as well
    control = control_of(settings)
    if method == "grpo" and control not in {"", "none", "observe"}:
        return control
    if method.startswith("grpo+"):
        return method.removeprefix("grpo+")
    reward = named(settings.get("reward")) or settings.get("reward_funcs") or ""
    return "random_reward" if method == "grpo" and "random" in str(reward) else method


def is_label_free(description: Mapping[str, Any]) -> bool:
    """Whether every reward of the run is one without labels, which says nothing of accuracy."""
    from autotelic.rewards.reward_table import methods

    reward = settings_of(description).get("reward")
    names = [named(spec) for spec in (reward if isinstance(reward, list) else [reward])]
    return all(isinstance(name, str) and name.partition(",")[0] in methods() for name in names)


def control_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the entropy control in a run's settings; empty where there is none."""
    from autotelic.errors import UserError
    from autotelic.runs.method_settings import read

    control = settings.get("entropy_control")
    try:
        return read(control, "entropy_control")[0] if isinstance(control, str | Mapping) else ""
    except UserError:
        return ""


def named(spec: Any) -> Any:
    """Return the name of a method that is written with its settings."""
    return spec.get("name") if isinstance(spec, Mapping) else spec
