"""One prompt and its group: read once or for every response: `python benchmarks/prefix.py`.

training     forward and backward of a GRPO micro-batch of 8 responses to one prompt, on a random model (one layer of
             512, V = 997); `autotelic` is `--shared_prefix auto`: rows are left alone where its estimate sees no gain
generation   the group's sampling by transformers' `generate`, 8 responses to one prompt, from the same model
"""

import warnings
from collections.abc import Callable
from typing import Any

from common import OURS, case, interleave, one_thread, parser_for, write
from grpo_step import TRL, build, random_model

GROUP = 8
UNSHARED, TRANSFORMERS = "autotelic, nothing shared", "transformers"
TRAINING = {(1000, 200): 2.0, (200, 200): None, (200, 1000): None}
"""Tokens of prompt and response, and the target."""
GENERATION = ((1000, 100), (20, 100))
MODEL = {"layers": 1, "hidden": 512, "inner": 2048, "vocabulary": 997}
SMOKE = {"layers": 1, "hidden": 64, "inner": 128, "vocabulary": 97}


def group(prompt: int, response: int, vocabulary: int) -> dict[str, Any]:
    """Return a made-up micro-batch: one prompt, responses of half to full width, each with an advantage."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (1, prompt), generator=generator).expand(GROUP, -1)
    lengths = torch.randint(response // 2, response + 1, (GROUP, 1), generator=generator)
    mask = torch.arange(response) < lengths
    return {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": torch.randint(5, vocabulary, (GROUP, response), generator=generator),
        "completion_mask": mask.long(),
        "advantages": torch.randn(GROUP, generator=generator),
        "row_ids": torch.arange(GROUP),
        "num_items_in_batch": mask.sum(),
    }


def training(args: Any, prompt: int, response: int, target: float | None) -> dict[str, Any]:
    """Compare one micro-batch of a group."""
    from trl import GRPOTrainer

    from autotelic.tasks.tokenizer import build_tokenizer
    from autotelic.trl import with_entropy_control

    tokenizer, shape = build_tokenizer(), SMOKE if args.smoke else MODEL
    micro = group(prompt, response, shape["vocabulary"])
    sides: dict[str, Callable[[], Any]] = {}
    modes = {OURS: "auto", UNSHARED: "off", TRL: ""}
    for name, mode in modes.items():
        trainer_class = with_entropy_control(GRPOTrainer) if mode else GRPOTrainer
        ours = {"fused_head": "on", "shared_prefix": mode} if mode else {}
        model = random_model(tokenizer, **shape, width=prompt + response)
        trainer = build(trainer_class, tokenizer, model, GROUP, GROUP, response, **ours)

        def step(trainer: Any = trainer) -> None:
            trainer._compute_loss(trainer.model, dict(micro)).backward()
            trainer.model.zero_grad(set_to_none=True)

        sides[name] = step
    targets = {"targets": {TRL: target}} if target else {}
    name = f"training, prompt {prompt}, response {response}, group {GROUP}"
    return case(name, interleave(sides, args.repeats), **targets)


def generation(args: Any, prompt: int, response: int) -> dict[str, Any]:
    """Compare the sampling of a group."""
    import torch
    from transformers import GenerationConfig

    from autotelic.lm.shared_prefill import share_prefill
    from autotelic.tasks.tokenizer import build_tokenizer

    tokenizer, shape = build_tokenizer(), SMOKE if args.smoke else MODEL
    ids = group(prompt, response, shape["vocabulary"])["prompt_ids"]
    options = {"max_new_tokens": response, "min_new_tokens": response, "do_sample": True, "top_k": 0}
    config = GenerationConfig(**options, pad_token_id=0, eos_token_id=1)
    sides: dict[str, Callable[[], Any]] = {}
    for name in (OURS, TRANSFORMERS):
        model = random_model(tokenizer, **shape, width=prompt + response).eval()
        if name == OURS:
            share_prefill(model, mode="auto")

        def sample(model: Any = model) -> None:
            torch.manual_seed(0)
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)

        sides[name] = sample
    return case(f"generation, prompt {prompt}, response {response}, group {GROUP}", interleave(sides, args.repeats))


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=3).parse_args(options)
    one_thread()
    warnings.simplefilter("ignore")
    sizes = {(30, 6): None} if args.smoke else TRAINING
    cases = [training(args, *size, target) for size, target in sizes.items()]
    cases += [generation(args, *size) for size in (((30, 4),) if args.smoke else GENERATION)]
    work = {"model": "1 random layer of 512, heads of 64, V = 997, float32", "group": GROUP}
    return write("prefix", args, cases, work=work)


if __name__ == "__main__":
    main()
