"""The small environment: dynamics by hand, reproducibility, exact densities, behaviours of different quality."""

import numpy as np
import pytest

from autotelic.control.episodes import collect, success_rate
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.errors import UserError


def test_dynamics_by_hand():
    """At rest, action (1, 0): velocity (.2, 0), position moved by (.05, 0)."""
    env = PointReach()
    start, _ = env.reset(3)
    after, reward, terminated, truncated, _ = env.step(np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(after[0, 2:4], [0.2, 0.0])
    np.testing.assert_allclose(after[0, :2], np.clip(start[0, :2] + [0.05, 0.0], -1, 1))
    np.testing.assert_allclose(after[0, 4:] + after[0, :2], start[0, 4:] + start[0, :2])
    assert reward[0] == pytest.approx(-np.linalg.norm(after[0, 4:]))
    assert not terminated[0] and not truncated[0]


def test_a_seed_fixes_everything_and_slip_changes_it():
    runs = [
        np.stack([e.observations for e in collect(PointReach(4, 20, slip), LinearBehavior(), 4, seed, True)])
        for slip, seed in ((0.0, 1), (0.0, 1), (0.5, 1), (0.0, 2))
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][:, 2:], runs[2][:, 2:])
    assert not np.array_equal(runs[0][:, 0], runs[3][:, 0])


def test_episodes_end_at_the_horizon():
    env = PointReach(2, horizon=3)
    env.reset(0)
    assert [env.step(np.zeros((2, 2)))[3].tolist() for _ in range(3)] == [[False] * 2, [False] * 2, [True] * 2]


def test_behaviors_differ_in_success():
    good, weak, bad = (
        success_rate(collect(PointReach(200), b, 200, 0, True))
        for b in (LinearBehavior(), LinearBehavior(gain=2.0, drift=1.0, std=1.0), LinearBehavior(gain=-2.0))
    )
    assert good > 0.95
    assert bad < 0.1 < weak < good


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="reset"):
        PointReach().step(np.zeros((1, 2)))
    with pytest.raises(UserError, match="num_envs"):
        PointReach(0)
    env = PointReach()
    env.reset(0)
    with pytest.raises(UserError, match="finite"):
        env.step(np.full((1, 2), np.nan))
