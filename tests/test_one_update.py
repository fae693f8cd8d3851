"""The update written out in examples/one_update.py is the trainer's: same rollout, same tokens, same gradient."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "one_update.py"


def load():
    spec = importlib.util.spec_from_file_location("one_update", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gradient_is_the_trainers(tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from autotelic.controls.entropy_control import EntropyControlWarning
    from autotelic.rewards import EMPO
    from autotelic.tasks import load_problems, model_path
    from autotelic.trl import ClipCov, with_entropy_control, with_label_free_rewards

    example = load()
    tokenizer = AutoTokenizer.from_pretrained(model_path("any_pair"))
    model = AutoModelForCausalLM.from_pretrained(model_path("any_pair"), dtype="float32")
    prompts = [row["prompt"] for row in load_problems("chain_sums:train", limit=example.PROMPTS)]
    torch.manual_seed(0)
    ids, attention, mask = example.sample(model, tokenizer, prompts)
    model.train()
    loss, found = example.loss_of(model, tokenizer, ids, attention, mask)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    class Sampled(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            return [row[kept].tolist() for row, kept in zip(ids[:, -mask.shape[1] :], mask, strict=True)], None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        control = ClipCov(fraction=0.05, low=0.1, high=9.0)
    rows = example.PROMPTS * example.GROUP
    trainer = with_entropy_control(with_label_free_rewards(Sampled), entropy_control=control)(
        model=model,
        reward_funcs=EMPO(low=-1.0, high=9.0),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=rows,
            num_generations=example.GROUP,
            max_completion_length=example.LENGTH,
            loss_type="grpo",
            beta=0.0,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
    )
    model.train()
    trainer.current_gradient_accumulation_steps, trainer._step = 1, 0
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert int(inputs["plan"].selected.sum()) == int(found["selected"]) > 0
    theirs = trainer._compute_loss(model, inputs)
    theirs.backward()
    assert theirs.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    for name, gradient in ours.items():
        found = dict(model.named_parameters())[name].grad
        assert (found - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
