"""KL-Cov as a custom loss of prime-rl: one function.

    [trainer.loss]
    type = "custom"
    import_path = "prime_rl_kl_cov.kl_cov_loss"
    kwargs = { fraction = 2e-3, coef = 1.0 }

prime-rl hands a loss one sequence at a time and adds up what it returns. So the quota and the mean log-probability are
the sequence's own, and the mean advantage is taken as 0, which a group baseline makes it. This is not the exact
selection over the update that `autotelic.trl` and `autotelic.verl` make: a sequence of fewer than 1 / fraction tokens
has no selected token.

Interface: PrimeIntellect-ai/prime-rl, docs/algorithms.md, commit 858d428 (LossInputs, LossOutputs, "Custom loss").
Not run inside prime-rl. `python examples/prime_rl_kl_cov.py --max-steps 20` calls it the way prime-rl does.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autotelic import functional as F

try:
    from prime_rl.trainer.rl.loss import LossOutputs  # pyright: ignore[reportMissingImports]
except ImportError:  # outside prime-rl

    @dataclass
    class LossOutputs:
        loss: Tensor
        metrics: dict[str, Tensor]


def kl_cov_loss(inputs: Any, fraction: float = 2e-3, coef: float = 1.0) -> LossOutputs:
    """Return the loss of one sequence, a sum over its tokens, and what to log."""
    mask = inputs.loss_mask.unsqueeze(0)
    new, old = inputs.trainer_logprobs.unsqueeze(0), inputs.inference_logprobs.unsqueeze(0)
    advantages = inputs.advantages.unsqueeze(0).float()
    covariance = F.token_covariance(new, advantages, mask, mean_advantage=0.0)
    log_ratio = torch.where(mask, new.detach() - old, 0.0)
    rewritten, selected = F.kl_cov(advantages, log_ratio, covariance, mask, fraction=fraction, coef=coef)
    per_token = F.clipped_surrogate(new, old, rewritten, clip_low=None, clip_high=None, mask=mask)
    weights = getattr(inputs, "loss_weights", None)
    per_token = per_token if weights is None else per_token * weights.unsqueeze(0)
    return LossOutputs(
        loss=F.masked_sum(per_token, mask),
        metrics={
            "selected_share": F.masked_mean(selected.float(), mask),
            "covariance": F.masked_mean(covariance, mask),
        },
    )


@dataclass
class Sequence:
    """The fields of prime-rl's LossInputs that a loss reads."""

    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    advantages: Tensor
    loss_mask: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=20, help="updates (default: %(default)s)")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(6, requires_grad=True)  # one distribution over six tokens, for every position
    tokens = torch.randint(0, 6, (8, 64), generator=generator)
    advantages = (tokens == 0).float().mean(1)
    advantages = (advantages - advantages.mean()) / advantages.std()
    old = logits.detach().log_softmax(-1)[tokens]
    optimizer = torch.optim.SGD([logits], lr=2.0)
    for _ in range(args.max_steps):
        total = torch.zeros(())
        for row in range(8):
            sequence = Sequence(
                logits.log_softmax(-1)[tokens[row]],
                old[row],
                advantages[row].expand(64),
                torch.ones(64, dtype=torch.bool),
            )
            total = total + kl_cov_loss(sequence, fraction=0.05).loss
        optimizer.zero_grad()
        (total / tokens.numel()).backward()
        optimizer.step()
    probability = logits.softmax(-1)[0].item()
    print(f"{args.max_steps} updates: the rewarded token's probability went from 0.167 to {probability:.3f}")


if __name__ == "__main__":
    main()
