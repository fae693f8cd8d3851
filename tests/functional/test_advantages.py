"""Advantages of a group of responses."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autotelic.errors import UserError
from autotelic.functional import broadcast_advantages, group_advantages, whitened_advantages

REWARDS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])
)


def test_advantages_by_hand():
    """(1, 0, 0): mean 1/3, std sqrt(1/3), so (2/3) / .57735 = 1.1547; leaving one out, 1 - 0 = 1 and 0 - 1/2."""
    rewards = torch.tensor([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(group_advantages(rewards, eps=0.0)[0], [1.154700, -0.577350, -0.577350], rtol=1e-5)
    assert group_advantages(rewards, scale="none", baseline="leave_one_out").tolist() == [[1.0, -0.5, -0.5]]


def test_the_largest_advantage_of_eight_binary_rewards():
    """One right of eight: (7/8) / sqrt(8/7 x 7/64) = 2.475."""
    assert group_advantages(torch.tensor([[1.0] + [0.0] * 7])).max().item() == pytest.approx(2.475, abs=1e-3)


@pytest.mark.parametrize("scale", ["std", "none", "mean"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@settings(max_examples=25, deadline=None)
@given(REWARDS)
def test_advantages_agree_with_the_oracle(scale, baseline, rewards):
    ours = group_advantages(torch.from_numpy(rewards), scale, baseline)
    np.testing.assert_allclose(ours, oracles.group_advantages(rewards, scale, baseline), atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(REWARDS, st.floats(-5, 5), st.integers(0, 1000))
def test_constants_and_order_do_not_matter(rewards, constant, seed):
    r = torch.from_numpy(rewards)
    expected = group_advantages(r)
    torch.testing.assert_close(group_advantages(r + constant), expected, atol=1e-6, rtol=1e-6)
    order = torch.randperm(r.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(group_advantages(r[:, order]), expected[:, order])


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e8])
def test_equal_rewards_give_exactly_zero(value):
    assert (group_advantages(torch.full((2, 7), value)) == 0).all()


def test_masked_responses_are_not_read():
    rewards = torch.tensor([[1.0, 0.0, math.nan], [2.0, 2.0, 5.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    ours = group_advantages(rewards, scale="none", mask=mask)
    assert ours.tolist() == [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]
    whole = group_advantages(rewards, scale="none", mask=torch.tensor([False, True]))
    assert whole.tolist() == [[0.0, 0.0, 0.0], [-1.0, -1.0, 2.0]]


def test_a_group_of_one_and_unknown_options_are_refused():
    with pytest.raises(UserError, match="at least 2"):
        group_advantages(torch.ones(3, 1))


def test_broadcast():
    mask = torch.tensor([[1, 0], [1, 1]])
    assert broadcast_advantages(torch.tensor([2.0, -1.0]), mask).tolist() == [[2.0, 0.0], [-1.0, -1.0]]


def test_max_rl_by_hand():
    """Rewards (1, 0, 0, 0): mean 1/4, so A = (.75 / .25, -1, -1, -1); the largest is n - 1. Nothing right: zeros."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    found = group_advantages(rewards, scale="mean")
    assert found.tolist() == [[3.0, -1.0, -1.0, -1.0], [0.0] * 4, [0.0] * 4]
    torch.testing.assert_close(group_advantages(rewards * 5, scale="mean"), found)  # the reward's unit does not matter
    with pytest.raises(UserError, match="must not be negative"):
        group_advantages(-rewards, scale="mean")


def test_whitened_advantages_by_hand():
    """Rewards 1 and 0 on responses of 1 and 3 tokens: mean 1/4, variance 3/16."""
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    found = whitened_advantages(torch.tensor([1.0, 0.0]), mask)
    torch.testing.assert_close(found, torch.tensor([0.75, -0.25]) / (3 / 16) ** 0.5)


def test_whitened_advantages_against_numpy_over_tokens():
    rng = np.random.default_rng(0)
    rewards, mask = rng.normal(size=8), rng.random((8, 5)) < 0.6
    tokens = np.repeat(rewards[:, None], 5, axis=1)[mask]
    expected = (rewards - tokens.mean()) / np.sqrt(tokens.var() + 1e-8)
    found = whitened_advantages(torch.from_numpy(rewards), torch.from_numpy(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (whitened_advantages(torch.ones(3), torch.ones(3, 2)) == 0).all()
    assert torch.isfinite(whitened_advantages(torch.ones(3), torch.zeros(3, 2))).all()
