"""What a label-free reward needs of the trainer beyond TRL's reward protocol.

* Prompts that it leaves out (EMPO's entropy thresholds) leave the objective: their advantage is zero, and the policy
  term is a mean over what remains: over the rows, where TRL's loss is a mean over responses (`grpo`, `sapo`, `dr_grpo`,
  `luspo`, RLOO), over the tokens, where it is one over tokens (`dapo`, `bnpo`, `cispo`, `vespo`). TRL's denominator
  counts all of them, so advantages are multiplied by all / remaining while the loss is computed; every loss of TRL is
  proportional to them. The reference KL and the entropy bonus stay TRL's, over everything that was sampled.
* Token statistics of the sampling policy (self-certainty, token entropy, log-probabilities): one forward pass, only for
  rewards that ask for them, over the tokens that the model wrote.
* A factor on a prompt's advantages (SEED-GRPO).

`SurplusVotes` adds TTRL's economy for any reward: judge all G responses, train on fewer of them.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor

from autotelic.errors import UserError
from autotelic.lm.token_pass import padded, token_pass
from autotelic.rewards.label_free_reward import LabelFreeReward, TokenStats
from autotelic.trl.fast_passes import fast_passes, fused_statistics
from autotelic.trl.seam import LossInputs, Micro, Part, Rollout, response_mask, with_parts

IN_LOSS = "row_in_loss"
"""Rows whose prompt trains, (B,)."""
POLICY_SCALE = "policy_scale"
"""All over remaining, a number."""
TOKEN_LOSSES = ("dapo", "cispo", "vespo")
STATISTICS = ("logprobs", "entropy", "self_certainty")

TrainerT = TypeVar("TrainerT")


class LabelFree(Part):
    """Serves the rewards of `autotelic.rewards`; other reward functions are left as TRL treats them."""

    def check(self) -> None:
        """Refuse rewards whose share in the loss could not be told from that of another reward."""
        own = self.rewards()
        if len(self.trainer.reward_funcs) == 1 or not own:
            return
        for reward in own:
            if type(reward).advantage_scale is not LabelFreeReward.advantage_scale:
                raise UserError(
                    f"{reward.name} scales the advantages of a prompt, which has no meaning beside a second reward: "
                    "use it alone"
                )
        if getattr(self.trainer, "multi_objective_aggregation", "") == "normalize_then_sum":
            raise UserError(
                f"{own[0].name} may leave prompts out, and multi_objective_aggregation='normalize_then_sum' takes its "
                "means over all of them: use 'sum_then_normalize'"
            )

    def rewards(self) -> list[LabelFreeReward]:
        """Return the trainer's label-free rewards."""
        return [reward for reward in self.trainer.reward_funcs if isinstance(reward, LabelFreeReward)]

    @property
    def only_our_head(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Why only our head serves the rewards: they read the whole vocabulary, and it holds no logits for that."""
        names = [reward.name for reward in self.rewards() if reward.needs]
        return f"{names[0]} reads token statistics, and it makes them without logits" if names else None

    def on_responses(self, rollout: Rollout) -> None:
        """Hand token statistics to the rewards that need them."""
        asking = [reward for reward in self.rewards() if reward.needs]
        if not asking:
            return
        if rollout.has_images:
            raise UserError(f"{asking[0].name} reads token statistics, which are for text-only prompts")
        found = token_statistics(
            self.trainer.model,
            rollout.prompt_ids,
            rollout.response_ids,
            rollout.tool_mask,
            pad_id=self.trainer.processing_class.pad_token_id,
            temperature=self.trainer.temperature,
            batch_size=self.trainer.args.per_device_train_batch_size,
            fused=fused_statistics(self.trainer),
        )
        for reward in asking:
            reward.token_stats = found

    def on_rollout(self, rollout: Rollout) -> None:
        """Take the advantages of prompts that are left out, and scale those of the others."""
        output = rollout.output
        keep = torch.ones(len(output["completion_ids"]), dtype=torch.bool, device=output["completion_ids"].device)
        for reward in self.rewards():
            result = reward.last_result
            if result is None:
                continue
            groups = torch.tensor([group for group, _ in reward.last_places])
            keep &= result.prompt_mask[groups].to(keep.device)
            if getattr(self.trainer, "scale_rewards", "none") == "group":
                # elsewhere the factor, which the rewards carry, survives TRL's normalisation
                output["advantages"] = output["advantages"] * result.advantage_scale[groups].to(output["advantages"])
        if self.rewards():
            output["advantages"] = output["advantages"] * keep * self._batch_scale(rollout, keep)
            output[IN_LOSS] = keep

    def _batch_scale(self, rollout: Rollout, keep: Tensor) -> float:
        """Return what makes advantages normalised by the batch's deviation so by that of the prompts that remain."""
        if getattr(self.trainer, "scale_rewards", "none") != "batch" or rollout.rewards is None:
            return 1.0
        kept = self.trainer.accelerator.gather(keep)
        total = (rollout.rewards * self.trainer.reward_weights.to(rollout.rewards.device)).nansum(dim=1)
        total = total.masked_fill(rollout.rewards.isnan().all(dim=1), torch.nan)
        everyone, remaining = deviation(total), deviation(total[kept])
        return (everyone + 1e-4) / (remaining + 1e-4)

    def on_generation(self, micro_batches: list[Micro]) -> list[Micro]:
        """Work out all over remaining, on all ranks, after every row has left that will leave."""
        if IN_LOSS not in micro_batches[0]:
            return micro_batches
        counts = torch.stack([self._counts(micro) for micro in micro_batches])
        if getattr(self.trainer, "loss_type", "rloo") == "bnpo":  # TRL divides by each micro-batch's own tokens
            scales = [everyone / remaining.clamp(min=1) for everyone, remaining in counts]
        else:
            everyone, remaining = self.trainer.accelerator.gather(counts.sum(0, keepdim=True)).sum(0)
            scales = [everyone / remaining.clamp(min=1)] * len(micro_batches)
        for micro, scale in zip(micro_batches, scales, strict=True):
            micro[POLICY_SCALE] = scale
        return micro_batches

    def _counts(self, micro: Micro) -> Tensor:
        """Return how much there is, and how much of it remains: tokens or rows, as TRL's loss counts."""
        mask, keep = response_mask(micro), micro[IN_LOSS]
        if getattr(self.trainer, "loss_type", "rloo") in (*TOKEN_LOSSES, "bnpo"):
            return torch.stack([mask.sum(), (mask & keep.unsqueeze(1)).sum()])
        return torch.stack([torch.ones_like(keep).sum(), keep.sum()])

    def on_token_stats(self, loss: LossInputs) -> None:
        """Let the policy term be a mean over what remains."""
        if POLICY_SCALE in loss.micro:
            loss.policy_scale = loss.policy_scale * loss.micro[POLICY_SCALE]


def deviation(values: Tensor) -> float:
    """Return the standard deviation as TRL takes it, of the values that are numbers; 0 of fewer than two."""
    known = values[~values.isnan()]
    return float(known.std()) if len(known) > 1 else 0.0


def token_statistics(
    model: Any,
    prompt_ids: list[list[int]],
    response_ids: list[list[int]],
    tool_mask: list[list[int]] | None = None,
    *,
    pad_id: int,
    temperature: float | int,
    batch_size: int,
    fused: bool = False,
) -> TokenStats:
    """Return log-probabilities, entropy and self-certainty of each token that the model wrote.

    Args:
        model: the policy that has sampled.
        prompt_ids: tokens of each prompt.
        response_ids: tokens of each response, a tool's among them.
        tool_mask: 1 where the model wrote the token; all of them, where None.
        pad_id: what padding holds.
        temperature: of the sampling.
        batch_size: rows of a forward pass.
        fused: see `token_pass`.
    """
    ids, attention, width = padded(prompt_ids, response_ids, pad_id, model.device)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    options = {"temperature": temperature, "batch_size": batch_size, "fused": fused, "position_ids": positions}
    found = token_pass(model, ids, attention, width, STATISTICS, **options)
    mask = attention[:, -width:].bool()
    if tool_mask is not None:
        written = torch.tensor([list(row) + [0] * (width - len(row)) for row in tool_mask], device=mask.device)
        mask = mask & written.bool()
    return TokenStats(mask=mask.cpu(), **{name: value.cpu() for name, value in found.items()})


class SurplusVotes(Part):
    """Rewards and advantages from all G responses of a prompt, gradients from `train_generations` of them.

    Responses are exchangeable, so every (G / n)-th is kept; each rank keeps its share also where a group spans ranks.
    A micro-batch shrinks by the same factor.

    Reference: Zuo et al. 2025, arXiv:2504.16084 (vote on 64, train on 32).
    Deviations: advantages are normalised over all votes, whose mean estimates the baseline better.

    Args:
        train_generations: n, a divisor of `num_generations`.
    """

    order = 3

    def __init__(self, train_generations: int):
        self.train_generations, self.stride = train_generations, 1

    def check(self) -> None:
        """Refuse a number that does not divide the group, or whose factor does not divide the micro-batch."""
        votes, trained, args = self.trainer.num_generations, self.train_generations, self.trainer.args
        if trained < 1 or votes % trained:
            raise UserError(
                f"train_generations={trained} must divide num_generations={votes}: "
                f"use {max(n for n in range(1, votes + 1) if votes % n == 0 and n <= max(trained, 1))}"
            )
        self.stride = votes // trained
        if args.per_device_train_batch_size % self.stride:
            raise UserError(
                f"per_device_train_batch_size={args.per_device_train_batch_size} must be a multiple of "
                f"num_generations / train_generations = {self.stride}: micro-batches shrink by that factor"
            )

    def on_rollout(self, rollout: Rollout) -> None:
        """Drop the responses that only vote, after everything has been computed from all of them."""
        if self.stride == 1 or not rollout.training:
            return
        if "pixel_values" in rollout.output:
            raise UserError("train_generations is for text-only prompts: images are not stored row by row")
        rows = rollout.output["completion_ids"].shape[0]
        for key, value in rollout.output.items():
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows:
                rollout.output[key] = value[:: self.stride]
        if "num_items_in_batch" in rollout.output:
            tokens = response_mask(rollout.output).sum()
            rollout.output["num_items_in_batch"] = self.trainer.accelerator.gather(tokens).sum()


def label_free_parts() -> list[Part]:
    """Return the part that serves label-free rewards."""
    return [LabelFree()]


def surplus_parts(train_generations: int | None = None) -> list[Part]:
    """Return the part that trains on fewer responses than vote; none without their number."""
    return [] if train_generations is None else [SurplusVotes(train_generations)]


def with_label_free_rewards(trainer_class: type[TrainerT], **settings: Any) -> type[TrainerT]:
    """Return a subclass of a GRPOTrainer or RLOOTrainer that serves `autotelic.rewards` fully."""
    return with_parts(trainer_class, label_free_parts, fast_passes, **settings)


def with_surplus_votes(trainer_class: type[TrainerT], **settings: Any) -> type[TrainerT]:
    """Return a subclass of a GRPOTrainer that takes `train_generations=`; see `SurplusVotes`."""
    return with_parts(trainer_class, surplus_parts, **settings)
