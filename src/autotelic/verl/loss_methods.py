"""Which of our methods a verl configuration names, and with which settings.

Clip-Cov and KL-Cov are set by verl's own fields: clip_cov_ratio, clip_cov_lb, clip_cov_ub; kl_cov_ratio, ppo_kl_coef.
Any other setting of a control goes into ``settings`` of `autotelic.verl.policy_loss.PolicyLoss`.

Reference: arXiv:2505.22617, Section 4.3, for the values.
Deviations: verl's default ppo_kl_coef is 0.1 where the paper has 1, and kl_cov_ratio 2e-4 is the paper's value for its
32B model; a configuration that leaves 0.1 gets a warning.
"""

import warnings
from dataclasses import dataclass
from typing import Any

from autotelic.controls.entropy_control import EntropyControl, EntropyControlWarning
from autotelic.controls.table import METHODS, entropy_control
from autotelic.errors import UserError, closest
from autotelic.verl import PREFIX

ENTROPY_MINIMIZATION = "one_shot_em"
UNSUPPORTED = {
    "aem": "it weighs a turn among all turns of its prompt, and verl's mini-batches split a prompt's responses",
    "clip_v": "it needs a mean over the vocabulary, and verl's engines return log-probability and entropy of a token",
    "lp_reg": "it needs the policy without its tail, and verl's engines return log-probability and entropy of a token",
}
"""Controls that need more than log-probabilities and entropies of an update, and what they lack."""
VERL_FIELDS = {
    "clip_cov": {"fraction": "clip_cov_ratio", "low": "clip_cov_lb", "high": "clip_cov_ub"},
    "kl_cov": {"fraction": "kl_cov_ratio", "coef": "ppo_kl_coef"},
}
VERL_DEFAULT_KL_COEF = 0.1


@dataclass(frozen=True)
class EntropyMinimization:
    """Settings of the loss ``autotelic_one_shot_em``: mean of max(H_t, floor), reduced by verl's loss_agg_mode.

    Args:
        coef: multiplies the loss; negative values maximise entropy.
        floor: nats; tokens whose entropy is below it are left alone.
    """

    coef: float | int = 1.0
    floor: float | int = 0.0

    def __post_init__(self) -> None:
        if self.floor < 0:
            raise UserError(f"one_shot_em: floor must not be negative, got {self.floor}: entropy is never below zero")


Method = EntropyControl | EntropyMinimization


def method_names() -> list[str]:
    """Return the names that loss_mode takes, without the prefix."""
    return [name for name in METHODS if name not in UNSUPPORTED] + [ENTROPY_MINIMIZATION]


def method_of(policy_loss: Any) -> Method | None:
    """Return what ``policy_loss`` of verl's actor configuration asks for; None where it is not one of ours.

    Raises:
        UserError: an unknown method or setting.
    """
    mode = str(policy_loss.get("loss_mode", "vanilla"))
    if not mode.startswith(PREFIX):
        return None
    name, given = mode.removeprefix(PREFIX), dict(policy_loss.get("settings", None) or {})
    if name in UNSUPPORTED:
        raise UserError(f"{mode} does not exist on verl: {UNSUPPORTED[name]}. On TRL it does: --entropy_control {name}")
    if name not in method_names():
        raise UserError(f"unknown loss_mode {mode!r}{closest(name, method_names())}; there are {names_with_prefix()}")
    if name == ENTROPY_MINIMIZATION:
        return EntropyMinimization(**checked(given))
    fields = VERL_FIELDS.get(name, {})
    settings = {setting: policy_loss.get(field) for setting, field in fields.items()} | given
    if name == "kl_cov" and settings["coef"] == VERL_DEFAULT_KL_COEF and "coef" not in given:
        warnings.warn(
            "autotelic_kl_cov: ppo_kl_coef=0.1 is verl's default; the paper's coefficient is 1. "
            "Set actor_rollout_ref.actor.policy_loss.ppo_kl_coef=1",
            EntropyControlWarning,
            stacklevel=2,
        )
    return entropy_control(name, **settings)


def names_with_prefix() -> str:
    """Return the values of loss_mode, for messages."""
    return ", ".join(PREFIX + name for name in method_names())


def checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Refuse a setting that entropy minimisation does not have."""
    for key in settings:
        if key not in EntropyMinimization.__dataclass_fields__:
            raise UserError(f"one_shot_em has no setting {key!r} on verl; it has coef and floor")
    return settings
