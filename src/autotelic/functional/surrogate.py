"""PPO's clipped surrogate, one value per response token.

    L_t = -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t),   r_t = exp(logprobs - old_logprobs)
    dual clip (A_t < 0):  L_t = min(L_t, -c A_t)

References: Schulman et al. 2017, arXiv:1707.06347v2, Eq. 7; Yu et al. 2025, arXiv:2503.14476 (two bounds: clip-higher);
Ye et al. 2020, arXiv:1912.09729 (dual clip).
Deviations: separate lower and upper bounds; the log-ratio is held in [-20, 20], so that no ratio overflows (outside
that range the gradient is zero; ``max_log_ratio=None`` takes the bound away).
"""

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.masking import as_mask, compute_dtype, fill_outside, sequence_means

MAX_LOG_RATIO = 20.0
"""The log-ratio is held between minus this and this, in nats."""


def log_ratio(
    logprobs: Float[Tensor, "*B"],
    old_logprobs: Float[Tensor, "*B"],
    mask: Shaped[Tensor, "*B"] | None = None,
    *,
    max_log_ratio: float | int | None = MAX_LOG_RATIO,
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
    max_log_ratio: float | int | None = MAX_LOG_RATIO,
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


def gspo_surrogate(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    clip_low: float | int,
    clip_high: float | int,
    max_log_ratio: float | int = 10.0,
) -> Float[Tensor, "B T"]:
    """Return the loss of every token under the sequence ratio of GSPO, 0 outside the mask.

        s_t = sg[(pi(y) / pi_old(y))^(1/|y|)] pi(y_t) / sg[pi(y_t)]      L_t = -min(s_t A_t, clip(s_t) A_t)

    All tokens of a sequence share the value of s; each carries its own gradient. Reduce with ``sequence_means``.

    Reference: Zheng et al. 2025, arXiv:2507.18071, GSPO-token.
    Deviations: the log of s is bounded from above by ``max_log_ratio``, as in verl.
    """
    new = fill_outside(logprobs.to(compute_dtype(logprobs)), mask)
    token_log_ratio = log_ratio(logprobs, old_logprobs, mask, max_log_ratio=None)
    sequence_log_ratio = sequence_means(token_log_ratio.detach(), mask).unsqueeze(-1)
    ratio = (new - new.detach() + sequence_log_ratio).clamp(max=max_log_ratio).exp()
    a = fill_outside(advantages.detach().to(ratio.dtype), mask)
    return fill_outside(-(ratio * a).minimum(ratio.clamp(1 - clip_low, 1 + clip_high) * a), mask)


def cispo_surrogate(
    logprobs: Float[Tensor, "*B"],
    old_logprobs: Float[Tensor, "*B"],
    advantages: Float[Tensor, "*B"],
    *,
    clip_low: float | int,
    clip_high: float | int,
    mask: Shaped[Tensor, "*B"] | None = None,
    max_log_ratio: float | int | None = MAX_LOG_RATIO,
) -> Float[Tensor, "*B"]:
    """Return ``-sg[clip(r_t, 1 - clip_low, 1 + clip_high)] A_t logprobs_t``: every token keeps its gradient.

    Reference: MiniMax 2025, arXiv:2506.13585, Eq. 4-5 (CISPO).
    """
    ratio = log_ratio(logprobs.detach(), old_logprobs, mask, max_log_ratio=max_log_ratio).exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    new, a = logprobs.to(ratio.dtype), advantages.detach().to(ratio.dtype)
    if mask is not None:
        new, a = fill_outside(new, mask), fill_outside(a, mask)
    return -weight * a * new


def ratio_clipped(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    clip_low: float | int,
    clip_high: float | int,
) -> Bool[Tensor, "B T"]:
    """Return the tokens whose gradient the PPO clip takes away: the clipped branch is strictly the larger loss."""
    ratio = log_ratio(logprobs.detach(), old_logprobs, mask).exp()
    a = fill_outside(advantages.to(ratio.dtype), mask)
    return as_mask(mask) & (-ratio.clamp(1 - clip_low, 1 + clip_high) * a > -ratio * a)
