"""Token covariance, Clip-Cov and KL-Cov as advantage rewrites."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic.errors import UserError
from autotelic.functional import (
    clip_cov,
    clipped_surrogate,
    hash_uniform,
    kl_cov,
    kl_estimate,
    kl_penalised,
    quota,
    reduce_tokens,
    response_positions,
    token_covariance,
    token_moments,
)


def batch(seed, rows=6, width=7, dtype=np.float64):
    """A ragged batch: logprobs, old logprobs, per-row advantages on tokens, mask."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(rows, width)).astype(dtype)
    new = (old + 0.1 * rng.normal(size=old.shape)).astype(dtype)
    advantages = np.repeat(rng.normal(size=(rows, 1)), width, axis=1).astype(dtype)
    mask = np.arange(width) < rng.integers(0, width + 1, size=(rows, 1))
    mask[0] = True
    return new, old, advantages, mask


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def test_covariance_by_hand():
    """ln p = (-1, -3), mean -2; A = (2, 0), mean 1: (1)(1) = 1 and (-1)(-1) = 1; the padding is 0."""
    logprobs, advantages = torch.tensor([[-1.0, -3.0, 9.0]]), torch.tensor([[2.0, 0.0, 9.0]])
    assert token_covariance(logprobs, advantages, torch.tensor([[1, 1, 0]])).tolist() == [[1.0, 1.0, 0.0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_covariance_agrees_with_the_oracle(seed):
    new, _, advantages, mask = batch(seed)
    ours = token_covariance(*tensors(new, advantages, mask))
    np.testing.assert_allclose(ours, oracles.token_covariance(new, advantages, mask), atol=1e-12)


def test_covariance_of_a_part_with_the_means_of_the_whole():
    new, _, advantages, mask = tensors(*batch(3))
    whole, moments = token_covariance(new, advantages, mask), token_moments(new, advantages, mask)
    part = token_covariance(
        new[2:4],
        advantages[2:4],
        mask[2:4],
        mean_logprob=moments.mean_logprob,
        mean_advantage=moments.mean_advantage,
    )
    torch.testing.assert_close(part, whole[2:4])
    assert moments.num_tokens == mask.sum()


def test_covariance_has_no_gradient_and_survives_bad_padding():
    new, _, advantages, mask = tensors(*batch(4, dtype=np.float32))
    expected = token_covariance(new, advantages, mask)
    dirty = new.masked_fill(~mask, math.nan).requires_grad_()
    ours = token_covariance(dirty, advantages.masked_fill(~mask, math.inf), mask)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("tokens", [0, 1])
def test_covariance_of_none_and_one_token_is_zero(tokens):
    mask = torch.zeros(2, 3)
    mask[0, :tokens] = 1
    assert (token_covariance(torch.randn(2, 3), torch.randn(2, 3), mask) == 0).all()


def test_covariance_of_bfloat16_is_computed_in_float32():
    new, _, advantages, mask = tensors(*batch(5, dtype=np.float32))
    ours = token_covariance(new.bfloat16(), advantages.bfloat16(), mask)
    assert ours.dtype == torch.float32
    expected = token_covariance(new.bfloat16().double(), advantages.bfloat16().double(), mask)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


def test_constant_advantages_have_zero_covariance():
    new, _, _, mask = tensors(*batch(6))
    assert token_covariance(new, torch.full_like(new, 0.75), mask).abs().max() < 1e-15


def test_clip_cov_by_hand():
    """Covariances (2, 3, 9, 0) in the band (1, 5): two candidates; half of 4 tokens is a budget of 2, so both go."""
    advantages, covariance = torch.ones(1, 4), torch.tensor([[2.0, 3.0, 9.0, 0.0]])
    rewritten, selected = clip_cov(advantages, covariance, torch.ones(1, 4), fraction=0.5, low=1.0, high=5.0)
    assert rewritten.tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert selected.tolist() == [[True, True, False, False]]


def test_the_band_is_open_at_both_ends():
    covariance = torch.tensor([[1.0, 5.0, 2.0]])
    _, selected = clip_cov(torch.ones(1, 3), covariance, torch.ones(1, 3), fraction=1, low=1, high=5)
    assert selected.tolist() == [[False, False, True]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.2, 0.5, 1.0]))
def test_clip_cov_agrees_with_the_oracle(seed, fraction):
    new, _, advantages, mask = batch(seed)
    covariance = oracles.token_covariance(new, advantages, mask)
    priority = np.random.default_rng(seed + 1).random(new.shape)
    ours = clip_cov(
        *tensors(advantages, covariance, mask), fraction=fraction, low=-0.2, high=0.5, priority=tensors(priority)[0]
    )
    theirs = oracles.clip_cov(advantages, covariance, mask, fraction, -0.2, 0.5, priority)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_clip_cov_draws_uniformly_and_reproducibly():
    """One of four candidates, 800 draws: each should come up about 200 times (standard deviation 12)."""
    advantages, covariance, mask = torch.ones(1, 4), torch.full((1, 4), 2.0), torch.ones(1, 4)
    generator = torch.Generator().manual_seed(0)
    draw = {"fraction": 0.25, "low": 1.0, "high": 5.0}
    counts = sum(clip_cov(advantages, covariance, mask, **draw, generator=generator)[1].float() for _ in range(800))
    assert (counts - 200).abs().max() < 4 * 12.3
    first, second = (
        clip_cov(advantages, covariance, mask, **draw, generator=torch.Generator().manual_seed(7))[1] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_kl_cov_by_hand():
    """Covariances (3, 1, 2), one of three: the first. log r = ln 2, so A' = 1 - 1 x 1 / 2 = .5."""
    advantages, covariance = torch.ones(1, 3), torch.tensor([[3.0, 1.0, 2.0]])
    log_ratio = torch.full((1, 3), math.log(2))
    rewritten, selected = kl_cov(advantages, log_ratio, covariance, torch.ones(1, 3), fraction=0.34, coef=1.0)
    assert selected.tolist() == [[True, False, False]]
    np.testing.assert_allclose(rewritten, [[0.5, 1.0, 1.0]], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.02, 0.2, 0.5, 1.0]), st.sampled_from([0.1, 1.0]))
def test_kl_cov_agrees_with_the_oracle(seed, fraction, coef):
    new, old, advantages, mask = batch(seed)
    covariance = oracles.token_covariance(new, advantages, mask)
    ours = kl_cov(*tensors(advantages, new - old, covariance, mask), fraction=fraction, coef=coef)
    theirs = oracles.kl_cov(advantages, new - old, covariance, mask, fraction, coef)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-12)


@pytest.mark.parametrize("form", ["abs", "k1", "k2", "k3"])
def test_the_rewrite_has_the_gradient_of_the_penalised_loss(form):
    """-r A' under the rewrite against -r A + coef k(log r) differentiated by autograd."""
    new, old, advantages, mask = tensors(*batch(8))
    covariance = token_covariance(new, advantages, mask)
    rewritten, selected = kl_cov(advantages, new - old, covariance, mask, fraction=0.3, coef=0.7, form=form)
    bounds = {"clip_low": None, "clip_high": None}
    ours, direct = new.clone().requires_grad_(), new.clone().requires_grad_()
    reduce_tokens(clipped_surrogate(ours, old, rewritten, **bounds), mask, denominator=5).backward()
    plain = clipped_surrogate(direct, old, advantages, **bounds)
    penalty = 0.7 * kl_estimate(direct - old, form) * selected
    reduce_tokens(plain + penalty, mask, denominator=5).backward()
    assert selected.sum() == quota(0.3, int(mask.sum()))
    torch.testing.assert_close(ours.grad, direct.grad, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("form", ["abs", "k2", "k3"])
def test_at_ratio_one_the_penalty_has_exactly_no_effect(form):
    _, old, advantages, mask = tensors(*batch(9))
    covariance = token_covariance(old, advantages, mask)
    rewritten, selected = kl_cov(advantages, old - old, covariance, mask, fraction=0.3, coef=1.0, form=form)
    assert selected.any()
    assert torch.equal(rewritten, advantages.masked_fill(~mask, 0.0))


def test_no_penalty_where_the_covariance_is_not_positive():
    covariance = torch.tensor([[-1.0, 0.0, -2.0]])
    arguments = (torch.ones(1, 3), torch.ones(1, 3), covariance, torch.ones(1, 3))
    assert not kl_cov(*arguments, fraction=1, coef=1.0)[1].any()
    assert kl_cov(*arguments, fraction=1, coef=1.0, positive_only=False)[1].all()


def test_the_quota_is_a_floor_and_parity_takes_at_least_one():
    assert quota(2e-4, 4999) == 0
    assert quota(2e-4, 5000) == 1
    assert quota(2e-4, 3, at_least_one=True) == 1
    assert quota(1, 3) == 3


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, 2])
def test_fractions_outside_0_1_are_refused(fraction):
    x = torch.ones(1, 2)
    with pytest.raises(UserError, match="fraction"):
        clip_cov(x, x, x, fraction=fraction, low=1, high=5)
    with pytest.raises(UserError, match="fraction"):
        kl_cov(x, x, x, x, fraction=fraction, coef=1)


def test_an_empty_band_is_refused():
    x = torch.ones(1, 2)
    with pytest.raises(UserError, match="low must be below high"):
        clip_cov(x, x, x, fraction=0.5, low=5, high=1)


@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_extreme_ratios_stay_finite(log_ratio, dtype):
    old = torch.full((1, 4), -1.0, dtype=dtype)
    new = (old + log_ratio).requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 0.0, 2.0]], dtype=dtype)
    covariance, mask = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.ones(1, 4)
    rewritten, _ = kl_cov(advantages, new - old, covariance, mask, fraction=1.0, coef=1.0)
    loss = reduce_tokens(
        clipped_surrogate(new, old, rewritten, clip_low=None, clip_high=None, mask=mask), mask, denominator=4
    )
    loss.backward()
    assert torch.isfinite(rewritten).all()
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()


def test_padding_is_never_read_and_inputs_are_never_written():
    new, old, advantages, mask = tensors(*batch(10))
    covariance = token_covariance(new, advantages, mask)
    expected = kl_cov(advantages, new - old, covariance, mask, fraction=0.3, coef=1.0)
    dirty = [x.masked_fill(~mask, math.nan) for x in (advantages, new - old, covariance)]
    copies = [x.clone() for x in dirty]
    ours = kl_cov(*dirty, mask, fraction=0.3, coef=1.0)
    assert torch.equal(ours[1], expected[1])
    assert torch.equal(ours[0], expected[0])
    clipped, _ = clip_cov(dirty[0], dirty[2], mask, fraction=0.5, low=-9.0, high=9.0)
    assert torch.isfinite(clipped).all()
    for before, after in zip(copies, dirty, strict=True):
        assert torch.equal(before.nan_to_num(7.0), after.nan_to_num(7.0))


def control(rows, width=12, left=False, order=None):
    """Select and rewrite a batch whose tokens have identities, laid out in a given way; return results by identity."""
    rng = np.random.default_rng(11)
    lengths, advantages = rng.integers(1, 9, size=rows), rng.normal(size=rows)
    values = [-rng.exponential(size=n) for n in lengths]
    order = list(range(rows)) if order is None else order
    logprobs, mask = np.zeros((rows, width)), np.zeros((rows, width), dtype=bool)
    for place, row in enumerate(order):
        begin = width - lengths[row] if left else 0
        logprobs[place, begin : begin + lengths[row]] = values[row]
        mask[place, begin : begin + lengths[row]] = True
    logprobs, mask, a = tensors(logprobs, mask, np.repeat(advantages[order][:, None], width, 1))
    positions = response_positions(mask)
    row_ids = torch.tensor(order)
    ids = row_ids.unsqueeze(-1) * 1000 + positions
    covariance = token_covariance(logprobs, a, mask)
    priority = hash_uniform(5, 17, row_ids, positions)
    dropped = clip_cov(a, covariance, mask, fraction=0.2, low=-9.0, high=9.0, priority=priority, token_ids=ids)[1]
    penalised = kl_cov(a, logprobs * 0.1, covariance, mask, fraction=0.2, coef=1.0, token_ids=ids)[1]
    return {int(i) for i in ids[dropped]}, {int(i) for i in ids[penalised]}


@pytest.mark.parametrize(("left", "width"), [(True, 12), (False, 20), (True, 9)])
def test_the_choice_follows_the_token_whatever_the_layout(left, width):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    expected = control(10)
    assert control(10, width, left, order) == expected
    assert all(expected)


def test_ties_go_to_the_lower_identity():
    covariance, mask = torch.ones(2, 3), torch.ones(2, 3)
    ids = torch.tensor([[5, 4, 3], [2, 1, 0]])
    selected = kl_cov(covariance, covariance, covariance, mask, fraction=0.5, coef=1.0, token_ids=ids)[1]
    assert sorted(ids[selected].tolist()) == [0, 1, 2]


def test_hash_uniform_is_uniform_and_keyed_on_every_argument():
    rows, positions = torch.arange(200), torch.arange(200)
    u = hash_uniform(0, 0, rows, positions)
    counts = torch.histc(u.float(), 20, 0, 1)
    assert ((counts - 2000).abs() < 5 * math.sqrt(2000)).all()
    assert u.min() >= 0
    assert u.max() < 1
    assert u.unique().numel() == u.numel()
    for other in [hash_uniform(1, 0, rows, positions), hash_uniform(0, 1, rows, positions)]:
        assert abs(np.corrcoef(u.flatten(), other.flatten())[0, 1]) < 0.03
    assert abs(np.corrcoef(u[:, :-1].flatten(), u[:, 1:].flatten())[0, 1]) < 0.03
    assert torch.equal(hash_uniform(0, 0, rows[50:60], positions), u[50:60])


def test_a_choice_made_before_is_applied_to_a_micro_batch():
    new, old, advantages, mask = tensors(*batch(12))
    covariance = token_covariance(new, advantages, mask)
    whole, selected = kl_cov(advantages, new - old, covariance, mask, fraction=0.3, coef=0.5)
    part = kl_penalised(advantages[1:3], (new - old)[1:3], selected[1:3], coef=0.5)
    torch.testing.assert_close(part.masked_fill(~mask[1:3], 0), whole[1:3])
