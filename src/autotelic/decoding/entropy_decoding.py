"""Lower the entropy of a next-token distribution without touching the model.

    EM-INF:                z <- z - lr d/dz max(H(softmax z), floor)   a few steps, the logits being the parameters
    adaptive temperature:  the tau with  H(z / tau) = max(alpha H(z), floor)

Every row is on its own. A row with H <= floor is returned bit for bit. The likeliest token stays the likeliest: its
step p (ln p + H) is the largest of all, as ln p_max >= -H and p (ln p + H) grows with p wherever it is positive.

Cost per generated token, in passes over (B, V): EM-INF about 8 per step (a softmax, an entropy, an update), adaptive
temperature about 4 per bisection step, 15 to 20 of them. See docs/papers/one_shot_em.md for seconds.

Reference: Agarwal et al. 2025, arXiv:2505.15134.
Deviations: plain gradient descent, halved in rows where a step would raise the entropy; the reference code takes the
entropy of the whole batch, so that its result depends on the neighbours.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional import token_entropy
from autotelic.functional.masking import compute_dtype

MAX_INVERSE_TEMPERATURE = 2.0**40
MAX_BISECTIONS = 60


def minimize_entropy(
    logits: Float[Tensor, "B V"],
    *,
    floor: float | int = 0.3,
    num_steps: int = 10,
    learning_rate: float | int = 1.0,
) -> Float[Tensor, "B V"]:
    """Return logits after `num_steps` steps of gradient descent on max(H, floor), row by row, in float32.

    Args:
        logits: of the next token; -inf stays -inf.
        floor: nats; the paper uses 0.1 to 0.5.
        num_steps: the paper uses 5 to 15.
        learning_rate: step size on the logits.
    """
    _check(floor >= 0, f"floor must not be negative, got {floor}: entropy is never below zero")
    _check(num_steps >= 1, f"num_steps must be at least 1, got {num_steps}")
    _check(learning_rate > 0, f"learning_rate must be above 0, got {learning_rate}")
    z = logits.detach().to(compute_dtype(logits), copy=True)
    entropy = token_entropy(z)
    rate = torch.full_like(entropy, float(learning_rate))
    for _ in range(num_steps):
        rows = (entropy > floor).nonzero().squeeze(-1)
        if not len(rows):
            break
        log_p = z[rows].log_softmax(-1)
        p = log_p.exp()
        finite = log_p.masked_fill(log_p == -math.inf, 0.0)
        moved = z[rows] + rate[rows].unsqueeze(-1) * p * (finite + entropy[rows].unsqueeze(-1))
        after = token_entropy(moved)
        better = (after <= entropy[rows]) & (moved.argmax(-1) == z[rows].argmax(-1))  # rounding can tie the top
        z[rows] = torch.where(better.unsqueeze(-1), moved, z[rows])
        entropy[rows] = torch.where(better, after, entropy[rows])
        rate[rows] = torch.where(better, rate[rows], rate[rows] / 2)
    return z


def adapt_temperature(
    logits: Float[Tensor, "B V"],
    *,
    alpha: float | int = 0.5,
    floor: float | int = 0.3,
    tolerance: float = 1e-3,
) -> Float[Tensor, "B V"]:
    """Return z / tau with H(z / tau) = max(alpha H(z), floor), row by row, in float32; tau <= 1.

    Where several tokens share the largest logit, the entropy cannot fall below the log of their number: such a row goes
    as far as it can.

    Args:
        logits: of the next token; -inf stays -inf.
        alpha: share of the entropy that is kept, in (0, 1].
        floor: nats; rows at or below it are left alone.
        tolerance: nats, the largest |H - target|.
    """
    _check(0 < alpha <= 1, f"alpha must be in (0, 1], got {alpha}: it is the share of the entropy that is kept")
    _check(floor >= 0, f"floor must not be negative, got {floor}: entropy is never below zero")
    _check(tolerance > 0, f"tolerance must be above 0, got {tolerance}")
    z = logits.detach().to(compute_dtype(logits), copy=True)
    before = token_entropy(z)
    target = (alpha * before).clamp(min=float(floor))
    rows = (before > target).nonzero().squeeze(-1)
    if len(rows):
        z[rows] = _cool(z[rows], target[rows], tolerance)
    return z


def _cool(z: Float[Tensor, "B V"], target: Float[Tensor, " B"], tolerance: float) -> Float[Tensor, "B V"]:
    """Bisect the inverse temperature of every row: entropy falls as it grows."""
    z = z - z.amax(-1, keepdim=True)
    low = torch.ones_like(target)
    high = 2 * low
    for _ in range(MAX_BISECTIONS):  # until the target lies between, or cannot be reached
        short = (_entropy_at(z, high) > target) & (high < MAX_INVERSE_TEMPERATURE)
        if not short.any():
            break
        low, high = torch.where(short, high, low), torch.where(short, 2 * high, high)
    middle = (low + high) / 2
    for _ in range(MAX_BISECTIONS):
        entropy = _entropy_at(z, middle)
        far: Bool[Tensor, " B"] = (entropy - target).abs() > tolerance / 2
        if not far.any():
            break
        above = entropy > target
        low, high = torch.where(above & far, middle, low), torch.where(~above & far, middle, high)
        middle = torch.where(far, (low + high) / 2, middle)  # a row that is there stays: it knows no neighbours
    return z * middle.unsqueeze(-1)


def _entropy_at(z: Float[Tensor, "B V"], inverse: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    return token_entropy(z * inverse.unsqueeze(-1))


def _check(good: bool, message: str) -> None:
    if not good:
        raise UserError(message)
