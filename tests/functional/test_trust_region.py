"""Masks and weights in place of the PPO clip: by hand, against loops, and their gradients."""

import math

import numpy as np
import oracles
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic import functional as F


def tokens(seed, size=24):
    """Advantages of every sign, probabilities of the policy and of the sampler, in float64."""
    generator = torch.Generator().manual_seed(seed)
    advantages = torch.randint(-1, 2, (size,), generator=generator).double() * 1.7
    mu = torch.rand(size, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    pi = (mu + 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)).clamp(0.001, 0.999)
    return advantages, pi, mu


def test_dppo_by_hand():
    """pi - mu = .3, -.3 at mu = .5. A bound of .2 masks the rewarded rise and the punished fall, and no return."""
    pi, mu = torch.tensor([0.8, 0.2, 0.8, 0.2]).log(), torch.tensor(0.5).log().expand(4)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert F.dppo_mask(advantages, pi, mu, low=0.2, high=0.2).tolist() == [False, True, True, False]
    assert F.dppo_mask(advantages, pi, mu, divergence="kl", high=0.1).tolist() == [False, True, True, False]
    assert F.dppo_mask(advantages, pi, mu, divergence="kl", high=0.5).all()  # D = ln(5/4) = .223


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["tv", "kl"]), st.sampled_from([0.05, 0.15, 0.3]))
def test_dppo_agrees_with_the_oracle(seed, divergence, bound):
    advantages, pi, mu = tokens(seed)
    found = F.dppo_mask(advantages, pi.log(), mu.log(), divergence=divergence, low=bound / 2, high=bound)
    rows = zip(advantages.tolist(), pi.tolist(), mu.tolist(), strict=True)
    assert found.tolist() == [oracles.dppo_keeps(*row, divergence, bound / 2, bound) for row in rows]


def test_erc_by_hand():
    """Ratios 1, .95, 1.05, .5 of a band (.95, 1.05) that is open: the first alone. Zero over zero is 1."""
    old = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    now = torch.tensor([1.0, 0.95 - 1e-9, 1.05 + 1e-9, 0.5, 0.0], dtype=torch.float64)
    assert F.entropy_ratio_mask(now, old, low=0.95, high=1.05).tolist() == [True, False, False, False, True]


def test_estr_by_hand():
    """(.2)^2 / (.39 + .01) = .1: kept at tau .1 and above, masked below; a certain token may move hardly at all."""
    moved = torch.tensor([0.2, 0.2], dtype=torch.float64)
    entropy = torch.tensor([0.39, 0.0], dtype=torch.float64)
    assert F.estr_mask(moved, torch.zeros_like(moved), entropy, tau=0.1 + 1e-12).tolist() == [True, False]
    assert not F.estr_mask(moved, torch.zeros_like(moved), entropy, tau=0.09).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 2.0))
def test_erc_and_estr_agree_with_the_oracles(seed, width):
    _, pi, mu = tokens(seed)
    entropy, old = pi * 2, mu * 2
    found = F.entropy_ratio_mask(entropy, old, low=1 - width / 2, high=1 + width)
    pairs = list(zip(entropy.tolist(), old.tolist(), strict=True))
    assert found.tolist() == [oracles.erc_keeps(*pair, 1 - width / 2, 1 + width) for pair in pairs]
    found = F.estr_mask(pi.log(), mu.log(), old, tau=width, eps=0.02)
    rows = zip(pi.log().tolist(), mu.log().tolist(), old.tolist(), strict=True)
    assert found.tolist() == [oracles.estr_keeps(*row, width, 0.02) for row in rows]


def test_masks_ignore_a_constant_added_to_both_log_probabilities():
    """ESTR reads differences only; ERC reads no log-probability."""
    moved = torch.randn(9, dtype=torch.float64)
    entropy = torch.rand(9, dtype=torch.float64)
    plain = F.estr_mask(moved, torch.zeros_like(moved), entropy, tau=0.5)
    assert torch.equal(plain, F.estr_mask(moved - 4, torch.zeros_like(moved) - 4, entropy, tau=0.5))


def test_ce_gppo_by_hand():
    """r = .5 and A < 0: .25 x .8; r = 2 and A > 0: 1.2; r = 2, A < 0: 2; r = .5, A > 0: .5; r = 11, A < 0: 0."""
    ratio = torch.tensor([0.5, 2.0, 2.0, 0.5, 11.0], dtype=torch.float64)
    advantages = torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    weight = F.ce_gppo_weight(advantages, ratio.log())
    np.testing.assert_allclose(weight, [0.2, 1.2, 2.0, 0.5, 0.0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_ce_gppo_agrees_with_the_oracle(seed):
    advantages, pi, mu = tokens(seed)
    ratio = pi / mu
    found = F.ce_gppo_weight(advantages, ratio.log(), beta_low=0.6, beta_high=0.9, low=0.1, high=0.3, dual_clip=2.0)
    rows = zip(advantages.tolist(), ratio.tolist(), strict=True)
    expected = [oracles.ce_gppo_loss_gradient(a, r, 0.6, 0.9, 0.1, 0.3, 2.0) for a, r in rows]
    np.testing.assert_allclose(found * advantages, expected, rtol=1e-9)


def test_ce_gppo_is_the_gradient_of_its_loss():
    """Autograd of the paper's loss, whose branches are (1 -+ eps)(r / sg r) A: the weight times A."""
    logprobs = torch.tensor([0.5, 2.0, 0.9, 1.5, 0.3], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([-1.0, 2.0, 1.0, -0.5, -2.0], dtype=torch.float64)
    ratio = logprobs.exp()
    unit = ratio / ratio.detach()
    loss = -ratio * advantages
    loss = torch.where((advantages < 0) & (ratio < 0.8), -0.25 * 0.8 * unit * advantages, loss)
    loss = torch.where((advantages > 0) & (ratio > 1.2), -1.0 * 1.2 * unit * advantages, loss)
    loss.sum().backward()
    np.testing.assert_allclose(-logprobs.grad, F.ce_gppo_weight(advantages, logprobs.detach()) * advantages, rtol=1e-12)


def test_probabilities_that_round_to_one_stay_finite():
    one = torch.zeros(2)
    assert F.dppo_mask(torch.tensor([1.0, -1.0]), one, one, divergence="kl").all()
    assert math.isfinite(float(F.ce_gppo_weight(torch.ones(1), torch.zeros(1))))
