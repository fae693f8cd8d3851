"""Second moments of the future: closed form against rollouts, and regressions that become exact with data."""

import numpy as np
import pytest

from autotelic.control.mdp.lqr import ahead as expected_ahead
from autotelic.control.mdp.lqr import discounted, optimum, point_control, point_policy, state_kl
from autotelic.control.mdp.lqr_moments import (
    Rollouts,
    expected_after,
    expected_moments,
    fresh,
    monomials,
    outer,
    regressed,
    roll_out,
    unfold,
    with_label,
)

POLICIES = [point_policy(2.2, 1.2, 0.2, 0.4), point_policy(0.8, 1.0, 0.6, 0.5)]


def record(generator, count, length=3, slip=0.5, steps=100):
    problem = point_control(slip)
    policy = np.arange(count) % 2
    starts = np.c_[generator.normal(size=(count, 4)), np.ones(count)]
    states, actions = roll_out(problem, POLICIES, policy, starts, length + steps, generator)
    return problem, Rollouts(states, actions, policy, length)


def test_moments_give_the_look_ahead_of_the_closed_form(generator):
    """<E[z z'], -log pi*> - H(mu) summed over the segment is sum_t gamma E sum_{l>=0} gamma^l KL(x_{t+1+l})."""
    problem, rollouts = record(generator, 6)
    best, policy, gamma = optimum(problem)[0], rollouts.policy, problem.gamma
    states, actions = rollouts.segment
    moments = expected_after(problem, POLICIES, policy, states, actions)
    weight = np.full(6, 3 * gamma / (1 - gamma))
    found = with_label(moments, weight, POLICIES, policy)
    rows = np.hstack([-best.gain, np.eye(2)])
    precision = np.linalg.inv(best.covariance)
    cross = 0.5 * np.einsum("nij,ij->n", found.moments, rows.T @ precision @ rows)
    cross += weight * 0.5 * np.linalg.slogdet(2 * np.pi * best.covariance)[1]
    for k, mu in enumerate(POLICIES):
        later = discounted(problem, mu, state_kl(mu, best))
        direct = expected_ahead(problem, later, states[policy == k], actions[policy == k]).sum(1)
        np.testing.assert_allclose((cross - found.entropy)[policy == k], direct, rtol=1e-9)


@pytest.mark.parametrize("first", [0, 1])
def test_fresh_rollouts_average_to_the_expectation(first, generator):
    problem, one = record(generator, 2, length=2)
    many = Rollouts(*(np.repeat(part, 2000, 0) for part in (one.states, one.actions, one.policy)), length=2)
    found = fresh(problem, POLICIES, many, 1, 100, first, generator).reshape(2, 2000, 5, 5)
    start = outer(one.states[:, 2:3], np.ones(1))
    exact = (
        expected_after(problem, POLICIES, one.policy, *one.segment)
        if first
        else expected_moments(problem, POLICIES, one.policy, start, np.ones(2))
    )
    assert (np.abs(found.mean(1) - exact) < 5 * found.std(1) / np.sqrt(2000) + 0.01 * np.abs(exact)).all()


def test_the_error_of_the_regression_falls_with_data(generator):
    errors = []
    for count in (200, 6400):
        problem, rollouts = record(generator, count)
        exact = expected_after(problem, POLICIES, rollouts.policy, *rollouts.segment)
        gap = regressed(rollouts, problem.gamma, tail=False) - exact
        errors.append(np.sqrt((gap**2).mean() / (exact**2).mean()))
    assert errors[1] < 0.4 * errors[0] and errors[1] < 0.05


def test_monomials_unfold(generator):
    rows = generator.normal(size=(4, 5))
    np.testing.assert_allclose(unfold(monomials(rows), 5), rows[:, :, None] * rows[:, None])
