"""Data sets are reproducible, labelled anew in place, and refused where settings cannot work."""

from dataclasses import replace

import numpy as np
import pytest

from autotelic.control.collection import build_data, read_data
from autotelic.errors import UserError

pytest.importorskip("minari", reason="needs the extra: pip install 'autotelic[control]'")


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
