"""Adapters for TRL: entropy control for any GRPOTrainer, label-free trainers, callbacks and the run folder.

from trl import GRPOTrainer
from autotelic.trl import KLCov, with_entropy_control

trainer = with_entropy_control(GRPOTrainer)(..., entropy_control=KLCov(fraction=2e-3))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotelic.controls.clip_b import ClipB
    from autotelic.controls.clip_v import ClipV
    from autotelic.controls.covariance import ClipCov, KLCov
    from autotelic.controls.entropic import Entropic
    from autotelic.controls.entropy_control import EntropyControl
    from autotelic.controls.high_entropy import HighEntropy
    from autotelic.controls.observe import Observe
    from autotelic.controls.repo import Repo
    from autotelic.controls.stare import Stare
    from autotelic.controls.steer import Steer
    from autotelic.controls.table import entropy_control
    from autotelic.runs.law_callback import EntropyLawCallback
    from autotelic.trl.control_part import Control, with_entropy_control
    from autotelic.trl.dynamic_sampling import DynamicSampling, with_dynamic_sampling
    from autotelic.trl.entropy_term import EntropyMinimization, EntropyTerm, with_entropy_minimization
    from autotelic.trl.fast_passes import FastPasses
    from autotelic.trl.label_free import LabelFree, SurplusVotes, with_label_free_rewards
    from autotelic.trl.rollout_log import RolloutLog
    from autotelic.trl.seam import Part, with_parts

_HOMES = {
    "ClipCov": "controls.covariance",
    "KLCov": "controls.covariance",
    "EntropyControl": "controls.entropy_control",
    "entropy_control": "controls.table",
    "ClipB": "controls.clip_b",
    "ClipV": "controls.clip_v",
    "Entropic": "controls.entropic",
    "HighEntropy": "controls.high_entropy",
    "Observe": "controls.observe",
    "Repo": "controls.repo",
    "Stare": "controls.stare",
    "Steer": "controls.steer",
    "EntropyLawCallback": "runs.law_callback",
    "Part": "trl.seam",
    "with_parts": "trl.seam",
    "Control": "trl.control_part",
    "with_entropy_control": "trl.control_part",
    "EntropyMinimization": "trl.entropy_term",
    "EntropyTerm": "trl.entropy_term",
    "with_entropy_minimization": "trl.entropy_term",
    "FastPasses": "trl.fast_passes",
    "DynamicSampling": "trl.dynamic_sampling",
    "with_dynamic_sampling": "trl.dynamic_sampling",
    "LabelFree": "trl.label_free",
    "SurplusVotes": "trl.label_free",
    "with_label_free_rewards": "trl.label_free",
    "RolloutLog": "trl.rollout_log",
}

__all__ = [
    "ClipB",
    "ClipCov",
    "ClipV",
    "Control",
    "DynamicSampling",
    "Entropic",
    "EntropyControl",
    "EntropyLawCallback",
    "EntropyMinimization",
    "EntropyTerm",
    "FastPasses",
    "HighEntropy",
    "KLCov",
    "LabelFree",
    "Observe",
    "Part",
    "Repo",
    "RolloutLog",
    "Stare",
    "Steer",
    "SurplusVotes",
    "entropy_control",
    "with_dynamic_sampling",
    "with_entropy_control",
    "with_entropy_minimization",
    "with_label_free_rewards",
    "with_parts",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import autotelic.trl` alone does not pay for TRL."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"autotelic.{_HOMES[name]}"), name)
