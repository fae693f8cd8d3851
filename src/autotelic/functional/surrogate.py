"""PPO's clipped surrogate, one value per response token.

    L_t = -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t),   r_t = exp(logprobs - old_logprobs)
    dual clip (A_t < 0):  L_t = min(L_t, -c A_t)

References: Schulman et al. 2017, arXiv:1707.06347v2, Eq. 7; Yu et al. 2025, arXiv:2503.14476 (two bounds: clip-higher);
Ye et al. 2020, arXiv:1912.09729 (dual clip).
Deviations: separate lower and upper bounds; the log-ratio is held in [-20, 20], so that no ratio overflows (outside
that range the gradient is zero; ``max_log_ratio=None`` takes the bound away).
"""

from jaxtyping import Float, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.masking import compute_dtype, fill_outside


def log_ratio(
    logprobs: Float[Tensor, "*B"],
    old_logprobs: Float[Tensor, "*B"],
    mask: Shaped[Tensor, "*B"] | None = None,
    *,
    max_log_ratio: float | int | None = 20.0,
) -> Float[Tensor, "*B"]:
    """Return ``logprobs - old_logprobs`` (float32 at least), bounded; 0, without gradient, outside the mask."""
    new, old = (x.to(compute_dtype(x)) for x in (logprobs, old_logprobs.detach()))
    if mask is not None:
        new, old = fill_outside(new, mask), fill_outside(old, mask)
    difference = new - old
    return difference if max_log_ratio is None else difference.clamp(-max_log_ratio, max_log_ratio)


def clipped_surrogate(
    logprobs: Float[Tensor, "*B"],
    old_logprobs: Float[Tensor, "*B"],
    advantages: Float[Tensor, "*B"],
    *,
    clip_low: float | int | None,
    clip_high: float | int | None,
    mask: Shaped[Tensor, "*B"] | None = None,
    dual_clip: float | int | None = None,
    max_log_ratio: float | int | None = 20.0,
) -> Float[Tensor, "*B"]:
    """Return the loss of every token, to be reduced with ``reduce_tokens``.

    Args:
        logprobs: ln pi of the sampled tokens under the policy being trained.
        old_logprobs: the same under the policy that the update started from; no gradient.
        advantages: per token; no gradient.
        clip_low: the ratio counts down to 1 - clip_low; None for no lower bound.
        clip_high: the ratio counts up to 1 + clip_high; None for no upper bound.
        mask: needed where padding may hold NaN or infinity; the loss and its gradient are 0 outside it.
        dual_clip: c > 1, the largest ratio that counts for a negative advantage.
        max_log_ratio: bound on the absolute log-ratio.
    """
    if dual_clip is not None and not dual_clip > 1:
        raise UserError(f"dual_clip must be above 1, got {dual_clip}: it bounds the ratio from above; use e.g. 3.0")
    ratio = log_ratio(logprobs, old_logprobs, mask, max_log_ratio=max_log_ratio).exp()
    a = advantages.detach().to(ratio.dtype)
    a = a if mask is None else fill_outside(a, mask)
    clipped = (
        ratio.clamp(
            None if clip_low is None else 1 - clip_low,
            None if clip_high is None else 1 + clip_high,
        )
        if clip_low is not None or clip_high is not None
        else ratio
    )
    loss = -(ratio * a).minimum(clipped * a)
    if dual_clip is not None:
        loss = loss.where(a >= 0, loss.minimum(-dual_clip * a))
    return loss
