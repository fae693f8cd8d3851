"""The fit of R = -a exp(H) + b, its intervals, its forecast and its warnings."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from autotelic.errors import UserError
from autotelic.functional import fit_entropy_law, forecast, regime_warnings, rolling_forecasts


def curve(rng, points=24, a=0.2, b=0.9, noise=0.01, start=1.2, end=0.1):
    entropy = start * (end / start) ** np.linspace(0, 1, points)
    return entropy, -a * np.exp(entropy) + b + noise * rng.normal(size=points)


def test_the_fit_by_hand():
    """exp(H) = 1, 2, 3 and R = .8, .6, .4: a = .2, b = 1, ceiling .8; from 3 to 1 the whole gain is taken."""
    law = fit_entropy_law(np.log([3.0, 2.0, 1.0]), [0.4, 0.6, 0.8])
    assert (law.a, law.b, law.ceiling) == pytest.approx((0.2, 1.0, 0.8))
    assert law.share_taken == pytest.approx(1.0)
    assert law.predict(math.log(2)) == pytest.approx(0.6)
    assert law.r_squared == pytest.approx(1.0)


def test_estimates_and_intervals_agree_with_scipy():
    entropy, reward = curve(np.random.default_rng(0))
    law, theirs = fit_entropy_law(entropy, reward), stats.linregress(np.exp(entropy), reward)
    t = stats.t.ppf(0.975, len(entropy) - 2)
    assert (-law.a, law.b) == pytest.approx((theirs.slope, theirs.intercept))
    assert law.a_interval == pytest.approx((law.a - t * theirs.stderr, law.a + t * theirs.stderr))
    half = t * theirs.intercept_stderr
    assert law.b_interval == pytest.approx((law.b - half, law.b + half))
    # The ceiling is the intercept of the same line drawn from x = 1.
    shifted = stats.linregress(np.exp(entropy) - 1, reward)
    half = t * shifted.intercept_stderr
    assert law.ceiling_interval == pytest.approx((shifted.intercept - half, shifted.intercept + half))
    assert law.predict_interval(0.0) == pytest.approx(law.ceiling_interval)
    assert law.r_squared == pytest.approx(theirs.rvalue**2)


def test_intervals_hold_the_truth_in_95_percent_of_1000_trials():
    rng = np.random.default_rng(1)
    hits = np.zeros(3)
    for _ in range(1000):
        a, b = rng.uniform(0.05, 0.5), rng.uniform(0.5, 1.0)
        entropy, reward = curve(rng, points=int(rng.integers(8, 40)), a=a, b=b, noise=rng.uniform(0.002, 0.05))
        law = fit_entropy_law(entropy, reward)
        for i, (value, (low, high)) in enumerate(
            [(a, law.a_interval), (b, law.b_interval), (b - a, law.ceiling_interval)]
        ):
            hits[i] += low <= value <= high
    # 950 expected, standard deviation 6.9.
    assert (np.abs(hits - 950) < 25).all(), hits


def test_the_share_taken_is_that_of_the_line():
    entropy, reward = curve(np.random.default_rng(2), noise=0.0)
    law = fit_entropy_law(entropy, reward)
    assert law.share_taken == pytest.approx((reward[-1] - reward[0]) / (law.ceiling - reward[0]))


def test_remaining_gain_is_ceiling_less_the_law():
    law = fit_entropy_law(*curve(np.random.default_rng(2)))
    gain, high = law.remaining_gain(0.4)
    assert gain == pytest.approx(law.ceiling - float(law.predict(0.4)))
    assert high > gain
    assert law.remaining_gain(0.0) == (0.0, 0.0)
    assert (law.metrics(0.4)["law/remaining"], law.metrics(0.4)["law/remaining_high"]) == (gain, high)


def test_a_fit_is_json_even_where_the_first_entropy_is_zero():
    """At H_0 = 0 no gain was ever left, so its share has no meaning: None, as JSON has no NaN."""
    law = fit_entropy_law([0.0, 0.1, 0.2], [0.9, 0.8, 0.7])
    assert math.isnan(law.share_taken)
    found = json.loads(json.dumps(law.as_dict(), allow_nan=False))
    assert found["share_taken"] is None
    assert (found["ceiling"], tuple(found["ceiling_interval"])) == (law.ceiling, law.ceiling_interval)


def test_tensors_and_lists_are_taken_alike():
    entropy, reward = curve(np.random.default_rng(3))
    law = fit_entropy_law(torch.tensor(entropy), torch.tensor(reward))
    assert law == fit_entropy_law(entropy.tolist(), reward.tolist())


def test_the_forecast_beats_its_baselines_where_the_law_holds():
    entropy, reward = curve(np.random.default_rng(4), points=60, noise=0.002)
    result = forecast(np.arange(60) * 4, entropy, reward)
    assert (result.num_fitted, result.num_predicted) == (9, 51)
    assert result.rmse["law"] < 0.02
    assert all(result.rmse["law"] < result.rmse[name] for name in ("last_value", "linear_in_entropy", "linear_in_step"))
    assert len(result.predicted) == 51


def test_the_forecast_by_hand():
    """Exact law, fitted on the first 3 of 5: no error; the last value .5 misses .6 and .8 by .1 and .3."""
    x = np.array([4.0, 3.5, 3.0, 2.5, 1.5])
    result = forecast([0, 1, 2, 3, 4], np.log(x), 1.1 - 0.2 * x)
    assert result.num_fitted == 3
    assert result.rmse["law"] == pytest.approx(0, abs=1e-12)
    assert result.rmse["last_value"] == pytest.approx(math.sqrt((0.1**2 + 0.3**2) / 2))
    assert result.final_error["last_value"] == pytest.approx(-0.3)


def test_the_forecast_reads_no_reward_after_its_origin():
    entropy, reward = curve(np.random.default_rng(5))
    changed = reward.copy()
    changed[6:] = 0.0
    first, second = (forecast(np.arange(24), entropy, r, share=0.2) for r in (reward, changed))
    np.testing.assert_array_equal(first.predicted, second.predicted)


def test_rolling_origins_move_forward_and_do_not_repeat():
    entropy, reward = curve(np.random.default_rng(6), points=10)
    fitted = [f.num_fitted for f in rolling_forecasts(np.arange(10), entropy, reward)]
    assert fitted == sorted(set(fitted))
    assert len(fitted) >= 4


def test_a_clean_run_has_no_warning():
    for seed in range(50):
        assert fit_entropy_law(*curve(np.random.default_rng(seed), noise=0.02)).warnings == ()


@pytest.mark.parametrize(
    ("entropy", "word"),
    [
        (np.linspace(1.0, 0.2, 7), "too few points"),
        (np.linspace(0.06, 0.01, 20), "range too small"),
        (np.concatenate([np.linspace(1, 0.2, 10), np.linspace(0.2, 0.8, 10)]), "non-monotone"),
        (np.linspace(0.2, 1.0, 20), "non-monotone"),
    ],
)
def test_regimes_without_standing_are_flagged(entropy, word):
    law = fit_entropy_law(entropy, 0.9 - 0.2 * np.exp(entropy) + 1e-3 * np.sin(np.arange(len(entropy))))
    assert any(word in warning for warning in law.warnings)


def test_a_little_noise_in_entropy_is_not_called_non_monotone():
    rng = np.random.default_rng(8)
    flagged = 0
    for _ in range(50):
        entropy, reward = curve(rng)
        noisy = np.abs(entropy + 0.05 * rng.normal(size=len(entropy)))
        flagged += any("non-monotone" in w for w in regime_warnings(noisy, reward))
    assert flagged == 0


def test_interventions_and_missing_trades_are_flagged():
    entropy, reward = curve(np.random.default_rng(9))
    assert any("clip_cov" in w for w in fit_entropy_law(entropy, reward, intervention="clip_cov").warnings)
    assert any("no trade" in w for w in fit_entropy_law(entropy, reward[::-1].copy()).warnings)


@pytest.mark.parametrize(
    ("entropy", "reward", "word"),
    [
        ([1.0, 0.5], [0.1, 0.2], "at least 3"),
        ([1.0, 0.5, 0.2], [0.1, 0.2], "one of each"),
        ([1.0, math.nan, 0.2], [0.1, 0.2, 0.3], "position 1"),
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], "same at every"),
        ([-1.0, -0.5, -0.2], [0.1, 0.2, 0.3], "negative"),
        (np.ones((3, 2)), [0.1, 0.2, 0.3], "single column"),
    ],
)
def test_unusable_curves_are_refused(entropy, reward, word):
    with pytest.raises(UserError, match=word):
        fit_entropy_law(entropy, reward)


def test_unusable_forecasts_are_refused():
    entropy, reward = curve(np.random.default_rng(10), points=6)
    with pytest.raises(UserError, match="increase"):
        forecast([0, 1, 1, 2, 3, 4], entropy, reward)
    with pytest.raises(UserError, match="share"):
        forecast(np.arange(6), entropy, reward, share=1.5)
    with pytest.raises(UserError, match="at least 4"):
        forecast([0, 1, 2], entropy[:3], reward[:3])


def test_what_is_no_entropy_per_token_and_no_accuracy_is_refused():
    """exp(400) squared overflows: the fit would be NaN."""
    with pytest.raises(UserError, match="entropy reaches 400"):
        fit_entropy_law([400.0, 300.0, 200.0], [0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="reward reaches 3e\\+200"):
        fit_entropy_law([0.4, 0.3, 0.2], [1e200, 2e200, 3e200])
