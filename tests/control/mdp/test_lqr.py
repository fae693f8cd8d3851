"""Linear-Gaussian control: values by hand and by simulation, and the identities to rounding."""

import numpy as np
import pytest

from autotelic.control.mdp.lqr import (
    LinearControl,
    LinearPolicy,
    Quadratic,
    action_value,
    discounted,
    identity_errors,
    optimum,
    point_control,
    point_policy,
    state_kl,
    value,
)
from autotelic.control.mdp.lqr_moments import roll_out
from autotelic.errors import UserError

BEHAVIORS = [
    (2.2, 1.2, 0.2, 0.4),
    (6.0, -0.6, 0.0, 0.4),
    (0.7, 2.5, 0.0, 0.4),
    (0.8, 1.0, 0.6, 0.5),
    (0.0, 0.0, 0.0, 2.0),
]


def rows(generator, count=50):
    return np.c_[generator.normal(size=(count, 4)), np.ones(count)], generator.normal(size=(count, 2))


@pytest.mark.parametrize("slip", [0.0, 1.0])
@pytest.mark.parametrize("numbers", BEHAVIORS)
def test_the_identities_hold_to_rounding_and_the_wrong_sign_does_not(numbers, slip, generator):
    """-Reg = alpha (log pi* - Dbar), Q* - V* = alpha log pi*, V* - V^mu = alpha E sum gamma^l KL: to 1e-12."""
    errors = identity_errors(point_control(slip), point_policy(*numbers), *rows(generator))
    assert max(errors[name] for name in ("regret", "advantage", "value")) < 1e-12
    assert errors["wrong_sign"] > 0.1


def test_riccati_by_hand():
    """x' = x + a, cost x^2 + a^2, gamma 1/2: P = 1 + P/2 - (P/2)^2 / (1 + P/2) gives P = sqrt 2, gain 1 - sqrt 2.

    The policy's variance is alpha / 2 / (1 + P/2).
    """
    one = np.ones((1, 1))
    policy, best = optimum(LinearControl(one, one, one, 1.0, 0.0, 0.5, 0.2))
    np.testing.assert_allclose(best.matrix, [[-np.sqrt(2)]])
    np.testing.assert_allclose(policy.gain, [[1 - np.sqrt(2)]])
    np.testing.assert_allclose(policy.covariance, [[0.1 / (1 + np.sqrt(0.5))]])


def test_kl_by_hand():
    """N(x, 1) against N(0, 4): ln 2 + (1 + x^2) / 8 - 1/2."""
    kl = state_kl(LinearPolicy(np.ones((1, 1)), np.ones((1, 1))), LinearPolicy(np.zeros((1, 1)), 4 * np.ones((1, 1))))
    np.testing.assert_allclose(kl.at(np.array([[3.0]])), [np.log(2) + 10 / 8 - 0.5])


def test_the_closed_form_is_the_average_of_rollouts(generator):
    problem, policy = point_control(slip=0.5, gamma=0.8), point_policy(2.2, 1.2, 0.2, 0.4)
    start = np.array([[1.0, -0.5, 0.3, 0.2, 1.0]])
    states, actions = roll_out(problem, [policy], np.zeros(4000, int), np.repeat(start, 4000, 0), 60, generator)
    discounts = 0.8 ** np.arange(60)
    returns = problem.rewards(states[:, :-1], actions) @ discounts
    hard = value(problem, policy, bonus=False)
    assert abs(returns.mean() - hard.at(start)[0]) < 4 * returns.std() / np.sqrt(4000)
    soft = value(problem, policy).at(start) - hard.at(start)
    np.testing.assert_allclose(soft[0], problem.alpha * policy.entropy / 0.2)
    kl = state_kl(policy, optimum(problem)[0])
    sums = kl.at(states[:, :-1]) @ discounts
    assert abs(sums.mean() - discounted(problem, policy, kl).at(start)[0]) < 4 * sums.std() / np.sqrt(4000)


def test_bellman(generator):
    """V = E_mu [Q + alpha H]: the average of Q over a behaviour's actions, plus its entropy."""
    problem, policy = point_control(0.3), point_policy(2.2, 1.2, 0.2, 0.4)
    start = np.tile(rows(generator, 1)[0], (20000, 1))
    _, actions = roll_out(problem, [policy], np.zeros(len(start), int), start, 1, generator)
    q = action_value(problem, policy, start, actions[:, 0])
    gap = q.mean() + problem.alpha * policy.entropy - value(problem, policy).at(start[:1])[0]
    assert abs(gap) < 4 * q.std() / np.sqrt(len(q))


def test_no_policy_is_cheaper_than_the_optimum(generator):
    problem = point_control(0.2)
    best, best_value = optimum(problem)
    states, _ = rows(generator)
    for _ in range(5):
        other = LinearPolicy(best.gain + 0.1 * generator.normal(size=best.gain.shape), best.covariance)
        assert (value(problem, other).at(states) < best_value.at(states)).all()


def test_what_has_no_solution_is_refused():
    with pytest.raises(UserError, match="unstable"):
        value(point_control(), point_policy(-5.0, 0.0, 0.0, 0.4))
    with pytest.raises(UserError, match="gamma"):
        point_control(gamma=1.0)
    assert Quadratic(np.eye(2), 1.0).at(np.ones((1, 2))) == [3]
