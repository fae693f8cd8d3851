"""What goes wrong on a machine: killed processes, full disks, unwritable folders, losses that are not finite."""

import json
import resource
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kill import CLOCKS, prepare, rows_of, steps, tiny_settings
from safetensors.torch import load_file

from autotelic.cli.train import train
from autotelic.errors import UserError
from autotelic.runs.checkpoints import (
    MARK,
    checkpoints,
    discard,
    disk_errors,
    is_complete,
    last_complete,
    mark_complete,
)
from autotelic.trl.entropy_term import EntropyTerm

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_lose_nothing(tmp_path):
    """Every interrupted run ends with the rows and weights of one that nobody disturbed (`kill.py` says how)."""
    command = [sys.executable, str(HERE / "kill.py"), str(tmp_path), "200", "0"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    assert found["kills"] >= 200 and sum(found["by_phase"].values()) == found["kills"]
    assert all(count >= 10 for count in found["by_phase"].values()), found["by_phase"]


@pytest.fixture
def run_folder(tmp_path):
    """Three checkpoints, the newest half-written."""
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "global_step").mkdir(parents=True)
        (folder / "weights").write_bytes(b"w" * 100)
        (folder / "global_step" / "shard").write_bytes(b"s")
        if step < 10:
            mark_complete(folder)
    return tmp_path


def test_the_newest_whole_checkpoint_counts(run_folder):
    assert [path.name for path in checkpoints(run_folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-10"]
    assert last_complete(run_folder) == run_folder / "checkpoint-4"
    (run_folder / "checkpoint-4" / "global_step" / "shard").unlink()
    assert last_complete(run_folder) == run_folder / "checkpoint-2"
    (run_folder / "checkpoint-2" / "weights").write_bytes(b"w" * 99)
    assert last_complete(run_folder) is None


def test_a_checkpoint_that_is_being_deleted_no_longer_counts(run_folder, monkeypatch):
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # killed before anything else was deleted
    discard(run_folder / "checkpoint-4")
    assert not is_complete(run_folder / "checkpoint-4") and (run_folder / "checkpoint-4" / "weights").exists()


@pytest.fixture
def options(tmp_path):
    """Return a function giving the options of a run of a second."""
    prepare(tmp_path)

    def build(**overrides):
        settings = tiny_settings(tmp_path, tmp_path / "run") | overrides
        return [text for key, value in settings.items() for text in (f"--{key}", str(value))]

    return build


@pytest.fixture
def at_step_two(monkeypatch):
    """Return a function that makes a reward which does something to the trainer after two updates."""

    def build(name, action):
        module = types.ModuleType(name)
        calls = []

        def reward(prompts, completions, log_metric, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                action(log_metric.__self__)
            return [float(len(completion)) for completion in completions]

        module.reward = reward
        monkeypatch.setitem(sys.modules, name, module)
        return f"{name}.reward"

    return build


@contextmanager
def small_files(size):
    """No file can grow beyond this size, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda trainer: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def one_line(error):
    return "\n" not in str(error.value).strip()


def without_clocks(rows):
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(tmp_path, options, at_step_two):
    """One line; the checkpoint before is whole, the half-written one is gone, and --resume finishes the run."""
    with small_files(12000) as fill:
        reward = at_step_two("filling", fill)
        with pytest.raises(UserError, match=r"checkpoint-4: File too large.*free the space, then --resume") as error:
            train("grpo", options(reward=reward))
    assert one_line(error)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert last_complete(tmp_path / "run") is not None
    assert train("grpo", [*options(reward=reward), "--resume", "true"])["finished"]
    assert steps(tmp_path / "run") == list(range(1, 13))


def test_what_torch_cannot_write_is_one_line_too(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with small_files(1000) as fill, pytest.raises(UserError, match=r"cannot write the file: .*; do this"):
        fill(None)
        with disk_errors("the file", "do this"):
            torch.save(torch.zeros(10000), tmp_path / "optimizer.pt")
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limit
    with pytest.raises(RuntimeError, match="another"), disk_errors("the file", "do this"):
        raise RuntimeError("another kind of error")


@pytest.mark.slow
def test_a_disk_that_fills_up_while_metrics_are_written(tmp_path, options, at_step_two):
    log = tmp_path / "run" / "metrics.jsonl"

    def fill(trainer):
        log.unlink()
        log.symlink_to("/dev/full")

    with pytest.raises(UserError, match=r"No space left on device.*--resume") as error:
        train("grpo", options(reward=at_step_two("full", fill)))
    assert one_line(error)
    assert last_complete(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path, options, at_step_two):
    """The loss is finite, its gradient is not: the weights and the next checkpoint would be spoilt for good."""

    def spoil(trainer):
        trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(
        UserError, match=r"gradient norm of step 3 is nan.*prompts of this micro-batch: \['\d\+"
    ) as error:
        train("grpo", options(reward=at_step_two("spoiling", spoil)))
    assert one_line(error)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert all(value.isfinite().all() for value in load_file(tmp_path / "run/checkpoint-2/model.safetensors").values())


@pytest.mark.slow
def test_an_entropy_that_is_not_finite_stops_one_shot_em(options, at_step_two):
    def spoil(trainer):
        trainer.part(EntropyTerm).loss_term = lambda loss: torch.tensor(float("inf"), requires_grad=True)

    with pytest.raises(UserError, match="loss of step 3 is inf"):
        train("one_shot_em", options(reward=at_step_two("infinite", spoil)))


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path, options):
    train("grpo", options(reward="constant", max_steps=4))
    train("grpo", [*options(reward="constant", max_steps=2), "--overwrite", "true"])
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert steps(tmp_path / "run") == [1, 2]
    assert {row["step"] for row in rows_of(tmp_path / "run" / "rollouts.jsonl")} == {0}


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path, options):
    train("grpo", options(reward="random", max_steps=4))
    whole = rows_of(tmp_path / "run" / "metrics.jsonl")
    (tmp_path / "run" / "checkpoint-4" / MARK).unlink()
    (tmp_path / "run" / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    train("grpo", [*options(reward="random", max_steps=4), "--resume", "true"])
    assert without_clocks(rows_of(tmp_path / "run" / "metrics.jsonl")) == without_clocks(whole)


@pytest.mark.slow
def test_the_order_of_prompts_goes_on_in_a_later_epoch(tmp_path, options):
    """A run that is resumed in its third epoch sees the prompts of its third epoch."""
    extra = {"reward": "random", "log_rollouts": "4,steps=1"}
    train("grpo", options(**extra))
    whole = [(row["step"], row["prompt_id"]) for row in rows_of(tmp_path / "run" / "rollouts.jsonl")]
    discard(tmp_path / "run" / "checkpoint-12")
    train("grpo", [*options(**extra), "--resume", "true"])
    assert [(row["step"], row["prompt_id"]) for row in rows_of(tmp_path / "run" / "rollouts.jsonl")] == whole
