"""Advantages with an entropy term."""

import math

import numpy as np
import pytest
import torch

from autotelic.functional import (
    PIController,
    doubling_coef,
    entropic,
    repo,
    steer,
)

ONES = torch.ones(1, 4)


def test_repo_by_hand():
    """ln p = -2, H = .5: L = -1.5; A = -2, zeta = .1: -2 + .1 x 2 x 1.5 = -1.7; fixed beta: -2 + .15."""
    arguments = (torch.tensor([[-2.0]]), torch.tensor([[-2.0]]), torch.tensor([[0.5]]), torch.ones(1, 1))
    assert repo(*arguments, coef=0.1).item() == pytest.approx(-1.7)
    assert repo(*arguments, coef=0.1, rescale=False).item() == pytest.approx(-1.85)


def test_repo_rewards_the_rare_and_is_centred_under_the_policy():
    """E_pi[L] = 0, so with constant advantages the expected advantage does not move."""
    log_p = torch.randn(1, 6, dtype=torch.float64).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum().expand(1, 6)
    ours = repo(torch.ones(1, 6, dtype=torch.float64), log_p, entropy, torch.ones(1, 6), coef=0.3)
    assert (log_p.exp() * ours).sum().item() == pytest.approx(1.0)
    assert ours[0, log_p.argmin()] > 1 > ours[0, log_p.argmax()]


def test_the_doubling_coefficient():
    assert doubling_coef(0.1, entropy=0.2, target=0.3) == 0.2
    assert doubling_coef(0.1, entropy=0.4, target=0.3) == 0.05


def test_steer_by_hand():
    """p = p_old = 1/2, H = 1, A = 1, 2: Omega = A (1 - ln 2) / 2; the larger gets w_min, the other its root."""
    half = torch.full((1, 2), math.log(0.5))
    ours = steer(torch.tensor([[1.0, 2.0]]), half, half, torch.ones(1, 2), torch.ones(1, 2), min_weight=0.64)
    np.testing.assert_allclose(ours, [[0.8, 1.28]], rtol=1e-5)


def test_steer_leaves_small_changes_alone():
    """Below .02 the scale is .02: an estimated change of 0 has weight 1."""
    zero = torch.zeros(1, 2)
    np.testing.assert_allclose(steer(zero + 1e-9, zero - 1, zero - 1, zero + 1, zero + 1), zero + 1e-9, rtol=1e-5)


def test_entropic_by_hand():
    """Alpha = -.5, only p > .9: A = 1 becomes .5, A = -1 becomes -1.5, the unlikely one stays."""
    logprobs = torch.log(torch.tensor([[0.95, 0.95, 0.5]]))
    ours = entropic(torch.tensor([[1.0, -1.0, 1.0]]), logprobs, torch.ones(1, 3), alpha=-0.5, threshold=0.9)
    assert ours.tolist() == [[0.5, -1.5, 1.0]]


def test_the_controller_by_hand():
    """Target .3, K_p = 1, K_i = .5. H = .1: -.2. Then H = .2: -.1 + .5 (-.2) = -.2. Far off: held at -1."""
    controller, first = PIController(0.3, 1.0, 0.5).update(0.1)
    controller, second = controller.update(0.2)
    assert (first, second) == pytest.approx((-0.2, -0.2))
    assert controller.accumulated == pytest.approx(-0.3)
    assert PIController(5.0).update(0.0)[1] == -1.0
