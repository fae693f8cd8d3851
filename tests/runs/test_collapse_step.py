"""The Model Collapse Step, in both readings."""

from autotelic.runs.collapse_step import collapse_step, turning_step

STEPS = [0, 10, 20, 30, 40]


def test_below_one_percent_after_it_was_not():
    assert collapse_step(STEPS, [0.2, 0.3, 0.1, 0.005, 0.0]) == 30
    assert collapse_step(STEPS, [0.0, 0.0, 0.1, 0.2, 0.3]) is None  # it never was right before
    assert collapse_step([], []) is None


def test_turning_point():
    assert turning_step(STEPS, [0.2, 0.3, 0.4, 0.35, 0.33]) is None  # within a fifth of the peak
    assert turning_step(STEPS, [0.2, 0.3, 0.4, 0.35, 0.31]) == 20
    assert turning_step([], []) is None
