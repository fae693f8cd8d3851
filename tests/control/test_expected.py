"""The expected look-ahead: by hand, against closed forms, and the gradient and value that training sees."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from autotelic.control.behavior_labels import policy_labels
from autotelic.control.episodes import Episode
from autotelic.control.expected import Features, calibrated, fit_expected, least_squares
from autotelic.control.learners import PreferenceLearner
from autotelic.control.mdp.lqr import ahead, discounted, optimum, point_control, point_policy, state_kl
from autotelic.control.mdp.lqr_moments import roll_out
from autotelic.control.objectives import all_scores, expected_lookahead, scores
from autotelic.control.segments import Preferences
from autotelic.control.settings import TrainSettings
from autotelic.control.training import labelled_pairs
from autotelic.errors import UserError

SMALL = TrainSettings(hidden=(8,), bc_steps=2, steps=3, batch_pairs=4, dropout=0.0, gamma=0.9)


@pytest.mark.parametrize("trace", [0.0, 0.5, 1.0])
def test_a_loop_of_two_states_by_hand(trace):
    """States 0, 1, 0, 1, ..., one-hot features, gamma 1/2, d = (0, 3).

    From 0 the sum over l >= 1 is 3/2 + 3/8 + ... = 2, from 1 it is 3/4 + ... = 1; from l = 0 on, 2 and 4.
    """
    phi = torch.eye(2)[torch.arange(41) % 2]
    divergence = torch.tensor([0.0, 3.0])[torch.arange(41) % 2]
    for after, expected in ((True, [2.0, 1.0]), (False, [2.0, 4.0])):
        rows, _ = least_squares([phi], 0.5, after, trace)
        torch.testing.assert_close((rows[0] * divergence[:, None]).sum(0), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def linear_rollouts(generator, policies, episodes, steps=40):
    """Episodes of linear behaviours on linear-Gaussian control; observations leave out the constant 1."""
    problem = point_control(slip=0.5)
    policy = np.arange(episodes) % len(policies)
    starts = np.c_[generator.normal(size=(episodes, 4)) * [1, 1, 0.5, 0.5], np.ones(episodes)]
    states, actions = roll_out(problem, policies, policy, starts, steps, generator)
    return problem, [
        Episode(
            s[:, :4].astype(np.float32),
            a.astype(np.float32),
            np.zeros(steps, np.float32),
            np.zeros(steps, bool),
            int(p),
        )
        for s, a, p in zip(states, actions, policy, strict=True)
    ]


@pytest.mark.parametrize("tail", [False, True])
def test_the_bias_falls_with_data_on_the_exact_problem(tail, generator):
    """Regressed against closed form: KL(mu || pi*) after a segment, for two behaviours and noisy dynamics."""
    policies = [point_policy(2.2, 1.0, 0.2, 0.5), point_policy(0.8, 1.0, 0.6, 0.5)]
    errors = []
    for count in (20, 600):
        problem, episodes = linear_rollouts(generator, policies, count)
        best, home = optimum(problem)[0], np.arange(count) % 2
        start, length = np.full(20, 3), np.full(20, 2)
        pairs = Preferences(np.arange(20), start, length, *np.zeros((2, 1), int), np.zeros(1, np.float32))
        found = fit_expected(episodes, home, home, None, pairs, problem.gamma, tail)
        kl = [state_kl(mu, best) for mu in policies]
        full = [np.c_[e.observations[:-1].astype(float), np.ones(len(e))] for e in episodes]
        order = np.concatenate([np.flatnonzero(home == k) for k in (0, 1)])
        values = torch.from_numpy(np.concatenate([kl[home[i]].at(full[i]) for i in order])).float()
        got = found.of(found.complete(values.__getitem__), torch.arange(20))
        exact = []
        for i in range(20):
            later, x, a = (
                discounted(problem, policies[home[i]], kl[home[i]]),
                full[i],
                episodes[i].actions.astype(float),
            )
            exact.append(
                problem.gamma**2 * later.at(x[5:6])[0] if tail else ahead(problem, later, x[3:5], a[3:5]).sum()
            )
        errors.append(float(np.sqrt(np.mean((got.numpy() - exact) ** 2)) / np.std(exact)))
    assert errors[1] < 0.15 and errors[1] < 0.5 * errors[0]


@pytest.fixture
def preferences():
    return Preferences(
        np.array([0, 1, 4, 7]), np.array([0, 3, 17, 15]), np.array([5, 5, 3, 5]),
        np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([1.0, 0.0, 1.0], dtype=np.float32),
    )  # fmt: skip


def build(episodes, preferences, kind="known", **change):
    settings = replace(SMALL, labels=kind if change.get("method", "ppl") == "ppl" else "known", **change)
    data = labelled_pairs(settings, episodes, preferences, policy_labels(kind, episodes, 0))
    return PreferenceLearner(settings, data, squash=True)


@pytest.mark.parametrize("method", ["ppl", "ppl_d"])
def test_value_and_gradient_are_those_of_the_regression(episodes, preferences, method):
    """With few states, every one is in every sample: value and gradient equal those of the complete sum."""
    model = build(episodes, preferences, method=method)
    rows = torch.arange(4)
    ahead_of = expected_lookahead(model.policy, model.data, model.lookahead, "drop", torch.Generator().manual_seed(0))
    sampled, _ = scores(model.policy, model.data, rows, model.lookahead, "drop", ahead_of)
    whole = all_scores(model.policy, model.data, model.lookahead, "drop")
    torch.testing.assert_close(sampled.detach(), whole, rtol=1e-4, atol=1e-4)
    weight, values = model.policy.body[0].weight, []
    got = torch.autograd.grad(sampled.sum(), weight)[0]
    for shift in (1e-2, -2e-2):
        with torch.no_grad():
            weight[2, 1] += shift
        values.append(float(all_scores(model.policy, model.data, model.lookahead, "drop").sum()))
    assert float(got[2, 1]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.02, abs=0.02)


def many_states(generator):
    """4000 states of 3 features; c of two columns, large where a feature is; a d that is linear in them, and a rest."""
    features = torch.from_numpy(generator.normal(size=(4000, 3))).float()
    coefficients = torch.stack([features[:, 0] ** 3, features[:, 1]], -1)
    return features, coefficients, features @ torch.tensor([1.0, -2.0, 0.5]), features[:, 1] ** 2


def test_calibrated_rows_are_exact_where_the_divergence_is_linear_in_the_features(generator):
    """The shifted coefficients reproduce sum_j c_j d_j from 50 of 4000 rows; the drawn ones alone do not."""
    features, coefficients, linear, _ = many_states(generator)
    chance = torch.full((4000,), 1 / 4000)
    rows, calibrated_to = calibrated(coefficients, features, chance, 50, torch.Generator().manual_seed(0))
    whole = linear @ coefficients
    torch.testing.assert_close(linear[rows] @ calibrated_to, whole, rtol=1e-4, atol=1e-1)
    assert ((linear[rows] @ coefficients[rows] * 80 - whole).abs() > 0.05 * whole.abs()).all()


def test_calibrated_rows_are_unbiased_and_better_than_even_draws(generator):
    """For a d that is not linear, the mean over draws is the whole sum; the error is below that of even draws."""
    features, coefficients, linear, rest = many_states(generator)
    divergence, draw = linear + rest, torch.Generator().manual_seed(0)
    effect = coefficients.square().sum(-1).sqrt()
    chance = 0.5 / 4000 + 0.5 * effect / effect.sum()
    found, even = [], []
    for _ in range(200):
        rows, weights = calibrated(coefficients, features, chance, 200, draw)
        found.append(divergence[rows] @ weights)
        rows = torch.randint(4000, (200,), generator=draw)
        even.append(20 * divergence[rows] @ coefficients[rows])
    whole, found, even = divergence @ coefficients, torch.stack(found), torch.stack(even)
    assert ((found.mean(0) - whole).abs() < 0.25 * found.std(0)).all()  # the calibration's own bias is of order 1 / n
    assert (found.std(0) < torch.tensor([0.4, 0.8]) * even.std(0)).all()


def sampled_model(episodes, preferences, monkeypatch, **change):
    import autotelic.control.expected as module

    monkeypatch.setattr(module, "SAMPLED", 60)
    return build(episodes, preferences, **change)


def test_a_sample_follows_the_policy_at_once(episodes, preferences, monkeypatch):
    """After a jump of the policy the look-ahead is that of the new one: nothing is remembered from updates before."""
    model = sampled_model(episodes, preferences, monkeypatch, steps=9)
    rows = torch.arange(4)
    assert len(model.data.expected.samples[0][0][0]) == 60 < model.data.expected.bounds[1]
    for _ in range(5):
        model.update()
    before = all_scores(model.policy, model.data, model.lookahead, "drop")
    with torch.no_grad():
        model.policy.body[-1].bias += 1.0
    whole = all_scores(model.policy, model.data, model.lookahead, "drop")
    one = expected_lookahead(model.policy, model.data, model.lookahead, "drop", torch.Generator().manual_seed(0))
    sampled = scores(model.policy, model.data, rows, model.lookahead, "drop", one)[0].detach()
    assert (sampled - whole).abs().max() < 0.1 * (before - whole).abs().max()


def test_a_run_of_sampled_states_resumes(episodes, preferences, monkeypatch):
    one = sampled_model(episodes, preferences, monkeypatch, steps=9)
    losses = [one.update() for _ in range(5)]
    state = copy.deepcopy(one.state_dict())
    rest = [one.update() for _ in range(4)]
    two = sampled_model(episodes, preferences, monkeypatch, steps=9)
    two.load_state_dict(state)
    assert [two.update() for _ in range(4)] == rest and np.isfinite(losses + rest).all()


def test_wrong_labels_look_ahead_under_the_other_policy(episodes, preferences, monkeypatch):
    import autotelic.control.behavior_labels as labels

    monkeypatch.setattr(labels, "UPDATES", 50)
    right, wrong = (build(episodes, preferences, kind) for kind in ("estimated", "wrong"))
    assert (right.data.expected.owner != wrong.data.expected.owner).all()
    torch.testing.assert_close(right.data.expected.label_mean, wrong.data.expected.label_mean)
    a, b = (all_scores(m.policy, m.data, m.lookahead, "drop") for m in (right, wrong))
    assert not torch.allclose(a, b)


def test_tail_discounts_the_segment_and_looks_ahead_once(episodes, preferences):
    cpl, plain = build(episodes, preferences, method="cpl", weights="tail"), build(episodes, preferences, method="cpl")
    rows = torch.arange(4)
    score, logprobs = scores(cpl.policy, cpl.data, rows, cpl.lookahead, "drop")
    discounts = 0.9 ** torch.arange(5.0)
    torch.testing.assert_close(score, (logprobs * discounts).masked_fill(~cpl.data.mask, 0).sum(-1))
    assert not torch.allclose(score, scores(plain.policy, plain.data, rows, plain.lookahead, "drop")[0])
    ppl = build(episodes, preferences, weights="tail")
    assert ppl.data.expected.segments.shape[1] == Features(torch.zeros(3, 6))(torch.zeros(1, 6)).shape[1]
    assert all(np.isfinite([ppl.update() for _ in range(4)]))


def test_many_dimensions_take_random_features():
    rows = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert Features(rows)(rows).shape == (50, 1 + 20 + 256)


def test_an_episode_of_one_step_is_refused(episodes, preferences):
    short = [replace(episodes[0], observations=episodes[0].observations[:2], actions=episodes[0].actions[:1])]
    with pytest.raises(UserError, match="2 or more"):
        fit_expected(short, np.zeros(1, int), np.zeros(1, int), None, preferences, 0.9, False)
