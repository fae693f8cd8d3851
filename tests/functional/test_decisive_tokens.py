"""Training on the tokens where the policy decides."""

import math

import numpy as np
import pytest
import torch

from autotelic.errors import UserError
from autotelic.functional import (
    clip_b,
    clip_v,
    entropic,
    high_entropy,
    repo,
    stare,
    steer,
)

ONES = torch.ones(1, 4)


def test_high_entropy_keeps_the_top_share():
    """Half of 4 tokens: the two of entropy 3 and 2."""
    rewritten, kept = high_entropy(2 * ONES, torch.tensor([[1.0, 3.0, 2.0, 0.0]]), ONES, fraction=0.5)
    assert rewritten.tolist() == [[0.0, 2.0, 2.0, 0.0]]
    assert kept.sum() == 2


def test_stare_by_hand():
    """Positive tokens 0, 1, 2 and fraction .5: ceil(1.5) = 2 most surprising; C2 damps 1 of the 1 negative tokens."""
    advantages, logprobs = torch.tensor([[1.0, 1.0, 1.0, -1.0]]), torch.tensor([[-1.0, -3.0, -2.0, -1.0]])
    options = {"entropy": 0.1, "target": 0.3, "fraction": 0.5}
    np.testing.assert_allclose(stare(advantages, logprobs, ONES, **options)[0], [[1.0, 1.1, 1.1, -1.0]])
    np.testing.assert_allclose(stare(advantages, logprobs, ONES, variant="C2", **options)[0], [[1.0, 1.1, 1.1, -0.9]])
    gated, reweighted = stare(advantages, logprobs, ONES, entropy=0.3, target=0.3)
    assert torch.equal(gated, advantages)
    assert not reweighted.any()


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda a, x, m: high_entropy(a, x, m, fraction=0.5)[0],
        lambda a, x, m: repo(a, x, -x, m, coef=0.1),
        lambda a, x, m: steer(a, x, x, -x, m),
        lambda a, x, m: entropic(a, x, m, alpha=0.3, threshold=0.5),
        lambda a, x, m: clip_b(a, x, -x, m)[0],
        lambda a, x, m: clip_v(a, x, -x, m)[0],
        lambda a, x, m: stare(a, x, m, entropy=0.0, variant="C2")[0],
    ],
)
def test_padding_is_never_read_and_an_empty_batch_is_harmless(rewrite):
    g = torch.Generator().manual_seed(0)
    a, x = torch.randn(3, 4, generator=g), -torch.rand(3, 4, generator=g)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    expected = rewrite(a, x, mask)
    ours = rewrite(a.masked_fill(mask == 0, math.nan), x.masked_fill(mask == 0, math.inf), mask)
    torch.testing.assert_close(ours, expected)
    assert (ours[mask == 0] == 0).all()
    assert (rewrite(a, x, torch.zeros(3, 4)) == 0).all()
    assert (rewrite(torch.zeros(3, 4), x, mask) == 0).all()


def test_bad_options_are_refused():
    x = torch.zeros(1, 2)
    with pytest.raises(UserError, match="min_weight"):
        steer(x, x, x, x, x, min_weight=1.5)
    with pytest.raises(UserError, match="fraction"):
        high_entropy(x, x, x, fraction=20)
