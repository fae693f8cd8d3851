"""The small environment: dynamics by hand, reproducibility, exact densities, behaviours of different quality."""

import numpy as np
import pytest
from scipy.stats import norm

from autotelic.control.point_reach import LinearBehavior, PointReach, collect
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
        collect(PointReach(4, 20, slip), LinearBehavior(), seed)
        for slip, seed in ((0.0, 1), (0.0, 1), (0.5, 1), (0.0, 2))
    ]
    assert np.array_equal(runs[0].observations, runs[1].observations)
    assert not np.array_equal(runs[0].observations[:, 2:], runs[2].observations[:, 2:])
    assert not np.array_equal(runs[0].observations[:, 0], runs[3].observations[:, 0])


def test_episodes_end_at_the_horizon():
    env = PointReach(2, horizon=3)
    env.reset(0)
    assert [env.step(np.zeros((2, 2)))[3].tolist() for _ in range(3)] == [[False] * 2, [False] * 2, [True] * 2]


def test_logprobs_are_the_density_of_the_action_that_was_sent():
    behavior = LinearBehavior(std=0.5, gain=1.0)
    data = collect(PointReach(5, 8), behavior, 0)
    mean, log_std = behavior.parameters_at(data.observations)
    action = np.tanh(data.pre_tanh)
    slow = (norm.logpdf(np.arctanh(action), mean, np.exp(log_std)) - np.log(1 - action**2)).sum(-1)
    np.testing.assert_allclose(data.logprobs, slow, atol=1e-6)


def test_behaviors_differ_in_success():
    good, weak, bad = (
        collect(PointReach(200), b, 0).success.mean()
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
