"""The control experiments: every recipe can be built, a cell runs at tiny sizes, and the tables are right."""

import importlib
import json
from pathlib import Path

import pytest
import yaml

from autotelic.cli.control_learning import build_settings
from autotelic.control.collection import DataSettings
from autotelic.control.settings import TrainSettings

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("control_*.yaml"))
TINY_DATA = {"episodes": 2, "num_envs": 2, "horizon": 30, "segments": 8, "segment_length": 5, "pairs": 0}
TINY_TRAIN = {
    "bc_steps": 2, "steps": 2, "eval_every": 1, "eval_episodes": 2, "num_envs": 2, "horizon": 30, "hidden": [8],
    "batch_pairs": 4, "future": "expected", "weights": "regret",
}  # fmt: skip


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("evidence_control")


def read(name):
    return yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_task_and_arm_of_a_recipe_can_start(path, evidence):
    recipe = yaml.safe_load(path.read_text())
    for task, changes in recipe["tasks"].items():
        for arm, own in recipe["arms"].items():
            if "online" in recipe:
                assert evidence.online_settings(recipe, task, arm, 3)[1].seed == 3
            else:
                assert build_settings(DataSettings, recipe["data"] | changes, {"seed": 3}).seed == 3
                assert build_settings(TrainSettings, recipe["train"] | own, {}).method == own["method"]
    for pair in recipe["paired"]:
        assert set(pair) <= set(recipe["arms"]), pair


def test_a_tiny_experiment_writes_its_table(tmp_path, evidence, capsys):
    recipe = read("control_point_reach")
    recipe["data"] |= TINY_DATA | {"policies": recipe["data"]["policies"][:2]}
    recipe["train"] |= TINY_TRAIN
    evidence.run(recipe | {"last": 2}, tmp_path, ["regret"], ["cpl", "ppl"], [0, 1])
    lines = evidence.table(tmp_path).splitlines()
    assert any(line.startswith("| regret | ppl - cpl | 2 |") for line in lines)
    run = tmp_path / "regret-seed0" / "cpl" / "run"
    rows = [json.loads(line)["eval/success"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert evidence.averaged(run, 2)["eval/success"] == pytest.approx((rows[-1] + rows[-2]) / 2)
    capsys.readouterr()
    evidence.run(recipe, tmp_path, ["regret"], ["cpl", "ppl"], [0, 1])
    assert "success" not in capsys.readouterr().err, "a finished run is not run again"


def test_a_tiny_online_experiment_writes_its_table(tmp_path, evidence):
    recipe = read("control_online")
    recipe["online"] |= {"rounds": 2, "round_episodes": 2, "round_answers": 3, "segment_length": 5}
    recipe["train"] |= {"bc_steps": 2, "steps": 2, "eval_episodes": 2, "num_envs": 2, "horizon": 15, "hidden": [8]}
    recipe["train"] |= {"future": "expected", "weights": "regret"}
    recipe["pebble"] = recipe["pebble"] | {"interact_episodes": 2, "reward_updates": 2, "critic_updates": 0}
    for arm in recipe["arms"].values():
        arm.pop("steps", None)
    evidence.online(recipe, tmp_path, ["return"], ["ppl", "cpl", "pebble"], [0])
    text = evidence.online_table(tmp_path)
    assert "3 answers | 6 answers | steps |" in text and "| return | ppl - cpl | 1 |" in text
    assert "| return | pebble | 1 |" in text


@pytest.mark.slow
def test_a_cell_of_the_papers_grid_starts(tmp_path, evidence):
    """Six tasks at the paper's sizes are for a larger machine; the same cells run here with a few episodes."""
    pytest.importorskip("metaworld", reason="needs the extra: pip install 'autotelic[control]'")
    recipe = read("control_paper")
    recipe["data"] |= TINY_DATA | {"horizon": 100, "critic_episodes": 4, "policies": ["clone:1:20", "clone:2:40"]}
    recipe["train"] |= TINY_TRAIN | {"horizon": 100}
    recipe["tasks"] = {
        task: changes
        | ({"pairs": 20} if "pairs" in changes else {})
        | ({"policies": ["clone:2:40"]} if "-hom-" in task else {})
        for task, changes in recipe["tasks"].items()
    }
    tasks = ["drawer-open-het-sparse", "button-press-hom-dense"]
    evidence.run(recipe, tmp_path, tasks, ["sft", "ppl", "ppl_estimated", "p_iql"], [0])
    assert all(f"| {task} | {arm} | 1 |" in evidence.table(tmp_path) for task in tasks for arm in ("ppl", "p_iql"))
