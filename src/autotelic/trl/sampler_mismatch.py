"""How far the sampler's log-probabilities are from the policy's: an engine such as vLLM rounds in its own way.

    r_t = pi(y_t) / mu(y_t)   pi: the policy as the trainer computes it, mu: the sampler, on the same weights
    k1 = mean_t -ln r_t       k3 = mean_t r_t - 1 - ln r_t       max = max_t |ln r_t|
    cut = share of the response tokens whose weight TRL's correction sets to 0 or to a bound

Reference: Schulman, "Approximating KL divergence" (2020) for k1 and k3.
Deviations: tokens without a log-probability of the sampler are left out.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from autotelic import functional as F
from autotelic.functional.distributed import global_max
from autotelic.trl.seam import Part, Rollout, response_mask


class SamplerMismatch(Part):
    """Logs `sampler/*` for every rollout of an engine that TRL scores again, as its correction does."""

    def on_rollout(self, rollout: Rollout) -> None:
        """Compare the sampler's log-probabilities with those that TRL computed anew."""
        output = rollout.output
        ours, theirs = output.get("old_per_token_logps"), output.get("sampling_per_token_logps")
        if not rollout.training or ours is None or theirs is None:
            return
        self.record(mismatch(ours, theirs, response_mask(output), output.get("importance_sampling_ratio")))


def mismatch(
    logprobs: Float[Tensor, "B T"],
    sampler_logprobs: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    weights: Float[Tensor, "B _"] | None = None,
) -> dict[str, float]:
    """Return the metrics over all ranks.

    Args:
        logprobs: ln pi of the sampled tokens, at the sampling temperature.
        sampler_logprobs: ln mu; NaN where the sampler gave none.
        mask: response tokens.
        weights: TRL's correction: exp of the log ratio, of a token or of a whole response `(B, 1)`, after its bounds.
    """
    known = mask.bool() & sampler_logprobs.isfinite()
    log_ratio = torch.where(known, logprobs - sampler_logprobs, 0.0).double()
    sums = [known.sum(), -log_ratio.sum(), F.kl_estimate(log_ratio, "k3").sum()]
    if weights is not None:
        plain = (log_ratio if weights.shape == log_ratio.shape else log_ratio.sum(1, keepdim=True)).exp()
        same = torch.isclose(weights.double(), plain, rtol=1e-3)
        sums.append((known & ~same).sum())
    count, *totals = F.global_sum(torch.stack([value.double() for value in sums])).tolist()
    names = ("sampler/k1", "sampler/k3", "sampler/cut")
    found = {name: total / max(count, 1.0) for name, total in zip(names, totals, strict=False)}
    return found | {"sampler/max": float(global_max(log_ratio.abs().max()))}
