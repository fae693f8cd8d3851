"""``reward.reward_manager.name=autotelic_unlabelled``: verl's manager of reward functions, for data without answers.

verl's own reads ``reward_model.ground_truth`` of every row and fails where there is none. This one gives such rows the
score 0, which a label-free reward replaces before training; rows with an answer, those of validation, are scored as
before.
"""

from types import ModuleType
from typing import Any

from autotelic.verl import PREFIX

NAME = f"{PREFIX}unlabelled"


def install(reward_manager: ModuleType) -> None:
    """Register the manager with ``verl.experimental.reward_loop.reward_manager``; a second call changes nothing."""
    known = reward_manager.registry.REWARD_MANAGER
    if NAME not in known:
        reward_manager.register(NAME)(unlabelled(reward_manager.NaiveRewardManager))


def unlabelled(manager: Any) -> type:
    """Return a subclass of verl's manager that takes rows without an answer."""

    class UnlabelledRewardManager(manager):
        async def run_single(self, data: Any) -> dict[str, Any]:
            """Return the score of the last row: 0 where it has no answer."""
            described = data[-1].non_tensor_batch.get("reward_model") or {}
            if described.get("ground_truth") is None:
                return {"reward_score": 0.0, "reward_extra_info": {}}
            return await super().run_single(data)

    return UnlabelledRewardManager
