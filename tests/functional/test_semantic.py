"""Cluster entropy, consensus reward, prompt filter, and the value of a prompt."""

import json
import math
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autotelic.errors import UserError
from autotelic.functional import (
    consensus_reward,
    entropy_threshold_mask,
    majority_share,
    majority_variance,
    outcome_variance,
    semantic_entropy,
    weighted_semantic_entropy,
)

CLUSTERS = hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.integers(-1, 4))
GOLDEN = Path(__file__).parents[1] / "golden" / "semantic_entropy.jsonl"


def test_semantic_entropy_and_reward_by_hand():
    """Sizes 2, 1 and one unparseable of G = 4: H = 1/2 ln 2 + 2 (1/4 ln 4) = 1.0397; rewards 1/2, 1/2, 1/4, 0."""
    clusters = torch.tensor([[0, 0, 1, -1]])
    assert semantic_entropy(clusters).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert consensus_reward(clusters).tolist() == [[0.5, 0.5, 0.25, 0.0]]
    np.testing.assert_allclose(consensus_reward(clusters, "parseable"), [[2 / 3, 2 / 3, 1 / 3, 0.0]])


@settings(max_examples=40, deadline=None)
@given(CLUSTERS)
def test_agreement_with_the_oracle(clusters):
    c = torch.from_numpy(clusters)
    np.testing.assert_allclose(semantic_entropy(c), oracles.semantic_entropy(clusters), atol=1e-12)
    for denominator in ("group", "parseable"):
        ours = consensus_reward(c, denominator)
        np.testing.assert_allclose(ours, oracles.consensus_reward(clusters, denominator), atol=1e-15)


@settings(max_examples=30, deadline=None)
@given(CLUSTERS, st.integers(0, 2**31))
def test_likelihood_weighting_agrees_with_the_oracle(clusters, seed):
    logprobs = np.random.default_rng(seed).normal(size=clusters.shape) * 3
    ours = weighted_semantic_entropy(torch.from_numpy(clusters), torch.from_numpy(logprobs))
    np.testing.assert_allclose(ours, oracles.weighted_semantic_entropy(clusters, logprobs), atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(CLUSTERS, st.integers(0, 1000))
def test_names_and_order_of_clusters_do_not_matter(clusters, seed):
    c = torch.from_numpy(clusters)
    g = torch.Generator().manual_seed(seed)
    names = torch.randperm(5, generator=g)
    renamed = torch.where(c < 0, c, names[c.clamp(min=0)])
    order = torch.randperm(c.shape[1], generator=g)
    torch.testing.assert_close(semantic_entropy(renamed[:, order]), semantic_entropy(c))
    torch.testing.assert_close(consensus_reward(renamed[:, order]), consensus_reward(c)[:, order])


def test_equal_weights_give_the_empirical_entropy():
    clusters = torch.tensor([[0, 0, 1, -1], [3, 3, 3, 3]])
    torch.testing.assert_close(weighted_semantic_entropy(clusters, torch.zeros(2, 4)), semantic_entropy(clusters))


def test_golden_semantic_entropy():
    for line in GOLDEN.read_text().splitlines():
        row = json.loads(line)
        ours = semantic_entropy(torch.tensor([row["cluster_ids"]])).item()
        assert ours == pytest.approx(row["entropy_nats"], abs=1e-12), row["id"]


def test_a_group_that_cannot_be_parsed_gets_zero_and_is_never_a_cluster():
    clusters = torch.full((1, 8), -1)
    assert (consensus_reward(clusters) == 0).all()
    assert (consensus_reward(clusters, "parseable") == 0).all()
    assert not entropy_threshold_mask(semantic_entropy(clusters), low=0.0, high=math.log(8)).any()
    assert semantic_entropy(clusters, unparseable="drop").item() == 0


def test_dropping_unparseable_answers_takes_the_rest_as_the_group():
    """(0, 0, 1) of (0, 0, 1, -1, -1): H = 2/3 ln 3/2 + 1/3 ln 3."""
    ours = semantic_entropy(torch.tensor([[0, 0, 1, -1, -1]]), unparseable="drop").item()
    assert ours == pytest.approx(2 / 3 * math.log(1.5) + math.log(3) / 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_different_is_masked_and_one_agreement_kept_for_every_group_size(dtype):
    for size in range(2, 257):
        all_different = torch.arange(size).unsqueeze(0)
        one_pair = all_different.clone()
        one_pair[0, 1] = 0
        entropy = semantic_entropy(torch.cat([all_different, one_pair, torch.zeros_like(all_different)])).to(dtype)
        kept = entropy_threshold_mask(entropy, low=0.0, high=math.log(size))
        assert kept.tolist() == [False, size > 2, False], size


def test_bounds_are_strict_and_may_be_infinite():
    entropy = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    assert entropy_threshold_mask(entropy, low=0.5, high=1.5).tolist() == [False, True, False]
    assert entropy_threshold_mask(entropy, low=-math.inf, high=math.inf).all()
    with pytest.raises(UserError, match="low must be below high"):
        entropy_threshold_mask(entropy, low=1.0, high=1.0)


def test_value_of_a_prompt_by_hand():
    """1 of 4 correct: 3/16. Clusters 2, 1 and an unparseable one of 4: p_max = 1/2, 1/4."""
    assert outcome_variance(torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]])).tolist() == [3 / 16, 0.0]
    clusters = torch.tensor([[0, 0, 1, -1], [-1, -1, -1, -1]])
    assert majority_share(clusters).tolist() == [0.5, 0.0]
    assert majority_variance(clusters).tolist() == [0.25, 0.0]
