"""The operation that these methods spend their time on: from hidden states to log-probability and entropy.

logprobs, entropy = linear_logprob_entropy(hidden, weight, targets, temperature=0.7)
"""

from autotelic.kernels.autograd import (
    LossOutput,
    TokenStatistics,
    linear_logprob_entropy,
    linear_loss,
    linear_statistics,
)
from autotelic.kernels.selected_logits import linear_selected

__all__ = [
    "LossOutput",
    "TokenStatistics",
    "linear_logprob_entropy",
    "linear_loss",
    "linear_selected",
    "linear_statistics",
]
