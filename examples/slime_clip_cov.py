"""Clip-Cov as a custom advantage function of slime: one function.

    --custom-advantage-function-path slime_clip_cov.clip_cov_advantages

slime calls it once per rollout, on every data-parallel rank, after the log-probabilities; it fills
``rollout_data["advantages"]`` and ``["returns"]``. The advantages are slime's own for GRPO, each sample's reward (which
slime has centred within its group) on every token, and zero on the selected tokens.

Selection is exact over the rollout of all ranks: with several updates per rollout, the quota is floor(fraction N) of
the rollout's tokens, not of each update's. Settings are attributes of ``args`` (slime reads them from a YAML given by
``--custom-config-path``): clip_cov_fraction, clip_cov_low, clip_cov_high, clip_cov_seed. Context parallelism splits
responses over ranks and is refused.

Interface: THUDM/slime, slime/backends/megatron_utils/loss.py, commit 00c2d6d, compute_advantages_and_returns.
Not run inside slime. `python examples/slime_clip_cov.py --max-steps 20` calls it the way slime does.
"""

import argparse
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.utils.rnn import pad_sequence

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.verl.engine import content_keys


def clip_cov_advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """Fill ``advantages`` and ``returns`` of this rank's samples: lists of tensors, one value per response token."""
    old = rollout_data["rollout_log_probs"] if args.use_rollout_logprobs else rollout_data["log_probs"]
    masks = rollout_data["loss_masks"]
    if any(len(values) != len(mask) for values, mask in zip(old, masks, strict=True)):
        raise UserError("clip_cov_advantages needs whole responses on each rank: set context parallelism to 1")
    lengths = [len(values) for values in old]
    logprobs = pad_sequence([values.float() for values in old], batch_first=True)
    mask = pad_sequence([torch.as_tensor(m, device=logprobs.device).bool() for m in masks], batch_first=True)
    rewards = torch.tensor(rollout_data["rewards"], dtype=torch.float32, device=logprobs.device)
    plain = rewards.unsqueeze(-1).expand(logprobs.shape)

    group = data_parallel_group()
    moments = F.global_moments(logprobs, plain, mask, group=group)
    covariance = F.token_covariance(
        logprobs, plain, mask, mean_logprob=moments.mean_logprob, mean_advantage=moments.mean_advantage
    )
    tokens = torch.nested.as_nested_tensor(list(rollout_data["tokens"]), layout=torch.jagged)
    rows = content_keys(tokens).to(logprobs.device) & ((1 << 40) - 1)  # a sample is known by its tokens, on any rank
    positions = F.response_positions(mask)
    rewritten, _ = F.clip_cov(
        plain,
        covariance,
        mask,
        fraction=getattr(args, "clip_cov_fraction", 2e-4),
        low=getattr(args, "clip_cov_low", 1.0),
        high=getattr(args, "clip_cov_high", 5.0),
        priority=F.hash_uniform(getattr(args, "clip_cov_seed", 0), 0, rows, positions),
        token_ids=rows.unsqueeze(-1) * (1 << 20) + positions,
        num_tokens=moments.num_tokens,
        across_ranks=True,
        group=group,
    )
    rollout_data["advantages"] = [row[:length] for row, length in zip(rewritten, lengths, strict=True)]
    rollout_data["returns"] = [row[:length] for row, length in zip(plain, lengths, strict=True)]


def data_parallel_group() -> Any:
    """Return Megatron's data-parallel group; None (this process alone) where nothing is initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    from megatron.core import mpu  # pyright: ignore[reportMissingImports]

    return mpu.get_data_parallel_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=20, help="updates (default: %(default)s)")
    steps = parser.parse_args().max_steps
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(6, requires_grad=True)  # one distribution over six tokens, for every position
    optimizer = torch.optim.SGD([logits], lr=0.5)
    args = SimpleNamespace(use_rollout_logprobs=False, clip_cov_fraction=0.05, clip_cov_low=0.1, clip_cov_high=9.0)
    for _ in range(steps):
        tokens = torch.multinomial(logits.detach().softmax(-1), 8 * 32, replacement=True, generator=generator).view(
            8, 32
        )
        rewards = (tokens == 0).float().mean(1)
        logprobs = logits.log_softmax(-1)[tokens]
        rollout_data = {
            "log_probs": list(logprobs.detach()),
            "loss_masks": [torch.ones(32)] * 8,
            "rewards": (rewards - rewards.mean()).tolist(),
            "tokens": list(tokens),
        }
        clip_cov_advantages(args, rollout_data)
        optimizer.zero_grad()
        (-torch.stack(rollout_data["advantages"]) * logprobs).sum(1).mean().backward()
        optimizer.step()
    probability = logits.softmax(-1)[0].item()
    print(f"{steps} updates: the rewarded token's probability went from 0.167 to {probability:.3f}")


if __name__ == "__main__":
    main()
