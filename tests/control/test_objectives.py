"""The objectives on segment pairs: PPL without look-ahead is CPL bit for bit, against a slow loop, cached weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autotelic.control.behavior_labels import policy_labels
from autotelic.control.learners import IQLLearner, PreferenceLearner, reference_logprobs
from autotelic.control.objectives import all_scores, calibrated_nll, pair_data, scores, segment_steps
from autotelic.control.segments import Preferences
from autotelic.control.settings import TrainSettings
from autotelic.control.training import weights_note
from autotelic.errors import UserError
from autotelic.functional.lookahead import gaussian_kl

SMALL = TrainSettings(
    hidden=(8,), bc_steps=2, steps=3, batch_pairs=4, dropout=0.0, constants="keep", future="in_segment"
)


@pytest.fixture
def preferences():
    """Four segments, of 5, 5, 3 and 5 steps, and three pairs."""
    return Preferences(
        np.array([0, 1, 4, 7]),
        np.array([0, 3, 17, 15]),
        np.array([5, 5, 3, 5]),
        np.array([0, 1, 2]),
        np.array([1, 2, 3]),
        np.array([1.0, 0.0, 1.0], dtype=np.float32),
    )


@pytest.fixture
def data(episodes, preferences):
    steps = segment_steps(preferences, episodes)
    return pair_data(episodes, preferences, steps, policy_labels("known", episodes, 0).at((steps.episode, steps.step)))


def learner(data, **change):
    return PreferenceLearner(replace(SMALL, **change), data, squash=True)


def test_gathered_steps_are_the_episodes_own(episodes, data):
    assert data.mask.sum(-1).tolist() == [5, 5, 3, 5]
    np.testing.assert_array_equal(data.observations[2, :3], episodes[4].observations[17:20])
    np.testing.assert_array_equal(data.actions[3], episodes[7].actions[15:20])
    np.testing.assert_array_equal(data.label_mean[1], episodes[1].mean[3:8])


@pytest.mark.parametrize("future", ["in_segment", "observed"])
@pytest.mark.parametrize("weights", ["regret", "mean"])
def test_ppl_score_against_a_slow_loop(episodes, preferences, weights, future):
    """The observed look-ahead goes on to the episode's end; only the segment's own steps are scored."""
    steps = segment_steps(preferences, episodes, future == "observed")
    label = policy_labels("known", episodes, 0).at((steps.episode, steps.step))
    data = pair_data(episodes, preferences, steps, label)
    model = learner(data, weights=weights, gamma=0.9, future=future)
    reach = data.mask if future == "in_segment" else data.valid
    assert reach.sum(-1).tolist() == ([5, 5, 3, 5] if future == "in_segment" else [20, 17, 3, 5])
    score, _ = scores(model.policy.eval(), model.data, torch.arange(4), model.lookahead)
    mean, log_std = model.policy(data.observations)
    lp = model.policy.logprob(data.actions, mean, log_std).detach()
    mean, log_std, score = mean.detach(), log_std.detach(), score.detach()
    for row in range(4):
        own, n, total = int(data.mask[row].sum()), int(reach[row].sum()), 0.0
        for t in range(own):
            total += float(lp[row, t])
            ahead = 0.0
            for later in range(t + 1, n):
                m, s = data.label_mean[row, later], data.label_log_std[row, later].exp()
                p, q = mean[row, later], log_std[row, later].exp()
                kl = float((q.log() - s.log() + (s**2 + (m - p) ** 2) / (2 * q**2) - 0.5).sum())
                ahead += 0.9 ** (later - t) * kl
            total -= ahead / max(1, n - 1 - t) if weights == "mean" else ahead
        assert float(score[row]) == pytest.approx(total, rel=1e-4)


def test_ppl_without_lookahead_is_cpl_bit_for_bit(data):
    runs = [learner(data, method="cpl"), learner(data, lookahead_coef=0.0), learner(data)]
    losses = [[run.update() for _ in range(5)] for run in runs]
    assert losses[0] == losses[1]
    assert losses[0][:2] == losses[2][:2] and losses[0][2:] != losses[2][2:]
    for one, two in zip(runs[0].policy.parameters(), runs[1].policy.parameters(), strict=True):
        assert torch.equal(one, two)


def test_ppl_d_is_step_weighted_cpl(data):
    """The Dirac look-ahead adds its weights to CPL's: S = sum_t (1 + w_t) log pi_t."""
    model = learner(data, method="ppl_d")
    score, logprobs = scores(model.policy, model.data, torch.arange(4), model.lookahead)
    slow = ((1 + model.data.weights) * logprobs).masked_fill(~data.mask, 0).sum(-1)
    torch.testing.assert_close(score, slow)


def test_dpo_starts_at_indifference(data):
    """Before its first update the policy is its reference: every score is 0, the loss log 2."""
    model = learner(data, method="dpo")
    losses = [model.update() for _ in range(3)]
    assert losses[2] == pytest.approx(np.log(2), abs=1e-5)
    torch.testing.assert_close(model.data.ref_logprobs.shape, data.mask.shape)


def test_the_entropy_of_labels_shifts_scores_and_not_their_gradient(data):
    results = []
    for kind in ("include", "drop"):
        model = learner(data, label_entropy=kind)
        score, _ = scores(model.policy, model.data, torch.arange(4), model.lookahead)
        gradient = torch.autograd.grad(score.sum(), list(model.policy.body.parameters()))
        results.append((score.detach(), gradient))
    assert not torch.allclose(results[0][0], results[1][0])
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_dropped_constants_shift_scores_by_as_much_per_step(data):
    """log pi loses -A log(std sqrt(2 pi)) and the log slope of tanh; the KL what it is between equal means."""
    model = learner(data, gamma=1.0)
    rows, (mean, log_std) = torch.arange(4), model.policy(data.observations)
    for lookahead in (model.settings.lookahead("cpl"), model.settings.lookahead("ppl")):
        kept, dropped = (scores(model.policy, model.data, rows, lookahead, c)[0] for c in ("keep", "drop"))
        at_mean = model.policy.logprob(data.actions, data.actions, log_std).masked_fill(~data.mask, 0).sum(-1)
        constant = gaussian_kl(mean, data.label_log_std, mean, log_std)
        ahead = (model.data.weights * constant).sum(-1) if lookahead.future != "none" else 0
        torch.testing.assert_close(kept - dropped, at_mean - ahead, rtol=1e-3, atol=1e-3)


def test_dropped_constants_change_nothing_at_lambda_one(data):
    """Squashing aside: equal lengths and label stds, lambda 1."""
    three = replace(data, first=data.first[:1], second=data.second[:1], label=data.label[:1])
    gradients = []
    for kind in ("keep", "drop"):
        model = PreferenceLearner(replace(SMALL, bias=1.0, constants=kind, method="cpl"), three, squash=False)
        gradients.append(torch.autograd.grad(model.objective(), list(model.policy.body.parameters())))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_padding_is_never_read(data):
    poisoned = replace(
        data,
        actions=data.actions.masked_fill(~data.mask[..., None], 1e6),
        label_mean=data.label_mean.masked_fill(~data.mask[..., None], 1e6),
    )
    for method in ("cpl", "ppl", "ppl_d"):
        one, two = (learner(d, method=method) for d in (data, poisoned))
        a, b = (all_scores(m.policy, m.data, m.lookahead) for m in (one, two))
        assert torch.equal(a, b)


def test_order_of_sides_changes_nothing(data):
    flipped = replace(data, first=data.second, second=data.first, label=1 - data.label)
    for method in ("cpl", "ppl", "sft"):
        one, two = (learner(d, method=method, bias=0.5) for d in (data, flipped))
        for _ in range(2):
            assert one.update() == two.update()
        assert one.update() == pytest.approx(two.update(), rel=1e-5)


def test_batch_scores_do_not_depend_on_the_batch(data):
    model = learner(data)
    together = all_scores(model.policy, model.data, model.lookahead)
    alone = torch.cat([scores(model.policy, model.data, torch.tensor([i]), model.lookahead)[0] for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_a_known_preference_is_learned(data):
    """Two updates are not enough, two hundred are: the loss falls and every pair is ranked as labelled."""
    model = learner(data, steps=200, bias=1.0, lr=0.01)
    losses = [model.update() for _ in range(202)]
    assert losses[-1] < 0.7 * losses[3]
    score = all_scores(model.policy, model.data, model.lookahead)
    assert ((score[data.second] > score[data.first]).float() == data.label).all()


def test_state_dict_resumes_exactly(data, episodes):
    for build in (
        lambda: learner(data, method="dpo", dropout=0.3),
        lambda: IQLLearner(replace(SMALL, method="p_iql", steps=8), data, True, episodes),
    ):
        torch.manual_seed(1)
        whole = build()
        expected = [whole.update() for _ in range(10)]
        torch.manual_seed(1)
        first = build()
        got = [first.update() for _ in range(5)]
        state = first.state_dict()
        torch.manual_seed(2)
        second = build()
        second.load_state_dict(state)
        assert got + [second.update() for _ in range(5)] == expected


def test_iql_prefers_what_is_preferred(data, episodes):
    model = IQLLearner(replace(SMALL, method="p_iql", bc_steps=0, steps=200, lr=0.01), data, True, episodes)
    first = [model.update() for _ in range(100)]
    assert first[-1] < 0.5 * first[0]
    assert all(np.isfinite([model.update() for _ in range(20)]))


def test_reference_logprobs_are_those_of_the_policy(data):
    model = learner(data, method="cpl")
    mean, log_std = model.policy.eval()(data.observations)
    torch.testing.assert_close(
        reference_logprobs(model.policy, data), model.policy.logprob(data.actions, mean, log_std).detach()
    )


def test_calibrated_nll_ignores_scale_and_keeps_order():
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(4000, generator=generator)
    label = (torch.rand(4000, generator=generator) < torch.sigmoid(2 * margin)).float()
    held = torch.arange(4000) % 2 == 0
    small, large, flipped = (calibrated_nll(c * margin, label, held)[0] for c in (0.01, 30.0, -1.0))
    assert small == pytest.approx(large, abs=1e-3)
    exact = float(
        -(label * torch.sigmoid(2 * margin).log() + (1 - label) * torch.sigmoid(-2 * margin).log())[held].mean()
    )
    assert small == pytest.approx(exact, abs=5e-3)
    assert flipped > np.log(2) - 1e-3


@pytest.mark.parametrize("kind", ["estimated", "pooled", "wrong", "shuffled"])
def test_cloned_labels(episodes, preferences, kind, monkeypatch):
    """Estimated labels come near the truth; wrong ones are the other behaviour's."""
    import autotelic.control.behavior_labels as labels

    monkeypatch.setattr(labels, "UPDATES", 250)
    steps = segment_steps(preferences, episodes)
    where = (steps.episode, steps.step)
    known, _ = policy_labels("known", episodes, 0).at(where)
    labels = policy_labels(kind, episodes, 0)
    mean, log_std = labels.at(where)
    assert labels.stochastic and (labels.owner != labels.home).any() == (kind in ("wrong", "shuffled"))
    assert mean.shape == known.shape and torch.isfinite(log_std).all()
    error = (mean - known).abs().mean()
    low, high = {"estimated": (0, 0.35), "pooled": (0, 1)}.get(kind, (0.45, 9))
    assert low < error < high


def test_labels_that_are_missing_or_unknown_are_refused(episodes):
    bare = [*episodes[:3], replace(episodes[3], mean=None, log_std=None, logprobs=None), *episodes[4:]]
    with pytest.raises(
        UserError, match=r"here/data, episode 3: behaviour parameters are missing .* --labels estimated"
    ):
        policy_labels("known", bare, 0, "here/data")
    assert policy_labels("deterministic", bare, 0).label is None
    with pytest.raises(UserError, match="did you mean 'pooled'"):
        policy_labels("poold", episodes, 0)
    with pytest.raises(UserError, match="two policy ids"):
        policy_labels("wrong", [replace(e, policy=0) for e in episodes], 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "pl"}, "did you mean 'ppl'"),
        ({"bias": 0.0}, "bias"),
        ({"lr": 0.0}, "lr"),
        ({"gamma": 1.5}, "gamma"),
        ({"method": "cpl", "labels": "wrong"}, "read by ppl only"),
        ({"method": "cpl", "label_model": "auto"}, "auto decides"),
        ({"eval_every": 0}, "eval_every"),
        ({"hidden": (0,)}, "hidden"),
        ({"expectile": 0.4}, "expectile"),
        ({"seed": -1}, "seed"),
        ({"future": "expected", "lookahead_horizon": 3}, "no horizon"),
        ({"future": "expected", "weights": "mean"}, "needs divergence"),
        ({"weights": "tail"}, "future='observed' or 'expected'"),
    ],
)
def test_bad_training_settings_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        replace(SMALL, **change)


def test_a_score_that_counts_the_future_otherwise_than_its_judge_is_named():
    ppl = replace(SMALL, method="ppl", future="expected", weights="regret")
    assert "Use weights tail" in str(weights_note(ppl, "regret_tail"))
    assert "Use weights regret" in str(weights_note(replace(ppl, weights="tail"), "regret"))
    fitting = [(ppl, "regret"), (replace(ppl, weights="tail"), "regret_tail"), (ppl, "advantage"), (ppl, None)]
    assert [weights_note(*pair) for pair in (*fitting, (replace(ppl, method="cpl"), "regret_tail"))] == [None] * 5
