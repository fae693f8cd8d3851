"""The clipped surrogate and its relatives, and KL divergences."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic.errors import UserError
from autotelic.functional import (
    cispo_surrogate,
    clipped_surrogate,
    full_kl,
    gspo_surrogate,
    kl_estimate,
    kl_gradient,
    reduce_tokens,
)

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def logprobs(seed, scale=0.3, shape=(4, 5)):
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(shape, dtype=torch.float64, generator=g) * 3
    return (
        old + scale * torch.randn(shape, dtype=torch.float64, generator=g),
        old,
        torch.randn(shape, generator=g).double(),
    )


def test_the_surrogate_by_hand():
    """r = 2: A = 1 is clipped, -1.28; A = -1 is not, 2. r = 1/2: A = 1 gives -1/2; A = -1 is clipped, .8."""
    new, a = torch.tensor([math.log(2), math.log(2), -math.log(2), -math.log(2)]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    np.testing.assert_allclose(clipped_surrogate(new, torch.zeros(4), a, **CLIP), [-1.28, 2.0, -0.5, 0.8], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.9), st.floats(0, 2))
def test_the_surrogate_agrees_with_the_oracle(seed, low, high):
    new, old, a = logprobs(seed)
    ours = clipped_surrogate(new, old, a, clip_low=low, clip_high=high)
    np.testing.assert_allclose(ours, oracles.clipped_surrogate(new, old, a, low, high), atol=1e-12)


def test_dual_clip_by_hand():
    """r = e^2 = 7.39, A = -1: the loss 7.39 is held at c = 3; with A = +1 nothing changes."""
    new = torch.tensor([2.0, 2.0])
    loss = clipped_surrogate(new, torch.zeros(2), torch.tensor([-1.0, 1.0]), **CLIP, dual_clip=3.0)
    np.testing.assert_allclose(loss, [3.0, -1.28], rtol=1e-6)
    with pytest.raises(UserError, match="dual_clip"):
        clipped_surrogate(new, new, new, **CLIP, dual_clip=0.5)


def test_surrogate_gradcheck():
    new, old, a = logprobs(1)
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, old, a, **CLIP), (new,))


def test_clipped_tokens_have_exactly_no_gradient():
    new = torch.tensor([1.0, -1.0, 1.0, -1.0], requires_grad=True)
    clipped_surrogate(new, torch.zeros(4), torch.tensor([1.0, -1.0, -1.0, 1.0]), **CLIP).sum().backward()
    assert (new.grad == 0).tolist() == [True, True, False, False]


def test_zero_advantages_have_zero_gradient():
    new, old, a = logprobs(2)
    new.requires_grad_()
    clipped_surrogate(new, old, torch.zeros_like(a), **CLIP).sum().backward()
    assert (new.grad == 0).all()


@pytest.mark.parametrize("surrogate", [clipped_surrogate, cispo_surrogate, gspo_surrogate])
def test_padding_is_never_read(surrogate):
    new, old, a = logprobs(3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    clean, dirty = new.clone().requires_grad_(), new.masked_fill(mask == 0, math.nan).requires_grad_()
    bad = torch.tensor(math.inf, dtype=torch.float64)
    reduce_tokens(surrogate(clean, old, a, mask=mask, **CLIP), mask, denominator=3).backward()
    garbage = (torch.where(mask == 0, bad, old), torch.where(mask == 0, bad, a))
    reduce_tokens(surrogate(dirty, *garbage, mask=mask, **CLIP), mask, denominator=3).backward()
    torch.testing.assert_close(dirty.grad, clean.grad)


@pytest.mark.parametrize("shift", [1000.0, -1000.0])
def test_extreme_ratios_stay_finite(shift):
    new = torch.full((3,), shift, requires_grad=True)
    loss = clipped_surrogate(new, torch.zeros(3), torch.tensor([1.0, -1.0, 0.0]), clip_low=None, clip_high=None)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(new.grad).all()


def test_gspo_by_hand():
    """log r = (.2, .4), mean .3: s = e^.3 = 1.35 for both tokens; A = 1 is clipped at 1.28, A = -1 is not."""
    new, mask = torch.tensor([[0.2, 0.4], [0.2, 0.4]], dtype=torch.float64), torch.ones(2, 2)
    a = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    loss = gspo_surrogate(new, torch.zeros_like(new), a, mask, **CLIP)
    np.testing.assert_allclose(loss, [[-1.28, -1.28], [math.exp(0.3), math.exp(0.3)]], rtol=1e-12)


def test_gspo_gives_every_token_the_sequence_ratio_as_gradient():
    new = torch.tensor([[0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    gspo_surrogate(
        new, torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2).double(), torch.ones(1, 2), **CLIP
    ).sum().backward()
    np.testing.assert_allclose(new.grad, [[-math.exp(-0.05)] * 2], rtol=1e-12)


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    """r = e^1 is clipped at 1.28, and the gradient is -1.28 A."""
    new = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    cispo_surrogate(new, torch.zeros(2).double(), torch.tensor([1.0, -1.0]).double(), **CLIP).sum().backward()
    np.testing.assert_allclose(new.grad, [-1.28, 1.28], rtol=1e-12)


FORMS = ["abs", "k1", "k2", "k3"]


@pytest.mark.parametrize(("form", "value"), [("abs", 0.5), ("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_kl_forms_by_hand(form, value):
    """log r = -1/2."""
    assert kl_estimate(torch.tensor(-0.5, dtype=torch.float64), form).item() == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("form", FORMS)
def test_kl_gradients_in_closed_form_are_those_of_autograd(form):
    x = torch.tensor([-2.0, -0.1, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    kl_estimate(x, form).sum().backward()
    torch.testing.assert_close(kl_gradient(x.detach(), form), x.grad)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, form), (x,))


@pytest.mark.parametrize("form", ["k1", "k3"])
def test_unbiased_forms_average_to_the_exact_divergence(form):
    g = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 6, dtype=torch.float64, generator=g).log_softmax(-1)
    mean = (old.exp() * kl_estimate(new - old, form)).sum()
    torch.testing.assert_close(mean, full_kl(old, new))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_full_kl_agrees_with_the_oracle(seed):
    p, q = np.random.default_rng(seed).normal(size=(2, 5)) * 3
    assert full_kl(torch.tensor(p), torch.tensor(q)).item() == pytest.approx(oracles.full_kl(p, q), abs=1e-11)


def test_full_kl_is_zero_at_equality_with_zero_gradient_and_ignores_impossible_tokens():
    z = torch.tensor([1.0, 0.5, -math.inf], dtype=torch.float64)
    q = z.clone().requires_grad_()
    value = full_kl(z, q)
    value.backward()
    assert value == 0
    assert q.grad.abs().max() < 1e-15


def test_full_kl_gradcheck():
    p, q = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True).unbind(0)
    assert torch.autograd.gradcheck(full_kl, (p.detach().requires_grad_(), q.detach().requires_grad_()))
