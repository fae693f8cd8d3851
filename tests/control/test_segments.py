"""Segments and preferences: how they are cut, paired, answered, stored and refused."""

from dataclasses import replace

import numpy as np
import pytest

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


def preferences(episodes, generator, count=12):
    episode, start = cut_segments(episodes, count, 5, generator)
    first, second = pair_up(count, "sparse", generator)
    label = np.arange(len(first)).astype(np.float32) % 2
    return Preferences(episode, start, np.full(count, 5), first, second, label)


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
