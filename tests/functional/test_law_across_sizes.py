"""a and b as lines in ln N: by hand, against scipy, coverage of the prediction interval."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from autotelic.errors import UserError
from autotelic.functional import fit_sizes, predict_largest


def test_by_hand():
    """Values 1, 2, 3 at N = 1, e, e^2: the slope is 1 a factor of e, and e^3 gives 4."""
    line = fit_sizes([1.0, math.e, math.e**2], [1.0, 2.0, 3.0])
    assert line.slope == pytest.approx(1.0)
    assert line.predict(math.e**3) == pytest.approx(4.0)
    assert line.interval(math.e**3) == pytest.approx((4.0, 4.0))


def test_slope_and_interval_agree_with_scipy():
    rng = np.random.default_rng(0)
    sizes = np.repeat([2e5, 5e5, 8e5, 1.8e6], 3)
    values = 0.2 + 0.05 * np.log(sizes) + 0.02 * rng.normal(size=12)
    line = fit_sizes(sizes, values)
    theirs: Any = stats.linregress(np.log(sizes), values)
    half = stats.t.ppf(0.975, 10) * theirs.stderr
    assert line.slope == pytest.approx(theirs.slope)
    assert line.slope_interval == pytest.approx((theirs.slope - half, theirs.slope + half))


def test_the_unit_of_size_changes_nothing():
    values = [0.5, 0.6, 0.62, 0.75]
    millions, units = fit_sizes([0.2, 0.5, 0.8, 1.8], values), fit_sizes([2e5, 5e5, 8e5, 1.8e6], values)
    assert millions.slope == pytest.approx(units.slope)
    assert millions.predict(7.0) == pytest.approx(units.predict(7e6))
    assert millions.interval(7.0) == pytest.approx(units.interval(7e6))


def test_the_largest_model_lies_in_its_interval_in_95_percent_of_trials():
    rng = np.random.default_rng(1)
    sizes, hits = np.array([2e5] * 3 + [4e5] * 3 + [8e5] * 3 + [1.8e6]), 0
    for _ in range(1000):
        values = rng.uniform(-1, 1) + rng.uniform(-0.2, 0.2) * np.log(sizes) + 0.03 * rng.normal(size=10)
        found = predict_largest(sizes, values)
        assert found is not None and found.size == 1.8e6
        hits += found.interval[0] <= found.fitted <= found.interval[1]
    assert abs(hits - 950) < 25  # standard deviation 6.9


def test_the_largest_models_own_runs_are_not_read():
    sizes, values = [1e5, 2e5, 4e5, 8e5], [0.1, 0.2, 0.25, 0.4]
    first, second = predict_largest(sizes, values), predict_largest(sizes, [*values[:3], 9.0])
    assert first is not None and second is not None
    assert (first.predicted, first.interval) == (second.predicted, second.interval)
    assert (first.fitted, second.fitted) == (0.4, 9.0)


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([1e6, 1e6, 1e6], [1, 2, 3], "two sizes"),
        ([1e6, 2e6], [1, 2], "three runs"),
        ([0, 1e6, 2e6], [1, 2, 3], "above zero"),
        ([1e6, 2e6], [1], "one of each"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes, values, message):
    with pytest.raises(UserError, match=message):
        fit_sizes(sizes, values)


def test_two_smaller_runs_predict_nothing():
    assert predict_largest([1e5, 2e5, 4e5], [1, 2, 3]) is None
