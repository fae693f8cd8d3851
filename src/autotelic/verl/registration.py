"""Registers losses and advantage estimators with verl, under ``autotelic_*``."""

from types import ModuleType

from autotelic.verl.estimators import advantage_estimators
from autotelic.verl.losses import policy_losses


def install(core_algos: ModuleType) -> None:
    """Add our names to the registries of ``verl.trainer.ppo.core_algos``; a second call changes nothing."""
    for name, loss in policy_losses().items():
        if name not in core_algos.POLICY_LOSS_REGISTRY:
            core_algos.register_policy_loss(name)(loss)
    for name, estimator in advantage_estimators().items():
        if name not in core_algos.ADV_ESTIMATOR_REGISTRY:
            core_algos.register_adv_est(name)(estimator)
