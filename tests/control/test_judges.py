"""Judges by hand, their critics, and the soft optimum that one of them may follow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autotelic.control.episodes import (
    Episode,
    collect,
)
from autotelic.control.judges import JudgedSegments, LearnedCritic, SimulatedCritic, rewards_to_go
from autotelic.control.networks import GaussianPolicy
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.control.sac import SAC
from autotelic.control.soft_optimum import SoftOptimum, train_soft_optimum
from autotelic.errors import UserError


def test_judges_by_hand(episodes):
    """Return: the sum of rewards. Advantage and regret: with gamma .5, V* = 2 and V^mu = 1 everywhere.

    Regret counted at the end, three steps: r_0 + r_1 / 2 + r_2 / 4 + 1 / 8 - 2.
    """
    size = sum(len(e) + 1 for e in episodes)
    best, own = np.full(size, 2.0, dtype=np.float32), np.full(size, 1.0, dtype=np.float32)
    where = (np.array([1, 6]), np.array([0, 15]), np.array([3, 5]))
    total = [episodes[1].rewards[:3].sum(), episodes[6].rewards[15:].sum()]
    np.testing.assert_allclose(JudgedSegments(episodes, *where, 0.5).scores("return"), total, rtol=1e-5)
    np.testing.assert_allclose(
        JudgedSegments(episodes, *where, 0.5, best, own).scores("advantage"), np.add(total, [-3, -5]), rtol=1e-5
    )
    np.testing.assert_allclose(
        JudgedSegments(episodes, *where, 0.5, best, own).scores("regret"), np.add(total, [-4.5, -7.5]), rtol=1e-5
    )
    tail = episodes[1].rewards[:3] @ [1, 0.5, 0.25] + 0.125 - 2
    assert JudgedSegments(episodes, *where, 0.5, best, own).scores("regret_tail")[0] == pytest.approx(tail, rel=1e-5)
    for judge in ("regret", "regret_tail", "advantage"):
        with pytest.raises(UserError, match="critics"):
            JudgedSegments(episodes, *where, 0.5).scores(judge)


def test_the_actions_part_is_the_behaviours_own_advantage(episodes, generator):
    """Regret: score - part = sum V^mu(s_t) - V*(s_t); at the end: V^mu(s_0) - V*(s_0); advantage: nothing is left."""
    size = sum(len(e) + 1 for e in episodes)
    best, own = generator.standard_normal((2, size)).astype(np.float32)
    where, row = (np.array([2]), np.array([7]), np.array([2])), 2 * 21 + 7
    judged = JudgedSegments(episodes, *where, 0.9, best, own)
    rest = {judge: judged.scores(judge) - judged.action_part(judge) for judge in ("regret", "regret_tail", "advantage")}
    gap = (own - best)[row : row + 2]
    assert rest["regret"][0] == pytest.approx(gap.sum(), abs=1e-4)
    assert rest["regret_tail"][0] == pytest.approx(gap[0], abs=1e-4) and rest["advantage"][0] == 0
    assert judged.action_part("return") is None


def test_the_judge_reads_the_right_state(episodes):
    """V* counts states: the advantage then telescopes to rewards + gamma (n + 1) - n over the segment's own rows."""
    size = sum(len(e) + 1 for e in episodes)
    best = np.arange(size, dtype=np.float32)
    score = JudgedSegments(episodes, np.array([2]), np.array([7]), np.array([2]), 1.0, best, best).scores("advantage")
    assert score[0] == pytest.approx(episodes[2].rewards[7:9].sum() + 2, rel=1e-4)


def test_rewards_to_go_by_hand():
    np.testing.assert_allclose(rewards_to_go(np.array([1.0, 2.0, 4.0]), 0.5), [3.0, 4.0, 4.0])


def test_a_simulated_critic_is_the_reward_of_the_same_continuation():
    """A deterministic policy: its value of the first state is the discounted reward that it then gets, on and on."""
    behavior = LinearBehavior(std=1e-6)
    rows = collect(PointReach(4, 300), behavior, 4, 0, True)
    critic = SimulatedCritic(behavior, True, 0.9, 0, deterministic=True)
    values = critic.values(np.stack([e.observations[0] for e in rows]))
    np.testing.assert_allclose(values, [rewards_to_go(e.rewards, 0.9)[0] for e in rows], rtol=1e-4, atol=1e-4)


def test_a_learned_critic_goes_on_where_the_clock_ends():
    """Two states take turns, rewards 0 and 3, gamma 1/2: V = 2 and 4, for the first and the last step alike."""
    states = np.eye(2, dtype=np.float32)[np.arange(7) % 2]
    rewards = np.array([0.0, 3.0], dtype=np.float32)[np.arange(6) % 2]
    one = Episode(states, np.zeros((6, 1), np.float32), rewards, rewards > 9, 0, logprobs=np.full(6, -2.0, np.float32))
    np.testing.assert_allclose(LearnedCritic([one] * 3, 0.5, 0).values(states)[[0, 1, 6]], [2, 4, 2], rtol=0.02)
    half = LearnedCritic([one] * 3, 0.5, 0, bonus=0.5).values(states)  # entropy adds 1 a step, 2 in all
    np.testing.assert_allclose(half[:2], [4, 6], rtol=0.02)
    with pytest.raises(UserError, match="log-densities"):
        LearnedCritic([replace(one, logprobs=None)], 0.5, 0, bonus=0.5)


def test_a_learned_critic_approaches_the_simulated_one():
    behavior = LinearBehavior(gain=3.0, std=0.3)
    rows = collect(PointReach(16, 15), behavior, 160, 0, True)
    learned = LearnedCritic(rows, 0.9, 0)
    fresh = collect(PointReach(16, 15), behavior, 32, 77, True)
    for step in (4, 14):  # the last step as well: the clock is no part of the state
        state = np.stack([e.observations[step] for e in fresh])
        exact = SimulatedCritic(behavior, True, 0.9, 0, copies=20).values(state)
        assert np.abs(learned.values(state) - exact).mean() < 0.15, "values lie between -4 and 0"
        assert step == 14 or np.corrcoef(learned.values(state), exact)[0, 1] > 0.9


def test_the_soft_optimum_by_hand(monkeypatch):
    """Q = 3 and 5, log pi = -1, alpha = .5: V* = min(3, 5) + .5."""
    sac = SAC(GaussianPolicy(6, 2, (4,), None, squash=True), (4,), 1e-3, 0.9, 0)
    sac.log_temperature = torch.tensor(0.5).log()
    monkeypatch.setattr(sac, "sample", lambda rows: (torch.zeros(len(rows), 2), -torch.ones(len(rows))))
    values = [torch.full((4,), 3.0), torch.full((4,), 5.0)]
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda self, *rest: values)
    np.testing.assert_allclose(SoftOptimum(sac).values(np.zeros((4, 6))), 3.5, rtol=1e-6)


@pytest.mark.slow
def test_the_soft_optimum_is_above_the_behaviours():
    """SAC on the environment's reward: worth more, entropy included, than two behaviours in nearly every state."""
    best = train_soft_optimum(PointReach(16, 50), 160, 0.9, 0)
    for behavior in (LinearBehavior(gain=3.0, std=0.6), LinearBehavior(gain=-1.0, std=0.8)):
        rows = collect(PointReach(16, 50), behavior, 64, 0, True)
        states = np.concatenate([e.observations[:-1] for e in rows])
        own = LearnedCritic(rows, 0.9, 0, bonus=best.alpha)
        assert np.mean(own.values(states) > best.values(states)) < 0.1
