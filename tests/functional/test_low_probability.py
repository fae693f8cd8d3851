"""Lp-Reg: the proxy, its KL divergence and both forms' gradients."""

import math

import numpy as np
import oracles
import torch

from autotelic import functional as F


def test_kept_mass_by_hand():
    """p = (.6, .39, .01), kappa = .02: .01 is below .012, so Z = .99."""
    logits = torch.tensor([[0.6, 0.39, 0.01]], dtype=torch.float64).log()
    assert F.kept_log_mass(logits, kappa=0.02).exp().item() == 0.99 or math.isclose(
        F.kept_log_mass(logits, kappa=0.02).exp().item(), 0.99
    )
    largest = torch.full((3,), math.log(0.6), dtype=torch.float64)
    proxy = F.proxy_logprobs(logits[0], largest, torch.full((3,), math.log(0.99), dtype=torch.float64), kappa=0.02)
    np.testing.assert_allclose(proxy.exp(), [0.6 / 0.99, 0.39 / 0.99, 0.0])


def test_the_gradient_is_that_of_the_kl_divergence():
    """-ln Z and KL(pi_proxy || pi) with the proxy held fixed: one value, one gradient (pi - pi_proxy)."""
    logits = torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    proxy = torch.tensor([oracles.min_p_proxy(row.tolist(), 0.05) for row in logits], dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    divergence = torch.where(proxy > 0, proxy * (proxy.clamp(min=1e-300).log() - log_p), 0.0).sum(-1)
    ours = -F.kept_log_mass(logits, kappa=0.05)
    torch.testing.assert_close(ours, divergence)
    (wanted,) = torch.autograd.grad(divergence.sum(), logits, retain_graph=True)
    (found,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, log_p.exp().detach() - proxy)


def test_a_constant_added_to_the_logits_changes_nothing():
    logits = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(F.kept_log_mass(logits + 5, kappa=0.1), F.kept_log_mass(logits, kappa=0.1))


def test_gradient_of_the_sampled_form():
    """d k3(c - x) / dx by autograd; zero where policy and proxy agree, negative (the token is raised) below it."""
    logprobs = torch.tensor([-3.0, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    proxy = torch.tensor([-2.5, -1.0, -2.5], dtype=torch.float64)
    gap = proxy - logprobs
    (torch.expm1(gap) - gap).sum().backward()
    found = F.lp_reg_gradient(proxy, logprobs.detach())
    torch.testing.assert_close(found, logprobs.grad)
    assert found[0] < 0 == found[1]
