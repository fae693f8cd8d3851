"""Episodes: Minari round trips, densities of actions, refusals that name the row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from autotelic.control.episodes import (
    check_episode,
    clipped,
    collect,
    read_minari,
    to_environment,
    write_minari,
)
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.errors import UserError

pytest.importorskip("minari", reason="needs the extra: pip install 'autotelic[control]'")


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


def test_what_the_environment_receives():
    np.testing.assert_allclose(to_environment(np.array([[2.0, -0.5]]), False), [[1.0, -0.5]])
    np.testing.assert_allclose(to_environment(np.array([[2.0, -0.5]]), True), np.tanh([[2.0, -0.5]]))


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
