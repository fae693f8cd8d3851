"""Rewards from a model's own certainty."""

import math

import numpy as np
import torch

from autotelic.functional import (
    token_self_certainty,
)

ONES = torch.ones(1, 4)


def test_self_certainty_by_hand():
    """p = (3/4, 1/4): KL(U || p) = -ln 2 - (ln 3/4 + ln 1/4) / 2 = .14384; a uniform p has none."""
    logits = torch.tensor([[math.log(3), 0.0], [7.0, 7.0]], dtype=torch.float64)
    expected = -math.log(2) - (math.log(0.75) + math.log(0.25)) / 2
    np.testing.assert_allclose(token_self_certainty(logits), [expected, 0.0], atol=1e-12)
