"""The same two, for vLLM's own logits-processor interface (its V1 engine).

    LLM(model, logits_processors=["autotelic.decoding.vllm:EntropyMinimizerVLLM"],
        additional_config={"entropy_minimizer": {"floor": 0.3, "num_steps": 10}})

Settings belong to the engine, not to a request. vLLM calls processors that keep the arg max, as these do, after its
temperature and for sampled requests only: the entropy that they see is that of the sampling distribution.
`make test-vllm` runs them inside vLLM.
"""

from typing import Any

import torch

from autotelic.decoding.entropy_decoding import adapt_temperature, minimize_entropy
from autotelic.errors import UserError

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor
except ImportError as error:
    raise UserError("autotelic.decoding.vllm needs vLLM with its V1 engine: pip install 'autotelic[vllm]'") from error


class _EntropyProcessor(LogitsProcessor):
    key: str
    function: Any

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        """Read the settings from the engine's `additional_config`; bad ones are refused here."""
        self.settings = dict((vllm_config.additional_config or {}).get(self.key, {}))
        try:
            type(self).function(torch.zeros(1, 1), **self.settings)
        except TypeError as error:
            raise UserError(f"additional_config[{self.key!r}] has a setting that does not exist: {error}") from error

    def is_argmax_invariant(self) -> bool:
        """Tell vLLM that greedy requests need not pay for this."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Keep nothing between tokens: rows that come, go or move make no difference."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the new logits (B, V)."""
        return type(self).function(logits, **self.settings).to(logits.dtype)


class EntropyMinimizerVLLM(_EntropyProcessor):
    """EM-INF; settings under "entropy_minimizer"."""

    key = "entropy_minimizer"
    function = staticmethod(minimize_entropy)


class AdaptiveTemperatureVLLM(_EntropyProcessor):
    """Adaptive temperature; settings under "adaptive_temperature"."""

    key = "adaptive_temperature"
    function = staticmethod(adapt_temperature)
