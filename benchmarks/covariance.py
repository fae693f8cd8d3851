"""What does covariance control cost? ``python benchmarks/covariance.py [--smoke] [--out FILE.json]``

1. One GRPO update of 64 responses x 1024 tokens on TRL, on a small random model, generation not counted; the control's
   own time is clocked inside it (choice, rewrite, all diagnostics). A larger model, and generation, lower the share.
2. The choice alone, on the same tensors, against the reference algorithm (verl's published functions, re-implemented in
   `autotelic.functional.parity`): theirs looks at each micro-batch, ours ranks the whole update exactly.

Medians of a few repetitions, in one process, interleaved; state the machine's load beside them.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def timed(function, *args):
    """Return the result and the seconds that it took."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def clocked(base):
    """A trainer that adds up the time spent in entropy control, and times everything around it."""

    class Clocked(base):
        own = 0.0

        def _plan_update(self, window):
            result, seconds = timed(super()._plan_update, window)
            self.own += seconds
            return result

        def _rewrite(self, *args):
            result, seconds = timed(super()._rewrite, *args)
            self.own += seconds
            return result

        def _finish_drift(self):
            self.own += timed(super()._finish_drift)[1]

    return Clocked


def build_trainer(control, rows, width, micro, layers, hidden):
    """A TRL trainer on a random model, with one made-up rollout in its buffer."""
    import torch
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from autotelic.tasks.tokenizer import build_tokenizer
    from autotelic.trl import with_entropy_control

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=width + 16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    trainer = clocked(with_entropy_control(GRPOTrainer))(
        model=Qwen3ForCausalLM(config),
        reward_funcs=lambda prompts, completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=rows // micro,
            steps_per_generation=rows // micro,
            num_iterations=2,
            num_generations=8,
            max_completion_length=width,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            beta=0.0,
        ),
        train_dataset=Dataset.from_list([{"prompt": "1+2=?"}] * rows),
        processing_class=tokenizer,
        entropy_control=control,
    )
    trainer.create_optimizer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = rows // micro
    ids = torch.randint(5, len(tokenizer), (rows, width))
    prompts = torch.randint(5, len(tokenizer), (rows, 8))
    lengths = torch.randint(width // 2, width + 1, (rows, 1))
    mask = (torch.arange(width) < lengths).long()
    whole = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.randn(rows),
        "row_ids": torch.arange(rows),
    }
    old = []
    for part in range(rows // micro):
        piece = {key: value[part * micro : (part + 1) * micro] for key, value in whole.items()}
        old.append(trainer._measure(piece, frozenset())["logprobs"] + 0.1 * torch.randn(micro, width))
    whole["old_per_token_logps"] = torch.cat(old)
    trainer._buffered_inputs = [
        {key: value[part * micro : (part + 1) * micro] for key, value in whole.items()}
        | {"num_items_in_batch": mask.sum()}
        for part in range(rows // micro)
    ]
    return trainer


def one_update(trainer):
    """Forward, backward and optimizer step over the buffered rollout; return (seconds, control's own seconds)."""
    trainer.own = 0.0
    micro_batches = trainer.args.steps_per_generation
    start = time.perf_counter()
    for step in range(micro_batches):
        trainer._step = micro_batches + step  # the second pass over the rollout: nothing is generated
        trainer._compute_loss(trainer.model, trainer._prepare_inputs(None)).backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.perf_counter() - start, trainer.own


def reference_choice(method, batches, settings):
    """The reference's choice, micro-batch by micro-batch."""
    import torch

    from autotelic.functional import parity

    for logprobs, old, advantages, mask in batches:
        if method == "kl_cov":
            parity.kl_cov_selection(logprobs, advantages, mask, settings)
        else:
            candidates = parity.clip_cov_candidates(logprobs, old, advantages, mask, settings)
            parity.draw(candidates, max(int(settings.clip_cov_fraction * int(mask.sum())), 1), torch.Generator())


def compare_choices(trainer, control, repeats):
    """Return median seconds of our choice over the update, and of the reference's over its micro-batches."""
    from autotelic.functional import parity
    from autotelic.trl.mixin import concatenate

    trainer.entropy_control = control
    batches = [trainer._update_batch(micro) for micro in trainer._buffered_inputs]
    whole, settings = concatenate(batches), parity.preset("paper_7b")
    pieces = [(b.logprobs, b.old_logprobs, b.advantages, b.mask) for b in batches]
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(timed(control.plan, whole)[1])
        theirs.append(timed(reference_choice, control.name, pieces, settings)[1])
    return statistics.median(ours), statistics.median(theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/covariance.json"))
    args = parser.parse_args()
    import torch

    from autotelic.trl.controls import ClipCov, KLCov

    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rows, width, micro, layers, hidden = (8, 32, 4, 1, 32) if args.smoke else (64, 1024, 8, 2, 128)
    result = {
        "tokens": f"{rows} x {width}",
        "micro_batch": micro,
        "model": f"{layers} layers, hidden {hidden}, random weights",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "controls": {},
    }
    for control in (ClipCov(fraction=2e-4), KLCov(fraction=2e-3)):
        trainer = build_trainer(control, rows, width, micro, layers, hidden)
        one_update(trainer)  # warm-up
        runs = [one_update(trainer) for _ in range(args.repeats)]
        step, own = (statistics.median(column) for column in zip(*runs, strict=True))
        ours, theirs = compare_choices(trainer, control, 10 * args.repeats)
        result["controls"][control.name] = {
            "step_seconds": step,
            "control_seconds": own,
            "share_of_step": own / step,
            "choice_seconds": ours,
            "reference_choice_seconds": theirs,
            "choice_against_reference": ours / theirs,
        }
        print(
            f"{control.name}: update {step:.2f} s, control {1000 * own:.1f} ms = {own / step:.2%} of it; choice "
            f"{1000 * ours:.1f} ms against the reference's {1000 * theirs:.1f} ms ({ours / theirs:.2f} x)",
            flush=True,
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(args.out)


if __name__ == "__main__":
    main()
