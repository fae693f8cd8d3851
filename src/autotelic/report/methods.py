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
}


def style_of(key: str, index: int) -> Style:
    """Return the fixed style of a known method; others take the palette in turn, each round with another dash."""
    if key in STYLES:
        return STYLES[key]
    return Style(key, PALETTE[index % len(PALETTE)], DASHES[(index // len(PALETTE) + index) % len(DASHES)])


def method_of(description: Mapping[str, Any], folder: str) -> str:
    """Return a run's method: an entropy control names GRPO runs, a random reward the control run, else `method`."""
    config = description.get("config")
    config = config if isinstance(config, Mapping) else {}
    method = str(description.get("method") or folder)
    control = config.get("entropy_control")
    control = control.get("name", control.get("method")) if isinstance(control, Mapping) else control
    if method == "grpo" and isinstance(control, str) and control not in {"", "none"}:
        return control
    rewards = config.get("reward_funcs") or config.get("rewards") or config.get("reward")
    if method == "grpo" and rewards and "random" in str(rewards):
        return "random_reward"
    return method
