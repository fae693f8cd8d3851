"""Methods as the page shows them: a name, a colour that the colour-blind can tell apart, and a dash for grey prints.

Reference: the palette is that of Okabe and Ito 2008 (Color Universal Design).
Deviations: none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Style:
    """How one method is named and drawn."""

    label: str
    color: str
    dash: str


STYLES: dict[str, Style] = {
    "base": Style("base model", "#767676", "dot"),
    "grpo": Style("GRPO", PALETTE[0], "solid"),
    "clip_cov": Style("Clip-Cov", PALETTE[1], "dash"),
    "kl_cov": Style("KL-Cov", PALETTE[2], "dashdot"),
    "empo": Style("EMPO", PALETTE[3], "solid"),
    "one_shot_em": Style("one-shot EM", PALETTE[4], "dash"),
    "random_reward": Style("random reward", PALETTE[5], "dot"),
    "clip_higher": Style("clip-higher", "#8C6D31", "longdash"),
    "entropy_bonus": Style("entropy bonus", "#6A51A3", "longdashdot"),
    "high_entropy": Style("80/20 mask", PALETTE[3], "dash"),
    "repo": Style("REPO", PALETTE[4], "dot"),
    "steer": Style("STEER", PALETTE[5], "dashdot"),
    "entropic": Style("EntroPIC", PALETTE[0], "longdash"),
    "stare": Style("STARE", PALETTE[1], "longdashdot"),
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


def style_of(key: str, index: int) -> Style:
    """Return the fixed style of a known method; others take the palette in turn, each round with another dash."""
    if key in STYLES:
        return STYLES[key]
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
    if isinstance(objective, str) and method in {"ppl", objective}:
        return "repo_preference" if objective == "repo" else objective  # REPO is an entropy control as well
    control = settings.get("entropy_control")
    if method == "grpo" and isinstance(control, str) and control not in {"", "none", "observe"}:
        return control
    if method.startswith("grpo+"):
        return method.removeprefix("grpo+")
    reward = settings.get("reward") or settings.get("reward_funcs") or ""
    return "random_reward" if method == "grpo" and "random" in str(reward) else method
