"""Data for control: Minari round trip, exact densities, segments, pairs, judges, and refusals that name the row."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from autotelic.control.behaviors import Ladder, ScriptedBehavior, build_behaviors, clone, demonstrations, read_specs
from autotelic.control.collection import build_data, read_data
from autotelic.control.data_report import behaviors_apart, data_report, describe, table_accuracy
from autotelic.control.environments import expert, make
from autotelic.control.episodes import (
    Episode,
    check_episode,
    clipped,
    collect,
    read_minari,
    roll_out,
    to_environment,
    write_minari,
)
from autotelic.control.judges import JudgedSegments, LearnedCritic, SimulatedCritic, rewards_to_go
from autotelic.control.networks import GaussianPolicy, load_policy
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.control.sac import SAC
from autotelic.control.segments import (
    Preferences,
    answer,
    check_preferences,
    cut_segments,
    pair_up,
    read_preferences,
    write_preferences,
)
from autotelic.control.soft_optimum import SoftOptimum, train_soft_optimum
from autotelic.errors import UserError

pytest.importorskip("minari", reason="needs the extra: pip install 'autotelic[control]'")


def preferences(episodes, generator, count=12):
    episode, start = cut_segments(episodes, count, 5, generator)
    first, second = pair_up(count, "sparse", generator)
    label = np.arange(len(first)).astype(np.float32) % 2
    return Preferences(episode, start, np.full(count, 5), first, second, label)


@pytest.mark.parametrize("squash", [True, False])
def test_minari_round_trip(tmp_path, squash):
    wrote = collect(PointReach(2, 6), LinearBehavior(), 3, 0, squash, policy=4)  # seeds 0, 0, 1
    write_minari(tmp_path, wrote, squash, {"environment": "point-reach"})
    read, metadata = read_minari(tmp_path)
    assert metadata["squash"] is squash and metadata["environment"] == "point-reach"
    for one, two in zip(wrote, read, strict=True):
        for name in ("observations", "actions", "rewards", "success", "mean", "log_std", "logprobs", "policy", "seed"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def test_minari_data_can_lie_under_a_relative_path(tmp_path, monkeypatch, episodes):
    monkeypatch.chdir(tmp_path)
    write_minari(Path("here/episodes"), episodes[:2], True, {})
    assert len(read_minari(Path("here/episodes"))[0]) == 2


def test_minari_reads_it_as_its_own(tmp_path):
    """Minari's data set class sees actions as the environment received them, and the behaviour in infos."""
    import minari

    wrote = collect(PointReach(2, 6), LinearBehavior(std=1.5), 2, 0, False)
    write_minari(tmp_path, wrote, False, {})
    data = minari.MinariDataset(tmp_path / "data")
    episode = data[1]
    assert data.total_episodes == 2 and len(episode) == 6
    np.testing.assert_array_equal(episode.actions, np.clip(wrote[1].actions, -1, 1))
    np.testing.assert_array_equal(episode.infos["behavior_action"][:6], wrote[1].actions)
    assert np.abs(wrote[1].actions).max() > 1


def test_foreign_minari_data_has_no_densities(tmp_path):
    import gymnasium
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    box = gymnasium.spaces.Box(-1, 1, (2,), dtype=np.float32)
    folder = tmp_path / "data"
    folder.mkdir()
    storage = MinariStorage.new(folder, observation_space=box, action_space=box, data_format="parquet")
    rows = list(np.zeros((4, 2), dtype=np.float32))
    flags = [False] * 3
    storage.update_episodes(
        [EpisodeBuffer(observations=rows, actions=rows[:3], rewards=[1.0] * 3, terminations=flags, truncations=flags)]
    )
    (episode,), _ = read_minari(tmp_path)
    assert episode.mean is None and episode.logprobs is None and episode.policy == 0 and len(episode) == 3


@pytest.mark.parametrize("squash", [True, False])
def test_logprobs_are_those_of_the_unclipped_action(squash):
    (episode,) = collect(PointReach(1, 9), LinearBehavior(std=0.7), 1, 0, squash)
    slow = norm.logpdf(episode.actions, episode.mean, np.exp(episode.log_std)).sum(-1)
    if squash:
        slow = slow - np.log(1 - np.tanh(episode.actions.astype(float)) ** 2).sum(-1)
    np.testing.assert_allclose(episode.logprobs, slow, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observations": "nan"}, "observations at step 3 is not finite"),
        ({"logprobs": "nan"}, "logprobs at step 3"),
        ({"rewards": "short"}, "rewards has 19 steps, actions 20"),
        ({"observations": "short"}, "observations has 19 steps"),
        ({"mean": "short"}, "mean has 19"),
    ],
)
def test_bad_episodes_are_refused_with_their_row(episodes, change, words):
    (name, what), value = next(iter(change.items())), None
    value = getattr(episodes[5], name).copy()
    if what == "nan":
        value[3] = np.nan
    else:
        value = value[:-1]
    with pytest.raises(UserError, match=words) as error:
        check_episode(replace(episodes[5], **{name: value}), "some/folder", 5)
    assert "some/folder, episode 5" in str(error.value) and "\n" not in str(error.value)


def test_bad_data_in_files_is_refused_on_reading(tmp_path, episodes):
    broken = replace(episodes[1], observations=np.where(np.arange(21)[:, None] == 4, np.nan, episodes[1].observations))
    write_minari(tmp_path, [episodes[0], broken], True, {})
    with pytest.raises(UserError, match="episode 1: observations at step 4"):
        read_minari(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        read_minari(tmp_path / "nowhere")
    (tmp_path / "empty" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot read the Minari data set"):
        read_minari(tmp_path / "empty")


def test_preferences_round_trip(tmp_path, episodes, generator):
    wrote = preferences(episodes, generator)
    write_preferences(tmp_path / "p.npz", replace(wrote, score=np.ones(12, dtype=np.float32), settings={"a": 1}))
    read = read_preferences(tmp_path / "p.npz", episodes)
    for name in ("episode", "start", "length", "first", "second", "label"):
        np.testing.assert_array_equal(getattr(wrote, name), getattr(read, name))
    assert read.settings == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["p.npz"]


@pytest.mark.parametrize(
    ("name", "row", "value", "words"),
    [
        ("episode", 3, 99, "segment 3: points to an episode"),
        ("start", 2, 18, "segment 2: leaves its episode"),
        ("start", 2, -1, "segment 2: leaves its episode"),
        ("length", 1, 0, "segment 1: leaves its episode"),
        ("first", 4, 12, "pair 4: points to a segment"),
        ("second", 5, -1, "pair 5: points to a segment"),
        ("label", 2, 1.5, "pair 2: has a label"),
        ("label", 2, np.nan, "pair 2: has a label"),
    ],
)
def test_bad_preferences_are_refused_with_their_row(episodes, generator, name, row, value, words):
    good = preferences(episodes, generator)
    array = getattr(good, name).copy()
    array[row] = value
    with pytest.raises(UserError, match=words):
        check_preferences(replace(good, **{name: array}), episodes, "p.npz")
    check_preferences(good, episodes, "p.npz")


def test_other_bad_preference_files(tmp_path, episodes, generator):
    good = preferences(episodes, generator)
    with pytest.raises(UserError, match="differ in length"):
        check_preferences(replace(good, label=good.label[1:]), episodes, "p.npz")
    with pytest.raises(UserError, match="with itself"):
        check_preferences(replace(good, second=good.first), episodes, "p.npz")
    with pytest.raises(UserError, match="holds no pair"):
        check_preferences(good.take(slice(0, 0)), episodes, "p.npz")
    np.savez(tmp_path / "half.npz", episode=good.episode)
    with pytest.raises(UserError, match="lacks start, length"):
        read_preferences(tmp_path / "half.npz", episodes)
    (tmp_path / "text.npz").write_text("no")
    for file in ("text.npz", "absent.npz"):
        with pytest.raises(UserError, match="cannot read preferences"):
            read_preferences(tmp_path / file, episodes)


def test_segments_lie_in_their_episodes_and_cover_them(episodes, generator):
    episode, start = cut_segments(episodes, 4000, 5, generator)
    assert (np.bincount(episode) == 500).all()
    assert set(start) == set(range(16))
    with pytest.raises(UserError, match="the longest has 20"):
        cut_segments(episodes, 3, 21, generator)


def test_sparse_pairs_use_each_segment_once_and_dense_ones_are_all(generator):
    first, second = pair_up(11, "sparse", generator)
    assert len(first) == 5 and len(set(first) | set(second)) == 10
    first, second = pair_up(6, "dense", generator)
    assert {frozenset(p) for p in zip(first, second, strict=True)} == {
        frozenset((i, j)) for i in range(6) for j in range(i)
    }
    assert len(pair_up(50, "dense", generator, 7)[0]) == 7
    with pytest.raises(UserError, match="unknown comparisons"):
        pair_up(5, "all", generator)


def test_answers_follow_scores_temperature_and_flips(generator):
    """The temperature is in units of the score: P(second) = sigma(difference / temperature)."""
    score = generator.standard_normal(20000)
    first, second = pair_up(20000, "sparse", generator)
    right = (score[second] > score[first]).astype(np.float32)
    assert np.array_equal(answer(score, first, second, generator, 0.0), right)
    assert np.array_equal(answer(score, first, second, generator), right), "a judge does not err by default"
    for temperature in (0.1, 1.0, 30.0):
        chance = 1 / (1 + np.exp(-np.abs(score[second] - score[first]) / temperature))
        agreement = (answer(score, first, second, generator, temperature) == right).mean()
        assert agreement == pytest.approx(chance.mean(), abs=0.02)
    assert (answer(score, first, second, generator, 0.0, 0.2) == right).mean() == pytest.approx(0.8, abs=0.02)


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


def test_data_are_reproducible_and_relabelled_in_place(tmp_path, points):
    for name in ("a", "b"):
        build_data(points, tmp_path / name)
    (one, p1, _), (two, p2, _) = (read_data(tmp_path / name) for name in ("a", "b"))
    assert all(np.array_equal(x.actions, y.actions) for x, y in zip(one, two, strict=True))
    assert np.array_equal(p1.label, p2.label) and np.array_equal(p1.first, p2.first)
    stamp = (tmp_path / "a" / "episodes" / "data" / "metadata.json").stat().st_mtime_ns
    description = build_data(replace(points, judge="advantage", comparisons="dense", pairs=99), tmp_path / "a")
    assert (tmp_path / "a" / "episodes" / "data" / "metadata.json").stat().st_mtime_ns == stamp
    assert description["pairs"] == 99 and read_data(tmp_path / "a")[1].settings["judge"] == "advantage"
    with pytest.raises(UserError, match="another seed"):
        build_data(replace(points, seed=1), tmp_path / "a")
    (tmp_path / "a" / "data.json").unlink()
    with pytest.raises(UserError, match="interrupted"):
        build_data(points, tmp_path / "a")


def test_regret_ranks_the_better_behaviour_first(tmp_path, points):
    build_data(points, tmp_path)
    rows, pairs, _ = read_data(tmp_path)
    policy = np.array([rows[e].policy for e in pairs.episode])
    assert pairs.score[policy == 0].mean() > pairs.score[policy == 1].mean()
    mixed = policy[pairs.first] != policy[pairs.second]
    good_second = policy[pairs.second][mixed] == 0
    assert ((pairs.label[mixed] > 0.5) == good_second).mean() > 0.8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"env": "metaworld/drawer-opn"}, "did you mean 'metaworld/drawer-open'"),
        ({"policies": ("clone:3",)}, "cannot read the policy 'clone:3'"),
        ({"policies": ("success:1.5",)}, "out of range"),
        ({"policies": ("linear:1:1:0",)}, "out of range"),
        ({"policies": ("styled:1:0:0:9",)}, "out of range"),
        ({"policies": ()}, "no behaviour policy"),
        ({"judge": "regrett"}, "did you mean 'regret'"),
        ({"critic": "simulated", "env": "metaworld/door-open", "policies": ("success:0.5",)}, "point-reach only"),
        ({"segments": 1}, "segments is 1: give 2 or more"),
        ({"critic_gamma": 0.0}, "critic_gamma"),
        ({"critic_gamma": 1.0}, "critic_gamma"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature_unit": "score s"}, "did you mean 'score'"),
        ({"optimum": "sac"}, "critic learned"),
        ({"random_hand": True}, "no hand"),
        ({"actions": "raw"}, "actions is 'raw'"),
    ],
)
def test_bad_settings_are_refused(points, change, words):
    with pytest.raises(UserError, match=words):
        replace(points, **change)


def test_linear_behaviours_are_for_points():
    with pytest.raises(UserError, match="cannot read the policy"):
        read_specs(["linear:1:0:1"], "metaworld/door-open")


def test_clones_learn_the_script_and_know_their_density():
    environment, script = make("point-reach", 8, 20), expert("point-reach")
    data = demonstrations(environment, script, 4, 0, True)
    first, last = clone(data, [2, 300], 0, True, std=0.3, hidden=(32,))
    state = data[0].observations[:-1]
    target = ScriptedBehavior(script, 0.2, True).parameters_at(state)[0]
    errors = [np.abs(policy.parameters_at(state)[0] - target).mean() for policy in (first, last)]
    assert errors[1] < 0.3 * errors[0]
    assert np.allclose(np.exp(last.parameters_at(state)[1]), 0.3)


def test_another_demonstrator_gives_another_behaviour():
    environment, script = make("point-reach", 8, 20), expert("point-reach")
    specs = ["styled:1:0:4:300", "styled:0.3:0.2:4:300"]
    strong, weak = build_behaviors(specs, "point-reach", environment, script, 0, False, std=0.3)
    states = np.concatenate([e.observations[:-1] for e in collect(environment, strong, 8, 0, False)])
    found, asked = weak.parameters_at(states)[0], np.clip(0.3 * script(states) + 0.2, -1, 1)
    assert np.abs(found - asked).mean() < 0.6 * np.abs(strong.parameters_at(states)[0] - asked).mean()


def test_a_ladder_finds_the_nearest_rate(monkeypatch):
    ladder = object.__new__(Ladder)
    ladder.rates, ladder.stages = {}, list(range(25))
    monkeypatch.setattr(Ladder, "rate", lambda self, i: self.rates.setdefault(i, min(1.0, i / 20)))
    for target in (0.0, 0.2, 0.5, 0.93, 1.0):
        assert ladder.rates[ladder.nearest(target)] == pytest.approx(target, abs=0.05)


def test_the_trap_of_noisy_experts_is_said():
    lines = []
    environment = make("point-reach", 4, 10)
    build_behaviors(["expert:0.5"], "point-reach", environment, expert("point-reach"), 0, True, progress=lines.append)
    assert "trap" in lines[0]


def test_continuations_switch_to_the_expert():
    environment = PointReach(2, 10)
    never, always = LinearBehavior(gain=-1.0, std=1e-6), LinearBehavior(std=1e-6)
    rows = roll_out(environment, never, 3, True, switch=(np.array([4, 0]), always))
    for row, begin in zip(rows, (4, 0), strict=True):
        np.testing.assert_allclose(row.actions[begin:], always.parameters_at(row.observations[begin:-1])[0], atol=1e-4)
    np.testing.assert_allclose(rows[0].actions[:4], never.parameters_at(rows[0].observations[:4])[0], atol=1e-4)


def test_what_the_environment_receives():
    np.testing.assert_allclose(to_environment(np.array([[2.0, -0.5]]), False), [[1.0, -0.5]])
    np.testing.assert_allclose(to_environment(np.array([[2.0, -0.5]]), True), np.tanh([[2.0, -0.5]]))


def test_policies_are_saved_and_read(tmp_path):
    policy = GaussianPolicy(6, 2, (8,), None, squash=True, dropout=0.2).eval()
    policy.save(tmp_path / "p.safetensors")
    again = load_policy(tmp_path / "p.safetensors")
    state = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    for one, two in zip(policy.parameters_at(state), again.parameters_at(state), strict=True):
        np.testing.assert_array_equal(one, two)
    assert again.squash and again.std is None
    (tmp_path / "no.safetensors").write_text(json.dumps({}))
    with pytest.raises(UserError, match="cannot read a policy"):
        load_policy(tmp_path / "no.safetensors")


def test_clipped_actions_keep_their_moments(episodes):
    """The mean and spread of clip(u): against a million draws; the action is the environment's."""
    one = replace(episodes[0], mean=episodes[0].mean * 3)
    got, draws = clipped(one, limit=1.0), np.random.default_rng(0).standard_normal(200_000)
    np.testing.assert_array_equal(got.actions, np.clip(one.actions, -1, 1))
    for t, d in ((0, 0), (5, 1), (12, 0)):
        u = np.clip(one.mean[t, d] + np.exp(one.log_std[t, d]) * draws, -1, 1)
        assert got.mean[t, d] == pytest.approx(u.mean(), abs=0.01)
        assert np.exp(got.log_std[t, d]) == pytest.approx(u.std(), abs=0.01)
    assert clipped(replace(one, mean=None)).mean is None


def pairs_of(episodes, label, score=None):
    """Segments of three steps, one at the start of each episode; pair m compares episode m with m + 4."""
    where = (np.arange(8), np.zeros(8, int), np.full(8, 3))
    return Preferences(*where, np.arange(4), np.arange(4, 8), np.array(label, np.float32), score)


def test_a_table_of_start_and_policy_is_right_where_policies_decide(episodes):
    """Episodes 0 to 3 are of policy 0, the others of policy 1: the second always wins, so the table is always right."""
    assert table_accuracy(episodes, pairs_of(episodes, [1, 1, 1, 1])) == 1
    same = [replace(e, policy=0) for e in episodes]
    assert table_accuracy(same, pairs_of(episodes, [1, 0, 1, 0])) == 0.5


def test_the_report_by_hand(episodes):
    """V* = 0, V^mu = -10 and -30 by policy, gamma 1: a segment's score is its rewards + 10 or 30 less per step.

    Without the actions' part, sum r, policy 0 wins all; rewards of hundreds make the first pair's second segment win.
    """
    rewards = [np.full(20, 300.0 if i == 4 else 0.0, np.float32) for i in range(8)]
    rows = [replace(e, rewards=r) for e, r in zip(episodes, rewards, strict=True)]
    own = np.repeat([-10.0] * 4 + [-30.0] * 4, 21).astype(np.float32)
    values = {"best": np.zeros_like(own), "own": own, "best_again": np.zeros_like(own), "own_again": -own}
    score = JudgedSegments(rows, np.arange(8), np.zeros(8, int), np.full(8, 3), 1.0, values["best"], own).scores(
        "regret"
    )
    report = data_report("regret", 1.0, rows, pairs_of(rows, [1, 0, 0, 1], score), values)
    assert report["actions_decide"] == 0.25 and report["noise_flips"] == 0.25 and report["above_optimum"] == 0
    assert report["critic_flips"] == 0.75 and report["ppl_test"] is False
    assert "no test of PPL" in describe(report)[-1]
    calm = data_report("regret", 1.0, rows, pairs_of(rows, [1, 0, 0, 0], score), values | {"own_again": own})
    assert calm["ppl_test"] is True and "no test" not in "".join(describe(calm))
    assert data_report("return", 1.0, rows, pairs_of(rows, [1, 0, 0, 0], score), {})["ppl_test"] is None


def test_behaviours_apart_in_standard_deviations(episodes):
    one, two = LinearBehavior(gain=1.0, damping=0.0, std=0.5), LinearBehavior(gain=1.0, damping=0.0, drift=0.3, std=0.5)
    assert behaviors_apart([one, two], episodes) == pytest.approx(0.3 / 0.5 / 2, rel=1e-4)  # of the first dimension
    assert behaviors_apart([one], episodes) is None


def test_every_data_set_has_its_report_and_is_written_all_the_same(tmp_path, points):
    lines = []
    noisy = replace(points, temperature=5.0, temperature_unit="spread")
    report = build_data(noisy, tmp_path, lines.append)["report"]
    assert report["ppl_test"] is False and report["noise_flips"] > report["actions_decide"]
    assert "errs" in lines[0] and "temperature_unit score" in lines[0], "the unit is warned of when it is used"
    assert replace(noisy, temperature=0.0).caution is None is points.caution
    assert any("V^mu exceeds V*, which no optimum allows" in line for line in lines)
    assert "no test of PPL" in lines[-1] and (tmp_path / "preferences.npz").is_file()
    apart = report["behaviors_apart"]
    again = build_data(replace(points, judge="regret_tail"), tmp_path)["report"]
    assert again["behaviors_apart"] == apart > 0.5 and again["noise_flips"] == 0
    assert again["actions_decide"] > report["actions_decide"]
    assert json.loads((tmp_path / "data.json").read_text())["report"] == again
