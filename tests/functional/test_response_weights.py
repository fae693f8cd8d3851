"""Weights of whole responses by entropy: by hand, against loops, and what they must not depend on."""

import math

import numpy as np
import oracles
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotelic import functional as F
from autotelic.compat.policy_losses import entrocraft_released


def test_entrocraft_by_hand():
    """Band (.4, .6). H = .7 keeps A >= 0, H = .3 keeps A <= 0, H = .5 all; the ends belong to the band."""
    advantages = torch.tensor([1.0, 0.0, -1.0])
    keeps = {h: F.entrocraft_keep(advantages, F.band_side(h, 0.4, 0.6)).tolist() for h in (0.3, 0.4, 0.5, 0.6, 0.7)}
    assert keeps[0.7] == [True, True, False] and keeps[0.3] == [False, True, True]
    assert keeps[0.4] == keeps[0.5] == keeps[0.6] == [True, True, True]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-1.5, -0.1, 0.0, 0.3, 2.0]), min_size=1, max_size=9), st.floats(0, 1))
def test_entrocraft_agrees_with_the_oracle(advantages, entropy):
    found = F.entrocraft_keep(torch.tensor(advantages), F.band_side(entropy, 0.4, 0.6))
    assert found.tolist() == [oracles.entrocraft_keeps(a, entropy, 0.4, 0.6) for a in advantages]


def test_the_released_code_has_another_rule():
    """Above the band max(reward, 0), with 0/1 rewards the low branch is all zero: no filter of the advantages."""
    advantages, rewards = torch.tensor([[0.5, -0.5]]), torch.tensor([[1.0, 0.0]])
    band = {"low": 0.4, "high": 0.6}
    assert entrocraft_released(advantages, rewards, entropy=0.7, **band).tolist() == [[1.0, 0.0]]
    assert entrocraft_released(advantages, rewards, entropy=0.3, **band).tolist() == [[0.0, 0.0]]
    assert entrocraft_released(advantages, rewards, entropy=0.5, **band).tolist() == [[0.5, -0.5]]


def test_turns_are_runs_of_the_mask():
    mask = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0]])
    found = F.turns(mask)
    assert found[mask.bool()].tolist() == [0, 0, 1, 2, 0, 0, 1]


def test_aem_by_hand():
    """Two responses of entropy 1 and 0: h = 1 and 0, weights e^-1 and 1 over their mean (1 + e^-1) / 2."""
    entropy = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    found = F.aem_weights(entropy, torch.ones(2, 2), torch.zeros(2, dtype=torch.long), num_prompts=1)
    mean = (1 + math.exp(-1)) / 2
    np.testing.assert_allclose(found, [[math.exp(-1) / mean] * 2, [1 / mean] * 2])


def batch(seed, rows=6, width=8):
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, width)) < 0.7
    return rng.random((rows, width)) * 2, mask, np.sort(rng.integers(0, 3, rows))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 3.0]))
def test_aem_agrees_with_the_oracle(seed, coef):
    entropy, mask, prompts = batch(seed)
    arrays = (torch.from_numpy(entropy), torch.from_numpy(mask), torch.from_numpy(prompts))
    found = F.aem_weights(*arrays, num_prompts=3, coef=coef, min_range=0.3)
    np.testing.assert_allclose(found, oracles.aem_weights(entropy, mask, prompts, coef, 0.3), rtol=1e-9)


def test_aem_ignores_padding_and_row_order():
    entropy, mask, prompts = (torch.from_numpy(np.ascontiguousarray(x)) for x in batch(3))
    plain = F.aem_weights(entropy, mask, prompts, num_prompts=3)
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(0))
    dirty = torch.nn.functional.pad(entropy.masked_fill(~mask, torch.nan), (2, 1), value=torch.nan)
    padded = torch.nn.functional.pad(mask, (2, 1))
    found = F.aem_weights(dirty[order], padded[order], prompts[order], num_prompts=3)
    torch.testing.assert_close(found[:, 2:-1][order.argsort()], plain)


def test_aem_has_mean_one_over_the_turns_of_a_prompt():
    entropy, mask, _ = batch(5)
    arrays = (torch.from_numpy(entropy), torch.from_numpy(mask), torch.zeros(6, dtype=torch.long))
    found, turn = F.aem_weights(*arrays, num_prompts=1, min_range=0.0), F.turns(arrays[1])
    first = arrays[1] & torch.nn.functional.pad(~arrays[1][:, :-1], (1, 0), value=True)
    assert float(found[first].mean()) == 1.0 or math.isclose(float(found[first].mean()), 1.0, rel_tol=1e-9)
    assert int(turn.max()) > 0
