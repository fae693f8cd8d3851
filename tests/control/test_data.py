"""Data for control: Minari round trip, exact densities, segments, pairs, judges, and refusals that name the row."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from autotelic.control.behaviors import Ladder, ScriptedBehavior, build_behaviors, clone, demonstrations, read_specs
from autotelic.control.collection import build_data, read_data
from autotelic.control.environments import expert, make
from autotelic.control.episodes import check_episode, collect, read_minari, roll_out, to_environment, write_minari
from autotelic.control.judges import LearnedCritic, SimulatedCritic, judge_segments, rewards_to_go
from autotelic.control.networks import GaussianPolicy, load_policy
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.control.segments import (
    Preferences,
    answer,
    check_preferences,
    cut_segments,
    pair_up,
    read_preferences,
    write_preferences,
)
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
    score = generator.standard_normal(20000)
    first, second = pair_up(20000, "sparse", generator)
    right = (score[second] > score[first]).astype(np.float32)
    assert np.array_equal(answer(score, first, second, generator, 0.0), right)
    agreement = [(answer(score, first, second, generator, t) == right).mean() for t in (0.1, 1.0)]
    assert 0.9 < agreement[0] < 1.0 and 0.6 < agreement[1] < 0.8
    assert (answer(score, first, second, generator, 0.0, 0.2) == right).mean() == pytest.approx(0.8, abs=0.02)


def test_judges_by_hand(episodes):
    """Return: the sum of rewards. Advantage and regret: with gamma .5, V* = 2 and V^mu = 1 everywhere."""
    size = sum(len(e) + 1 for e in episodes)
    best, own = np.full(size, 2.0, dtype=np.float32), np.full(size, 1.0, dtype=np.float32)
    where = (np.array([1, 6]), np.array([0, 15]), np.array([3, 5]))
    total = [episodes[1].rewards[:3].sum(), episodes[6].rewards[15:].sum()]
    np.testing.assert_allclose(judge_segments("return", episodes, *where, 0.5, None, None), total, rtol=1e-5)
    np.testing.assert_allclose(
        judge_segments("advantage", episodes, *where, 0.5, best, own), np.add(total, [-3, -5]), rtol=1e-5
    )
    np.testing.assert_allclose(
        judge_segments("regret", episodes, *where, 0.5, best, own), np.add(total, [-4.5, -7.5]), rtol=1e-5
    )
    with pytest.raises(UserError, match="critics"):
        judge_segments("regret", episodes, *where, 0.5, None, None)


def test_the_judge_reads_the_right_state(episodes):
    """V* counts states: the advantage then telescopes to rewards + gamma (n + 1) - n over the segment's own rows."""
    size = sum(len(e) + 1 for e in episodes)
    best = np.arange(size, dtype=np.float32)
    score = judge_segments("advantage", episodes, np.array([2]), np.array([7]), np.array([2]), 1.0, best, best)
    assert score[0] == pytest.approx(episodes[2].rewards[7:9].sum() + 2, rel=1e-4)


def test_rewards_to_go_by_hand():
    np.testing.assert_allclose(rewards_to_go(np.array([1.0, 2.0, 4.0]), 0.5), [3.0, 4.0, 4.0])


def test_a_simulated_critic_is_the_reward_of_the_same_continuation():
    """A deterministic policy: its value of the first state is the discounted reward that it then got."""
    behavior = LinearBehavior(std=1e-6)
    rows = collect(PointReach(4, 12), behavior, 4, 0, True)
    critic = SimulatedCritic(behavior, True, 0.9, 0, deterministic=True)
    values = critic.values(np.stack([e.observations[0] for e in rows]), np.full(4, 12))
    np.testing.assert_allclose(values, [rewards_to_go(e.rewards, 0.9)[0] for e in rows], rtol=1e-4)
    assert critic.values(rows[0].observations[:1], np.array([0]))[0] == 0


def test_a_learned_critic_approaches_the_simulated_one():
    behavior = LinearBehavior(gain=3.0, std=0.3)
    rows = collect(PointReach(16, 15), behavior, 160, 0, True)
    learned = LearnedCritic(rows, 0.9, 0, updates=500, hidden=(64,))
    fresh = collect(PointReach(16, 15), behavior, 32, 77, True)
    state, left = np.stack([e.observations[4] for e in fresh]), np.full(32, 11)
    exact = SimulatedCritic(behavior, True, 0.9, 0, copies=20).values(state, left)
    assert np.corrcoef(learned.values(state, left), exact)[0, 1] > 0.9


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
        ({"policies": ()}, "no behaviour policy"),
        ({"judge": "regrett"}, "did you mean 'regret'"),
        ({"critic": "simulated", "env": "metaworld/door-open", "policies": ("success:0.5",)}, "point-reach only"),
        ({"segments": 1}, "segments 2 or more"),
        ({"critic_gamma": 0.0}, "critic_gamma"),
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
