"""The law that ties reward to entropy, and what it forecasts.

    R = -a exp(H) + b          ceiling, at H = 0:  b - a          share of the gain taken:  (x_0 - x_n) / (x_0 - 1)

with x = exp(H), H the policy entropy in nats and R the mean validation accuracy. The law is linear in x, so ordinary
least squares is the exact fit; 95 % intervals of a, b, the ceiling and a prediction are Student's t with n - 2 degrees
of freedom. The share of the gain is that of the fitted line, and the line's slope cancels.

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 1 and Sec. 2; the forecast from the first 15 % of training.
Deviations: intervals, baselines and warnings are ours. The intervals assume independent errors of constant variance;
successive evaluations of one run are correlated, which makes them too narrow. Each interval holds its own value in 95 %
of runs; a and b together lie in theirs in about 94 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from autotelic.errors import UserError

Series = Sequence[float | int] | np.ndarray | Tensor

MAX_ENTROPY, MAX_REWARD = 20.0, 1e100
"""What is larger is no entropy per token (ln of a vocabulary of 10^8) and no reward: its squares overflow."""
MIN_POINTS = 8
"""The paper's forecasts stand on about 9 validation points; below this number the law is flagged."""
MIN_RANGE = 0.1
"""Smallest range of exp(H) on which the law is not flagged."""
MAX_REBOUND = 0.3
"""Largest rise of entropy above its running minimum, as a share of its range, that is not flagged."""


def as_series(values: Series, name: str) -> np.ndarray:
    """Return one finite number per evaluation as float64, or refuse."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    array = array.astype(np.float64)
    if array.ndim != 1:
        raise UserError(f"{name} must be one number per evaluation, got shape {array.shape}; pass a single column")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise UserError(f"{name} is not finite at position {where}; drop the rows without a value first")
    return array


@dataclass(frozen=True)
class Line:
    """An ordinary least-squares line y = slope x + intercept, with what its intervals need."""

    slope: float
    intercept: float
    mean_x: float
    sum_squares_x: float
    residual_std: float
    num_points: int

    def half_width(self, x: float, level: float = 0.95) -> float:
        """Return the half-width of the confidence interval of the line at ``x``."""
        spread = 1 / self.num_points + (x - self.mean_x) ** 2 / self.sum_squares_x
        return self.quantile(level) * self.residual_std * math.sqrt(spread)

    def slope_half_width(self, level: float = 0.95) -> float:
        """Return the half-width of the confidence interval of the slope."""
        return self.quantile(level) * self.residual_std / math.sqrt(self.sum_squares_x)

    def quantile(self, level: float) -> float:
        """Return the two-sided Student quantile with n - 2 degrees of freedom."""
        return float(stdtrit(self.num_points - 2, 0.5 + level / 2))


def fit_line(x: np.ndarray, y: np.ndarray) -> Line:
    """Return the least-squares line through at least three points of differing x."""
    centred = x - x.mean()
    sum_squares = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / sum_squares
    intercept = float(y.mean() - slope * x.mean())
    residuals = y - (slope * x + intercept)
    std = math.sqrt(float(residuals @ residuals) / (len(x) - 2))
    return Line(slope, intercept, float(x.mean()), sum_squares, std, len(x))


@dataclass(frozen=True)
class EntropyLaw:
    """A fit of R = -a exp(H) + b. Intervals are 95 % unless said otherwise."""

    a: float
    b: float
    ceiling: float
    """b - a, the reward at zero entropy."""
    a_interval: tuple[float, float]
    b_interval: tuple[float, float]
    ceiling_interval: tuple[float, float]
    share_taken: float
    """Share of the gain from the first point's entropy to zero entropy that is already spent."""
    r_squared: float
    residual_std: float
    num_points: int
    entropy_range: tuple[float, float]
    warnings: tuple[str, ...] = ()
    """Why the law may have no standing here; empty if nothing was found."""
    line: Line | None = field(default=None, repr=False, compare=False)

    def predict(self, entropy: Series | float | int) -> np.ndarray | float:
        """Return the reward of the law at the given entropy, in nats: a number for a number, else an array."""
        values = (
            entropy.detach().cpu().numpy() if isinstance(entropy, Tensor) else np.asarray(entropy, dtype=np.float64)
        )
        return self.b - self.a * np.exp(values)

    def predict_interval(self, entropy: float | int, level: float = 0.95) -> tuple[float, float]:
        """Return the confidence interval of the mean reward at ``entropy``."""
        assert self.line is not None
        centre, half = float(self.predict(entropy)), self.line.half_width(math.exp(entropy), level)
        return centre - half, centre + half

    def remaining_gain(self, entropy: float) -> tuple[float, float]:
        """Return what is left to gain at this entropy, a (exp(H) - 1), and the upper end of its 95 % interval."""
        spent = math.expm1(max(entropy, 0.0))
        return self.a * spent, self.a_interval[1] * spent

    def as_dict(self) -> dict[str, float | int | list[float] | None]:
        """Return the fit as JSON holds it; `share_taken` is None where it has no meaning. Warnings are left out."""
        return {
            "a": self.a,
            "b": self.b,
            "ceiling": self.ceiling,
            "a_interval": list(self.a_interval),
            "b_interval": list(self.b_interval),
            "ceiling_interval": list(self.ceiling_interval),
            "share_taken": self.share_taken if math.isfinite(self.share_taken) else None,
            "r_squared": self.r_squared,
            "residual_std": self.residual_std,
            "num_points": self.num_points,
            "entropy_range": list(self.entropy_range),
        }

    def metrics(self, entropy: float) -> dict[str, float]:
        """Return the metrics `law/*` of a run that is now at this entropy, in nats."""
        remaining, remaining_high = self.remaining_gain(entropy)
        return {
            "law/a": self.a,
            "law/b": self.b,
            "law/ceiling": self.ceiling,
            "law/ceiling_low": self.ceiling_interval[0],
            "law/ceiling_high": self.ceiling_interval[1],
            "law/remaining": remaining,
            "law/remaining_high": remaining_high,
            "law/num_points": float(self.num_points),
        }


def regime_warnings(entropy: Series, reward: Series, *, intervention: str | None = None) -> tuple[str, ...]:
    """Return why the law has no standing on this curve: one sentence each, none if nothing was found.

    Args:
        entropy: nats, in the order of training.
        reward: mean validation accuracy at the same steps.
        intervention: what acts on entropy in this run (a bonus, Clip-Cov, ...), if anything.
    """
    h, r = as_series(entropy, "entropy"), as_series(reward, "reward")
    found = []
    if intervention:
        found.append(f"intervention: {intervention} acts on entropy; the law was found on runs without one")
    if len(h) < MIN_POINTS:
        found.append(f"too few points: {len(h)} evaluations, at least {MIN_POINTS} are needed")
    span = float(np.ptp(np.exp(h)))
    if span < MIN_RANGE:
        found.append(f"range too small: exp(entropy) spans {span:.3g}, at least {MIN_RANGE} is needed")
    # A running median of three keeps one noisy evaluation from counting as a rise.
    smooth = np.array([np.median(h[max(i - 1, 0) : i + 2]) for i in range(len(h))]) if len(h) >= 5 else h
    rise = float((smooth - np.minimum.accumulate(smooth)).max()) if len(h) else 0.0
    if len(h) > 1 and rise > MAX_REBOUND * max(float(np.ptp(smooth)), 1e-12):
        found.append(f"non-monotone: entropy rises by {rise:.3g} nats above its lowest value so far")
    if len(h) >= 3 and span > 0 and float(np.corrcoef(np.exp(h), r)[0, 1] if np.ptp(r) > 0 else 0.0) >= 0:
        found.append("no trade: reward does not rise as entropy falls")
    return tuple(found)


def fit_entropy_law(entropy: Series, reward: Series, *, intervention: str | None = None) -> EntropyLaw:
    """Return the least-squares fit of R = -a exp(H) + b.

    Args:
        entropy: policy entropy at each evaluation, in nats, in the order of training.
        reward: mean validation accuracy at the same evaluations.
        intervention: what acts on entropy in this run, if anything; it becomes a warning.
    """
    h, r = as_series(entropy, "entropy"), as_series(reward, "reward")
    if len(h) != len(r):
        raise UserError(f"entropy has {len(h)} values and reward {len(r)}; pass one of each per evaluation")
    if len(h) < 3:
        raise UserError(f"a line with an interval needs at least 3 evaluations, got {len(h)}; evaluate more often")
    if h.min() < -1e-6:
        raise UserError(
            f"entropy is negative ({h.min():.3g}): it must be in nats per token, not its negative or a loss"
        )
    if h.max() > MAX_ENTROPY or np.abs(r).max() > MAX_REWARD:
        name, value = ("entropy", h.max()) if h.max() > MAX_ENTROPY else ("reward", np.abs(r).max())
        raise UserError(f"{name} reaches {value:.3g}: entropy is in nats per token, and reward a mean accuracy")
    x = np.exp(h)
    if np.ptp(x) < 1e-9:
        raise UserError("entropy is the same at every evaluation, so no line can be fitted; pass a longer run")
    line = fit_line(x, r)
    a, b = -line.slope, line.intercept
    da, db, dc = line.slope_half_width(), line.half_width(0.0), line.half_width(1.0)
    total = float(((r - r.mean()) ** 2).sum())
    return EntropyLaw(
        a=a,
        b=b,
        ceiling=b - a,
        a_interval=(a - da, a + da),
        b_interval=(b - db, b + db),
        ceiling_interval=(b - a - dc, b - a + dc),
        share_taken=float((x[0] - x[-1]) / (x[0] - 1)) if x[0] > 1 else math.nan,
        r_squared=1 - line.residual_std**2 * (len(x) - 2) / total if total > 0 else 0.0,
        residual_std=line.residual_std,
        num_points=len(x),
        entropy_range=(float(h.min()), float(h.max())),
        warnings=regime_warnings(h, r, intervention=intervention),
        line=line,
    )


@dataclass(frozen=True)
class Forecast:
    """Rewards after an origin, predicted from the evaluations before it."""

    share: float
    """Share of training that was fitted on."""
    num_fitted: int
    num_predicted: int
    rmse: dict[str, float]
    """Root mean squared error of ``law``, and of the baselines ``last_value``, ``linear_in_entropy`` and
    ``linear_in_step``."""
    final_error: dict[str, float]
    """Prediction minus reward at the last evaluation, for the same four."""
    predicted: np.ndarray
    """The law's predictions."""


def forecast(step: Series, entropy: Series, reward: Series, *, share: float | int = 0.15) -> Forecast:
    """Fit on the first ``share`` of training and predict the rest from its entropy.

    The law and ``linear_in_entropy`` read the entropy of the steps that they predict, as in the paper; ``last_value``
    and ``linear_in_step`` do not.

    Args:
        step: optimiser steps of the evaluations, increasing.
        entropy: nats, at the same steps.
        reward: mean validation accuracy, at the same steps.
        share: share of the steps that is fitted on; three evaluations at least.
    """
    s, h, r = as_series(step, "step"), as_series(entropy, "entropy"), as_series(reward, "reward")
    if not len(s) == len(h) == len(r):
        raise UserError(f"step, entropy and reward have {len(s)}, {len(h)} and {len(r)} values; pass one of each")
    if len(s) < 4:
        raise UserError(f"a forecast needs at least 4 evaluations (3 to fit, 1 to predict), got {len(s)}")
    if (np.diff(s) <= 0).any():
        raise UserError("step must increase from one evaluation to the next; sort the rows and drop repeated ones")
    if not 0 < share < 1:
        raise UserError(f"share must be between 0 and 1, got {share}: it is the part of training that is fitted on")
    n = max(int((s <= s[0] + share * (s[-1] - s[0])).sum()), 3)
    n = min(n, len(s) - 1)
    x = np.exp(h)
    predictions = {
        "law": _extrapolate(x, r, n),
        "last_value": np.full(len(s) - n, r[n - 1]),
        "linear_in_entropy": _extrapolate(h, r, n),
        "linear_in_step": _extrapolate(s, r, n),
    }
    errors = {name: values - r[n:] for name, values in predictions.items()}
    return Forecast(
        share=share,
        num_fitted=n,
        num_predicted=len(s) - n,
        rmse={name: float(np.sqrt(np.mean(e**2))) for name, e in errors.items()},
        final_error={name: float(e[-1]) for name, e in errors.items()},
        predicted=predictions["law"],
    )


def _extrapolate(x: np.ndarray, y: np.ndarray, n: int) -> np.ndarray:
    """Return the line through the first n points at the others; its mean where those n share one x."""
    if np.ptp(x[:n]) < 1e-9:
        return np.full(len(x) - n, y[:n].mean())
    line = fit_line(x[:n], y[:n])
    return line.slope * x[n:] + line.intercept


def rolling_forecasts(
    step: Series, entropy: Series, reward: Series, *, shares: Sequence[float] = (0.15, 0.3, 0.45, 0.6, 0.75)
) -> list[Forecast]:
    """Return the forecast from each origin; origins that fit on the same evaluations are given once."""
    forecasts: dict[int, Forecast] = {}
    for share in shares:
        result = forecast(step, entropy, reward, share=share)
        forecasts.setdefault(result.num_fitted, result)
    return list(forecasts.values())
