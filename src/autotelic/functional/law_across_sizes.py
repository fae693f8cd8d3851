"""How the entropy law's coefficients follow the size of the model.

    a(N) = a_0 + a_1 ln N          b(N) = b_0 + b_1 ln N

with N the number of parameters: one law per run, then one least-squares line per coefficient. The line of the smaller
models predicts the largest one, which is what the law's authors use it for.

Reference: Cui et al. 2025, arXiv:2505.22617, Sec. 2 (a and b are log-linear in model size, for one family and one data
set).
Deviations: prediction intervals are ours. They are for one further run at that size, Student's t with n - 2 degrees of
freedom; the runs count alike, however well each fits its own law.
"""

import math
from dataclasses import dataclass

import numpy as np

from autotelic.errors import UserError
from autotelic.functional.entropy_law import Line, Series, as_series, fit_line


@dataclass(frozen=True)
class SizeLine:
    """One coefficient as a line in ln N. Intervals are 95 %."""

    line: Line

    @property
    def slope(self) -> float:
        """Return the change of the coefficient when the model grows by a factor of e."""
        return self.line.slope

    @property
    def slope_interval(self) -> tuple[float, float]:
        """Return the interval of the slope."""
        half = self.line.slope_half_width()
        return self.slope - half, self.slope + half

    def predict(self, size: float | int) -> float:
        """Return the coefficient at a number of parameters."""
        return self.line.intercept + self.line.slope * math.log(size)

    def interval(self, size: float | int) -> tuple[float, float]:
        """Return the interval in which one further run at that size lies."""
        line, x = self.line, math.log(size)
        spread = 1 + 1 / line.num_points + (x - line.mean_x) ** 2 / line.sum_squares_x
        half = line.quantile(0.95) * line.residual_std * math.sqrt(spread)
        return self.predict(size) - half, self.predict(size) + half


@dataclass(frozen=True)
class LargestModel:
    """A coefficient of the largest model, as the smaller ones predict it and as its own runs have it."""

    size: float
    predicted: float
    interval: tuple[float, float]
    fitted: float
    """Mean over the runs of that size."""


def fit_sizes(sizes: Series, values: Series) -> SizeLine:
    """Return the least-squares line of a coefficient in ln N.

    Args:
        sizes: number of parameters of each run's model; at least two different ones.
        values: the coefficient of each run; at least three runs.
    """
    n, y = as_series(sizes, "sizes"), as_series(values, "values")
    if len(n) != len(y):
        raise UserError(f"{len(n)} sizes and {len(y)} values: pass one of each per run")
    if not ((n > 0) & np.isfinite(n)).all():
        raise UserError("a model's size is its number of parameters, above zero")
    if len(n) < 3 or len(np.unique(n)) < 2:
        raise UserError(
            f"a line across sizes needs three runs and two sizes, got {len(n)} run(s) of {len(np.unique(n))} size(s)"
        )
    return SizeLine(fit_line(np.log(n), y))


def predict_largest(sizes: Series, values: Series) -> LargestModel | None:
    """Return what the smaller models say about the largest; None where they are too few for a line."""
    n, y = as_series(sizes, "sizes"), as_series(values, "values")
    size = float(n.max())
    smaller = n < size
    if smaller.sum() < 3 or len(np.unique(n[smaller])) < 2:
        return None
    found = fit_sizes(n[smaller].tolist(), y[smaller].tolist())
    return LargestModel(size, found.predict(size), found.interval(size), float(y[~smaller].mean()))
