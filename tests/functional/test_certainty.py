"""Rewards from a model's own certainty."""

import math

import numpy as np
import torch

from autotelic.functional import (
    negative_entropy_reward,
    self_certainty_reward,
    sequence_logprob_reward,
    token_self_certainty,
    total_negative_entropy_reward,
)

ONES = torch.ones(1, 4)


def test_self_certainty_by_hand():
    """p = (3/4, 1/4): KL(U || p) = -ln 2 - (ln 3/4 + ln 1/4) / 2 = .14384; a uniform p has none."""
    logits = torch.tensor([[math.log(3), 0.0], [7.0, 7.0]], dtype=torch.float64)
    expected = -math.log(2) - (math.log(0.75) + math.log(0.25)) / 2
    np.testing.assert_allclose(token_self_certainty(logits), [expected, 0.0], atol=1e-12)


def test_certainty_rewards_by_hand():
    values, mask = torch.tensor([[1.0, 3.0, math.nan], [math.nan] * 3]), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert self_certainty_reward(values, mask).tolist() == [2.0, 0.0]
    assert negative_entropy_reward(values, mask).tolist() == [-2.0, 0.0]
    assert total_negative_entropy_reward(values, mask).tolist() == [-4.0, 0.0]
    assert sequence_logprob_reward(values, mask).tolist() == [4.0, 0.0]
