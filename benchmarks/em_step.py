"""One update of one-shot EM, 64 rollouts of one prompt, by the official script: `python benchmarks/em_step.py`.

Sides, on the carried small model, from the same weights:
  autotelic          the trainer of `train one_shot_em`: 64 rollouts at once, with a KV cache, one forward and backward
  official           as the script runs on one GPU: 32 micro-batches of 2 rollouts, each generated without a cache
  official, batched  the same method in one batch of 64: only the missing cache differs
The official sides are written anew from a description of the method. All sides sample at temperature 0.5 until the end
token, at most 32 tokens, from the full vocabulary; seconds are per generated token, since no two sides draw the same.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from common import OURS, case, interleave, one_thread, parser_for, write

PROMPT, TEMPERATURE, RATE = "9+9+10-3+7=?", 0.5, 2e-5


def official(model: Any, tokenizer: Any, optimizer: Any, micro: int, rollouts: int, length: int) -> int:
    """One update; returns the number of generated tokens. Full logits, whole sequences, no cache."""
    import torch

    from autotelic.functional import entropy_minimization_official

    encoded = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    prompt = encoded.repeat(micro, 1)
    tokens = 0
    for _ in range(rollouts // micro):
        model.eval()
        with torch.no_grad():
            ids = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=length,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                use_cache=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        model.train()
        attention = (ids != tokenizer.pad_token_id).long()
        logits = model(input_ids=ids, attention_mask=attention).logits
        lengths = torch.full((micro,), encoded.shape[1])
        loss = entropy_minimization_official(
            logits, ids, lengths, pad_id=tokenizer.pad_token_id, temperature=TEMPERATURE
        )
        (loss / (rollouts // micro)).backward()
        tokens += int(attention[:, encoded.shape[1] :].sum())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return tokens


def make_ours(model: Any, tokenizer: Any, folder: Path, rollouts: int, length: int) -> Any:
    """The trainer of `autotelic train one_shot_em`, without its run folder's callbacks."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from autotelic.trl import EntropyMinimization, with_entropy_minimization

    def constant(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    trainer = with_entropy_minimization(GRPOTrainer)(
        model=model,
        reward_funcs=constant,
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=rollouts,
            num_generations=rollouts,
            max_completion_length=length,
            temperature=TEMPERATURE,
            learning_rate=RATE,
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": PROMPT}]),
        processing_class=tokenizer,
        entropy_minimization=EntropyMinimization(),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


def ours(trainer: Any, rollouts: int) -> int:
    """One update; returns the number of generated tokens."""
    import torch

    trainer.model.train()
    batch = [{"prompt": PROMPT}] * rollouts
    trainer._step = 0
    inputs = trainer._prepare_inputs(batch)
    trainer._compute_loss(trainer.model, inputs).backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return int(inputs["completion_mask"].sum())


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=5).parse_args(options)
    one_thread()
    rollouts, length = (4, 6) if args.smoke else (64, 32)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autotelic.tasks import model_path

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(model_path("any_pair"))

    def official_side(micro: int) -> Any:
        model = fresh()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        return lambda: official(model, tokenizer, optimizer, micro, rollouts, length)

    tokenizer = AutoTokenizer.from_pretrained(model_path("any_pair"))
    tokens: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_ours(fresh(), tokenizer, Path(folder), rollouts, length)
        updates = {
            OURS: lambda: ours(trainer, rollouts),
            "official": official_side(2),
            "official, batched": official_side(rollouts),
        }
        sides = {name: counted(update, tokens.setdefault(name, [])) for name, update in updates.items()}
        seconds = interleave(sides, args.repeats)
    per_token = {name: [s / n for s, n in zip(turns, tokens[name][1:], strict=True)] for name, turns in seconds.items()}
    rows = [
        case("update, per generated token", per_token, target=5.0, target_side="official"),
        case("update, whole", seconds, tokens={name: sum(t[1:]) / len(t[1:]) for name, t in tokens.items()}),
    ]
    work = {"rollouts": rollouts, "prompt": PROMPT, "longest_response": length, "model": "any_pair, carried"}
    return write("em_step", args, rows, work=work)


def counted(update: Any, tokens: list[int]) -> Any:
    """Return the update as a turn that notes how many tokens it drew, from a seed of its own."""
    import torch

    def turn() -> None:
        torch.manual_seed(len(tokens))
        tokens.append(update())

    return turn


if __name__ == "__main__":
    main()
