"""Masks, means and the one reduction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic.errors import UserError
from autotelic.functional import masked_mean, masked_sum, reduce_tokens, sequence_means


def test_reduction_by_hand():
    """(1 + 2 + 5) / 4 = 2, the masked 100 not read; the means of the rows are 1.5 and 5."""
    x, mask = torch.tensor([[1.0, 2.0], [5.0, 100.0]]), torch.tensor([[1, 1], [1, 0]])
    assert reduce_tokens(x, mask, denominator=4) == 2
    assert masked_mean(x, mask) == pytest.approx(8 / 3)
    assert masked_sum(x, mask) == 8
    assert sequence_means(x, mask).tolist() == [1.5, 5.0]


def test_pairs_reduce_too():
    assert reduce_tokens(torch.tensor([1.0, 2.0]), torch.tensor([True, True]), denominator=torch.tensor(2)) == 1.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7))
def test_the_gradient_does_not_depend_on_the_micro_batch(seed, size):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(7, 5)), requires_grad=True)
    mask = torch.tensor(rng.random((7, 5)) < 0.5)
    total = mask.sum()
    (whole,) = torch.autograd.grad(reduce_tokens(x.square(), mask, denominator=total), x)
    for begin in range(0, 7, size):
        part = slice(begin, begin + size)
        reduce_tokens(x[part].square(), mask[part], denominator=total).backward()
    torch.testing.assert_close(x.grad, whole)


def test_nothing_outside_the_mask_is_read_and_its_gradient_is_zero():
    x = torch.tensor([[1.0, math.nan], [math.inf, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    reduce_tokens(x, mask, denominator=2).backward()
    assert x.grad.tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_an_empty_batch_is_zero_and_a_wrong_denominator_is_not_hidden():
    x = torch.ones(2, 2)
    assert reduce_tokens(x, torch.zeros(2, 2), denominator=torch.tensor(0)) == 0
    assert torch.isinf(reduce_tokens(x, torch.ones(2, 2), denominator=0))
    assert masked_mean(x, torch.zeros(2, 2)) == 0


@pytest.mark.parametrize("denominator", [-1.0, torch.ones(2)])
def test_bad_denominators_are_refused(denominator):
    with pytest.raises(UserError, match="denominator"):
        reduce_tokens(torch.ones(2, 2), torch.ones(2, 2), denominator=denominator)


def test_gradcheck():
    x, mask = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: reduce_tokens(x, mask, denominator=3), (x,))
