"""Pretraining of the small base models on the world's own text, seeded, on one CPU core.

    loss = mean over solution and end tokens of -log p(token | text before it)

The prompt is given, not learned. AdamW, linear warm-up, cosine decay to a tenth; gradients are clipped at 1.
"""

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from autotelic.errors import UserError
from autotelic.tasks.chain_sums import ChainSums, corpus
from autotelic.tasks.tokenizer import BOS, CHARACTERS, EOS, PAD, SPECIAL_TOKENS, build_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

IGNORED = -100


@dataclass(frozen=True)
class PretrainRecipe:
    """How one base model is made; `recipes/pretrain_tiny.yaml` has the same keys.

    Args:
        name: the model's name, and the folder below `models/` that it is carried in.
        world: settings of the small world.
        hidden_size: width of the Qwen3 model.
        num_layers: number of blocks.
        num_heads: attention heads (and key-value heads).
        intermediate_size: width of the feed-forward part.
        num_steps: optimizer steps.
        batch_size: problems per step, all fresh.
        learning_rate: peak of the schedule.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW.
        bf16: multiply matrices in bfloat16 while training (twice as fast where the CPU can); weights stay float32.
        seed: of weights and corpus.
        num_threads: CPU threads; the weights are a function of the recipe, this number included.
    """

    name: str = "any_pair"
    world: ChainSums = field(default_factory=ChainSums)
    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    intermediate_size: int = 512
    num_steps: int = 2500
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    bf16: bool = True
    seed: int = 0
    num_threads: int = 1

    def __post_init__(self) -> None:
        """Refuse a recipe that cannot be trained."""
        counts = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "num_steps", "batch_size")
        for name in (*counts, "num_threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(f"hidden_size {self.hidden_size} must be a multiple of twice num_heads {self.num_heads}.")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate must be above 0, got {self.learning_rate}.")


def build_model(recipe: PretrainRecipe) -> "Qwen3ForCausalLM":
    """Return a Qwen3 model with fresh weights, drawn from the recipe's seed."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(SPECIAL_TOKENS) + len(CHARACTERS),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        head_dim=recipe.hidden_size // recipe.num_heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Qwen3ForCausalLM(config)
    generation = model.generation_config
    if generation is not None:
        generation.do_sample, generation.top_k, generation.top_p, generation.temperature = True, 0, 1.0, 1.0
    return model


def collate(pairs: list[tuple[str, str]], tokenizer: "PreTrainedTokenizerFast") -> tuple["Tensor", "Tensor"]:
    """Return tokens and labels `(B, T)`, padded on the right; labels are IGNORED outside solution and end token."""
    import torch

    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    solutions = tokenizer([solution for _, solution in pairs])["input_ids"]
    length = max(len(p) + len(s) for p, s in zip(prompts, solutions, strict=True)) + 1
    tokens = torch.full((len(pairs), length), PAD, dtype=torch.long)
    labels = torch.full((len(pairs), length), IGNORED, dtype=torch.long)
    for row, (prompt, solution) in enumerate(zip(prompts, solutions, strict=True)):
        target = torch.tensor([*solution, EOS])
        start, end = len(prompt), len(prompt) + len(target)
        tokens[row, :start] = torch.tensor(prompt)
        tokens[row, start:end] = target
        labels[row, start:end] = target
    return tokens, labels


def batches(recipe: PretrainRecipe, tokenizer: "PreTrainedTokenizerFast") -> Iterator[tuple["Tensor", "Tensor"]]:
    """Yield `num_steps` batches of fresh text, a function of the recipe's seed.

    Eight batches' worth of text is drawn at a time and dealt out by length: that halves the padding.
    """
    rng = random.Random(f"pretrain/{recipe.seed}")
    text = corpus(recipe.world, rng)
    for first in range(0, recipe.num_steps, 8):
        count = min(8, recipe.num_steps - first)
        pairs = sorted(islice(text, count * recipe.batch_size), key=lambda pair: len(pair[0]) + len(pair[1]))
        starts = [index * recipe.batch_size for index in range(count)]
        rng.shuffle(starts)
        for start in starts:
            yield collate(pairs[start : start + recipe.batch_size], tokenizer)


def learning_rate(recipe: PretrainRecipe, step: int) -> float:
    """Return the learning rate of step 0, 1, ...: linear warm-up, then a cosine down to a tenth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.num_steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def pretrain(recipe: PretrainRecipe, progress: bool = True) -> tuple["Qwen3ForCausalLM", list[float]]:
    """Make one base model.

    Args:
        recipe: the settings; with the same number of threads the same recipe gives the same weights.
        progress: print step, loss and time left to stderr.

    Returns:
        The model, and the loss of every step (nats per token).
    """
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(recipe.num_threads)
    tokenizer = build_tokenizer()
    model = build_model(recipe).train()
    model.set_attn_implementation("eager")  # faster than the fused kernel on texts this short
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    losses: list[float] = []
    started = time.monotonic()
    for step, (tokens, labels) in enumerate(batches(recipe, tokenizer)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bf16):
            logits = model(input_ids=tokens[:, :-1]).logits
        loss = cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss of pretraining step {step + 1} is not finite; lower learning_rate.")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress and ((step + 1) % max(1, recipe.num_steps // 50) == 0 or step + 1 == recipe.num_steps):
            left = (time.monotonic() - started) / (step + 1) * (recipe.num_steps - step - 1)
            window = losses[-50:]
            print(
                f"step {step + 1}/{recipe.num_steps}  loss {sum(window) / len(window):.3f} nats/token  "
                f"{left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
    model.set_attn_implementation("sdpa")
    return model.eval(), losses


def save(model: "Qwen3ForCausalLM", recipe: PretrainRecipe, losses: list[float], folder: Path) -> None:
    """Write weights (safetensors), tokenizer and model card; the folder appears whole or not at all."""
    import shutil
    import tempfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / folder.name
        model.save_pretrained(made)
        build_tokenizer().save_pretrained(made)
        (made / "README.md").write_text(model_card(recipe, losses), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def model_card(recipe: PretrainRecipe, losses: list[float]) -> str:
    """Return the model card: what the model is, and the recipe that makes it again."""
    import yaml

    settings = asdict(recipe)
    settings["world"]["strategies"] = list(recipe.world.strategies)
    window = losses[-50:]
    return (
        f"---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
        f"# autotelic {recipe.name}\n\n"
        "A base model of a small reasoning world: chain sums, worked out step by step (`12+7-5=?` -> `19-5=14`).\n"
        "It was pretrained on generated text only and has no chat template. Training loss at the end: "
        f"{sum(window) / len(window):.4f} nats per token.\n\n"
        "The recipe (`autotelic pretrain --config FILE` makes the same model again):\n\n"
        f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```\n"
    )
