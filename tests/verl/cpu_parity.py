"""Our TRL path on tensors that are made up: what the verl path is compared with."""

import tempfile

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from autotelic.tasks.tokenizer import build_tokenizer
from autotelic.trl import with_entropy_control


def trl_loss_and_gradient(control, logprobs, old, advantages, mask, entropy, row_ids):
    """Return TRL's loss on one micro-batch, and its gradient with respect to the log-probabilities."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = build_tokenizer()
    leaf = logprobs.clone().requires_grad_()
    rows = logprobs.shape[0]

    class MadeUp(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *args, compute_entropy=False, **kwargs):
            return leaf if torch.is_grad_enabled() else leaf.detach(), torch.ones_like(leaf), None

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = with_entropy_control(MadeUp)(
            model=Qwen3ForCausalLM(config),
            reward_funcs=lambda prompts, completions, **kwargs: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=rows,
                generation_batch_size=rows,
                num_generations=rows,
                num_iterations=2,
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                beta=0.0,
                loss_type="dapo",
            ),
            train_dataset=Dataset.from_list([{"prompt": "1+2=?"}] * 2 * rows),
            processing_class=tokenizer,
            entropy_control=control,
        )
    prompts = tokenizer(["1+2=?"] * rows, return_tensors="pt")["input_ids"]
    trainer._buffered_inputs = [
        {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
            "completion_mask": mask.long(),
            "advantages": advantages,
            "num_items_in_batch": mask.sum(),
            "old_per_token_logps": old,
            "rollout_entropy": entropy,
            "row_ids": row_ids,
        }
    ]
    trainer.current_gradient_accumulation_steps = 1
    trainer._step = 1  # the second pass over the rollout: nothing is generated
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, trainer._prepare_inputs(None))
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]
