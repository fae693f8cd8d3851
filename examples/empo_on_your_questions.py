"""EMPO on questions without answers: the reward is the share of responses that mean the same.

    python examples/empo_on_your_questions.py --max-steps 20
    python examples/empo_on_your_questions.py --questions questions.jsonl --model MODEL

A question file holds one JSON object a line with a column `prompt`; no other column is read. Without one, the small
world's questions are taken, their answers dropped, on the carried model: about half a minute on a CPU.
"""

import argparse
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from autotelic.rewards import EMPO
from autotelic.tasks import load_problems, model_path, to_dataset
from autotelic.trl.label_free import with_label_free_rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", default="chain_sums:train", help="JSONL file or data set (default: %(default)s)")
    parser.add_argument("--model", default=None, help="folder or hub name (default: the carried model)")
    parser.add_argument("--max-steps", type=int, default=20, help="updates (default: %(default)s)")
    parser.add_argument("--max-completion-length", type=int, default=32, help="tokens (default: %(default)s)")
    args = parser.parse_args()

    model = args.model or model_path("any_pair")
    gpu = torch.cuda.is_available()
    reward = EMPO(num_generations=8)  # unanimous and all-different groups are left out
    trainer = with_label_free_rewards(GRPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="auto" if gpu else "float32"),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=reward,
        train_dataset=to_dataset(load_problems(args.questions, limit=1000), columns=("prompt",)),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(prefix="empo_"),
            per_device_train_batch_size=64,
            num_generations=8,
            steps_per_generation=2,
            max_completion_length=args.max_completion_length,
            max_steps=args.max_steps,
            learning_rate=2e-4,  # for a model of 0.8 M parameters; the paper's 5e-7 is for 1.5B and more
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
    rows = [row for row in trainer.state.log_history if "semantic/entropy" in row]
    for row in rows[:: max(len(rows) // 5, 1)]:
        print(
            f"semantic entropy {row['semantic/entropy']:.3f}  largest cluster {row['semantic/majority_share']:.3f}  "
            f"kept {row['semantic/kept_share']:.2f}  parsed {row['semantic/parse_rate']:.2f}"
        )
    print(f"{trainer.state.global_step} updates")


if __name__ == "__main__":
    main()
