"""A saved model, and functions that build the trainers and options of tests."""

import pytest
from preference_parts import load, pairs, write

OF_THE_TRAINER = (
    "ppl",
    "policy_labels",
    "fused_head",
    "shared_prefix",
    "peft_config",
    "eval_dataset",
    "compute_metrics",
)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer, make_model):
    """A saved model, since TRL reads the reference from where the model came from."""
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def build(tmp_path, model_dir, tokenizer):
    """Return a function giving a trainer of four updates."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from autotelic.preferences.trainer import with_policy_labels

    def make(wrap=None, rows=None, model=None, **settings):
        own = {k: settings.pop(k) for k in OF_THE_TRAINER if k in settings}
        arguments = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "beta": 0.3,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        } | settings
        return (wrap or with_policy_labels)(DPOTrainer)(
            model=model or load(model_dir),
            args=DPOConfig(**arguments),
            train_dataset=Dataset.from_list(rows or pairs()),
            processing_class=tokenizer,
            **own,
        )

    return make


@pytest.fixture
def options(tmp_path, model_dir):
    """Return a function giving the options of a run of a few seconds."""
    data = write(tmp_path / "pairs.jsonl", [{k: v for k, v in row.items() if k != "row"} for row in pairs(32)])
    policies = tmp_path / "policies.yaml"
    policies.write_text(f"a: {{model: {model_dir}, temperature: 0.7}}\nb: {{model: {model_dir}, temperature: 1.5}}\n")

    def make(name="run", **overrides):
        settings = {
            "model_name_or_path": model_dir,
            "dataset": data,
            "behavior_policies": policies,
            "output_dir": tmp_path / name,
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "heldout_steps": 2,
            "max_completion_length": 8,
            "quiet": True,
        } | overrides
        return [item for key, value in settings.items() if value is not None for item in (f"--{key}", str(value))]

    return make
