"""CPL and PPL on linear-Gaussian control: weights by hand, exact gradients, and who wins under which judge."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from autotelic.control.mdp import lqr_fits
from autotelic.control.mdp.lqr import optimum
from autotelic.control.mdp.lqr_fits import (
    JUDGES,
    chances,
    clone_gain,
    excess_cost,
    fit_gain,
    future,
    judge_scores,
    margins,
    record,
    run_cell,
)
from autotelic.errors import UserError


def test_recorded_weights_by_hand():
    """Gamma .95, three steps: within the segment step 1 has .95, step 2 .95 + .9025.

    Averaged: step 0 sees two later steps, step 1 one: step 1 has .95 / 2, step 2 .9025 / 2 + .95 / 1.
    """
    data = record("same", 3, 2, 0.0, 0)
    summed = lqr_fits._recorded_weights("ppl_in_segment", data.rollouts, 0.95, False)
    np.testing.assert_allclose(summed[:4], [0, 0.95, 0.95 + 0.9025, 0])
    mean = lqr_fits._recorded_weights("ppl_in_segment_mean", data.rollouts, 0.95, False)
    np.testing.assert_allclose(mean[:4], [0, 0.475, 0.45125 + 0.95, 0])
    seen = lqr_fits._recorded_weights("ppl_observed", data.rollouts, 0.95, False)
    np.testing.assert_allclose(seen[3:5], [0.95 + 0.9025 + 0.857375, 0.9025 + 0.857375 + 0.81450625])
    tail = lqr_fits._recorded_weights("ppl_observed", data.rollouts, 0.95, True)
    np.testing.assert_allclose(tail[:5], [0, 0, 0, 0.857375, 0.81450625])


@pytest.mark.parametrize("judge", ["regret", "regret_tail"])
def test_the_exact_score_of_the_optimum_is_the_judges(judge):
    """Alpha S(zeta; pi*) equals the judge's score, for every segment: the identity, through the moments."""
    data, tail = record("anti", 4, 10, 0.3, 0), judge == "regret_tail"
    best = optimum(data.problem)[0]
    margin = margins(data, future("ppl", data, tail, np.random.default_rng(0)), tail)
    rows = np.hstack([-best.gain, np.eye(2)])
    square = -0.5 * rows.T @ np.linalg.inv(best.covariance) @ rows
    normaliser = -0.5 * np.linalg.slogdet(2 * np.pi * best.covariance)[1]
    value = margin.moments @ square.ravel() + margin.weight * normaliser + margin.constant
    np.testing.assert_allclose(data.problem.alpha * value, data.gaps(judge_scores(data, judge)), rtol=1e-9)


def test_the_gradient_of_the_fit(monkeypatch):
    """L-BFGS gets the derivative of the loss: against differences."""
    data = record("same", 2, 20, 0.0, 0)
    margin = margins(data, future("ppl", data, False, np.random.default_rng(0)), False)
    seen = []
    monkeypatch.setattr(lqr_fits, "minimize", lambda loss, start, **_: seen.append((loss, start)) or _Found(start))
    fit_gain(margin, np.arange(20) % 2.0, 0.01, [clone_gain(data)])
    loss, start = seen[0]
    np.testing.assert_allclose(loss(start)[1], approx_fprime(start, lambda t: loss(t)[0], 1e-7), rtol=1e-3, atol=1e-5)


class _Found:
    def __init__(self, x):
        self.x, self.fun = x, 0.0


def test_the_judges_probabilities_give_the_optimum_under_the_right_model(monkeypatch):
    """With probabilities for labels and the spread of pi*, PPL finds pi* under regret, and CPL under advantage."""
    data = record("same", 2, 400, 0.5, 0)
    monkeypatch.setattr(lqr_fits, "STD", float(np.sqrt(optimum(data.problem)[0].covariance[0, 0])))
    for arm, judge in (("ppl", "regret"), ("cpl", "advantage")):
        margin = margins(data, future(arm, data, False, np.random.default_rng(0)), False)
        gain = fit_gain(margin, chances(data, judge, data.problem.alpha), 1.0, [clone_gain(data)])
        assert excess_cost(data, gain) < 1e-3, arm


def test_regret_labels_favour_ppl_and_advantage_labels_cpl():
    row = run_cell("mono", 1, ("regret", "advantage"), 500, None, 0.0, 0, ("cpl", "ppl", "ppl_regressed", "ppl_wrong"))
    regret, advantage = row["regret"], row["advantage"]
    assert regret["ppl"] < 0.2 < regret["cpl"] < regret["ppl_wrong"]
    assert abs(regret["ppl_regressed"] - regret["ppl"]) < 0.1
    assert advantage["cpl"] < 0.2 < advantage["ppl"]


def test_every_arm_and_judge_runs():
    row = run_cell("same", 2, JUDGES, 40, 0.0, 0.2, 1)
    for judge in JUDGES:
        assert set(row[judge]) == {*lqr_fits.ARMS, "label_entropy"}
        assert row[judge]["label_entropy"] == 0, "a judge of temperature 0 leaves nothing to chance"
        assert all(0 <= row[judge][arm] <= lqr_fits.WORST for arm in lqr_fits.ARMS)
    assert row["regret_tail"]["ppl_in_segment"] == pytest.approx(row["regret_tail"]["cpl"], rel=1e-3)


def test_bad_cells_are_refused():
    with pytest.raises(UserError, match="did you mean 'mono'"):
        record("momo", 1, 10, 0.0, 0)
    with pytest.raises(UserError, match="counts"):
        record("mono", 0, 10, 0.0, 0)
    with pytest.raises(UserError, match="judge"):
        chances(record("mono", 1, 2, 0.0, 0), "praise", 1.0)
