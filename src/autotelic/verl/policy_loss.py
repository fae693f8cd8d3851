"""verl's policy-loss configuration with a place for the settings of any of our controls.

actor_rollout_ref.actor.policy_loss._target_=autotelic.verl.policy_loss.PolicyLoss
+actor_rollout_ref.actor.policy_loss.settings.coef=0.01
"""

from dataclasses import dataclass, field
from typing import Any

from verl.workers.config import PolicyLossConfig


@dataclass
class PolicyLoss(PolicyLossConfig):
    """What verl's own class has, and `settings` of the control that ``loss_mode`` names."""

    settings: dict[str, Any] = field(default_factory=dict)
