"""What the adapters are tested on: tiny random models, a trainer on one, and updates on made-up tensors."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def tokenizer():
    from autotelic.tasks.tokenizer import build_tokenizer

    return build_tokenizer()


def tiny_qwen(tokenizer, seed: int = 0, **settings):
    """A random Qwen3 of one layer over a tokenizer's words."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    return Qwen3ForCausalLM(Qwen3Config(**(shape | settings)))


@pytest.fixture(scope="session")
def make_model(tokenizer):
    return partial(tiny_qwen, tokenizer)


@pytest.fixture(scope="module")
def tiny():
    """A random Qwen3 of one layer and a tokenizer of single characters: (model, tokenizer), to sample from."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<eos>", *"0123456789+-=? "]
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<eos>", eos_token="<eos>")
    model = tiny_qwen(tokenizer, num_key_value_heads=2, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(10.0)  # away from the uniform distribution, so that entropy means something
    return model, tokenizer


def digit_reward(prompts, completions, **kwargs):
    """Share of the digit 7: varies within a group, needs no label."""
    return [completion.count("7") / max(len(completion), 1) for completion in completions]


@pytest.fixture
def make_trainer(tokenizer, make_model, tmp_path: Path):
    import trl
    from datasets import Dataset

    prompts = ("1+2=?", "3+4+5=?", "9-1=?", "2-2=?")

    def build(wrap=lambda cls: cls, model=None, prompts=prompts, engine="GRPO", **overrides):
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
        return wrap(getattr(trl, f"{engine}Trainer"))(
            model=model or make_model(),
            reward_funcs=kwargs.pop("reward_funcs", digit_reward),
            args=getattr(trl, f"{engine}Config")(**settings),
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
    "parts",
    "reward_funcs",
    "peft_config",
    "callbacks",
}


SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def random_model(name, **settings):
    """A tiny random model of a transformers class, with distributions that differ from place to place."""
    import transformers

    torch.manual_seed(1)
    shape = SHAPE | settings
    if name.startswith("GPT2"):
        of_others = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        of_others += ("num_key_value_heads", "head_dim")
        shape = {key: value for key, value in (SHAPE | GPT2 | settings).items() if key not in of_others}
        shape["n_positions"] = shape.pop("max_position_embeddings")
    config = getattr(transformers, name.replace("ForCausalLM", "Config").replace("LMHeadModel", "Config"))
    model = getattr(transformers, name)(config(**shape))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)  # as initialised, every distribution is uniform
    return model


class Counting(nn.Module):
    """Adds the number of tokens of the call before each place: a state outside attention, which no setting tells of."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) + 0.01 * torch.arange(hidden.shape[1])[:, None]


def micro_batches(trainer, seed=3):
    """Return the micro-batches of the first rollout, as the trainer buffers them."""
    torch.manual_seed(seed)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._step = 0
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return [dict(part) for part in trainer._buffered_inputs]


def first_update(trainer, seed=None):
    """Make a rollout and the gradient of its first update; return the micro-batches, with what the parts added."""
    if seed is not None:
        torch.manual_seed(seed)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    batch = next(iter(trainer.get_train_dataloader()))
    micro_batches = []
    for step in range(trainer.args.gradient_accumulation_steps):
        trainer._step = step
        micro_batches.append(trainer._prepare_inputs(batch))
        trainer._compute_loss(trainer.model, micro_batches[-1]).backward()
    return micro_batches


def gradient_of(model):
    """Return the gradient of all parameters as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def logged(trainer):
    """Return the values of every metric since TRL's log was last written."""
    return trainer._metrics["train"]


# An update on tensors that are made up: log-probabilities are a leaf, so that gradients can be read off.


def made_up_trainer(make_trainer, rows, wrap, **settings):
    """A trainer whose forward pass returns its attribute `leaf`; the next call of `update_on` sets it."""

    def wrapped(trainer_class):
        class MadeUp(trainer_class):
            leaf = None

            def _get_per_token_logps_and_entropies(self, *args, compute_entropy=False, **kwargs):
                leaf = self.leaf if torch.is_grad_enabled() else self.leaf.detach()
                return leaf, torch.ones_like(leaf) + 0 * self.padding, None

        return wrap(MadeUp)

    batch = {"per_device_train_batch_size": rows, "generation_batch_size": rows, "num_generations": rows}
    return make_trainer(wrapped, **(batch | {"steps_per_generation": None, "num_iterations": 2} | settings))


def update_on(trainer, logprobs, old, advantages, mask, **extra_inputs):
    """Return loss, gradient with respect to the log-probabilities, and TRL's inputs of an update of one micro-batch."""
    trainer.leaf, trainer.padding = logprobs.clone().requires_grad_(), old
    rows = torch.arange(logprobs.shape[0])
    prompts = trainer.processing_class(["1+2=?"] * len(rows), return_tensors="pt")["input_ids"]
    trainer._buffered_inputs = [
        {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
            "completion_mask": mask.long(),
            "advantages": advantages,
            "num_items_in_batch": mask.sum(),
            "old_per_token_logps": old,
            "row_ids": rows,
            **extra_inputs,
        }
    ]
    trainer.current_gradient_accumulation_steps = 1
    trainer._step = 1  # the second pass over the rollout: nothing is generated
    trainer.model.train()
    inputs = trainer._prepare_inputs(None)
    loss = trainer._compute_loss(trainer.model, inputs)
    return loss.detach(), torch.autograd.grad(loss, trainer.leaf)[0], inputs


def on_made_up_tensors(make_trainer, control, logprobs, old, advantages, mask, extra_inputs=None, **settings):
    """Return loss, gradient, selected tokens and trainer of one update under a control."""
    from autotelic.trl import with_entropy_control

    trainer = made_up_trainer(make_trainer, len(logprobs), with_entropy_control, entropy_control=control, **settings)
    loss, gradient, inputs = update_on(trainer, logprobs, old, advantages, mask, **(extra_inputs or {}))
    return loss, gradient, inputs["plan"].selected, trainer


def made_up(seed=0, rows=6, width=12):
    generator = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(rows, width, generator=generator)
    old = logprobs + 0.4 * torch.randn(rows, width, generator=generator)
    advantages = 2 * torch.randn(rows, generator=generator)
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=generator)
    return logprobs, old, advantages, mask


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One token for every byte, and Qwen3's chat template."""
    import trl
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    markers = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    inner.add_special_tokens([AddedToken(text, special=True) for text in markers])
    words = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
    inner.add_tokens([AddedToken(text, normalized=False) for text in words])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    return tokenizer
