"""Intervals over seeds and over episodes. Fewer than three seeds give none."""

from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray, sqrt
from scipy import stats

Number = float | int
FEWEST = 3  # seeds: two fix a spread with one degree of freedom, whose 95 % interval is 12.7 standard errors wide


@dataclass(frozen=True)
class Interval:
    """A mean with its bounds, or with None where there are too few values."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def text(self, digits: int = 3, sign: bool = False) -> str:
        """As in `0.312 [0.280, 0.344]`, or `0.312 (2 seeds: no interval)`."""
        form = f"{'+' if sign else ''}.{digits}f"
        if self.low is None or self.high is None:
            return f"{self.mean:{form}} ({self.count} seed{'s' * (self.count > 1)}: no interval)"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def short(self, digits: int = 2, sign: bool = False) -> str:
        """As in `0.31 ± 0.03`; the half-width is that of the lower side."""
        form = f"{'+' if sign else ''}.{digits}f"
        return f"{self.mean:{form}}" + ("" if self.low is None else f" ± {self.mean - self.low:.{digits}f}")


def mean_interval(
    values: Float[ndarray, " N"], level: float = 0.95, within: tuple[Number, Number] | None = None
) -> Interval:
    """Mean over seeds with Student's t interval, cut to what is possible (`within`, such as (0, 1))."""
    mean, count = float(values.mean()), len(values)
    if count < FEWEST:
        return Interval(mean, None, None, count)
    half = float(stats.t.ppf((1 + level) / 2, count - 1) * values.std(ddof=1) / sqrt(count))
    least, most = within or (-float("inf"), float("inf"))
    return Interval(mean, max(mean - half, float(least)), min(mean + half, float(most)), count)


def share_interval(successes: int, count: int, level: float = 0.95) -> tuple[float, float, float]:
    """Share of `count` trials with Wilson's score interval."""
    interval = stats.binomtest(successes, count).proportion_ci(level, method="wilson")
    return successes / count, float(interval.low), float(interval.high)
