"""`autotelic train` on 1, 2 and 4 processes: the same numbers, one decision for all, checkpoints for any size.

`tests/trl/test_ranks.py` tests the mixin by itself; this is the command, its folder and accelerate's configurations.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
METHODS = {
    "clip_cov": (
        "grpo",
        {"entropy_control": "clip_cov,fraction=0.1,low=0,high=99", "reward": "ranks.length_reward"},
    ),
    "kl_cov": ("grpo", {"entropy_control": "kl_cov,fraction=0.1", "reward": "ranks.length_reward"}),
    "empo": ("empo", {"epsilon": 0.2, "epsilon_high": 0.2}),
    "one_shot_em": ("one_shot_em", {"reward": "constant"}),
}
LORA = {"use_peft": "true", "lora_r": 4, "lora_target_modules": "all-linear", "lora_dropout": 0}
COMPARED = ("reward/", "train/loss", "train/em_loss", "train/grad_norm", "policy/", "selected/", "covariance/")


def run(name, method, size, **more):
    base, options = METHODS[method]
    options = options | more.pop("options", {})
    return {"name": name, "method": base, "size": size, "rows": True, "options": options} | more


def scenario(folder: Path, runs: list[dict]) -> dict:
    """Run a list of runs in one driver process."""
    (folder / "scenario.json").write_text(json.dumps(runs))
    command = [sys.executable, str(ROOT / "tests/scaling/ranks.py"), str(folder), str(folder / "scenario.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key == "step" or key.startswith(COMPARED)} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(next(path for path in folder.glob("*.safetensors")))
    head, words = found.get("lm_head.weight"), found.get("model.embed_tokens.weight")
    if head is not None and words is not None and torch.equal(head, words):
        del found["lm_head.weight"]  # ZeRO-2 writes a tied head a second time
    return {name.removeprefix("base_model.model."): value for name, value in found.items()}


def same_run(one: Path, other: Path, rel=1e-4, weight_tolerance=1e-5):
    ours, theirs = metrics(one), metrics(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=rel, abs=1e-5), (one.name, row["step"], name)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name, value in b.items():
        torch.testing.assert_close(a[name], value, rtol=1e-4, atol=weight_tolerance)


def merged_selection(parts, step):
    return {row: tokens for part in parts for row, tokens in part["selected"][step].items()}


def finished(found, step=4):
    for part in found:
        assert part is not None and "error" not in part, part
        assert part["finished"] and part["step"] == step


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_method_trains_alike_on_any_number_of_processes(tmp_path):
    """Selection, rewards, loss, gradient norm, weights; with LoRA, too. Four processes hold parts of a group each."""
    runs = [run(f"{method}-{size}", method, size) for method in METHODS for size in (1, 2, 4)]
    runs += [run(f"lora-{method}-{size}", method, size, options=LORA) for method in METHODS for size in (1, 2)]
    found = scenario(tmp_path, runs)
    for each in runs:
        finished(found[each["name"]])
        name, alone = each["name"], each["name"][: -len("-1")] + "-1"
        # At a rate of 0.5, LoRA's products of two matrices amplify the last digit.
        same_run(tmp_path / name, tmp_path / alone, weight_tolerance=5e-5 if name.startswith("lora") else 1e-5)
        for step in range(len(found[alone][0]["selected"])):
            assert merged_selection(found[name], step) == merged_selection(found[alone], step), name
    assert any(any(any(row) for row in step.values()) for step in found["clip_cov-1"][0]["selected"])
    assert any(row["reward/mean"] > 0 for row in metrics(tmp_path / "empo-1"))
    start = load_file(tmp_path / "model" / "model.safetensors")
    for method in METHODS:  # what is compared has moved
        moved = weights(tmp_path / f"{method}-1")
        assert max(float((moved[name] - start[name]).abs().max()) for name in moved) > 1e-4, method


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_checkpoint_of_two_processes_resumes_on_one_two_and_four(tmp_path):
    import shutil

    runs = [run("whole", "kl_cov", 1, options={"max_steps": 8}), run("first", "kl_cov", 2)]
    found = scenario(tmp_path, runs)
    finished(found["whole"], 8)
    finished(found["first"])
    later = []
    for size in (1, 2, 4):
        shutil.copytree(tmp_path / "first", tmp_path / f"on-{size}")
        later.append(run(f"on-{size}", "kl_cov", size, options={"max_steps": 8, "resume": "true"}))
    found = scenario(tmp_path, later)
    for size in (1, 2, 4):
        finished(found[f"on-{size}"], 8)
        same_run(tmp_path / f"on-{size}", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_sample_for_themselves_and_stop_together(tmp_path):
    """One prompt, different responses per process; a NaN or a signal on one process is everybody's, with one line."""
    em = {"reward": "constant", "temperature": 1.0}
    runs = [
        run("sampled", "one_shot_em", 2, rows=False, options=em),
        run("nan", "kl_cov", 2, fault="nan"),
        run("signal", "kl_cov", 2, fault="sigterm", options={"max_steps": 8}),
        run("again", "kl_cov", 2, folder="nan"),
    ]
    found = scenario(tmp_path, runs)
    finished(found["sampled"])
    for ours, theirs in zip(*(part["texts"] for part in found["sampled"]), strict=True):
        assert ours != theirs
    errors = [part["error"] for part in found["nan"]]
    assert errors[0] == errors[1] and "loss of step 3 is nan" in errors[0] and errors[0].startswith("UserError")
    assert (tmp_path / "nan" / "checkpoint-2" / "complete.json").exists()
    assert [part["finished"] for part in found["signal"]] == [False, False]
    assert {part["step"] for part in found["signal"]} == {4}
    assert (tmp_path / "signal" / "checkpoint-4" / "complete.json").exists()
    refused = [part["error"] for part in found["again"]]
    assert refused[0] == refused[1] and "already holds a run" in refused[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", ["fsdp2", "zero2", "zero3"])
def test_accelerates_configurations_train_alike(config, tmp_path):
    """Two processes under the recipe: the numbers of one, a checkpoint that resumes; probes too, but for ZeRO-3."""
    if config.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    # FSDP cannot load the state of an optimizer that has none, as SGD; so large an epsilon makes Adam nearly linear.
    extras = {"optim": "adamw_torch", "adam_epsilon": 1.0, "learning_rate": 0.5}
    probes = {"stop_rule": "entropy_floor,threshold=1e-9", "probe": "steps=2,k=2,limit=2", "log_rollouts": 1}
    extras |= {} if config == "zero3" else probes
    runs = [run(f"alone-{method}", method, 1, options=extras | {"max_steps": 8}) for method in METHODS]
    for method in METHODS:
        more = {"config": config, "folder": method, "options": extras}
        runs.append(run(f"{method}-half", method, 2, **more))
        more["options"] = extras | {"max_steps": 8, "resume": "true"}
        runs.append(run(f"{method}-rest", method, 2, **more))
    found = scenario(tmp_path, runs)
    for method in METHODS:
        finished(found[f"alone-{method}"], 8)
        finished(found[f"{method}-half"])
        finished(found[f"{method}-rest"], 8)
        same_run(tmp_path / method, tmp_path / f"alone-{method}", weight_tolerance=1e-4)
        if config == "zero3":
            continue  # forward passes beside training are refused there
        best = load_file(tmp_path / method / "best" / "weights.safetensors")
        for name, value in weights(tmp_path / method).items():
            torch.testing.assert_close(best[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", ["fsdp2", "zero2", "zero3"])
def test_lora_under_accelerates_configurations(config, tmp_path):
    """Two processes under the recipe, an adapter trained: the numbers of one, and an adapter folder that loads."""
    if config.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    from autotelic.lm.load import load_model

    # Plain AdamW amplifies the last digit of a small gradient, at LoRA's start above all: as in the test above.
    options = LORA | {"optim": "adamw_torch", "adam_epsilon": 1.0, "learning_rate": 0.5}
    runs = [run(f"alone-{method}", method, 1, options=options) for method in METHODS]
    runs += [run(method, method, 2, config=config, options=options) for method in METHODS]
    found = scenario(tmp_path, runs)
    for method in METHODS:
        finished(found[f"alone-{method}"])
        finished(found[method])
        same_run(tmp_path / method, tmp_path / f"alone-{method}", weight_tolerance=1e-4)
        adapter = weights(tmp_path / method)
        assert adapter and all("lora" in name for name in adapter)
        merged, start = (load_model(folder)[0].state_dict() for folder in (tmp_path / method, tmp_path / "model"))
        assert max(float((merged[name] - start[name]).abs().max()) for name in start) > 1e-6, method


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration(path):
    """No key that accelerate does not know, and what it hands to the processes is what the file says."""
    from accelerate.commands.config import load_config_from_file

    sys.path.insert(0, str(Path(__file__).parent))
    from ranks import launch_environment

    written = yaml.safe_load(path.read_text())
    read = load_config_from_file(str(path))
    assert read.num_processes == written["num_processes"] == 8
    environ = launch_environment({"config": path.stem, "size": 8})
    if path.stem == "fsdp2":
        assert environ["ACCELERATE_USE_FSDP"] == "true"
        assert environ["FSDP_VERSION"] == "2" and environ["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    if path.stem.startswith("zero"):
        assert environ["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == path.stem[-1]
        assert "ACCELERATE_GRADIENT_CLIPPING" not in environ  # --max_grad_norm decides


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_accepts_what_the_recipe_amounts_to(stage):
    """DeepSpeed's own parser on the dictionary that accelerate's plug-in builds."""
    pytest.importorskip("deepspeed")
    from accelerate import DeepSpeedPlugin
    from deepspeed.runtime.config import DeepSpeedConfig

    written = yaml.safe_load((ROOT / "recipes" / "accelerate" / f"zero{stage}.yaml").read_text())["deepspeed_config"]
    plugin = DeepSpeedPlugin(zero_stage=written["zero_stage"], zero3_save_16bit_model=stage == 3)
    config = dict(plugin.deepspeed_config) | {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config |= {"gradient_clipping": 1.0}
    config.pop("train_batch_size", None)
    parsed = DeepSpeedConfig(config)
    assert parsed.zero_optimization_stage == stage and parsed.gradient_clipping == 1.0
