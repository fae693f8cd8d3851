"""Advantage estimators as verl calls them: ``algorithm.adv_estimator=autotelic_empo``, ``autotelic_max_rl``.

    A_i = (r_i - mean_j r_j) / (std + 1e-6) over the group of one uid;   r = EMPO, majority vote, ...
    max_rl:  A_i = (r_i - mean_j r_j) / mean_j r_j;                      r = the scores of verl's own reward function

Label-free rewards come from `autotelic.verl.trainers`, which sees the responses; verl gives an estimator no text. With
any other trainer the scores here would be those of the user's own reward function, labels perhaps: that is refused.

References: each reward's, in `autotelic.rewards`; Shao et al. 2024, arXiv:2402.03300 for the advantage;
`autotelic.functional.group_advantages` for MaxRL.
Deviations: a group whose rewards are equal has advantage exactly 0; so has a group of one response.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from autotelic import functional as F
from autotelic.errors import UserError, closest
from autotelic.rewards.label_free_reward import LabelFreeReward
from autotelic.verl import PREFIX

MAX_RL = f"{PREFIX}max_rl"
_SERVED: ContextVar[bool] = ContextVar("autotelic_rewards_served", default=False)


def label_free_rewards() -> dict[str, LabelFreeReward]:
    """Return the rewards that verl's rollouts can serve, with the papers' settings.

    Self-certainty is not among them: verl's engines return the entropy of a token, not the mean of its logits.
    """
    from autotelic import rewards as R

    found: Sequence[LabelFreeReward] = (
        R.EMPO(),
        R.WeightedEMPO(),
        R.MajorityVote(),
        R.SRT(),
        R.SoftSRT(),
        R.EvolRL(),
        R.SeedGRPO(),
        R.TokenEntropy(),
        R.EMRLToken(),
        R.EMRLSequence(),
        R.RLSC(),
        R.RandomReward(),
        R.ConstantReward(),
        R.FormatReward(),
    )
    return {reward.name: reward for reward in found}


def reward_of(adv_estimator: Any, settings: dict[str, Any] | None = None) -> LabelFreeReward | None:
    """Return the reward that ``algorithm.adv_estimator`` names; None where it is not one of ours.

    Args:
        adv_estimator: verl's setting.
        settings: attributes of the reward that differ from its defaults.
    """
    name = str(adv_estimator)
    if not name.startswith(PREFIX) or name == MAX_RL:
        return None
    known = label_free_rewards()
    if name.removeprefix(PREFIX) not in known:
        raise UserError(f"unknown adv_estimator {name!r}{closest(name, [PREFIX + key for key in known])}")
    reward = known[name.removeprefix(PREFIX)]
    fields = [field for field in reward.__dataclass_fields__ if not field.startswith("last_")]
    for key in settings or {}:
        if key not in fields:
            raise UserError(f"{name} has no setting {key!r}{closest(key, fields)}")
    return replace(reward, **(settings or {}))


@contextmanager
def serving() -> Iterator[None]:
    """Tell the estimators that the scores they are about to see are label-free rewards."""
    token = _SERVED.set(True)
    try:
        yield
    finally:
        _SERVED.reset(token)


def advantage_estimator(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the estimator that verl finds under ``autotelic_<name>``."""

    def estimate(
        token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, config: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not _SERVED.get():
            raise UserError(
                f"adv_estimator={PREFIX}{name} needs the responses, which verl's V1 trainer gives where the plug-in "
                "has prepared it: set trainer.use_v1=true, and run `autotelic doctor`"
            )
        if index is None:
            raise UserError(f"adv_estimator={PREFIX}{name} needs verl's uid of each response: none was given")
        by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
        scale = "std" if by_std else "none"
        advantages = advantages_by_uid(token_level_rewards.sum(-1), list(index), scale=scale)
        per_token = F.broadcast_advantages(advantages, response_mask)
        return per_token, per_token

    estimate.__name__ = f"{PREFIX}{name}"
    return estimate


def max_rl(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, config: Any = None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return MaxRL's advantages of the scores that verl's reward function gave; they must not be negative."""
    if index is None:
        raise UserError(f"adv_estimator={MAX_RL} needs verl's uid of each response: none was given")
    advantages = advantages_by_uid(token_level_rewards.sum(-1), list(index), scale="mean")
    per_token = F.broadcast_advantages(advantages, response_mask)
    return per_token, per_token


def advantages_by_uid(
    rewards: Shaped[Tensor, " B"], uids: Sequence[Any], *, scale: Literal["std", "none", "mean"] = "std"
) -> Float[Tensor, " B"]:
    """Return group-relative advantages, where rows of one uid are a group, in any order and of any size."""
    members: dict[Any, list[int]] = {}
    for row, uid in enumerate(uids):
        members.setdefault(uid, []).append(row)
    advantages = torch.zeros(rewards.shape, dtype=torch.float32, device=rewards.device)
    for size in {len(rows) for rows in members.values()} - {1}:
        groups = torch.tensor([rows for rows in members.values() if len(rows) == size], device=rewards.device)
        values = F.group_advantages(rewards[groups], scale=scale)
        advantages[groups] = values.to(advantages.dtype)
    return advantages


def advantage_estimators() -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """Return every estimator under the name that algorithm.adv_estimator takes."""
    return {PREFIX + name: advantage_estimator(name) for name in label_free_rewards()} | {MAX_RL: max_rl}
