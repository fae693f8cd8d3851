"""The distance between a sampler and the policy: by hand, and its correction's masks."""

import math

import pytest
import torch

from autotelic.trl.sampler_mismatch import mismatch

OURS = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -1.0, -1.0]])
THEIRS = torch.tensor([[-1.5, -2.0, 0.0], [-0.5, math.nan, -1.0 - math.log(4)]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def test_by_hand():
    """ln r = .5, 0, 0, ln 4 on the four tokens that count: one is padding, one has no log-probability."""
    ratios = [math.exp(0.5), 1.0, 1.0, 4.0]
    found = mismatch(OURS, THEIRS, MASK)
    assert found["sampler/k1"] == pytest.approx(-sum(map(math.log, ratios)) / 4, rel=1e-6)
    assert found["sampler/k3"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4, rel=1e-6)
    assert found["sampler/max"] == pytest.approx(math.log(4), rel=1e-6)
    assert "sampler/cut" not in found


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ([[math.exp(0.5), 1.0, 1.0], [1.0, 1.0, 4.0]], 0.0),  # tokens, none touched
        ([[math.exp(0.5), 1.0, 1.0], [1.0, 1.0, 3.0]], 0.25),  # one at the bound of 3
        ([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]], 0.5),  # two masked
        ([[math.exp(0.5)], [0.0]], 0.5),  # a response of two counted tokens masked
        ([[math.exp(0.5)], [4.0]], 0.0),
    ],
)
def test_what_the_correction_cuts(weights, share):
    assert mismatch(OURS, THEIRS, MASK, torch.tensor(weights))["sampler/cut"] == pytest.approx(share)
