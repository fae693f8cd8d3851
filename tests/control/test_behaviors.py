"""Behaviours: scripts, clones, ladders, continuations, and the policies that are saved."""

import json

import numpy as np
import pytest

from autotelic.control.behaviors import Ladder, ScriptedBehavior, build_behaviors, clone, demonstrations, read_specs
from autotelic.control.environments import expert, make
from autotelic.control.episodes import (
    collect,
    roll_out,
)
from autotelic.control.networks import GaussianPolicy, load_policy
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.errors import UserError


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
