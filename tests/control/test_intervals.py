"""Intervals: by hand, within what is possible, and none where there are too few values."""

import numpy as np
import pytest

from autotelic.control.intervals import mean_interval, share_interval


def test_student_by_hand():
    """1, 2, 3: standard error 1 / sqrt 3, t of two degrees of freedom 4.303: 2 +- 2.484."""
    found = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (found.low, found.high) == (pytest.approx(2 - 2.4841, abs=1e-3), pytest.approx(2 + 2.4841, abs=1e-3))
    assert found.text(1) == "2.0 [-0.5, 4.5]" and found.short(1, sign=True) == "+2.0 ± 2.5"


def test_two_seeds_have_no_interval_and_say_so():
    found = mean_interval(np.array([0.1, 0.9]))
    assert found.low is None and found.text() == "0.500 (2 seeds: no interval)" and found.short() == "0.50"
    assert mean_interval(np.array([0.1])).text() == "0.100 (1 seed: no interval)"


def test_a_probability_stays_between_0_and_1():
    found = mean_interval(np.array([0.0, 0.9, 1.0]), within=(0, 1))
    assert (found.low, found.high) == (0, 1)


def test_wilson_by_hand():
    """10 of 10: low = 1 / (1 + 1.96^2 / 10) = .7225, high 1."""
    share, low, high = share_interval(10, 10)
    assert (share, high) == (1, pytest.approx(1)) and low == pytest.approx(0.7225, abs=1e-4)
