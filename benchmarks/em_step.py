"""One update of one-shot EM, 64 rollouts of one prompt, against the official script's way of doing the same work.

    python benchmarks/em_step.py [--repeats 5] [--out FILE.json]

Sides, on the carried small model, one thread, from the same weights, interleaved:
  ours              the trainer of `train one_shot_em`: 64 rollouts at once, with a KV cache, one forward and backward
  official          as the script runs on one GPU: 32 micro-batches of 2 rollouts, each generated without a cache
  official, batched the same method in one batch of 64: only the missing cache differs
The official sides are written anew from the paper notes' description of the method. All sides sample at temperature 0.5
until the end token, at most 32 tokens, from the full vocabulary; tokens per update are printed.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

PROMPT, ROLLOUTS, LENGTH, TEMPERATURE, RATE = "9+9+10-3+7=?", 64, 32, 0.5, 2e-5


def official(model: Any, tokenizer: Any, optimizer: Any, micro: int) -> int:
    """One update; returns the number of generated tokens. Full logits, whole sequences, no cache."""
    from autotelic.functional import entropy_minimization_official

    encoded = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    prompt = encoded.repeat(micro, 1)
    tokens = 0
    for _ in range(ROLLOUTS // micro):
        model.eval()
        with torch.no_grad():
            ids = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=LENGTH,
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
        (loss / (ROLLOUTS // micro)).backward()
        tokens += int(attention[:, encoded.shape[1] :].sum())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return tokens


def make_ours(model: Any, tokenizer: Any, folder: Path) -> Any:
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
            per_device_train_batch_size=ROLLOUTS,
            num_generations=ROLLOUTS,
            max_completion_length=LENGTH,
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


def ours(trainer: Any) -> int:
    """One update; returns the number of generated tokens."""
    trainer.model.train()
    batch = [{"prompt": PROMPT}] * ROLLOUTS
    trainer._step = 0
    inputs = trainer._prepare_inputs(batch)
    trainer._compute_loss(trainer.model, inputs).backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return int(inputs["completion_mask"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed updates of each side")
    parser.add_argument("--out", type=Path, help="write the figures here (JSON)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autotelic.tasks import model_path

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(model_path("any_pair"))

    tokenizer = AutoTokenizer.from_pretrained(model_path("any_pair"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_ours(fresh(), tokenizer, Path(folder))
        models = {name: fresh() for name in ("official", "official, batched")}
        optimizers = {name: torch.optim.AdamW(model.parameters(), lr=RATE) for name, model in models.items()}
        sides = {
            "ours": lambda: ours(trainer),
            "official": lambda: official(models["official"], tokenizer, optimizers["official"], 2),
            "official, batched": lambda: official(
                models["official, batched"], tokenizer, optimizers["official, batched"], ROLLOUTS
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        tokens: dict[str, list[int]] = {name: [] for name in sides}
        for repeat in range(args.repeats + 1):  # the first is for warming up
            for name, update in sides.items():
                torch.manual_seed(repeat)
                started = time.process_time()
                count = update()
                if repeat:
                    seconds[name].append(time.process_time() - started)
                    tokens[name].append(count)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "work": {"rollouts": ROLLOUTS, "prompt": PROMPT, "longest_response": LENGTH, "threads": 1},
        "cpu_seconds_per_update": medians,
        "tokens_per_update": {name: statistics.mean(values) for name, values in tokens.items()},
        "ratio_to_ours": {name: value / medians["ours"] for name, value in medians.items()},
        "all_seconds": seconds,
    }
    for name in sides:
        mean = result["tokens_per_update"][name]
        ratio = result["ratio_to_ours"][name]
        print(f"{name:<18} {medians[name]:7.3f} s of CPU an update  {mean:6.0f} tokens  {ratio:5.1f} x ours")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(args.out)


if __name__ == "__main__":
    main()
