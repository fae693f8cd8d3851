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
}

__all__ = [
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
    "Repo",
    "Stare",
    "Steer",
    "entropy_control",
    "with_entropy_control",
    "with_entropy_minimization",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import autotelic.trl` alone does not pay for TRL."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
