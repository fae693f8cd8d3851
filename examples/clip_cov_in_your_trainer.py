"""Clip-Cov in a GRPOTrainer of your own: one wrapper, one argument.

    python examples/clip_cov_in_your_trainer.py --max-steps 20

Runs on the carried model, on a CPU, in about half a minute. Replace model, data and reward by yours.
"""

import argparse
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from autotelic.rewards import verifier
from autotelic.tasks import load_problems, model_path, to_dataset
from autotelic.trl import ClipCov, with_entropy_control


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=20, help="updates (default: %(default)s)")
    parser.add_argument("--output", default=None, help="folder (default: a temporary one)")
    args = parser.parse_args()

    folder = args.output or tempfile.mkdtemp(prefix="clip_cov_")
    gpu = torch.cuda.is_available()
    trainer = with_entropy_control(GRPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(model_path("any_pair"), dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(model_path("any_pair")),
        reward_funcs=verifier,  # 1 where the answer is equivalent to the column `answer`
        train_dataset=to_dataset(load_problems("chain_sums:train", limit=1000)),
        # The paper's 2e-4 is for a million tokens an update; here there are about 700.
        entropy_control=ClipCov(fraction=0.01, low=0.3, high=9.0),
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=64,
            num_generations=8,
            steps_per_generation=2,  # two updates per rollout
            max_completion_length=32,
            max_steps=args.max_steps,
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            beta=0.0,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not gpu,
            bf16=gpu,
            gradient_checkpointing=gpu,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "reward" in row]  # the updates that began with a rollout
    for row in rows[:: max(len(rows) // 5, 1)]:
        print(f"entropy {row['entropy']:.3f}  reward {row['reward']:.3f}  selected {row['selected/share']:.4f}")
    print(f"{trainer.state.global_step} updates")


if __name__ == "__main__":
    main()
