"""Schedules: end points, the middle, and how they are written."""

import pytest

from autotelic.functional.schedules import Schedule, value_at


def test_by_hand():
    """Half-way both shapes are at the mean; a quarter: linear .55, cosine .6 - .2 (1 - sqrt(1/2)) / 2."""
    linear, cosine = Schedule(0.6, 0.4), Schedule(0.6, 0.4, "cosine")
    assert [linear.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.6, 0.55, 0.5, 0.4])
    assert [cosine.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.6, 0.6 - 0.1 * (1 - 0.5**0.5), 0.5, 0.4])
    assert linear.at(2.0) == pytest.approx(0.4) and value_at(0.3, 0.7) == 0.3


def test_written_and_read():
    for schedule in (Schedule(0.6, 0.4), Schedule(1.0, 0.0, "cosine")):
        assert Schedule.parse(str(schedule)) == schedule == Schedule.parse(schedule)
    with pytest.raises(ValueError):
        Schedule.parse("0.6:0.4")
    with pytest.raises(ValueError):
        Schedule.parse("step:0.6:0.4")
