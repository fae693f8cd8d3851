"""Every recipe is read by its own command, and the small ones move what they claim to move."""

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
    assert {"grpo", "empo"} <= {method_of(path) for path in TRAINING}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_says_how_to_run_it(path):
    first = path.read_text().splitlines()[:4]
    assert all(line.startswith("#") for line in first[:1])
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


FAST = ("tiny_grpo", "tiny_empo", "empo_qwen2.5_math_7b", "one_shot_em_tiny")
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
