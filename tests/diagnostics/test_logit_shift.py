"""Moments, histograms and ranks of logits: against scipy, in any batches, with intervals that cover."""

import numpy as np
import pytest
import torch
from scipy import stats

from autotelic.diagnostics import logit_shift as shift
from autotelic.diagnostics.logit_shift import OFFICIAL, Form, LogitStatistics, response_logits
from autotelic.errors import UserError


def collected(arrays, **settings):
    statistics = LogitStatistics(**settings)
    for array in arrays:
        statistics.add(torch.from_numpy(array))
    return statistics


def test_moments_are_scipys():
    rng = np.random.default_rng(0)
    arrays = [rng.gamma(2.0, 3.0, size=(length, 50)) + 1000.0 for length in (3, 7, 1, 20)]
    mean, std, skewness = collected(arrays).moments()[0]
    pooled = np.concatenate([a.ravel() for a in arrays])
    assert mean == pytest.approx(pooled.mean(), rel=1e-12)
    assert std == pytest.approx(pooled.std(), rel=1e-9)
    assert skewness == pytest.approx(stats.skew(pooled), rel=1e-9)


def test_by_hand():
    """0, 0, 3: mean 1, m2 = 2, m3 = (8 - 1 - 1) / 3 = 2, skewness 2 / 2^1.5."""
    summary = collected([np.array([[0.0, 0.0, 3.0]])]).summary()
    assert summary["mean"]["value"] == pytest.approx(1.0)
    assert summary["std"]["value"] == pytest.approx(2**0.5)
    assert summary["skewness"]["value"] == pytest.approx(2**-0.5)
    assert summary["mean"]["interval"] is None  # one sequence leaves none
    assert sum(summary["histogram"]["counts"]) == 3 and summary["histogram"]["low"] == 0.0
    assert summary["ranks"] == {"rank": [1, 2, 3], "mean": [3.0, 0.0, 0.0]}


def test_impossible_tokens_are_left_out_and_counted():
    summary = collected([np.array([[0.0, 0.0, 3.0, -np.inf]])]).summary()
    assert summary["not_finite"] == 1 and summary["skewness"]["value"] == pytest.approx(2**-0.5)


@pytest.mark.slow
def test_the_interval_covers_about_as_often_as_it_says():
    """Sequences with their own offsets: values within one are not independent, and the bootstrap sees it."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        arrays = [rng.normal(rng.normal(), 1.0, size=(4, 30)) for _ in range(40)]
        low, high = collected(arrays).summary()["mean"]["interval"]
        covered += low <= 0.0 <= high
    assert 50 <= covered <= 60


def test_a_shift_is_paired():
    """The same noise in both: the difference is exact, although each mean is not."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(rng.normal(), 1.0, size=(4, 30)) for _ in range(20)]
    base = collected(arrays)
    found = collected([a + 0.5 for a in arrays]).summary(base)
    assert found["shift"]["mean"]["value"] == pytest.approx(0.5)
    assert found["shift"]["mean"]["interval"] == pytest.approx([0.5, 0.5])
    assert np.ptp(found["mean"]["interval"]) > 0.3


def test_the_official_form():
    z = torch.arange(100.0).repeat(2, 1)
    assert OFFICIAL(z).shape == (2, 50) and float(OFFICIAL(z)[0, 0]) == pytest.approx(99 / 0.6)
    assert Form(top=500)(z).shape == (2, 100)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    from autotelic.tasks import model_path

    return AutoModelForCausalLM.from_pretrained(model_path("any_pair")).train()


SEQUENCES = [([3, 4, 5], [6, 7]), ([5], [3, 4, 8, 9, 10]), ([3, 3, 3, 3], [])]


def test_positions_predict_each_response_token_and_the_next(model, monkeypatch):
    found = list(response_logits(model, SEQUENCES))
    assert [len(z) for z in found] == [3, 6, 1] and model.training
    monkeypatch.setattr(shift, "MAX_LOGIT_ELEMENTS", 1)  # one sequence at a time: no padding
    for one, other in zip(found, response_logits(model, SEQUENCES), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        direct = model(input_ids=torch.tensor([[3, 4, 5, 6, 7]])).logits[0, 2:]
    torch.testing.assert_close(found[0], direct, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="empty"):
        list(response_logits(model, [([], [1])]))
