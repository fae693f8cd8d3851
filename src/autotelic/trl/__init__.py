"""Adapters for TRL: entropy control for any GRPOTrainer, label-free trainers, callbacks and the run folder.

from trl import GRPOTrainer
from autotelic.trl import KLCov, with_entropy_control

trainer = with_entropy_control(GRPOTrainer)(..., entropy_control=KLCov(fraction=2e-3))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotelic.trl.baselines import ClipB, ClipV, Entropic, HighEntropy, Observe, Repo, Stare, Steer
    from autotelic.trl.by_name import entropy_control
    from autotelic.trl.controls import ClipCov, EntropyControl, KLCov
    from autotelic.trl.law import EntropyLawCallback
    from autotelic.trl.mixin import EntropyControlMixin, with_entropy_control
    from autotelic.trl.one_shot_em import EntropyMinimization, with_entropy_minimization
    from autotelic.trl.ppl import PPL, with_policy_labels
    from autotelic.trl.ppl_labels import BehaviorPolicy, PolicyLabels
    from autotelic.trl.ppl_online import OnlineSettings, with_online_pairs

_HOMES = {
    "ClipCov": "controls",
    "KLCov": "controls",
    "EntropyControl": "controls",
    "entropy_control": "by_name",
    "ClipB": "baselines",
    "ClipV": "baselines",
    "Entropic": "baselines",
    "HighEntropy": "baselines",
    "Observe": "baselines",
    "Repo": "baselines",
    "Stare": "baselines",
    "Steer": "baselines",
    "EntropyLawCallback": "law",
    "EntropyControlMixin": "mixin",
    "with_entropy_control": "mixin",
    "EntropyMinimization": "one_shot_em",
    "with_entropy_minimization": "one_shot_em",
    "PPL": "ppl",
    "with_policy_labels": "ppl",
    "BehaviorPolicy": "ppl_labels",
    "PolicyLabels": "ppl_labels",
    "OnlineSettings": "ppl_online",
    "with_online_pairs": "ppl_online",
}

__all__ = [
    "PPL",
    "BehaviorPolicy",
    "ClipB",
    "ClipCov",
    "ClipV",
    "Entropic",
    "EntropyControl",
    "EntropyControlMixin",
    "EntropyLawCallback",
    "EntropyMinimization",
    "HighEntropy",
    "KLCov",
    "Observe",
    "OnlineSettings",
    "PolicyLabels",
    "Repo",
    "Stare",
    "Steer",
    "entropy_control",
    "with_entropy_control",
    "with_entropy_minimization",
    "with_online_pairs",
    "with_policy_labels",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import autotelic.trl` alone does not pay for TRL."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
