"""Entropy over the vocabulary, log-probabilities and the entropy-minimisation loss."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autotelic.errors import UserError
from autotelic.functional import (
    entropy_minimization_loss,
    surprisal,
    token_entropy,
    token_logprobs,
)

FINITE = st.floats(-30, 30, allow_nan=False, width=64)
LOGITS = hnp.arrays(np.float64, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5), elements=FINITE)


def test_entropy_by_hand():
    """p = (3/4, 1/4): H = ln 4 - 3/4 ln 3 = .562335; a uniform p over 4: H = ln 4."""
    logits = torch.tensor([[[math.log(3), 0.0, -math.inf, -math.inf], [5.0, 5.0, 5.0, 5.0]]])
    expected = [math.log(4) - 0.75 * math.log(3), math.log(4)]
    np.testing.assert_allclose(token_entropy(logits)[0], expected, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(LOGITS, st.sampled_from([0.3, 0.5, 1.0, 2.0]))
def test_entropy_agrees_with_the_oracle(logits, temperature):
    ours = token_entropy(torch.from_numpy(logits), temperature)
    np.testing.assert_allclose(ours, oracles.token_entropy(logits, temperature), atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(LOGITS, st.floats(-1000, 1000))
def test_a_constant_added_to_the_logits_changes_nothing(logits, constant):
    z = torch.from_numpy(logits)
    torch.testing.assert_close(token_entropy(z + constant), token_entropy(z), atol=1e-9, rtol=0)


def test_entropy_gradient_is_p_times_log_p_plus_h():
    """dH/dz_i = -(1/tau) p_i (ln p_i + H)."""
    z = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    h = token_entropy(z, 0.5)
    h.sum().backward()
    log_p = (z.detach() / 0.5).log_softmax(-1)
    torch.testing.assert_close(z.grad, -2 * log_p.exp() * (log_p + h.detach().unsqueeze(-1)))


def test_entropy_gradcheck():
    z = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: token_entropy(z, 0.7), (z,))


@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [2.0, -math.inf, -math.inf]])
def test_gradient_is_zero_at_the_extremes(logits):
    z = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    token_entropy(z).sum().backward()
    torch.testing.assert_close(z.grad, torch.zeros_like(z), atol=1e-15, rtol=0)


def test_impossible_tokens_get_no_gradient_and_the_others_a_finite_one():
    z = torch.tensor([[1.0, -math.inf, 0.0, -1e30]], requires_grad=True)
    token_entropy(z).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad[0, 1] == 0


def test_precision_follows_the_input_upwards_only():
    z = torch.randn(2, 3, 5)
    assert token_entropy(z.bfloat16()).dtype == torch.float32
    assert token_entropy(z.double()).dtype == torch.float64
    torch.testing.assert_close(token_entropy(z.bfloat16()), token_entropy(z.bfloat16().double()).float())


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match="temperature"):
        token_entropy(torch.zeros(1, 1, 2), 0)


def test_logprobs_are_the_log_of_the_softmax_and_surprisal_their_negative():
    z, tokens = torch.randn(3, 4, 6, dtype=torch.float64), torch.randint(6, (3, 4))
    expected = [[math.log(oracles.softmax(z[b, t].tolist(), 0.6)[tokens[b, t]]) for t in range(4)] for b in range(3)]
    np.testing.assert_allclose(token_logprobs(z, tokens, 0.6), expected, rtol=1e-12)
    torch.testing.assert_close(surprisal(z, tokens, 0.6), -token_logprobs(z, tokens, 0.6))


REDUCTIONS = ["token_mean", "sequence_mean", "token_sum"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@settings(max_examples=15, deadline=None)
@given(LOGITS, st.integers(0, 2**31))
def test_entropy_minimisation_agrees_with_the_oracle(reduction, logits, seed):
    mask = np.random.default_rng(seed).random(logits.shape[:2]) < 0.6
    mask[0, 0] = True
    ours = entropy_minimization_loss(torch.from_numpy(logits), torch.from_numpy(mask), 0.5, reduction)
    assert ours.item() == pytest.approx(oracles.entropy_minimization(logits, mask, 0.5, reduction), abs=1e-10)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_is_never_read(reduction):
    z, mask = torch.randn(2, 4, 5), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    dirty = z.masked_fill(mask.unsqueeze(-1) == 0, math.nan).requires_grad_()
    loss = entropy_minimization_loss(dirty, mask, 0.5, reduction)
    loss.backward()
    torch.testing.assert_close(loss, entropy_minimization_loss(z, mask, 0.5, reduction))
    assert torch.isfinite(dirty.grad).all()
    assert (dirty.grad[mask == 0] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_mask_gives_zero_and_no_gradient(reduction):
    z = torch.randn(2, 3, 4, requires_grad=True)
    loss = entropy_minimization_loss(z, torch.zeros(2, 3), 0.5, reduction)
    loss.backward()
    assert loss == 0
    assert (z.grad == 0).all()


def test_padding_side_and_row_order_do_not_matter():
    z = torch.randn(3, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    expected = entropy_minimization_loss(z, mask)
    torch.testing.assert_close(entropy_minimization_loss(z.flip(1), mask.flip(1)), expected)
    torch.testing.assert_close(entropy_minimization_loss(z[[2, 0, 1]], mask[[2, 0, 1]]), expected)


def test_the_floor_stops_the_gradient_of_tokens_below_it():
    """H(0, 0) = ln 2 > .5 keeps its gradient; (8, 0) has H = .003 and is left alone."""
    z = torch.tensor([[[0.3, 0.0], [8.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    entropy_minimization_loss(z, torch.ones(1, 2), floor=0.5).backward()
    assert z.grad[0, 0].abs().sum() > 0
    assert (z.grad[0, 1] == 0).all()
