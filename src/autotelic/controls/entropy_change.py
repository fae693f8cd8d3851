"""Predicted against realised change of entropy, on the same tokens, from one update to the next.

    realised      mean_t H_t(after) - H_t(before)
    covariance    -mean_t Cov(y_t)                      Cui et al. 2025, arXiv:2505.22617, Theorem 1 and Eq. 10
    sampled       -mean_t A_t (S_t - E_pi[S])           exact to first order for one sample; arXiv:2602.03392

Both predictions are per unit of a step in the logits: for a network only their sign, and their proportion to the
realised change over many updates, have meaning. The advantages are those before a control rewrites them.
Each update costs two forward passes, over the tracked rows only; with full logits where the fused head is not used.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic import functional as F
from autotelic.functional.masking import wide
from autotelic.lm.token_pass import TokenStatistics


class EntropyChange:
    """Follows the first rows of each update to the beginning of the next.

    Args:
        num_rows: responses to follow, per rank.
        measure: from a micro-batch to its `TokenStatistics` under the present policy.
    """

    def __init__(self, num_rows: int, measure: Callable[[dict[str, Any]], TokenStatistics]):
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
        sampled = F.sampled_entropy_change(
            F.Discriminator(now["discriminator"], now["expected_discriminator"]), advantages[rows].float()
        )
        predictions = [F.masked_sum(x.double(), valid) for x in (-covariance[rows], sampled)]
        self.followed = (kept, now["entropy"], valid, torch.stack([wide(valid.sum()), *map(wide, predictions)]))
        return metrics

    def _finish(self) -> dict[str, float]:
        if self.followed is None:
            return {}
        kept, before, valid, sums = self.followed
        change = F.masked_sum((self.measure(kept)["entropy"] - before).double(), valid)
        count, covariance, sampled, realised = F.global_sum(torch.cat([sums, wide(change).reshape(1)])).tolist()
        count = max(count, 1.0)
        return {
            "dynamics/predicted_covariance": covariance / count,
            "dynamics/predicted_sampled": sampled / count,
            "dynamics/realised": realised / count,
        }
