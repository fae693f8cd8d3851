"""Predicted against realised change of entropy, on the same tokens, from one update to the next.

    realised      mean_t H_t(after) - H_t(before)
    covariance    -mean_t Cov(y_t)                      Cui et al. 2025, arXiv:2505.22617, Theorem 1 and Eq. 10
    sampled       -mean_t A_t (S_t - E_pi[S])           exact to first order for one sample; arXiv:2602.03392

Both predictions are per unit of a step in the logits: for a network only their sign, and their proportion to the
realised change over many updates, have meaning. The advantages are those before a control rewrites them.
Each update costs two forward passes, over the tracked rows only; with full logits where the fused head is not used.
Deviations: none.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from autotelic import functional as F
from autotelic.functional.masking import wide
from autotelic.lm.head import statistics


class VocabularyStatistics(NamedTuple):
    """What the full distribution says of each sampled token."""

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    sampled: Float[Tensor, "B T"]
    """S_a of the entropy discriminator."""
    expected: Float[Tensor, "B T"]
    """E_pi[S]."""


@torch.no_grad()
def vocabulary_statistics(
    model: Any,
    ids: Int[Tensor, "B L"],
    attention: Int[Tensor, "B L"],
    num_response: int,
    *,
    temperature: float | int,
    batch_size: int,
    fused: bool = False,
    **extras: Any,
) -> VocabularyStatistics:
    """Return the statistics of the last `num_response` tokens of each row.

    The logits of `batch_size` rows are held at a time; with `fused` none are, and padding has zeros
    (`autotelic.lm.head`).
    """
    if extras:
        raise NotImplementedError("statistics over the vocabulary are for text-only models")
    parts = []
    for rows in torch.arange(ids.shape[0], device=ids.device).split(batch_size):
        if fused:
            labels = ids[rows].masked_fill(attention[rows] == 0, -100)
            labels[:, :-num_response] = -100
            found = statistics(
                model, labels, temperature=temperature, input_ids=ids[rows], attention_mask=attention[rows]
            )
            names = ("logprobs", "entropy", "discriminator", "expected_discriminator")
            parts.append(tuple(found[name][:, -num_response:] for name in names))
            continue
        logits = model(input_ids=ids[rows], attention_mask=attention[rows]).logits[:, -num_response - 1 : -1].float()
        tokens = ids[rows, -num_response:]
        discriminator = F.entropy_discriminator(logits, tokens, temperature)
        logprobs = F.token_logprobs(logits, tokens, temperature)
        parts.append((logprobs, F.token_entropy(logits, temperature), *discriminator))
    return VocabularyStatistics(*(torch.cat(column) for column in zip(*parts, strict=True)))


class EntropyChange:
    """Follows the first rows of each update to the beginning of the next.

    Args:
        num_rows: responses to follow, per rank.
        measure: from a micro-batch to its `VocabularyStatistics` under the present policy.
    """

    def __init__(self, num_rows: int, measure: Callable[[dict[str, Any]], VocabularyStatistics]):
        self.num_rows, self.measure = num_rows, measure
        self.followed: tuple[dict[str, Any], Tensor, Tensor, Tensor] | None = None

    def observe(
        self,
        micro: dict[str, Any],
        advantages: Float[Tensor, "B T"],
        covariance: Float[Tensor, "B T"],
        mask: Tensor,
    ) -> dict[str, float]:
        """Return the metrics of the update before this one (nothing at first), and begin to follow this one."""
        metrics = self._finish()
        rows = slice(0, self.num_rows)
        kept = {key: x[rows] for key, x in micro.items() if isinstance(x, Tensor) and x.dim()}
        now, valid = self.measure(kept), mask[rows]
        sampled = F.sampled_entropy_change(F.Discriminator(now.sampled, now.expected), advantages[rows].float())
        predictions = [F.masked_sum(x.double(), valid) for x in (-covariance[rows], sampled)]
        self.followed = (kept, now.entropy, valid, torch.stack([wide(valid.sum()), *map(wide, predictions)]))
        return metrics

    def _finish(self) -> dict[str, float]:
        if self.followed is None:
            return {}
        kept, before, valid, sums = self.followed
        change = F.masked_sum((self.measure(kept).entropy - before).double(), valid)
        count, covariance, sampled, realised = F.global_sum(torch.cat([sums, wide(change).reshape(1)])).tolist()
        count = max(count, 1.0)
        return {
            "dynamics/predicted_covariance": covariance / count,
            "dynamics/predicted_sampled": sampled / count,
            "dynamics/realised": realised / count,
        }
