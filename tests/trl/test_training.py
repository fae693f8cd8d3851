"""`autotelic train` from the command line's side: methods, labels, resume, refusals."""

import json

import pytest

from autotelic.cli.train import parse, train
from autotelic.errors import UserError


@pytest.fixture
def model_dir(tmp_path, make_model, tokenizer):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def options(tmp_path, model_dir):
    """Return a function giving the options of a run of a few seconds."""
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i}+{i + 1}=?", "answer": str(2 * i + 1), "id": f"p{i}"} for i in range(32)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(name="run", **overrides):
        settings = {
            "model_name_or_path": model_dir,
            "dataset": data,
            "output_dir": tmp_path / name,
            "num_generations": 4,
            "per_device_train_batch_size": 16,
            "steps_per_generation": 2,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 8,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "quiet": True,
            "save_steps": 2,
        } | overrides
        return [item for key, value in settings.items() for item in (f"--{key}", str(value))]

    return build


def metrics(tmp_path, name):
    return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


def without_time(rows):
    clocks = ("train/step_time", "trl/train_runtime")
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


@pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning")
def test_grpo_with_clip_cov_leaves_a_run_folder(tmp_path, options):
    summary = train(
        "grpo",
        [
            *options(
                reward="random",
                entropy_control="clip_cov,fraction=0.01,low=-9,high=9",
                log_rollouts=2,
                validation_steps=2,
            ),
            "--validation_dataset",
            str(tmp_path / "data.jsonl"),
            "--validation_limit",
            "4",
            "--validation_k",
            "2",
        ],
    )
    assert summary["finished"] and summary["step"] == 4
    rows = metrics(tmp_path, "run")
    assert [row["step"] for row in rows if "policy/entropy" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval/mean_at_k" in row] == [0, 2, 4]
    assert all(0 < row["policy/entropy"] < 3 for row in rows if "policy/entropy" in row)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["method"] == "grpo+clip_cov"
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 2 and all(len(row["responses"]) == 4 for row in rollouts)
    for response in rollouts[0]["responses"]:
        lengths = {len(response[name]) for name in ("tokens", "entropy", "surprisal", "covariance", "selected")}
        assert len(lengths) == 1


def test_empo_never_sees_labels(tmp_path, options):
    """Permuting the labels, or leaving the column out, leaves every number of the run as it was."""
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    shuffled, bare = tmp_path / "shuffled.jsonl", tmp_path / "bare.jsonl"
    answers = [row["answer"] for row in rows][::-1]
    shuffled.write_text("".join(json.dumps(row | {"answer": a}) + "\n" for row, a in zip(rows, answers, strict=True)))
    bare.write_text("".join(json.dumps({k: row[k] for k in ("prompt", "id")}) + "\n" for row in rows))
    seen = []
    for name, data in (("a", tmp_path / "data.jsonl"), ("b", shuffled), ("c", bare)):
        train("empo", options(name, dataset=data))
        seen.append(without_time(metrics(tmp_path, name)))
        assert (tmp_path / name / "model.safetensors").exists()
    assert seen[0] == seen[1] == seen[2]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.trl_1_16
def test_one_shot_em_lowers_entropy(tmp_path, options):
    rollout = {"num_generations": 32, "per_device_train_batch_size": 32, "steps_per_generation": 1}
    flags = options(**rollout, max_steps=8, learning_rate=1e-2)
    place = flags.index("--dataset")
    flags[place : place + 2] = ["--prompt", "1+2=?"]
    train("one_shot_em", flags)
    entropies = [row["policy/entropy"] for row in metrics(tmp_path, "run")]
    assert entropies[-1] < 0.8 * entropies[0]


@pytest.mark.filterwarnings("ignore::autotelic.controls.entropy_control.EntropyControlWarning")
@pytest.mark.parametrize("method", ["grpo", pytest.param("one_shot_em", marks=pytest.mark.slow)])
def test_resume_gives_the_numbers_of_an_uninterrupted_run(tmp_path, options, method):
    extra = {"max_steps": 8, "save_steps": 4, "reward": "random" if method == "grpo" else "constant"}
    if method == "grpo":
        extra |= {"entropy_control": "kl_cov,fraction=0.1"}
    train(method, options("whole", **extra))
    train(method, options("parts", **extra))
    parts = tmp_path / "parts"
    import shutil

    shutil.rmtree(parts / "checkpoint-8")  # as if the run had died after step 4's checkpoint
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "torn')
    train(method, [*options("parts", **extra), "--resume", "true"])
    assert without_time(metrics(tmp_path, "parts")) == without_time(metrics(tmp_path, "whole"))
    assert (parts / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_short_run_keeps_its_final_model_only_and_says_what_runs_fast(tmp_path, options, capsys):
    train("grpo", options(reward="random", max_steps=2, save_steps=100, quiet=False))
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (tmp_path / "run" / "model.safetensors").exists()
    passes = json.loads((tmp_path / "run" / "run.json").read_text())["passes"]
    assert set(passes) == {"head", "prompt in training", "prompt in generation"}
    said = capsys.readouterr().err
    assert f"head: {passes['head']}" in said and "loading" in said
    phases = [said.index(f"grpo run: {phase}\n") for phase in ("sampling", "scoring", "updating")]
    assert phases == sorted(phases) and said.strip().split("\n")[-1].startswith("autotelic: next: autotelic report")


def test_an_existing_run_is_not_overwritten(tmp_path, options):
    train("grpo", options(reward="constant", max_steps=2))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="already holds a run"):
        train("grpo", options(reward="constant", max_steps=2))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("gpro", {}, "did you mean 'grpo'"),
        ("grpo", {"learning_rat": 1}, "did you mean 'learning_rate'"),
        ("grpo", {"entropy_control": "clip_kov"}, "did you mean 'clip_cov'"),
        ("grpo", {"entropy_control": "kl_cov", "steps_per_generation": 1}, "zero gradient"),
        ("grpo", {"entropy_control": "clip_cov,fraction=2"}, "share of the response tokens"),
        ("grpo", {"reward": "empoo"}, "did you mean 'empo'"),
        ("grpo", {"answer_column": "solution"}, "solution"),
        ("grpo", {"num_generations": 1}, "at least 2|group"),
        ("grpo", {"dataset": "nowhere.jsonl"}, "nowhere.jsonl"),
        ("grpo", {"model_name_or_path": "nobody/model"}, "cannot load the model"),
        ("grpo", {"output_dir": "/proc/nothing"}, "cannot write"),
        ("grpo", {"resume": True}, "nothing to resume"),
        ("grpo", {"entropy_control": "entropy_bonus"}, "needs coef"),
        ("grpo", {"config": "missing.yaml"}, "missing.yaml"),
    ],
)
def test_bad_input_is_one_clear_line(options, method, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        train(method, options(**changes))
    assert "\n" not in str(caught.value).strip()


def test_recipe_then_command_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1.0e-4\nnum_generations: 4\nper_device_train_batch_size: 8\n")
    options = ["--config", str(recipe), "--learning_rate", "3e-4", "--output_dir", str(tmp_path / "x")]
    run, training, _ = parse("empo", options)
    assert (training.learning_rate, training.num_generations) == (3e-4, 4)
    assert (run.reward, training.importance_sampling_level, training.epsilon) == ("empo", "sequence", 3e-4)
    recipe.write_text("learning_rte: 1\n")
    with pytest.raises(UserError, match="did you mean 'learning_rate'"):
        parse("empo", options)


def test_interrupt_leaves_a_checkpoint_and_resume_finishes_with_the_same_numbers(
    tmp_path, options, monkeypatch, capsys
):
    """Ctrl-C in the middle of a rollout: its updates are finished, a checkpoint is written, the message says how on."""
    module = tmp_path / "interrupting.py"
    module.write_text(
        "import os, signal\n"
        "calls = []\n"
        "def reward(prompts, completions, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    extra = {"reward": "interrupting.reward", "max_steps": 8, "save_steps": 100}
    summary = train("grpo", options("parts", **extra))
    assert not summary["finished"] and summary["step"] == 4
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "parts" / "checkpoint-4").is_dir()
    assert train("grpo", [*options("parts", **extra), "--resume", "true"])["finished"]
    import interrupting

    interrupting.calls.extend([1, 1, 1])  # past the call that interrupts
    train("grpo", options("whole", **extra))
    assert without_time(metrics(tmp_path, "parts")) == without_time(metrics(tmp_path, "whole"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, options, monkeypatch):
    module = tmp_path / "breaking.py"
    module.write_text(
        "def reward(prompts, completions, trainer_state, log_metric, **kwargs):\n"
        "    if trainer_state.global_step:\n"
        "        log_metric.__self__.model.lm_head.weight.data.fill_(float('nan'))\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="step 3 is nan"):
        train("grpo", options(reward="breaking.reward", max_steps=8, save_steps=2))
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    assert max(row["step"] for row in metrics(tmp_path, "run")) == 2
