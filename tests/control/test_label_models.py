"""The mismatch on the tree, the choice of a label model on random MDPs, fits, and controls that must hurt."""

import time
import warnings
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from scipy.optimize import check_grad

from autotelic.control.mdp import fit as fit_module
from autotelic.control.mdp.fit import (
    Pairs,
    ScoreFeatures,
    choose_label_model,
    fit_policy,
    preference_nll,
    score_features,
)
from autotelic.control.mdp.label_models import LabelKind, clone_behavior, label_policies
from autotelic.control.mdp.random_mdps import DEFAULT, draw, judge_scores, run_seed
from autotelic.control.mdp.tables import share_interval, tree_table
from autotelic.control.mdp.tabular import log_softmax, negative_regret
from autotelic.control.mdp.tree import METHODS, build_tree, population_fit, population_pairs, sample_fit
from autotelic.errors import UserError
from autotelic.functional.lookahead import BiasedLookaheadWarning, Lookahead

MIXTURES = (0, 0.25, 0.5, 0.9)


@pytest.mark.parametrize("p_bad", MIXTURES)
def test_the_mismatch_for_infinite_data(p_bad):
    tree = build_tree(p_bad)
    assert tree.truth == pytest.approx(0.8668, abs=1e-4)
    assert population_fit(tree, "ppl") == pytest.approx(tree.truth, abs=1e-6)
    expected = dict(zip(MIXTURES, (0.867, 0.769, 0.142, 0.014), strict=True))
    assert population_fit(tree, "cpl") == pytest.approx(expected[p_bad], abs=1e-3)
    assert p_bad < 0.5 or population_fit(tree, "cpl") < 0.2
    assert 0.8 < population_fit(tree, "ppl_d") < 0.83
    assert population_fit(tree, "ppl_wrong") < tree.truth - 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_with_advantage_labels_it_reverses(temperature):
    """CPL is exact, PPL is biased wherever behaviour is bad: by .13 at the judge's temperature .25, by .05 at 1."""
    for p_bad in MIXTURES:
        tree = build_tree(p_bad, judge="advantage", temperature=temperature)
        assert population_fit(tree, "cpl") == pytest.approx(tree.truth, abs=1e-6)
    assert population_fit(tree, "ppl") < tree.truth - (0.12 if temperature == 0.25 else 0.04)


def test_with_return_labels_nothing_recovers_the_optimum():
    for p_bad in (0.25, 0.5, 0.9):
        tree = build_tree(p_bad, judge="return")
        assert min(abs(population_fit(tree, m) - tree.truth) for m in ("cpl", "ppl", "ppl_d")) > 0.05


def test_observed_lookahead_is_biased_under_stochastic_dynamics_and_warns():
    """slip .2, p_bad .9: .486 against .755, for infinite data; the exact expectation is right."""
    tree = build_tree(0.9, slip=0.2)
    with pytest.warns(BiasedLookaheadWarning):
        observed = population_fit(tree, "ppl_observed")
    assert (observed, tree.truth) == (pytest.approx(0.486, abs=1e-3), pytest.approx(0.755, abs=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert population_fit(tree, "ppl") == pytest.approx(tree.truth, abs=1e-6)


def test_the_mismatch_from_1000_pairs_over_40_seeds():
    started = time.perf_counter()
    rows = {r["method"]: r for r in tree_table([0.5], 0.0, "regret", 1000, 40, ("cpl", "ppl", "ppl_estimated"))}
    assert rows["ppl"]["right"] >= 0.95
    assert rows["ppl_estimated"]["right"] >= 0.95
    assert rows["cpl"]["right"] <= 0.2
    assert time.perf_counter() - started < 30


def test_samples_agree_with_the_population():
    tree = build_tree(0.5)
    assert sample_fit(tree, "cpl", 200_000, seed=0) == pytest.approx(population_fit(tree, "cpl"), abs=0.02)
    assert sample_fit(tree, "ppl_d", 200_000, seed=0) == pytest.approx(population_fit(tree, "ppl_d"), abs=0.02)


def test_tree_regrets_by_hand():
    """Down under the good policy: Q*(down) - V*(s0) = alpha log(1 - .8669) = -.504."""
    tree = build_tree(0.5)
    assert negative_regret(tree.mdp, tree.policies[0])[0, 1] == pytest.approx(0.25 * np.log(1 - tree.truth), abs=1e-9)
    assert tree.probability.sum() == pytest.approx(1)
    pairs = population_pairs(tree)
    assert pairs.weight.sum() == pytest.approx(1)


@pytest.mark.parametrize(("judge", "picked"), [("regret", 1.0), ("advantage", 0.0)])
def test_auto_picks_the_judges_label_model(judge, picked):
    results = [run_seed(2000, judge, seed, ["cpl", "ppl", "auto"]) for seed in range(5)]
    assert [r["auto_is_ppl"] for r in results] == [picked] * 5
    assert all(r["auto"] == r["ppl" if picked else "cpl"] for r in results)


def test_wrong_and_shuffled_labels_hurt_and_estimated_ones_do_not():
    results = [
        run_seed(2000, "regret", seed, ["ppl", "ppl_estimated", "ppl_shuffled", "ppl_wrong"]) for seed in range(3)
    ]
    mean = {name: np.mean([r[name] for r in results]) for name in results[0]}
    assert mean["ppl_shuffled"] > 10 * mean["ppl"]
    assert mean["ppl_wrong"] > 10 * mean["ppl"]
    assert mean["ppl_estimated"] < 1.5 * mean["ppl"]


def test_more_pairs_bring_ppl_nearer_but_not_cpl():
    few, many = (
        np.mean([list(run_seed(n, "regret", s, ["cpl", "ppl"]).values()) for s in range(3)], 0) for n in (500, 8000)
    )
    assert many[1] < 0.3 * few[1]
    assert many[0] > 0.5 * few[0]


def test_segment_judges_add_up():
    data = draw(50, "regret", 3)
    scores = judge_scores(data.mdp, data.policies, data.segments, "regret")
    row, table = 7, negative_regret(data.mdp, data.policies[data.segments.policy[7]])
    steps = [(data.segments.states[row, t], data.segments.actions[row, t]) for t in range(DEFAULT.segment_length)]
    assert scores[row] == pytest.approx(sum(table[s, a] for s, a in steps))
    assert (scores <= 1e-9).all()


@pytest.mark.parametrize("bias", [1.0, 0.5])
def test_the_fits_gradient_is_exact(bias, monkeypatch):
    generator, seen = np.random.default_rng(0), {}
    features = ScoreFeatures(generator.random((12, 3, 2)), generator.standard_normal(12))
    pairs = Pairs(*generator.integers(12, size=(2, 9)), generator.random(9), np.full(9, 1 / 9))
    original = fit_module.minimize
    monkeypatch.setattr(fit_module, "minimize", lambda f, x, **k: seen.update(f=f) or original(f, x, **k))
    fit_policy(features, pairs, 0.7, bias, l2=0.1)
    point = generator.standard_normal(6)
    assert check_grad(lambda x: seen["f"](x)[0], lambda x: seen["f"](x)[1], point) < 1e-6
    scores = 0.7 * features.scores(log_softmax(point.reshape(3, 2)))
    s1, s2, y = scores[pairs.first], scores[pairs.second], pairs.label
    slow = np.mean(y * np.logaddexp(0, bias * s1 - s2) + (1 - y) * np.logaddexp(0, bias * s2 - s1))
    assert seen["f"](point)[0] == pytest.approx(slow + 0.05 * (point**2).sum())


def test_order_of_pairs_and_of_their_sides_changes_nothing():
    tree, generator = build_tree(0.5), np.random.default_rng(0)
    features = score_features(tree.mdp, tree.segments, tree.policies, Lookahead(future="exact"))
    pairs = population_pairs(tree)
    shuffled = pairs.take(generator.permutation(len(pairs.label)))
    swapped = Pairs(pairs.second, pairs.first, 1 - pairs.label, pairs.weight)
    plain = fit_policy(features, pairs, tree.scale)
    for other in (shuffled, swapped):
        np.testing.assert_allclose(fit_policy(features, other, tree.scale), plain, atol=1e-4)
    nll = [preference_nll(features, p, plain, tree.scale) for p in (pairs, shuffled, swapped)]
    np.testing.assert_allclose(nll, nll[0])


def test_policy_labels():
    data, generator = draw(2000, "regret", 0), np.random.default_rng(0)
    labels = {kind: label_policies(kind, data.segments, data.policies, generator) for kind in get_args(LabelKind)}
    assert np.abs(labels["estimated"][1] - data.policies).max() < 0.05
    assert set(np.unique(labels["deterministic"][1])) == {0.0, 1.0}
    assert labels["pooled"][1].shape[0] == 1 and (labels["pooled"][0].policy == 0).all()
    assert (labels["wrong"][0].policy != data.segments.policy).all()
    assert np.array_equal(np.sort(labels["shuffled"][0].policy), np.sort(data.segments.policy))
    np.testing.assert_allclose(clone_behavior(data.segments, 4, data.mdp.rewards.shape).sum(-1), 1)
    with pytest.raises(UserError, match="did you mean 'known'"):
        label_policies("knwon", data.segments, data.policies, generator)


def test_random_labels_warn_under_deterministic_dynamics_and_certain_ones_do_not():
    setup = replace(DEFAULT, branching=1)
    data, lookahead = draw(10, "regret", 0, setup), Lookahead(future="observed", gamma=setup.gamma)
    assert not data.mdp.stochastic
    with pytest.warns(BiasedLookaheadWarning, match="label's actions are random"):
        score_features(data.mdp, data.segments, data.policies, lookahead)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certain = np.eye(data.policies.shape[2])[data.policies.argmax(-1)]
        score_features(data.mdp, data.segments, certain, lookahead)
        score_features(data.mdp, data.segments, data.policies, Lookahead(future="exact", gamma=setup.gamma))


def test_bad_requests_are_refused():
    tree = build_tree(0.5)
    with pytest.raises(UserError, match="p_bad"):
        build_tree(1.5)
    with pytest.raises(UserError, match="did you mean 'ppl_d'"):
        tree_table([0.5], 0.0, "regret", 10, 2, ("ppl_dd",))
    one = population_pairs(tree).take(np.array([0]))
    with pytest.raises(UserError, match="held-out"):
        choose_label_model({}, one, np.random.default_rng(0))


def test_every_method_is_finite_on_the_tree():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasedLookaheadWarning)
        fits = [population_fit(build_tree(0.5, slip=0.1), method) for method in METHODS]
    assert np.isfinite(fits).all()


def test_share_interval_by_hand():
    """Wilson at 0 of 10: upper end z^2 / (n + z^2) = 3.8415 / 13.8415."""
    assert share_interval(0, 10) == pytest.approx((0.0, 0.0, 3.8415 / 13.8415), abs=1e-4)
