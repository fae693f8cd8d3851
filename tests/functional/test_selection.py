"""Moments and selections over several processes: the same tokens for any number of ranks, also empty ones."""

import numpy as np
import oracles
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic.errors import UserError
from autotelic.functional import (
    aem_weights,
    clip_b,
    clip_cov,
    clip_v,
    global_moments,
    hash_uniform,
    high_entropy,
    kl_cov,
    response_positions,
    stare,
    steer,
    token_covariance,
    top_k_mask,
    whitened_advantages,
)

ROWS, WIDTH = 12, 9


def make_batch():
    """The same update batch on every rank: ragged, with ties across rows, in float32 as in training."""
    g = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, WIDTH + 1, (ROWS, 1), generator=g)
    mask = torch.arange(WIDTH) < lengths
    logprobs = -torch.rand(ROWS, WIDTH, generator=g).mul(8).round() / 4
    advantages = torch.randint(-2, 3, (ROWS, 1), generator=g).float().expand(ROWS, WIDTH).contiguous()
    return logprobs, advantages, mask


def choose(rows, across_ranks):
    """Return what each method does to these rows of the batch, from statistics of the whole."""
    logprobs, advantages, mask = (x[rows] for x in make_batch())
    row_ids = torch.arange(ROWS)[rows]
    positions = response_positions(mask)
    ids = row_ids.unsqueeze(-1) * WIDTH + positions
    moments = global_moments(logprobs, advantages, mask)
    covariance = token_covariance(
        logprobs, advantages, mask, mean_logprob=moments.mean_logprob, mean_advantage=moments.mean_advantage
    )
    many = {"across_ranks": across_ranks}
    named = {"token_ids": ids, **many}
    entropy = -logprobs * 0.5
    priority = hash_uniform(1, 2, row_ids, positions)
    results = [
        kl_cov(advantages, logprobs * 0.1, covariance, mask, fraction=0.13, coef=1.0, **named)[0],
        clip_cov(advantages, covariance, mask, fraction=0.1, low=-1.0, high=2.0, priority=priority, **named)[0],
        high_entropy(advantages, entropy, mask, fraction=0.2, **named)[0],
        clip_b(advantages, logprobs, entropy, mask, mu=0.5, **many)[0],
        clip_v(advantages, logprobs, entropy, mask, mu=0.1, fraction=0.05, **named)[0],
        stare(advantages, logprobs, mask, entropy=0.1, variant="C2", **named)[0],
        steer(advantages, logprobs, logprobs - 0.1, entropy, mask, **many),
        aem_weights(entropy, mask, row_ids // 4, num_prompts=ROWS // 4, **many).float(),
        whitened_advantages(advantages[:, 0], mask, **many).unsqueeze(-1).expand(mask.shape).float(),
    ]
    return torch.stack([x.double() for x in results]), moments


def worker(rank, size, rendezvous, folder):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    # Uneven shares; with more than two ranks the last one holds no row at all.
    bounds = {1: [0, ROWS], 2: [0, 5, ROWS], 4: [0, 1, 8, ROWS, ROWS]}[size]
    results, moments = choose(slice(bounds[rank], bounds[rank + 1]), across_ranks=True)
    np.savez(folder / f"{rank}.npz", results=results.numpy(), moments=np.array(moments))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
def test_the_same_tokens_for_any_number_of_ranks(size, tmp_path):
    expected, moments = choose(slice(0, ROWS), across_ranks=False)
    assert (expected[0] != expected[1]).any()
    mp.spawn(worker, (size, tmp_path / "rendezvous", tmp_path), nprocs=size)
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate([p["results"] for p in parts], axis=1), expected.numpy())
    for part in parts:
        assert tuple(part["moments"]) == tuple(moments)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 14))
def test_top_k_agrees_with_the_oracle_on_ties(seed, k):
    rng = np.random.default_rng(seed)
    values, eligible = rng.integers(0, 3, size=(3, 4)).astype(float), rng.random((3, 4)) < 0.7
    ids = rng.permutation(12).reshape(3, 4)
    ours = top_k_mask(torch.tensor(values), torch.tensor(eligible), k, token_ids=torch.tensor(ids))
    np.testing.assert_array_equal(ours, oracles.top_k(values, eligible, k, ids))
    assert ours.sum() == min(k, eligible.sum())


def test_top_k_does_not_read_what_is_not_eligible():
    values = torch.tensor([[float("nan"), 1.0, float("inf"), 2.0]])
    assert top_k_mask(values, torch.tensor([[0, 1, 0, 1]]), 1).tolist() == [[False, False, False, True]]


def test_a_generator_across_ranks_is_refused():
    x = torch.ones(1, 2)
    with pytest.raises(UserError, match="hash_uniform"):
        clip_cov(x, x, x, fraction=0.5, low=0.0, high=5.0, across_ranks=True)


def test_moments_do_not_depend_on_the_order_of_the_rows():
    logprobs, advantages, mask = make_batch()
    logprobs = logprobs + torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) * 1e3
    expected = global_moments(logprobs, advantages, mask)
    for seed in range(20):
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
        assert global_moments(logprobs[order], advantages[order], mask[order]) == expected
