"""One GRPO update, ours against plain TRL: `python benchmarks/grpo_step.py`.

wide vocabulary  forward and backward of a micro-batch of made-up rollouts, on one random layer of a 0.5B model's shape
                 (d = 896, V = 151,936), the same weights and tokens for every side; generation is not in the clock
small world      a whole update of `autotelic train grpo` on the carried model: generation, reward, forward, backward,
                 optimizer, all metrics; V = 18, so `fused_head=auto` stays with TRL's head
control's share  what the parts of a run (control, diagnostics) take of an update of 64 x 1024 tokens
"""

import os
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from common import OURS, case, interleave, one_thread, parser_for, write

TRL = "TRL"


def random_model(tokenizer: Any, *, layers: int, hidden: int, inner: int, vocabulary: int, width: int) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    head_dim = 64 if hidden % 64 == 0 else 16
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=hidden // head_dim,
            num_key_value_heads=max(hidden // head_dim // 7, 1) if hidden % 7 == 0 else hidden // head_dim,
            head_dim=head_dim,
            max_position_embeddings=width + 64,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )


def build(
    trainer_class: Any,
    tokenizer: Any,
    model: Any,
    rows: int,
    micro: int,
    width: int,
    settings: Any = None,
    group: int = 4,
    **ours: Any,
) -> Any:
    """A trainer that is about to make the second of two updates on a rollout."""
    from datasets import Dataset
    from trl import GRPOConfig

    trainer = trainer_class(
        model=model,
        reward_funcs=constant,
        args=GRPOConfig(
            **{"use_cpu": True, "bf16": False} | (settings or {}),
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=rows // micro,
            steps_per_generation=rows // micro,
            num_iterations=2,
            num_generations=group,
            max_completion_length=width,
            gradient_checkpointing=False,
            report_to="none",
            beta=0.0,
            learning_rate=1e-6,
        ),
        train_dataset=Dataset.from_list([{"prompt": "1+2=?"}] * rows),
        processing_class=tokenizer,
        **ours,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = rows // micro
    return trainer


def constant(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    return [0.0] * len(completions)


def rollout(rows: int, micro: int, width: int, vocabulary: int) -> list[dict[str, Any]]:
    """Return made-up micro-batches: 16 prompt tokens, responses of half to full width, every other advantage zero."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> Any:
        return torch.randint(5, vocabulary, (rows, n), generator=generator)

    prompts, mask = (
        tokens(16),
        torch.arange(width) < torch.randint(width // 2, width + 1, (rows, 1), generator=generator),
    )
    whole = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": tokens(width),
        "completion_mask": mask.long(),
        "advantages": torch.randn(rows, generator=generator) * (torch.arange(rows) % 2),
        "row_ids": torch.arange(rows),
    }
    return [
        {key: value[start : start + micro] for key, value in whole.items()} | {"num_items_in_batch": mask.sum()}
        for start in range(0, rows, micro)
    ]


def scored(trainer: Any, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add old log-probabilities, a little off the present ones, so that ratios differ from 1."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in parts:
            ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
            attention = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
            width = part["completion_ids"].shape[1]
            with trainer.accelerator.autocast():
                now = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, width)[0]
            part["old_per_token_logps"] = now + 0.1 * torch.randn(now.shape, generator=generator).to(now)
    return parts


def update(trainer: Any) -> None:
    """Forward and backward over the buffered rollout."""
    count = trainer.args.steps_per_generation
    for step in range(count):
        trainer._step = count + step  # the second pass over the rollout: nothing is generated
        with trainer.accelerator.autocast():
            loss = trainer._compute_loss(trainer.model, trainer._prepare_inputs(None))
        loss.backward()
    trainer.model.zero_grad(set_to_none=True)


def wide_vocabulary(args: Any) -> dict[str, Any]:
    """Compare one micro-batch on a head of 151,936 tokens."""
    from trl import GRPOTrainer

    from autotelic.controls.high_entropy import HighEntropy
    from autotelic.tasks.tokenizer import build_tokenizer
    from autotelic.trl import KLCov, with_entropy_control
    from autotelic.trl.seam import score

    rows, width, hidden, inner, vocabulary = (4, 8, 64, 128, 997) if args.smoke else (4, 96, 896, 4864, 151_936)
    tokenizer = build_tokenizer()
    controls = {OURS: None, f"{OURS}, kl_cov": KLCov(fraction=2e-3), f"{OURS}, high_entropy": HighEntropy()}
    trainers: dict[str, Any] = {}
    for name, control in {TRL: None, **controls}.items():
        shape = {"layers": 1, "hidden": hidden, "inner": inner, "vocabulary": vocabulary, "width": width}
        trainer_class = GRPOTrainer if name == TRL else with_entropy_control(GRPOTrainer)
        ours = {} if name == TRL else {"entropy_control": control, "fused_head": "on"}
        trainers[name] = build(trainer_class, tokenizer, random_model(tokenizer, **shape), rows, rows, width, **ours)
    parts = scored(trainers[TRL], rollout(rows, rows, width, vocabulary))
    for name, trainer in trainers.items():
        trainer._buffered_inputs = [dict(part) for part in parts]
        if name.endswith("high_entropy"):
            for part in trainer._buffered_inputs:
                part["rollout_entropy"] = score(trainer, part, entropy=True)[1]
    sides = {name: (lambda trainer=trainer: update(trainer)) for name, trainer in trainers.items()}
    seconds = interleave(sides, args.repeats)
    return case(
        f"forward and backward, {rows} x {width} tokens, V = {vocabulary}", seconds, target=1.3, target_side=TRL
    )


def small_world(args: Any) -> dict[str, Any]:
    """Compare whole updates on the carried model, as `trainer.train()` makes them."""
    import torch
    from trl import GRPOTrainer

    from autotelic.cli import train
    from autotelic.tasks import to_dataset
    from autotelic.trl.build import build_trainer

    steps, group = (1, 2) if args.smoke else (2, 8)
    trainers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, control in ((TRL, "none"), (OURS, "none"), (f"{OURS}, kl_cov", "kl_cov")):
            given = {
                "output_dir": f"{folder}/{len(trainers)}",
                "model_name_or_path": "any_pair",
                "dataset": "chain_sums:train",
                "dataset_limit": 64,
                "per_device_train_batch_size": 4 * group,
                "num_generations": group,
                "steps_per_generation": 2,
                "gradient_accumulation_steps": 1,
                "max_completion_length": 32,
                "max_steps": 2 * steps,
                "learning_rate": 1e-6,
                "save_strategy": "no",
                "entropy_control": "kl_cov,fraction=0.02" if control == "kl_cov" else control,
                "quiet": True,
            }
            options = [word for key, value in given.items() for word in (f"--{key}", str(value))]
            run, settings, model_args = train.parse("grpo", options)
            reward, tokenizer = train.build_reward(run, settings), train.load_tokenizer(model_args, settings)
            model = train.load_model(model_args, settings)
            parts = {"model": model, "reward": reward, "tokenizer": tokenizer}
            parts["rows"] = train.load_rows(run, reward, tokenizer)
            if name == TRL:
                trainers[name] = GRPOTrainer(
                    model=model,
                    reward_funcs=parts["reward"],
                    args=settings,
                    train_dataset=to_dataset(parts["rows"]),
                    processing_class=tokenizer,
                )
            else:
                trainers[name] = build_trainer("grpo", run, settings, **parts)

        def turn(trainer: Any) -> None:
            torch.manual_seed(0)
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                trainer.train()

        sides = {name: (lambda trainer=trainer: turn(trainer)) for name, trainer in trainers.items()}
        seconds = interleave(sides, args.repeats)
    name = f"{2 * steps} whole updates of {4 * group} responses, small world"
    return case(name, seconds, target=0.9, target_side=TRL)


def control_share(args: Any) -> dict[str, Any]:
    """Clock the hooks of the parts in a long update."""
    from trl import GRPOTrainer

    from autotelic.tasks.tokenizer import build_tokenizer
    from autotelic.trl import ClipCov, KLCov, with_entropy_control

    rows, width, micro = (8, 16, 4) if args.smoke else (64, 1024, 8)
    tokenizer = build_tokenizer()
    shape = {"layers": 2, "hidden": 128, "inner": 512, "vocabulary": len(tokenizer), "width": width}
    facts = {}
    for control in (ClipCov(fraction=2e-4), KLCov(fraction=2e-3)):
        model = random_model(tokenizer, **shape)
        base = with_entropy_control(GRPOTrainer)
        trainer = clocked(build(base, tokenizer, model, rows, micro, width, entropy_control=control))
        trainer._buffered_inputs = scored(trainer, rollout(rows, micro, width, len(tokenizer)))
        shares = []
        for turn in range(1 if args.smoke else 2):
            trainer.own, started = 0.0, time.process_time()
            update(trainer)
            if turn or args.smoke:  # the first is for warming up
                shares.append(trainer.own / (time.process_time() - started))
        facts[control.name] = sum(shares) / len(shares)
        print(f"{control.name}: {facts[control.name]:.2%} of an update", flush=True)
    return {"name": f"the control's share of an update, {rows} x {width} tokens", "shares": facts, "at_most": 0.01}


HOOKS = ("on_responses", "on_rollout", "on_generation", "on_update", "on_token_stats", "loss_term")


def clocked(trainer: Any) -> Any:
    """Make the trainer's attribute `own` add up the CPU seconds that its parts take; return the trainer."""

    def timed(hook: Any) -> Any:
        def run(*args: Any) -> Any:
            started = time.process_time()
            result = hook(*args)
            trainer.own += time.process_time() - started
            return result

        return run

    trainer.own = 0.0
    for part in trainer.parts:
        for name in HOOKS:
            setattr(part, name, timed(getattr(part, name)))
    return trainer


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=3).parse_args(options)
    one_thread()
    warnings.simplefilter("ignore")
    cases = [wide_vocabulary(args), small_world(args), control_share(args)]
    work = {
        "wide vocabulary": "1 random layer, d = 896, tied head, float32; half of the responses have zero advantage",
        "small world": "any_pair, 4 prompts x 8 responses of at most 32 tokens, 2 updates a rollout",
        "control": "2 random layers of 128, V = 18, micro-batches of 8 rows",
    }
    return write("grpo_step", args, cases, work=work)


if __name__ == "__main__":
    main()
