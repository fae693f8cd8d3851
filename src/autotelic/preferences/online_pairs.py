"""Online policy-labelled preferences: collect, compare, update.

Each batch of prompts is answered by the current policy; a reward judges; of every prompt the best and the worst
response become a pair (none where all are equal). The policy label is the policy that sampled, with its temperature,
top-k and top-p, taken when it sampled: its id is the number of updates so far. With a `buffer` above 1, updates
also draw older batches, whose labels are older policies; with 1, and `every` 1, label and policy are the same.

Generation is transformers', through TRL's `unwrap_model_for_generation` (no vLLM); the loss is that of
`autotelic.preferences.trainer`. TRL's own OnlineDPOTrainer computes its loss inside `training_step` and could only be
copied.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autotelic.errors import UserError
from autotelic.preferences.continuations import Side, continuations_of, label_columns
from autotelic.preferences.pairs import SIDES
from autotelic.preferences.sampling_policies import BehaviorPolicy, sample_continuations
from autotelic.rewards import verifiers
from autotelic.runs.files import write_atomically
from autotelic.runs.method_settings import setting
from autotelic.trl.seam import Base


@dataclass(frozen=True)
class OnlineSettings:
    """How pairs are collected.

    Attributes:
        generations: responses per prompt; the best and the worst become a pair.
        every: updates per collected batch.
        buffer: collected batches kept, each with its own policy label.
        temperature: of the sampling, and so of the labels; above 0.
        top_k: tokens kept by the sampler; 0 keeps all.
        top_p: nucleus, in (0, 1].
        max_new_tokens: longest response.
    """

    generations: int = setting(4, "responses per prompt; best against worst", unit="responses")
    every: int = setting(1, "updates per collected batch", unit="updates")
    buffer: int = setting(1, "collected batches kept, each with its own policy label", unit="batches")
    temperature: float = setting(1.0, "of the sampling, and so of its labels")
    top_k: int = setting(0, "tokens that the sampler keeps; 0 keeps all", unit="tokens")
    top_p: float = setting(1.0, "nucleus of the sampler, in (0, 1]")
    max_new_tokens: int = setting(256, "longest response", unit="tokens")

    def __post_init__(self) -> None:
        """Refuse what cannot give pairs."""
        if self.generations < 2:
            raise UserError(f"online generations must be at least 2, got {self.generations}: a pair needs two")
        if self.every < 1 or self.buffer < 1 or self.max_new_tokens < 1:
            raise UserError("online every, buffer and max_new_tokens must be at least 1")
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError("online sampling needs temperature above 0, top_p in (0, 1] and top_k of 0 (all) or more")

    @property
    def sampling(self) -> BehaviorPolicy:
        """How the policy samples."""
        return BehaviorPolicy(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


def without_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt in the columns that DPOTrainer expects: its two responses are yet to be sampled."""
    empty = "" if isinstance(row["prompt"], str) else [{"role": "assistant", "content": ""}]
    return {name: value for name, value in row.items() if name != "id"} | dict.fromkeys(SIDES, empty)


class PromptCollator:
    """Hands the rows through: what is tokenised here are prompts, and pairs do not exist yet."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return columns as lists."""
        return {name: [example[name] for example in examples] for name in examples[0]}


class OnlineMixin(Base):
    """Makes the batches of a policy-labelled `DPOTrainer` from prompts.

    Keyword Args:
        online: how pairs are collected.
        reward: the judge: `reward(prompts=, completions=, completion_ids=, **columns) -> list of numbers or None`.
    """

    weights_pairs = True

    def __init__(self, *args: Any, online: OnlineSettings, reward: Any, **kwargs: Any):
        self.online, self.judge = online, reward
        self.buffer: list[list[dict[str, Any]]] = []
        if kwargs["args"].precompute_ref_log_probs:
            raise UserError("precompute_ref_log_probs needs pairs that exist before training; leave it out online")
        super().__init__(*args, **kwargs)
        self.pair_collator, self.data_collator = self.data_collator, PromptCollator()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "prompt", *verifiers.label_columns(self.judge)]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Collect when it is time, and train on a batch of the buffer."""
        step = self.state.global_step
        if step and not self.buffer:
            self.buffer = self._saved_buffer(step)
        if step % self.online.every == 0 or not self.buffer:
            self.buffer = [*self.buffer, self.collect(model, inputs)][-self.online.buffer :]
        examples = random.Random(f"{self.args.seed}/{step}/{self.args.process_index}").choice(self.buffer)
        batch = self.pair_collator([{k: v for k, v in row.items() if k != "weight"} for row in examples])
        batch["pair_weights"] = torch.tensor([row["weight"] for row in examples])
        return super().training_step(model, self._prepare_inputs(batch), *args, **kwargs)

    def collect(self, model: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Sample, judge, pair, and label with the policy as it is now."""
        prompts = [ids for ids in inputs["prompt_ids"] for _ in range(self.online.generations)]
        model.eval()
        responses = self._sample(model, prompts)
        rewards = self._judge(inputs, responses)
        examples = [self._pair(place, prompts, responses, rewards) for place in range(len(inputs["prompt_ids"]))]
        self._label(model, examples)
        model.train()
        self._log_collection(rewards, responses, examples)
        return examples

    def _pair(
        self,
        place: int,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        rewards: Sequence[float | None],
    ) -> dict[str, Any]:
        """Return the best and the worst response of one prompt; weight 0 where no two of them differ."""
        own = range(place * self.online.generations, (place + 1) * self.online.generations)
        judged = [i for i in own if rewards[i] is not None] or [own[0]]
        best, worst = max(judged, key=lambda i: rewards[i] or 0.0), min(judged, key=lambda i: rewards[i] or 0.0)
        example: dict[str, Any] = {"prompt_ids": list(prompts[own[0]])}
        example["weight"] = float(rewards[best] != rewards[worst])
        for side, i in zip(SIDES, (best, worst), strict=True):
            example |= {f"{side}_ids": list(responses[i]), f"{side}_policy_id": str(self.state.global_step)}
        return example

    def _label(self, model: Any, examples: Sequence[dict[str, Any]]) -> None:
        """Write the policy label of both sides into each pair."""
        policy, ppl = self.accelerator.unwrap_model(model), self.ppl
        sides = [Side(e["prompt_ids"], e[f"{s}_ids"], len(e[f"{s}_ids"])) for s in SIDES for e in examples]
        key = f"{self.args.seed}/{self.state.global_step}/{self.args.process_index}"
        seed = random.Random(key).getrandbits(32)
        continuations = continuations_of(ppl, self._tokenizer, self.online.max_new_tokens, seed)
        columns = label_columns(policy, self.online.sampling, sides, ppl, continuations)
        places = [(side, example) for side in SIDES for example in examples]
        for (side, example), row in zip(places, columns, strict=True):
            example |= {f"{side}_{name}": value for name, value in row.items()}

    def _log_collection(
        self, rewards: Sequence[float | None], responses: Sequence[Sequence[int]], examples: Sequence[dict[str, Any]]
    ) -> None:
        """Record mean reward, mean length and the share of prompts that give a pair, over all processes."""
        known = [reward for reward in rewards if reward is not None]
        decided = sum(example["weight"] for example in examples)
        sums = [sum(known), len(known), sum(map(len, responses)), len(responses), decided, len(examples)]
        totals = torch.tensor(sums, dtype=torch.float64, device=self.accelerator.device)
        shares = self.accelerator.gather(totals.unsqueeze(0)).sum(0).view(3, 2).tolist()
        names = ("reward/mean", "completions/mean_length", "preference/decided_share")
        for name, (total, count) in zip(names, shares, strict=True):
            self._metrics["train"][name].append(total / max(count, 1))

    def _limits(self) -> dict[str, int]:
        """End token, padding and longest response of the sampler."""
        tokens = {"eos_token_id": self._tokenizer.eos_token_id, "pad_token_id": self._tokenizer.pad_token_id}
        return tokens | {"max_new_tokens": self.online.max_new_tokens}

    def _sample(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return one response per prompt, up to and including the first end token."""
        from trl.models.utils import unwrap_model_for_generation

        with unwrap_model_for_generation(model, self.accelerator) as unwrapped:
            whole = {"batch_size": len(prompts), "ended": False}
            return sample_continuations(unwrapped, self.online.sampling, prompts, **self._limits(), **whole)

    def _judge(self, inputs: dict[str, Any], responses: Sequence[Sequence[int]]) -> list[float | None]:
        group = self.online.generations
        columns = {
            name: [value for value in values for _ in range(group)]
            for name, values in inputs.items()
            if name in ("prompt", *verifiers.label_columns(self.judge))
        }
        rewards = self.judge(
            prompts=columns.pop("prompt"),
            completions=[self.processing_class.decode(row, skip_special_tokens=True) for row in responses],
            completion_ids=[list(row) for row in responses],
            trainer_state=self.state,
            **columns,
        )
        return [None if reward is None or reward != reward else float(reward) for reward in rewards]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save the buffer with the checkpoint: a resumed run continues with the same pairs."""
        super()._save_checkpoint(model, trial)
        write_atomically(self._buffer_file(self.state.global_step), json.dumps(self.buffer))

    def _saved_buffer(self, step: int) -> list[list[dict[str, Any]]]:
        path = self._buffer_file(step)
        return json.loads(path.read_text()) if path.exists() else []

    def _buffer_file(self, step: int) -> Path:
        return Path(self.args.output_dir) / f"checkpoint-{step}" / f"online_pairs-{self.args.process_index}.json"


def with_online_pairs(trainer_class: type) -> type:
    """Return a subclass of a policy-labelled DPOTrainer that makes its own pairs."""
    return type(f"Online{trainer_class.__name__}", (OnlineMixin, trainer_class), {})
