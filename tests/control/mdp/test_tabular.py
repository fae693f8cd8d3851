"""Soft control on finite MDPs, and the identities that PPL rests on."""

import numpy as np
import pytest
import torch

from autotelic.control.mdp.fit import Segments, score_features
from autotelic.control.mdp.tabular import (
    FiniteMDP,
    evaluate,
    identity_errors,
    log_softmax,
    lookahead,
    optimise,
    random_mdp,
    random_policy,
    state_kl,
)
from autotelic.errors import UserError
from autotelic.functional.lookahead import (
    BiasedLookaheadWarning,
    Lookahead,
    categorical_kl,
    exact_lookahead,
    lookahead_weights,
)
from autotelic.functional.preference import ppl_score

CASES = [
    (seed, gamma, alpha, reference)
    for seed in range(3)
    for gamma in (0.5, 0.9, 0.99)
    for alpha in (0.1, 0.5, 2.0)
    for reference in (False, True)
]


def case(seed, gamma, alpha, reference):
    generator = np.random.default_rng(seed)
    mdp = random_mdp(generator, gamma=gamma, alpha=alpha, with_reference=reference)
    return mdp, random_policy(generator, mdp.rewards.shape)


@pytest.mark.parametrize(("seed", "gamma", "alpha", "reference"), CASES)
def test_identities_hold_and_their_wrong_versions_do_not(seed, gamma, alpha, reference):
    """54 random MDPs: the soft, KL-to-reference, value and entropy-free identities to 1e-8."""
    errors = identity_errors(*case(seed, gamma, alpha, reference))
    assert max(errors[name] for name in ("soft", "value", "entropy_free")) <= 1e-8
    assert errors["wrong_sign"] > 0.1
    assert errors["no_bonus"] > 0.01


def test_soft_values_by_hand():
    """One state, two actions of reward 1 and 0, alpha 1, episode ends: V* = log(e + 1), pi* = (e, 1) / (e + 1)."""
    mdp = FiniteMDP(np.zeros((1, 2, 1)), np.array([[1.0, 0.0]]), 1, 1)
    policy, q, value = optimise(mdp)
    np.testing.assert_allclose(value, [np.log(np.e + 1)])
    np.testing.assert_allclose(policy, [[np.e / (np.e + 1), 1 / (np.e + 1)]])
    np.testing.assert_allclose(q, [[1.0, 0.0]])
    uniform = np.full((1, 2), 0.5)
    np.testing.assert_allclose(evaluate(mdp, uniform)[1], [0.5 + np.log(2)])
    np.testing.assert_allclose(evaluate(mdp, uniform, bonus=False)[1], [0.5])


@pytest.mark.parametrize("reference", [False, True])
def test_values_match_slow_iteration(reference):
    mdp, policy = case(1, 0.9, 0.5, reference)
    pi_ref = np.ones_like(policy) if mdp.reference is None else mdp.reference
    v_pi, v_star = np.zeros(8), np.zeros(8)
    for _ in range(400):
        q_pi, q_star = (
            [[mdp.rewards[s, a] + 0.9 * mdp.transitions[s, a] @ v for a in range(3)] for s in range(8)]
            for v in (v_pi, v_star)
        )
        v_pi = np.array(
            [
                sum(policy[s, a] * (q_pi[s][a] - 0.5 * np.log(policy[s, a] / pi_ref[s, a])) for a in range(3))
                for s in range(8)
            ]
        )
        v_star = np.array(
            [0.5 * np.log(sum(pi_ref[s, a] * np.exp(q_star[s][a] / 0.5) for a in range(3))) for s in range(8)]
        )
    np.testing.assert_allclose(evaluate(mdp, policy)[1], v_pi, atol=1e-10)
    np.testing.assert_allclose(optimise(mdp)[2], v_star, atol=1e-10)


def test_exact_lookahead_agrees_between_torch_and_numpy():
    mdp, policy = case(2, 0.9, 0.5, False)
    log_pi = np.log(random_policy(np.random.default_rng(9), mdp.rewards.shape))
    ours = exact_lookahead(*map(torch.tensor, (mdp.transitions, policy, log_pi)), 0.9)
    np.testing.assert_allclose(ours, lookahead(mdp, policy, state_kl(policy, log_pi)), atol=1e-12)


def random_segments(generator, num_policies=2):
    states, actions = generator.integers(8, size=(6, 5)), generator.integers(3, size=(6, 5))
    valid = np.arange(5) < generator.integers(2, 6, size=(6, 1))
    scored = valid & (np.arange(5) < 3)
    return Segments(states, actions, valid, scored, generator.integers(num_policies, size=6))


@pytest.mark.parametrize("weights", ["regret", "mean"])
@pytest.mark.parametrize("future", ["observed", "in_segment"])
def test_tabular_features_are_the_score_of_the_functional_module(future, weights):
    """counts . log pi + constant is ppl_score with categorical KL on the same windows."""
    generator = np.random.default_rng(4)
    mdp = random_mdp(generator, branching=1)
    segments = random_segments(generator)
    policies = np.stack([random_policy(generator, mdp.rewards.shape) for _ in range(2)])
    log_pi = np.log(random_policy(generator, mdp.rewards.shape))
    with pytest.warns(BiasedLookaheadWarning):
        features = score_features(mdp, segments, policies, Lookahead(future=future, gamma=0.9, weights=weights))
    mask = torch.tensor(segments.valid if future == "observed" else segments.scored)
    counts = lookahead_weights(
        mask, 0.9, weights=weights, score_mask=torch.tensor(segments.scored), dtype=torch.float64
    )
    table = torch.tensor(log_pi)[torch.tensor(segments.states)]
    taken = table.gather(-1, torch.tensor(segments.actions)[..., None])[..., 0]
    label = torch.tensor(policies[segments.policy[:, None], segments.states])
    slow = ppl_score(taken, categorical_kl(label, table), counts, torch.tensor(segments.scored))
    np.testing.assert_allclose(features.scores(log_pi), slow, atol=1e-12)


@pytest.mark.parametrize("reference", [False, True])
def test_exact_features_are_the_regret_at_the_optimum(reference):
    """At pi = pi*, alpha times the exact score is minus the sum of regrets."""
    mdp, policy = case(3, 0.9, 0.5, reference)
    segments = random_segments(np.random.default_rng(1), num_policies=1)
    _, q, value = optimise(mdp)
    features = score_features(mdp, segments, policy[None], Lookahead(future="exact", gamma=0.9))
    step = (evaluate(mdp, policy)[0] - value[:, None])[segments.states, segments.actions]
    score = features.scores(log_softmax(q / mdp.alpha + mdp.log_reference))
    np.testing.assert_allclose(mdp.alpha * score, (step * segments.scored).sum(-1), atol=1e-10)


def test_a_finite_horizon_approaches_the_exact_lookahead():
    mdp, policy = case(5, 0.9, 0.5, False)
    segments = random_segments(np.random.default_rng(1), num_policies=1)
    log_pi = np.log(random_policy(np.random.default_rng(2), mdp.rewards.shape))
    exact = score_features(mdp, segments, policy[None], Lookahead(future="exact", gamma=0.9)).scores(log_pi)
    gaps = [
        np.abs(
            score_features(mdp, segments, policy[None], Lookahead(future="exact", gamma=0.9, horizon=h)).scores(log_pi)
            - exact
        ).max()
        for h in (1, 10, 300)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gamma": 1.5}, "gamma"),
        ({"alpha": 0.0}, "alpha"),
        ({"transitions": np.full((1, 2, 1), 1.5)}, "transitions"),
        ({"reference": np.array([[1.0, 0.0]])}, "reference"),
    ],
)
def test_what_is_no_mdp_is_refused(change, words):
    parts = {"transitions": np.zeros((1, 2, 1)), "rewards": np.zeros((1, 2)), "gamma": 0.9, "alpha": 1.0} | change
    with pytest.raises(UserError, match=words):
        FiniteMDP(**parts)


def test_the_exact_lookahead_needs_the_mdps_discount():
    mdp, policy = case(1, 0.9, 0.5, False)
    with pytest.raises(UserError, match="gamma"):
        score_features(mdp, random_segments(np.random.default_rng(0), 1), policy[None], Lookahead(future="exact"))
