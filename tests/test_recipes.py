"""Every recipe is read by its own command, and the small ones move what they claim to move."""

import json
import logging
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def method_of(path: Path) -> str | None:
    """The method in the comment that gives the recipe's command, as `autotelic train METHOD`."""
    found = re.search(r"autotelic train (\w+)", path.read_text())
    return found.group(1) if found else None


TRAINING = [path for path in RECIPES if method_of(path)]


def test_recipes_exist_for_every_method():
    from autotelic.runs.training_methods import METHODS

    assert {method_of(path) for path in TRAINING} == set(METHODS)


@pytest.mark.parametrize(
    "path", [*RECIPES, *sorted((ROOT / "benchmarks" / "recipes").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_every_recipe_says_how_to_run_it(path):
    first = path.read_text().splitlines()[:4]
    assert first[0].startswith("#")
    assert "autotelic" in "\n".join(first) or "benchmarks/" in "\n".join(first)
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_training_recipes_have_only_known_keys(path, tmp_path):
    from autotelic.cli.train import parse

    written = yaml.safe_load(path.read_text())
    options = ["--config", str(path), "--output_dir", str(tmp_path)]
    if "GPU" in path.read_text():  # written for eight processes: one process takes all their rows
        rows = 8 * written.pop("per_device_train_batch_size")
        options += ["--per_device_train_batch_size", str(rows)]
    run, training, model = parse(method_of(path), options)
    for key, value in written.items():
        holder = next(item for item in (run, training, model) if hasattr(item, key))
        if key != "output_dir" and not isinstance(value, str):
            assert getattr(holder, key) == value, key


FAST = ("tiny_empo",)
ROLLOUTS = [
    pytest.param(path, id=path.stem, marks=() if path.stem in FAST else pytest.mark.slow)
    for path in TRAINING
    if method_of(path) in ("grpo", "empo", "one_shot_em")
]


@pytest.mark.filterwarnings("ignore:.*nothing is selected")  # a few tokens, of which the paper's share is none
@pytest.mark.parametrize("path", ROLLOUTS)
def test_no_recipe_draws_a_warning(path, tmp_path, make_model, tokenizer, caplog):
    """Two updates on a tiny model; Python's warnings are errors, and TRL's log has none."""
    from autotelic.cli.train import train

    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    written = yaml.safe_load(path.read_text())
    small = {"model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "run", "max_steps": 2}
    small |= {"per_device_train_batch_size": written.get("num_generations", 16), "gradient_accumulation_steps": 1}
    small |= {"steps_per_generation": 1 if method_of(path) == "one_shot_em" else 2, "max_completion_length": 8}
    small |= {"use_vllm": False, "bf16": False, "validation_steps": 0, "save_strategy": "no", "quiet": True}
    small |= {} if written.get("prompt") else {"dataset": "chain_sums:train", "dataset_limit": 40}
    options = [text for name, value in small.items() for text in (f"--{name}", str(value))]
    with caplog.at_level("WARNING"):
        train(method_of(path), ["--config", str(path), *options])
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("trl")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_grpo", "tiny_empo"])
def test_small_recipes_improve_the_carried_model(name, tmp_path):
    """Sampled accuracy rises; EMPO's data has no label column at all."""
    from autotelic.cli.train import train

    summary = train(
        method_of(ROOT / "recipes" / f"{name}.yaml"),
        ["--config", str(ROOT / "recipes" / f"{name}.yaml"), "--output_dir", str(tmp_path / name), "--quiet", "true"],
    )
    from autotelic.runs.callbacks import read_rows

    accuracy = [
        row["eval/mean_at_k"] for row in read_rows(tmp_path / name / "metrics.jsonl") if "eval/mean_at_k" in row
    ]
    assert summary["finished"] and accuracy[-1] > accuracy[0] + 0.05


DISTINCT = ("entropy_7b_clip_cov", "empo_qwen2.5_math_1.5b", "one_shot_em_tiny", "tiny_grpo")
"""One of each method and control; the others are among the slow tests."""
SMALL = {
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "steps_per_generation": 2,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 8,
    "max_steps": 2,
    "use_vllm": False,
    "quiet": True,
    "save_strategy": "no",
}


def runs():
    """Each method on its own defaults, and each recipe."""
    defaults = [(method, None) for method in ("grpo", "empo", "one_shot_em")]
    recipes = [(method_of(path), path) for path in TRAINING if method_of(path) != "ppl"]
    for method, path in defaults + recipes:
        marks = [pytest.mark.slow] if path and path.stem not in DISTINCT else []
        marks += [pytest.mark.trl_1_16] if method == "one_shot_em" else []
        yield pytest.param(method, path, id=path.stem if path else method, marks=marks)


@pytest.mark.parametrize(("method", "recipe"), runs())
def test_defaults_and_recipes_train_without_a_warning(method, recipe, tmp_path, make_model, tokenizer, caplog):
    """Two updates of a tiny model: nothing of ours draws a warning from us, TRL or transformers (they are errors)."""
    from autotelic.cli.config import to_options
    from autotelic.cli.train import train

    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+{i}=?", "answer": str(2 * i)}) + "\n" for i in range(16)))
    written = yaml.safe_load(recipe.read_text()) if recipe else {}
    options = SMALL | {"model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "run"}
    if "prompt" in written:
        options |= {"prompt": "1+1=?", "num_generations": 16, "steps_per_generation": 1}
    else:
        options |= {"dataset": data}
    if "validation_dataset" in written:
        options |= {"validation_dataset": data, "validation_limit": 4, "validation_k": 2}
    if "entropy_control" in written:
        # of some 200 tokens an update: the paper's share would choose none
        options |= {"entropy_control.fraction": 0.01, "per_device_train_batch_size": 32}
    summary = train(method, [*(("--config", str(recipe)) if recipe else ()), *to_options(options)])
    assert summary["finished"] and summary["step"] == 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
