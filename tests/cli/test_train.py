"""`autotelic train`: what TRL's ModelConfig holds, missing packages, small data sets."""

import importlib.util
import json
from dataclasses import fields

import pytest

from autotelic.cli.main import main
from autotelic.cli.train import build_evaluation, build_reward, build_stop_rules, check_model, load_model, parse, train
from autotelic.errors import UserError
from autotelic.trl.build import run_settings

HONOURED = {  # field: (options, what reaches the loader or LoRA, its value)
    "model_name_or_path": ({"model_name_or_path": "m"}, "name", "m"),
    "model_revision": ({"model_revision": "v2"}, "revision", "v2"),
    "dtype": ({"dtype": "bfloat16"}, "dtype", "bfloat16"),
    "attn_implementation": ({"attn_implementation": "eager"}, "attn_implementation", "eager"),
    "use_peft": ({"use_peft": True}, "merge", False),
    "lora_r": ({"use_peft": True, "lora_r": 3}, "r", 3),
    "lora_alpha": ({"use_peft": True, "lora_alpha": 3}, "lora_alpha", 3),
    "lora_dropout": ({"use_peft": True, "lora_dropout": 0.3}, "lora_dropout", 0.3),
    "lora_target_modules": ({"use_peft": True, "lora_target_modules": "a b"}, "target_modules", {"a", "b"}),
    "lora_target_parameters": ({"use_peft": True, "lora_target_parameters": "a"}, "target_parameters", ["a"]),
    "lora_modules_to_save": ({"use_peft": True, "lora_modules_to_save": "a"}, "modules_to_save", ["a"]),
    "use_rslora": ({"use_peft": True, "use_rslora": True}, "use_rslora", True),
    "use_dora": ({"use_peft": True, "use_dora": True}, "use_dora", True),
    "load_in_8bit": ({"use_peft": True, "load_in_8bit": True}, "load_in_8bit", True),
    "load_in_4bit": ({"use_peft": True, "load_in_4bit": True}, "load_in_4bit", True),
    "bnb_4bit_quant_type": (
        {"use_peft": True, "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        "bnb_4bit_quant_type",
        "fp4",
    ),
    "use_bnb_nested_quant": (
        {"use_peft": True, "load_in_4bit": True, "use_bnb_nested_quant": True},
        "bnb_4bit_use_double_quant",
        True,
    ),
    "bnb_4bit_quant_storage": (
        {"use_peft": True, "load_in_4bit": True, "bnb_4bit_quant_storage": "uint8"},
        "bnb_4bit_quant_storage",
        "uint8",
    ),
}
REFUSED = {
    "lora_task_type": {"use_peft": True, "lora_task_type": "SEQ_CLS"},
    "lora_r": {"lora_r": 3},
    "use_dora": {"use_dora": True},
    "load_in_4bit": {"load_in_4bit": True},
    "load_in_8bit": {"load_in_8bit": True},
    "bnb_4bit_quant_type": {"bnb_4bit_quant_type": "fp4", "use_peft": True},
}


def words(options):
    return [word for key, value in options.items() for word in (f"--{key}", *str(value).split())]


@pytest.fixture
def loaded(monkeypatch):
    """What reaches the loader, LoRA and quantisation configurations included."""
    seen = {}

    def load(name, quantization=None, **settings):
        seen.update(settings, name=name, **(quantization.to_dict() if quantization is not None else {}))
        return object()

    monkeypatch.setattr("autotelic.lm.load.load_weights", load)
    monkeypatch.setattr("autotelic.cli.train.require", lambda *args: None)
    return seen


def test_every_field_of_the_model_configuration_is_honoured_or_refused(loaded):
    from trl import ModelConfig, get_peft_config

    assert {field.name for field in fields(ModelConfig)} == {*HONOURED, *REFUSED}
    for name, (options, key, value) in HONOURED.items():
        loaded.clear()
        _, training, model = parse("grpo", words({"model_name_or_path": "x"} | options))
        load_model(model, training)
        lora = get_peft_config(model)
        found = (loaded | (vars(lora) if lora else {})).get(key)
        assert str(found).removeprefix("torch.") == str(value) or found == value, name
    for options in REFUSED.values():
        with pytest.raises(UserError) as caught:
            check_model(parse("grpo", words(options))[2])
        assert "\n" not in str(caught.value)


def test_model_init_kwargs_reach_the_model(loaded):
    options = ["--model_name_or_path", "x", "--model_init_kwargs", '{"dtype": "float16", "use_cache": false}']
    _, training, model = parse("grpo", options)
    load_model(model, training)
    assert (loaded["dtype"], loaded["use_cache"]) == ("float16", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--report_to wandb", "needs wandb: pip install wandb"),
        ("--report_to trackio", "needs trackio: pip install trackio"),
        ("--use_vllm", "needs vllm: pip install 'trl[vllm]'"),
        ("--deepspeed zero.json", "pip install deepspeed"),
        ("--push_to_hub", "--push_to_hub cannot reach the hub"),
        ("--use_peft --load_in_4bit", "needs bitsandbytes: pip install bitsandbytes"),
    ],
)
def test_a_missing_package_is_one_line_with_its_remedy(options, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = importlib.util.find_spec
    missing = ("wandb", "trackio", "vllm", "bitsandbytes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else found(name, *a))
    common = ["--model_name_or_path", "any_pair", "--dataset", "chain_sums:train", "--output_dir", str(tmp_path)]
    assert main(["train", "grpo", *common, *options.split(), "--quiet", "true"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_data_set_smaller_than_one_rollout_is_refused(tmp_path, tiny_model_folder):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=?"}) + "\n" for i in range(20)))
    options = {"model_name_or_path": tiny_model_folder, "dataset": data, "output_dir": tmp_path / "run"}
    options |= {"num_generations": 4, "per_device_train_batch_size": 64, "steps_per_generation": 2, "quiet": True}
    with pytest.raises(UserError, match="20 prompts; one rollout needs 32"):
        train("empo", words(options))


@pytest.fixture
def tiny_model_folder(tmp_path, make_model, tokenizer):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_package_that_trl_misses_late_is_one_line(tmp_path, monkeypatch, capsys):
    def build(*args):
        raise ImportError("Using tools needs jmespath; pip install jmespath")

    monkeypatch.setattr("autotelic.cli.train.build", build)
    common = ["--model_name_or_path", "any_pair", "--dataset", "chain_sums:train", "--output_dir", str(tmp_path)]
    assert main(["train", "grpo", *common]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("Using tools needs jmespath; pip install jmespath")


def test_trls_own_names_of_data_set_and_reward():
    run, _, _ = parse("grpo", ["--dataset_name", "openai/gsm8k", "--dataset-config", "main", "--reward_funcs", "empo"])
    assert (run.dataset, run.dataset_config, run.reward) == ("openai/gsm8k", "main", "empo")
    run, trls, _ = parse("grpo", ["--reward_funcs", "empo,low=0.1", "format", "--reward_weights", "1", "0.5"])
    assert (run.reward, trls.reward_weights) == (["empo,low=0.1", "format"], [1.0, 0.5])
    found = build_reward(run, trls)
    assert [reward.name for reward in found] == ["empo", "format"]
    assert [entry["name"] for entry in run_settings(run)["reward"]] == ["empo", "format"]


def test_a_labelled_reward_beside_a_label_free_one(tmp_path, tiny_model_folder):
    options = ["--reward_funcs", "verifier", "format", "--reward_weights", "1", "0.5", "--dataset", "chain_sums:train"]
    options += ["--dataset_limit", "4", "--model_name_or_path", str(tiny_model_folder), "--max_steps", "1"]
    options += ["--output_dir", str(tmp_path / "run"), "--num_generations", "2", "--per_device_train_batch_size", "4"]
    train("grpo", [*options, "--max_completion_length", "4", "--quiet"])
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["run"]["reward"][0], config["training"]["reward_weights"]) == ("verifier", [1.0, 0.5])
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["reward/mean"] == 0.0  # the model knows nothing, but both were asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to train on"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl is not a file"),
        (["--prompt", "1+1=?", "--entropy_control", "clip_cov,fracton=0.1"], "did you mean 'fraction'"),
        (["--prompt", "1+1=?", "--reward", "empo", "--stop_rule", "entropy_flor"], "did you mean 'entropy_floor'"),
        (["--prompt", "1+1=?", "--reward", "empo", "--validation_steps", "2"], "validation_dataset"),
        (["--prompt", "1+1=?", "--reward", "empo", "--law", "on"], "--law needs accuracy"),
        (["--prompt", "1+1=?", "--dataset", "chain_sums:train", "--reward", "empo"], "leave the data set .* unread"),
        (["--dataset", "chain_sums:train", "--dataset_config", "main"], "no configuration 'main'"),
        (["--dataset", "chain_sums:train", "--prompt_column", "x"], "it has no column 'x'"),
        (["--dataset", "chain_sums:train", "--validation_dataset", "chain_sums:test"], "--validation_steps N"),
        (["--dataset", "chain_sums:train", "--validation_k", "4"], "--validation_k would not be read"),
        (["--dataset", "chain_sums:train", "--entropy_control.fraction", "0.1"], "a mapping needs `name`"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--learning_rate", "nan"], "learning_rate is 'nan', not a number"),
        (["--learning_rate", "-1"], "--learning_rate must be at least 0"),
        (["--temperature", "-1"], "--temperature must be above 0"),
        (["--top_p", "2"], "--top_p must be above 0 and at most 1"),
        (["--num_generations", "0"], "this configuration cannot be used"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--output_dir", "elsewhere"], "output and output_dir are the same option"),
        (["--max_steps", "0"], "--max_steps must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("autotelic.cli.train.load_model", lambda *args: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=message):
        train("grpo", ["--model_name_or_path", "any_pair", "--output", str(tmp_path / "run"), *options])
    assert not (tmp_path / "run" / "run.json").exists()


def test_validation_and_probes_read_the_runs_own_hub_data_set_in_its_configuration(monkeypatch, tokenizer):
    """Another split of the same data set has the same configuration; another data set does not."""
    seen = {}

    def load(source, config=None, **settings):
        seen[source] = config
        return [{"prompt": "1+1=?", "answer": "2"}]

    monkeypatch.setattr("autotelic.tasks.load_problems", load)
    options = {"dataset": "o/d", "dataset_config": "main", "validation_steps": 1, "stop_rule": "collapse"}
    for validation in ("o/d:test", "o/other"):
        run, training, _ = parse("grpo", words(options | {"validation_dataset": validation}))
        build_evaluation(run, tokenizer, training)
        build_stop_rules(run, tokenizer, training)
    assert seen == {"o/d": "main", "o/d:test": "main", "o/other": None}
