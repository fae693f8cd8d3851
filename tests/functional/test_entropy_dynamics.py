"""First-order theory of entropy, on tabular softmax policies in float64: each remainder must shrink as eta squared."""

import numpy as np
import pytest
import torch

from autotelic.functional import (
    action_covariance,
    entropy_discriminator,
    sampled_entropy_change,
    token_entropy,
)

STEPS = np.array([1e-2, 5e-3, 2.5e-3, 1.25e-3])


def policy(seed, states=4, actions=6):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(states, actions, dtype=torch.float64, generator=g)
    p = z.softmax(-1)
    advantages = torch.randn(states, actions, dtype=torch.float64, generator=g)
    return z, p, advantages - (p * advantages).sum(-1, keepdim=True)


def slope(z, direction, predicted_per_step):
    """Order of the remainder H(z + eta d) - H(z) - eta * predicted, from four step sizes."""
    before = token_entropy(z)
    remainders = [
        (token_entropy(z + eta * direction) - before - eta * predicted_per_step).abs().max().item() for eta in STEPS
    ]
    return np.polyfit(np.log(STEPS), np.log(remainders), 1)[0]


@pytest.mark.parametrize("seed", range(3))
def test_lemma_1(seed):
    """DH = -Cov(ln pi, dz) + O(eta^2) for any direction."""
    z, _, _ = policy(seed)
    direction = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 50))
    assert slope(z, direction, -action_covariance(z, direction)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_policy_gradient_theorem(seed):
    """The exact gradient step is dz = eta pi (A - E_pi A) = eta pi A; then dH = -eta Cov(ln pi, pi A)."""
    z, p, advantages = policy(seed)
    x = z.clone().requires_grad_()
    (x.softmax(-1) * advantages).sum().backward()
    torch.testing.assert_close(x.grad, p * advantages)
    assert slope(z, x.grad, -action_covariance(z, p * advantages)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_natural_policy_gradient_theorem(seed):
    z, _, advantages = policy(seed)
    assert slope(z, advantages, -action_covariance(z, advantages)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_the_policy_gradient_form_needs_centred_advantages(seed):
    """With E_pi[A] = 1 the exact step is eta pi (A - 1), and the prediction from A itself is off at first order."""
    z, p, advantages = policy(seed)
    shifted = advantages + 1
    assert slope(z, p * advantages, -action_covariance(z, p * shifted)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_single_sample_form(seed):
    """One sampled action: dz = eta A (e_a - pi), the gradient of A ln pi(a); dH = -eta A (S_a - E_pi[S])."""
    z, _, advantages = policy(seed)
    for action in range(z.shape[1]):
        tokens = torch.full((z.shape[0],), action)
        a = advantages[:, action]
        x = z.clone().requires_grad_()
        (a * x.log_softmax(-1)[:, action]).sum().backward()
        predicted = sampled_entropy_change(entropy_discriminator(z, tokens), a)
        assert slope(z, x.grad, predicted) == pytest.approx(2, abs=0.1)


def test_the_single_sample_form_averages_to_the_policy_gradient_theorem():
    z, p, advantages = policy(7)
    mean = torch.zeros(z.shape[0], dtype=torch.float64)
    for action in range(z.shape[1]):
        tokens = torch.full((z.shape[0],), action)
        mean += p[:, action] * sampled_entropy_change(entropy_discriminator(z, tokens), advantages[:, action])
    torch.testing.assert_close(mean, -action_covariance(z, p * advantages))


def test_the_discriminator_is_minus_the_gradient_of_entropy():
    z, p, _ = policy(8)
    x = z.clone().requires_grad_()
    token_entropy(x).sum().backward()
    s = torch.stack([entropy_discriminator(z, torch.full((4,), k)).sampled for k in range(6)], -1)
    torch.testing.assert_close(s, -x.grad)
    torch.testing.assert_close(entropy_discriminator(z, torch.zeros(4, dtype=torch.int64)).expected, (p * s).sum(-1))


def test_impossible_actions_do_no_harm():
    z = torch.tensor([[0.0, 1.0, -torch.inf]], dtype=torch.float64)
    d = entropy_discriminator(z, torch.tensor([1]))
    assert torch.isfinite(d.sampled).all()
    assert torch.isfinite(d.expected).all()
    assert torch.isfinite(action_covariance(z, torch.ones(1, 3, dtype=torch.float64))).all()
