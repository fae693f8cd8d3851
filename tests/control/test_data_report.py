"""What a data set is worth: the report of `autotelic control data`."""

import json
from dataclasses import replace

import numpy as np
import pytest

from autotelic.control.collection import build_data
from autotelic.control.data_report import behaviors_apart, data_report, describe, table_accuracy
from autotelic.control.judges import JudgedSegments
from autotelic.control.point_reach import LinearBehavior
from autotelic.control.segments import Preferences

pytest.importorskip("minari", reason="needs the extra: pip install 'autotelic[control]'")


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
