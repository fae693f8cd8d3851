"""`autotelic sweep`: grid, store, table; and on Ray: warm workers, failures, a driver that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from autotelic.cli.main import main
from autotelic.cli.sweep import check_training, parse_grid, read_recipe, train_trial
from autotelic.errors import UserError
from autotelic.runs import sweeping

HERE = Path(__file__).parent


@pytest.fixture
def recipe(tmp_path):
    def build(**changes):
        log = tmp_path / "log.txt"
        content = {"function": "sweep_trial.quadratic", "config": {"log": str(log)}, "grid": {"x": [1, 2]}}
        content |= {"seeds": 3, "metric": "score"}
        content["config"] |= changes.pop("config", {})
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path, log

    return build


def test_a_grid_is_a_product_and_equal_work_has_one_key():
    trials = sweeping.make_trials("f.g", {"a": 1}, {"x": [1, 2], "y": [0.5]}, 3)
    assert len(trials) == 6 and len({trial.key for trial in trials}) == 6
    assert [trial.seed for trial in trials] == [0, 0, 1, 1, 2, 2]
    assert trials[0].label == "x=1, y=0.5"
    again = sweeping.make_trials("f.g", {"a": 1, "y": 0.5}, {"x": [1, 2]}, 3)
    assert [trial.key for trial in again] == [trial.key for trial in trials]
    for grid, message in (({"x": []}, "different values"), ({"x": [1, 1]}, "different"), ({"seed": [1]}, "--seeds")):
        with pytest.raises(UserError, match=message):
            sweeping.make_trials("f.g", {}, grid, 1)


def test_grid_values_are_numbers_where_they_look_like_it():
    assert parse_grid(["a=1e-4,2", "b=all,last"]) == {"a": [1e-4, 2], "b": ["all", "last"]}
    with pytest.raises(UserError, match="NAME=VALUE"):
        parse_grid(["a"])


def test_table_by_hand(tmp_path):
    """1, 2, 3: mean 2, sd 1, half-width 4.3027 / sqrt 3 = 2.4842."""
    store = sweeping.TrialStore(tmp_path)
    trials = sweeping.make_trials("f.g", {}, {"x": [1, 2]}, 3)
    for trial in trials:
        if trial.cell["x"] == 1:
            store.write(trial, {"score": trial.seed + 1})
    assert [trial.cell["x"] for trial in store.missing(trials)] == [2, 2, 2]
    first, second = sweeping.summarize(trials, store, "score")
    assert (first["n"], first["mean"], first["sd"], first["best"], first["worst"]) == (3, 2.0, 1.0, 3.0, 1.0)
    assert first["high"] - first["mean"] == pytest.approx(2.4842, abs=1e-4)
    assert second["n"] == 0
    assert "x=2" in sweeping.table([first, second], "score")
    strip, mean = sweeping.strip_plot([first, second], "score")["traces"][:2]
    assert (strip["y"], mean["y"], mean["error_y"]["array"]) == (
        [1.0, 2.0, 3.0],
        [2.0],
        [pytest.approx(2.4842, abs=1e-4)],
    )
    with pytest.raises(UserError, match="did you mean 'score'"):
        sweeping.summarize(trials, store, "scor")


def test_a_failed_trial_leaves_its_error_and_no_result(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    store = sweeping.TrialStore(tmp_path)
    settings = {"log": str(tmp_path / "log"), "fails": 1}
    trials = sweeping.make_trials("sweep_trial.quadratic", settings, {"x": [1]}, 2)
    assert sweeping.run_trial(trials[0], store) is None
    assert "this seed fails" in (sweeping.run_trial(trials[1], store) or "")
    assert store.missing(trials) == [trials[1]]
    assert "RuntimeError" in (store.place(trials[1]) / "error.txt").read_text()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"method": "one_shot_emm"}, [], "did you mean"),
        ({"method": "one_shot_em", "config": {"learning_rat": 1}}, [], "did you mean 'learning_rate'"),
        ({"method": "one_shot_em", "function": "a.b"}, [], "either"),
        ({"function": "nowhere.f"}, [], "cannot import"),
        ({"function": "json.dumps", "seedz": 3}, [], "did you mean 'seeds'"),
        ({"function": "json.dumps"}, ["--grid", "x"], "NAME=VALUE"),
        ({"function": "json.dumps"}, ["--seeds", "0"], "at least 1"),
        ({"function": "json.dumps"}, ["--out", "/proc/nothing"], "cannot write"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, content, options, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    options = options if "--out" in options else [*options, "--out", str(tmp_path / "out")]
    assert main(["sweep", "--config", str(path), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and error.startswith("autotelic: error")


def test_without_ray_the_message_says_what_to_install(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setitem(sys.modules, "ray", None)
    path, _ = recipe()
    assert main(["sweep", "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "autotelic[sweep]" in capsys.readouterr().err


def test_a_training_trial_keeps_its_numbers_and_not_its_model(tmp_path):
    settings = {"method": "one_shot_em", "model_name_or_path": "any_pair", "prompt": "1+2+3=?", "seed": 1}
    settings |= {"num_generations": 8, "per_device_train_batch_size": 8, "max_steps": 1, "max_completion_length": 16}
    settings |= {"validation_dataset": "chain_sums:test", "validation_limit": 2, "validation_steps": 1}
    found = train_trial(settings | {"validation_k": 2}, tmp_path)
    assert found["best/eval/mean_at_k"] >= found["eval/mean_at_k"] and "train/em_loss" in found
    assert not list(tmp_path.rglob("*.safetensors")) and (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("path", sorted((HERE.parents[1] / "recipes").glob("sweep_*.yaml")), ids=lambda path: path.stem)
def test_recipes_can_be_trained(path):
    recipe = read_recipe(path)
    settings = recipe["config"] | {"method": recipe["method"]}
    check_training(sweeping.make_trials(sweeping.TRAIN, settings, recipe["grid"], recipe["seeds"]))


def start(path, out, *options):
    command = [sys.executable, "-m", "autotelic", "sweep", "--config", str(path), "--out", str(out), *options]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def executions(log):
    return [tuple(line.split()[:2]) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.slow
def test_a_killed_driver_loses_nothing(recipe, tmp_path):
    """kill -9 in the middle; the same command runs what is missing, and nothing twice that had finished."""
    pytest.importorskip("ray")
    path, log = recipe(config={"sleep": 0.5}, seeds=12)
    out = tmp_path / "out"
    driver = start(path, out, "--workers", "2")
    deadline = time.monotonic() + 120
    while len(list(out.glob("trials/*/result.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    time.sleep(3)  # orphaned workers end with their driver
    finished = {p: p.read_text() for p in out.glob("trials/*/result.json")}
    assert 4 <= len(finished) < 24
    before = [json.loads(text)["settings"] for text in finished.values()]
    done = {(str(s["x"]), str(s["seed"])) for s in before}
    log.unlink()
    again = start(path, out, "--workers", "2", "--json")
    printed, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert [row["n"] for row in json.loads(printed)["rows"]] == [12, 12]
    rerun = executions(log)
    assert len(rerun) == len(set(rerun)) == 24 - len(finished)
    assert not done & set(rerun)
    assert all(p.read_text() == text for p, text in finished.items())
    # Nothing is left to do: no worker starts, and workers were reused throughout.
    assert len({line.split()[2] for line in log.read_text().splitlines()}) <= 2
    started = time.monotonic()
    assert start(path, out).wait() == 0 and time.monotonic() - started < 60
    assert executions(log) == rerun


@pytest.mark.slow
def test_a_failing_trial_does_not_stop_the_others_and_is_retried(recipe, tmp_path):
    pytest.importorskip("ray")
    path, _ = recipe(config={"fails": 1})
    driver = start(path, tmp_path / "out", "--workers", "1", "--json")
    printed, errors = driver.communicate(timeout=200)
    assert driver.returncode == 1 and "2 trials failed" in errors and "this seed fails" in errors
    assert [row["n"] for row in json.loads(printed)["rows"]] == [2, 2]
