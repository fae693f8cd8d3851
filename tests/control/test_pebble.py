"""PEBBLE and soft actor-critic: densities, targets, rewards by hand, relabelling, questions, exploration, learning."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from autotelic.control.episodes import collect, roll_out
from autotelic.control.networks import GaussianPolicy, Standardise
from autotelic.control.online import build_student, run_online
from autotelic.control.pebble import Noise, Pebble, RewardEnsemble, state_entropy
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.control.sac import SAC, TAU, Transitions, soft_target, transitions
from autotelic.control.segments import Preferences, merge_preferences
from autotelic.control.settings import OnlineSettings, PebbleSettings, TrainSettings
from autotelic.control.training import evaluate, train
from autotelic.errors import UserError

FAST = TrainSettings(
    method="pebble", hidden=(16,), bc_steps=5, steps=6, eval_episodes=4, num_envs=4, horizon=15, lr=1e-3
)
SMALL = PebbleSettings(interact_episodes=8, reward_updates=5, sac_batch=32, reward_batch=8)


def policy(hidden=(16,), size=6, width=2):
    torch.manual_seed(0)
    return GaussianPolicy(size, width, hidden, std=None, squash=True)


def batch(count=64, reward=1.0):
    torch.manual_seed(1)
    return Transitions(
        torch.randn(count, 6), torch.rand(count, 2) * 2 - 1, torch.randn(count, 6), torch.full((count,), reward)
    )


def test_soft_target_by_hand():
    """1 + .9 (min(2, 3) - .2 * (-.5)) = 1 + .9 * 2.1 = 2.89."""
    one = torch.tensor([1.0])
    assert soft_target(one, 2 * one, 3 * one, -0.5 * one, 0.2, 0.9).item() == pytest.approx(2.89)


def test_log_density_is_that_of_the_squashed_sample():
    """Against the change of variables by autograd, and against a numerical integral of exp(log pi) da = 1."""
    sac = SAC(policy(), (16,), 1e-3, 0.99, seed=0)
    state = torch.randn(5, 6)
    mean, log_std = sac.actor(state)
    action, logprobs = sac.sample(state)
    base = torch.atanh(action.double())
    normal = torch.distributions.Normal(mean.double(), log_std.double().exp()).log_prob(base).sum(-1)
    slope = torch.autograd.functional.jacobian(lambda u: torch.tanh(u).sum(0), base).diagonal(dim1=0, dim2=2)
    torch.testing.assert_close(logprobs.double(), normal - slope.log().sum(-1), rtol=1e-3, atol=1e-3)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    density = sac.actor.logprob(grid, torch.full_like(grid, 0.3), torch.full_like(grid, -0.5)).exp()
    assert torch.trapezoid(density, torch.tanh(grid[:, 0])).item() == pytest.approx(1.0, abs=1e-4)


def test_values_of_a_constant_reward_and_targets_that_follow_slowly():
    """Reward 1, gamma .2, no entropy: Q is 1 / (1 - .2) = 1.25 everywhere."""
    sac = SAC(policy(), (), 1e-2, 0.2, seed=0)
    sac.log_temperature.data.fill_(-20)
    before = [p.clone() for p in sac.target.parameters()]
    sac.critic_update(batch())
    moved = zip(before, sac.critic.parameters(), sac.target.parameters(), strict=True)
    assert all(torch.allclose(target, old + TAU * (new - old)) for old, new, target in moved)
    for _ in range(800):
        sac.critic_update(batch())
    first, second = sac.critic(batch().observations, batch().actions)
    assert torch.allclose(first, torch.full((64,), 1.25), atol=0.03) and torch.allclose(second, first, atol=0.03)


@pytest.mark.parametrize(("log_std", "falls"), [(0.9, True), (-2.9, False)])
def test_the_temperature_moves_entropy_to_its_target(log_std, falls):
    """Entropy above -dim(a) lowers the temperature, entropy below raises it; the actor hardly moves in five updates."""
    actor = policy(hidden=())
    actor.body[-1].weight.data.zero_()  # pyright: ignore
    share = (log_std + 3) / 4
    actor.body[-1].bias.data = torch.tensor([0.0, 0.0, *[math.log(share / (1 - share))] * 2])  # pyright: ignore
    sac = SAC(actor, (16,), 1e-3, 0.99, seed=0)
    for _ in range(5):
        sac.update(batch())
    assert (sac.temperature < 0.1) == falls


def test_critics_and_targets_share_the_actors_standardisation():
    """Fitted after construction, and after a deep copy: a target of its own would read other inputs than its critic."""
    sac = SAC(policy(), (16,), 1e-3, 0.99, seed=0)
    sac.actor.inputs.fit(torch.randn(50, 6) * 3 + 1)
    one, two = sac.critic(*(batch().observations, batch().actions)), sac.target(batch().observations, batch().actions)
    torch.testing.assert_close(one, two)


@pytest.mark.slow
def test_sac_solves_the_points_with_their_own_reward():
    environment = PointReach(32, 50)
    actor = policy((32,))
    sac, seen, behavior = SAC(actor, (32,), 2e-3, 0.95, seed=0), None, Noise(2)
    generator = torch.Generator().manual_seed(0)
    for wave in range(14):
        rows = roll_out(environment, behavior, wave, squash=True)
        new = transitions(rows).relabelled(torch.from_numpy(np.concatenate([e.rewards for e in rows])))
        if seen is None:
            actor.inputs.fit(new.observations)
        seen, behavior = new if seen is None else seen.joined(new), actor
        for _ in range(60):
            sac.update(seen.take(torch.randint(len(seen), (128,), generator=generator)))
    assert evaluate(actor, environment, 32, 0, True)["eval/return"] > -15  # noise gets about -49, the script -4


def test_state_entropy_by_hand():
    """Points 0, 1, 3 on a line: nearest neighbours at 1, 1, 2; second ones at 3, 2, 3."""
    points = torch.tensor([[0.0], [1.0], [3.0]])
    assert state_entropy(points, points, 1).exp().tolist() == pytest.approx([1, 1, 2])
    assert state_entropy(points, points, 2).exp().tolist() == pytest.approx([3, 2, 3])


def ensemble(weights, hidden=()):
    """Networks r = tanh(w . (s, a)) of one state and one action dimension."""
    reward = RewardEnsemble(Standardise(1), 1, replace(FAST, hidden=hidden), len(weights), torch.Generator())
    for member, weight in zip(reward.members, weights, strict=True):
        member[0].weight.data = torch.tensor([weight])  # pyright: ignore
        member[0].bias.data.zero_()  # pyright: ignore
    return reward


def pairs(first, second, label):
    """One pair of segments; rows are (state, u), and the shorter one is padded with something absurd."""
    from autotelic.control.objectives import PairData

    length = max(len(first), len(second))
    rows = torch.tensor([[*s, *[(99.0, 99.0)] * (length - len(s))] for s in (first, second)])
    mask = torch.tensor([[i < len(s) for i in range(length)] for s in (first, second)])
    index = torch.tensor([0]), torch.tensor([1])
    return PairData(rows[..., :1], rows[..., 1:], mask, mask, *index, torch.tensor([label]))


def test_bradley_terry_by_hand():
    """r = tanh(s + a): sums tanh(1) + tanh(-1) = 0 and tanh(.5), so P = sigma(tanh .5) = sigma(.4621) = .6135."""
    reward = ensemble([[1.0, 1.0]])
    data = pairs([(1.0, 0.0), (-1.0, 0.0)], [(0.5, 0.0)], 1.0)
    assert reward.probabilities(data).item() == pytest.approx(0.6135, abs=1e-4)
    data = pairs([(0.0, 0.7)], [(0.0, 0.7), (0.0, -0.7)], 1.0)  # actions are those that were sent: tanh(.7) = .6044
    assert reward.probabilities(data).item() == pytest.approx(1 / (1 + math.exp(math.tanh(0.6044))), abs=1e-4)


def test_fitting_moves_every_network_to_the_answers():
    reward = ensemble([[-1.0, 0.0], [-0.5, 0.3]])
    data = pairs([(-1.0, 0.2)], [(1.0, 0.1)], 1.0)
    assert (reward.probabilities(data) < 0.5).all()
    reward.optimizer.param_groups[0]["lr"] = 0.05
    reward.fit(data, updates=100, batch=4)
    assert (reward.probabilities(data) > 0.8).all()


def test_the_question_is_where_networks_differ(episodes):
    """Two networks that disagree on the state alone: pairs whose states differ are asked about first."""
    student = build_student(
        OnlineSettings(), FAST, replace(SMALL, queries="disagreement", members=2), PointReach(4, 20)
    )
    assert isinstance(student, Pebble) and student.candidates == 10
    student.reward = RewardEnsemble(Standardise(6), 2, replace(FAST, hidden=()), 2, torch.Generator())
    for member, sign in zip(student.reward.members, (1.0, -1.0), strict=True):
        member[0].weight.data = torch.tensor([[sign, *[0.0] * 7]])  # pyright: ignore
        member[0].bias.data.zero_()  # pyright: ignore
    count = len(episodes)
    index = np.arange(count)
    drawn = Preferences(index, index * 0, index * 0 + 5, index, np.roll(index, 1), np.full(count, 0.5, np.float32))
    sums = np.array([np.tanh(e.observations[:5, 0]).sum() for e in episodes])
    expected = np.argsort(-np.abs(np.tanh((sums - np.roll(sums, 1)) / 2)))[:3]
    assert set(student.choose(episodes, drawn, 3)) == set(expected)


def asked(episodes, count=12, seed=0):
    generator = np.random.default_rng(seed)
    first, second = np.arange(count), np.arange(count) + count
    index = generator.integers(0, len(episodes), 2 * count)
    start = generator.integers(0, 10, 2 * count)
    length = np.full(2 * count, 5)
    score = np.array([episodes[i].rewards[s : s + 5].sum() for i, s in zip(index, start, strict=True)])
    label = (score[second] > score[first]).astype(np.float32)
    return Preferences(index, start, length, first, second, label)


def student_after(episodes, settings=SMALL, rounds=1):
    student = Pebble(settings, FAST, PointReach(4, 15))
    for number in range(rounds):
        student.learn(episodes, episodes, [asked(episodes, seed=i) for i in range(number + 1)])
    return student


def test_every_reward_in_the_buffer_is_the_present_networks():
    """After each round, those of the first episodes included; the environment's own rewards are never read."""
    rows = collect(PointReach(4, 15), LinearBehavior(), 8, 0, True)
    one = student_after(rows)
    stored = one.seen
    assert stored is not None and len(stored) == 8 * 15 + one.env_steps == 8 * 15 + 8 * 15
    torch.testing.assert_close(stored.rewards, one.reward.relabel(stored).rewards)
    one.learn(rows, rows[:1], [asked(rows), asked(rows, seed=1)])
    assert one.seen is not None and not torch.equal(one.seen.rewards[: len(stored)], stored.rewards)
    torch.testing.assert_close(one.seen.rewards, one.reward.relabel(one.seen).rewards)
    questions = asked(rows)
    changed = [replace(e, rewards=e.rewards * 0 + 7) for e in rows]
    students = [Pebble(SMALL, FAST, PointReach(4, 15)) for _ in range(2)]
    for student, seen in zip(students, (rows, changed), strict=True):
        student.learn(seen, seen, [questions])
    weights = [torch.cat([p.flatten() for p in s.policy.parameters()]) for s in students]
    assert torch.equal(*weights)


def test_clones_start_as_the_behaviour_and_others_from_nothing():
    environment = PointReach(4, 15)
    rows = collect(environment, LinearBehavior(std=0.5), 32, 0, True)
    settings = replace(SMALL, from_clone=True, critic_updates=3)
    student = Pebble(settings, replace(FAST, bc_steps=400, hidden=(32,), lr=5e-3), environment)
    assert student.actor is None
    student.learn(rows, rows, [asked(rows)])
    states = np.concatenate([e.observations[:-1] for e in rows])
    assert student.first is not None and student.actor is student.policy
    mean, log_std = student.first.parameters_at(states)
    target = LinearBehavior(std=0.5).parameters_at(states)[0]
    assert np.abs(mean - target).mean() < 0.3 * np.abs(target).mean()
    assert np.exp(log_std).mean() == pytest.approx(0.5, abs=0.12)
    assert isinstance(Pebble(SMALL, FAST, environment).actor, Noise)


def test_exploration_comes_before_the_first_answer_and_leaves_no_values():
    student = Pebble(replace(SMALL, explore_episodes=8), FAST, PointReach(4, 15))
    assert student.env_steps == 8 * 15 and student.actor is student.policy and student.updates > 0
    fresh = SAC(student.policy, FAST.hidden, FAST.lr, FAST.gamma, FAST.seed)
    assert all(
        torch.equal(a, b) for a, b in zip(student.sac.critic.parameters(), fresh.critic.parameters(), strict=True)
    )


def test_merged_comparisons_keep_their_segments(episodes):
    one, two = asked(episodes), asked(episodes, seed=1)
    both = merge_preferences([one, two])
    for part, rows in ((one, slice(0, 12)), (two, slice(12, 24))):
        for side in ("first", "second"):
            where, own = getattr(both, side)[rows], getattr(part, side)
            assert np.array_equal(both.episode[where], part.episode[own])
            assert np.array_equal(both.start[where], part.start[own])


@pytest.mark.parametrize("change", [{}, {"queries": "disagreement"}, {"from_clone": True}, {"explore_episodes": 4}])
def test_rounds_count_both_budgets_and_repeat(tmp_path, change):
    online = OnlineSettings(rounds=2, round_episodes=4, round_answers=6, start="linear:1:1:0.8", segment_length=5)
    settings = replace(SMALL, **change)
    rows = run_online(online, FAST, tmp_path / "a", pebble=settings)
    explored = settings.explore_episodes * 15
    assert [row["feedback/labels"] for row in rows] == [0, 6, 12]
    assert [row["feedback/env_steps"] for row in rows] == [60 + explored, 180 + explored, 360 + explored]
    assert all(0 <= row["preference/accuracy"] <= 1 for row in rows[1:])
    assert run_online(online, FAST, tmp_path / "b", pebble=settings) == rows


@pytest.mark.slow
def test_the_reward_learns_to_predict_answers(tmp_path):
    """Answers of later rounds, which the networks have not seen, are predicted far above chance."""
    online = OnlineSettings(rounds=4, round_episodes=16, round_answers=60, start="linear:1:1:0.8", judge="return")
    training = replace(FAST, hidden=(32,), num_envs=16, horizon=30, steps=30)
    rows = run_online(online, training, tmp_path / "run", pebble=replace(SMALL, reward_updates=100, reward_batch=32))
    assert np.mean([row["preference/accuracy"] for row in rows[2:]]) > 0.65


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"queries": "disagreemnt"}, "did you mean 'disagreement'"),
        ({"members": 0}, "members is 0"),
        ({"critic_updates": -1}, "critic_updates is -1: give 0 or more"),
        ({"queries": "disagreement", "members": 1}, "cannot disagree with itself"),
        ({"from_clone": True, "explore_episodes": 4}, "does not explore"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        PebbleSettings(**change)


def test_methods_are_refused_where_they_cannot_run(tmp_path):
    with pytest.raises(UserError, match="control online"):
        train(FAST, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match="does not learn online"):
        build_student(OnlineSettings(), TrainSettings(method="sft"), SMALL, PointReach())
    with pytest.raises(UserError, match="actions tanh"):
        build_student(OnlineSettings(actions="clip"), FAST, SMALL, PointReach())
