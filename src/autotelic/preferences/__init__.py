"""Preference learning on language models, on TRL's DPOTrainer: PPL, DPO, CPL, RePO.

from trl import DPOTrainer
from autotelic.preferences import with_policy_labels
from autotelic.preferences.objective import objective

trainer = with_policy_labels(DPOTrainer)(..., ppl=objective("dpo"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotelic.preferences.labels import LabelSettings, PolicyLabels
    from autotelic.preferences.objective import PPL
    from autotelic.preferences.online_pairs import OnlineSettings, with_online_pairs
    from autotelic.preferences.sampling_policies import BehaviorPolicy
    from autotelic.preferences.trainer import with_policy_labels

_HOMES = {
    "PPL": "objective",
    "BehaviorPolicy": "sampling_policies",
    "LabelSettings": "labels",
    "PolicyLabels": "labels",
    "OnlineSettings": "online_pairs",
    "with_online_pairs": "online_pairs",
    "with_policy_labels": "trainer",
}

__all__ = [
    "PPL",
    "BehaviorPolicy",
    "LabelSettings",
    "OnlineSettings",
    "PolicyLabels",
    "with_online_pairs",
    "with_policy_labels",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import autotelic.preferences` alone does not pay for TRL."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"autotelic.preferences.{_HOMES[name]}"), name)
