"""Less entropy at inference, without training: EM-INF and adaptive temperature, for transformers and vLLM.

from autotelic.decoding import AdaptiveTemperature, EntropyMinimizer
model.generate(..., do_sample=True, logits_processor=[EntropyMinimizer(floor=0.3)])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotelic.decoding.entropy_decoding import adapt_temperature, minimize_entropy
    from autotelic.decoding.processors import AdaptiveTemperature, EntropyMinimizer

_HOMES = {
    "AdaptiveTemperature": "processors",
    "EntropyMinimizer": "processors",
    "adapt_temperature": "entropy_decoding",
    "minimize_entropy": "entropy_decoding",
}

__all__ = ["AdaptiveTemperature", "EntropyMinimizer", "adapt_temperature", "minimize_entropy"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import autotelic.decoding` alone does not pay for torch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
