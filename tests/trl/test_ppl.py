"""PPL on TRL's DPOTrainer: what it equals, what the labels are, what is refused, and the run from the command line."""

import json

import pytest
import torch
from trl import DPOConfig, DPOTrainer

from autotelic.cli.train import train
from autotelic.errors import UserError
from autotelic.trl.ppl import OBJECTIVES, PPL, objective, with_policy_labels
from autotelic.trl.ppl_labels import (
    BehaviorPolicy,
    PolicyLabels,
    label_sequences,
    load_pairs,
    read_policies,
    sampling_log_softmax,
)


def pairs(count=16, **columns):
    """Rows whose chosen response is longer or shorter than the rejected one, by turns."""
    rows = []
    for i in range(count):
        good, bad = f"{i + 3}={2 * i}", f"{i}"
        rows.append({"prompt": f"{i}+{i + 1}=?", "chosen": good, "rejected": bad} | {"row": i + 1})
        rows[-1] |= {"chosen_policy_id": "ab"[i % 2], "rejected_policy_id": "ab"[i % 3 == 0]} | columns
    return rows


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer):
    """A saved model, since TRL reads the reference from where the model came from."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
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
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path)


@pytest.fixture
def build(tmp_path, model_dir, tokenizer):
    """Return a function giving a trainer of four updates."""
    from datasets import Dataset

    def make(wrap=with_policy_labels, rows=None, model=None, **settings):
        own = {k: settings.pop(k) for k in ("ppl", "policy_labels", "peft_config", "eval_dataset") if k in settings}
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
        return wrap(DPOTrainer)(
            model=model or load(model_dir),
            args=DPOConfig(**arguments),
            train_dataset=Dataset.from_list(rows or pairs()),
            processing_class=tokenizer,
            **own,
        )

    return make


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def loss_and_gradient(trainer, batch=None):
    batch = first_batch(trainer) if batch is None else batch
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), trainer.model.model.layers[0].mlp.up_proj.weight.grad


@pytest.mark.parametrize(
    "settings",
    [OBJECTIVES["dpo"], PPL(normalize="sum", horizon=0), PPL(divergence="dirac", normalize="sum", coef=0.0)],
    ids=["none", "L=0", "c=0"],
)
@pytest.mark.parametrize("precompute", [False, True])
def test_without_lookahead_it_is_dpo_exactly(build, settings, precompute):
    """The same model one update away from its reference: loss and gradient are those of TRL's own DPO."""
    theirs = build(wrap=lambda cls: cls)
    theirs.model.lm_head.weight.data += 0.1 * torch.randn_like(
        theirs.model.lm_head.weight, generator=torch.Generator().manual_seed(1)
    )
    ours = build(ppl=settings, precompute_ref_log_probs=precompute)
    ours.model.load_state_dict(theirs.model.state_dict())
    wanted, found = loss_and_gradient(theirs), loss_and_gradient(ours)
    assert wanted[0] != pytest.approx(0.6931, abs=1e-3)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=1e-8)
