"""What a label-free reward needs of the trainer beyond TRL's reward protocol.

* Prompts that it leaves out (EMPO's entropy thresholds): zero advantage, and out of the loss's denominator. Its rewards
  in a masked group are equal, so TRL's advantage is zero already; their tokens are also taken out of
  `num_items_in_batch`, the denominator of TRL's token-mean losses (`dapo`, `cispo`, `vespo`).
* Token statistics of the sampling policy (self-certainty, token entropy, log-probabilities): one forward pass, only for
  rewards that ask for them.
* A factor on a prompt's advantages (SEED-GRPO).

`with_surplus_votes` adds TTRL's economy for any reward: judge all G responses, train on fewer of them.
"""

from typing import Any

import torch
from torch import Tensor

from autotelic import functional as F
from autotelic.errors import UserError
from autotelic.lm.head import statistics
from autotelic.rewards.base import LabelFreeReward, TokenStats
from autotelic.rewards.formulas import self_certainty
from autotelic.runs.trainer_base import TrainerBase
from autotelic.trl.mixin import response_mask
from autotelic.trl.passes import FusedHeadMixin

IN_LOSS = "row_in_loss"
"""Rows whose tokens count in the denominator, (B,)."""


class LabelFreeMixin(FusedHeadMixin):
    """Serves the rewards of `autotelic.rewards`; other reward functions are left as TRL treats them."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._token_ids: tuple[list[list[int]], list[list[int]]] = ([], [])
        super().__init__(*args, **kwargs)

    def _generate(self, prompts: list[Any]) -> Any:
        """Remember prompt and response tokens, for the statistics."""
        generated = super()._generate(prompts)
        self._token_ids = (generated[0], generated[1])
        return generated

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Hand token statistics to the rewards that need them, then let TRL call every reward."""
        asking = [reward for reward in self._label_free_rewards() if reward.needs]
        if asking:
            statistics = token_statistics(
                self.model,
                *self._token_ids,
                pad_id=self.processing_class.pad_token_id,
                temperature=self.temperature,
                batch_size=self.args.per_device_train_batch_size,
                fused=self._fused_statistics(),
            )
            for reward in asking:
                reward.token_stats = statistics
        return super()._calculate_rewards(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Apply the reward's prompt mask and advantage scale."""
        output = super()._generate_and_score_completions(inputs)
        rewards = self._label_free_rewards()
        if len(self.reward_funcs) == 1 and rewards and rewards[0].last_result is not None:
            self._apply(output, rewards[0])
        return output

    def _label_free_rewards(self) -> list[LabelFreeReward]:
        return [reward for reward in self.reward_funcs if isinstance(reward, LabelFreeReward)]

    def _apply(self, output: dict[str, Any], reward: LabelFreeReward) -> None:
        """Scale advantages, and count the response tokens of the prompts that train."""
        result, advantages = reward.last_result, output["advantages"]
        assert result is not None  # the caller has looked
        groups = torch.tensor([group for group, _ in reward.last_places])
        keep = result.prompt_mask[groups].to(advantages.device)
        advantages = advantages * keep
        if self.scale_rewards == "group":  # elsewhere the factor, which the rewards carry, survives TRL's normalisation
            advantages = advantages * result.advantage_scale[groups].to(advantages)
        mask = response_mask(output)
        output["advantages"] = advantages
        output["num_items_in_batch"] = self.accelerator.gather((mask * keep.unsqueeze(1)).sum()).sum()
        output[IN_LOSS] = keep


@torch.no_grad()
def token_statistics(
    model: Any,
    prompt_ids: list[list[int]],
    response_ids: list[list[int]],
    *,
    pad_id: int,
    temperature: float | int,
    batch_size: int,
    fused: bool = False,
) -> TokenStats:
    """Return log-probabilities, entropy and self-certainty of each response token, in micro-batches of rows.

    With `fused` no logits are held, and padding has zeros (`autotelic.lm.head`).
    """
    width = max(map(len, response_ids))
    pieces: list[list[Tensor]] = []
    for start in range(0, len(prompt_ids), batch_size):
        prompts, responses = prompt_ids[start : start + batch_size], response_ids[start : start + batch_size]
        pad = max(map(len, prompts))
        rows = [
            [pad_id] * (pad - len(prompt)) + list(prompt) + list(response) + [pad_id] * (width - len(response))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        attention = [
            [0] * (pad - len(prompt)) + [1] * (len(prompt) + len(response)) + [0] * (width - len(response))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        ids, mask = torch.tensor(rows, device=model.device), torch.tensor(attention, device=model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        if fused:
            labels = ids.masked_fill(mask == 0, -100)
            labels[:, :pad] = -100
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            found = statistics(model, labels, temperature=temperature, **inputs)
            kept = (found[name][:, pad - 1 :] for name in ("logprobs", "entropy", "self_certainty"))
            pieces.append([mask[:, pad:].bool(), *kept])
            continue
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, pad - 1 : -1]
        logits = logits.float() / temperature
        pieces.append(
            [
                mask[:, pad:].bool(),
                F.token_logprobs(logits, ids[:, pad:]),
                F.token_entropy(logits),
                self_certainty(logits),
            ]
        )
    mask, logprobs, entropy, certainty = (torch.cat(column).cpu() for column in zip(*pieces, strict=True))
    return TokenStats(mask=mask, logprobs=logprobs, entropy=entropy, self_certainty=certainty)


def with_label_free_rewards(trainer_class: type) -> type:
    """Return a subclass of GRPOTrainer that serves `autotelic.rewards` fully."""
    return type(f"LabelFree{trainer_class.__name__}", (LabelFreeMixin, trainer_class), {})


class SurplusVotesMixin(TrainerBase):
    """Rewards and advantages from all G responses of a prompt, gradients from `train_generations` of them.

    Responses are exchangeable, so every (G / n)-th is kept; each rank keeps its share also where a group spans ranks.
    A micro-batch shrinks by the same factor.

    Reference: Zuo et al. 2025, arXiv:2504.16084 (vote on 64, train on 32).
    Deviations: advantages are normalised over all votes, whose mean estimates the baseline better.

    Keyword Args:
        train_generations: n, a divisor of `num_generations`; None trains on all.
    """

    def __init__(self, *args: Any, train_generations: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._vote_stride = 1
        if train_generations is not None:
            votes = self.num_generations
            if train_generations < 1 or votes % train_generations:
                raise UserError(
                    f"train_generations={train_generations} must divide num_generations={votes}: "
                    f"use {max(n for n in range(1, votes + 1) if votes % n == 0 and n <= max(train_generations, 1))}"
                )
            self._vote_stride = votes // train_generations
            if self.args.per_device_train_batch_size % self._vote_stride:
                raise UserError(
                    f"per_device_train_batch_size={self.args.per_device_train_batch_size} must be a multiple of "
                    f"num_generations / train_generations = {self._vote_stride}: micro-batches shrink by that factor"
                )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Drop the responses that only vote, after everything has been computed from all of them."""
        output = super()._generate_and_score_completions(inputs)
        if self._vote_stride == 1 or not self.model.training:
            return output
        rows = output["completion_ids"].shape[0]
        output = {
            key: value[:: self._vote_stride]
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows
            else value
            for key, value in output.items()
        }
        mask = response_mask(output)
        counted = mask * output[IN_LOSS].unsqueeze(1) if IN_LOSS in output else mask
        output["num_items_in_batch"] = self.accelerator.gather(counted.sum()).sum()
        return output


def with_surplus_votes(trainer_class: type) -> type:
    """Return a subclass of GRPOTrainer that takes `train_generations`; put it outermost."""
    return type(f"SurplusVotes{trainer_class.__name__}", (SurplusVotesMixin, trainer_class), {})
