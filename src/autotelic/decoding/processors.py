"""EM-INF and adaptive temperature as logits processors of transformers.

transformers calls them before its own temperature: the entropy that they see is the model's, at temperature 1.

Reference: Agarwal et al. 2025, arXiv:2505.15134.
Deviations: those of `autotelic.decoding.entropy_decoding`.
"""

import torch
from transformers import LogitsProcessor

from autotelic.decoding.entropy_decoding import adapt_temperature, minimize_entropy


class EntropyMinimizer(LogitsProcessor):
    """EM-INF: a few steps of entropy minimisation on each next-token distribution (`minimize_entropy`)."""

    supports_continuous_batching = True

    def __init__(self, *, floor: float | int = 0.3, num_steps: int = 10, learning_rate: float | int = 1.0):
        self.settings = {"floor": floor, "num_steps": num_steps, "learning_rate": learning_rate}
        minimize_entropy(torch.zeros(1, 1), **self.settings)  # refuses bad settings now

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return the new scores of shape (B, V); the tokens so far are not read."""
        return minimize_entropy(scores, **self.settings)


class AdaptiveTemperature(LogitsProcessor):
    """A temperature per row that keeps the share `alpha` of its entropy, but not less than `floor` nats."""

    supports_continuous_batching = True

    def __init__(self, *, alpha: float | int = 0.5, floor: float | int = 0.3, tolerance: float = 1e-3):
        self.settings = {"alpha": alpha, "floor": floor, "tolerance": tolerance}
        adapt_temperature(torch.zeros(1, 1), **self.settings)

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return the new scores of shape (B, V); the tokens so far are not read."""
        return adapt_temperature(scores, **self.settings)
