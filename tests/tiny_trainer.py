"""A random two-layer model and a reward that differs between responses: what the adapters are tested on."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def tokenizer():
    from autotelic.tasks.tokenizer import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def make_model(tokenizer):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    def build(seed: int = 0):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
        return Qwen3ForCausalLM(config)

    return build


def digit_reward(prompts, completions, **kwargs):
    """Share of the digit 7: varies within a group, needs no label."""
    return [completion.count("7") / max(len(completion), 1) for completion in completions]


@pytest.fixture
def make_trainer(tokenizer, make_model, tmp_path: Path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def build(wrap=lambda cls: cls, model=None, prompts=("1+2=?", "3+4+5=?", "9-1=?", "2-2=?"), **overrides):
        kwargs = {name: overrides.pop(name) for name in list(overrides) if name in TRAINER_KEYS}
        settings = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "steps_per_generation": 2,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 8,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "beta": 0.0,
        } | overrides
        return wrap(GRPOTrainer)(
            model=model or make_model(),
            reward_funcs=kwargs.pop("reward_funcs", digit_reward),
            args=GRPOConfig(**settings),
            train_dataset=Dataset.from_list([{"prompt": p} for p in prompts] * 16),
            processing_class=tokenizer,
            **kwargs,
        )

    return build


TRAINER_KEYS = {
    "fused_head",
    "shared_prefix",
    "entropy_control",
    "entropy_change_rows",
    "train_generations",
    "entropy_minimization",
    "rollout_log",
    "reward_funcs",
    "peft_config",
    "callbacks",
}
