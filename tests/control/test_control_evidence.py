"""The control experiments: every recipe can be built, a cell runs at tiny sizes, and the tables are right."""

import importlib
import json
from pathlib import Path

import pytest
import yaml

from autotelic.cli.control_learning import build_settings
from autotelic.control.settings import DataSettings, TrainSettings

ROOT = Path(__file__).parents[2]
RECIPES = [
    path
    for folder in ("recipes", "benchmarks/recipes")
    for path in sorted((ROOT / folder).glob("control_*.yaml"))
    if "arms" in path.read_text()
]
SINGLE = [ROOT / "recipes" / f"control_{name}.yaml" for name in ("cpl", "metaworld")]
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
    (path,) = [path for path in RECIPES if path.stem == name]
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_task_and_arm_of_a_recipe_can_start(path, evidence):
    recipe = evidence.by_judge(yaml.safe_load(path.read_text()))
    for task, changes in recipe["tasks"].items():
        changes.pop("like", None)
        for arm, own in recipe["arms"].items():
            if "online" in recipe:
                assert evidence.online_settings(recipe, task, arm, 3)[1].seed == 3
            else:
                assert build_settings(DataSettings, recipe["data"] | changes, {"seed": 3}).seed == 3
                assert build_settings(TrainSettings, recipe["train"] | own, {}).method == own["method"]
    for pair in recipe["paired"]:
        assert set(pair) <= set(recipe["arms"]), pair


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.stem)
def test_a_recipe_for_one_run_can_start(path):
    recipe = yaml.safe_load(path.read_text())
    data, training = (
        build_settings(DataSettings, recipe["data"], {}),
        build_settings(TrainSettings, recipe["train"], {}),
    )
    assert data.random_hand and training.on(data.env, squash=False).output_act == "tanh"


def test_the_papers_recipe_has_its_number_of_comparisons():
    """Sparse: 10,000 comparisons of 20,000 segments; dense: random pairs of 2500, none of them left out."""
    recipe = read("control_paper")
    for task, changes in recipe["tasks"].items():
        data = build_settings(DataSettings, recipe["data"] | changes, {})
        assert (data.comparisons, data.segments, data.pairs) == (
            ("sparse", 20_000, 0) if task.endswith("sparse") else ("dense", 2500, 0)
        )


def test_judges_share_their_episodes(tmp_path, evidence):
    recipe = read("control_point_reach") | {"judges": ["regret_tail", "return"], "tasks": {"points": {}}}
    recipe["data"] |= TINY_DATA | {"policies": recipe["data"]["policies"][:2]}
    recipe["train"] |= TINY_TRAIN | {"weights": "regret"}
    evidence.run(recipe, tmp_path, [], ["cpl"], [0])
    one, two = (tmp_path / f"points-{judge}-seed0" / "data" for judge in ("regret_tail", "return"))
    assert (one / "values.npz").read_bytes() == (two / "values.npz").read_bytes()
    assert (one / "preferences.npz").read_bytes() != (two / "preferences.npz").read_bytes()
    assert "points-return: success of behaviour 1" in evidence.table(tmp_path)


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
def test_a_cell_of_the_papers_grid_starts(tmp_path, evidence, monkeypatch):
    """Six tasks at the paper's sizes are for a larger machine; the same cells run here with a few episodes."""
    monkeypatch.setattr("autotelic.control.judges.UPDATES", 50)  # how good the critics are is not asked here
    pytest.importorskip("metaworld", reason="needs the extra: pip install 'autotelic[control]'")
    recipe = read("control_paper")
    recipe["data"] |= TINY_DATA | {"horizon": 100, "critic_episodes": 4, "policies": ["clone:1:20", "clone:2:40"]}
    recipe["train"] |= TINY_TRAIN | {"horizon": 100}
    recipe["tasks"] = {
        task: changes | ({"policies": ["clone:2:40"]} if "-hom-" in task else {})
        for task, changes in recipe["tasks"].items()
    }
    for changes in recipe["tasks"].values():
        changes.pop("segments", None)
    tasks = ["drawer-open-het-sparse", "button-press-hom-dense"]
    evidence.run(recipe, tmp_path, tasks, ["sft", "ppl", "ppl_estimated", "p_iql"], [0])
    assert all(f"| {task} | {arm} | 1 |" in evidence.table(tmp_path) for task in tasks for arm in ("ppl", "p_iql"))
