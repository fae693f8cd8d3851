"""What the policy of a side says of its tokens, and K ways in which it would have gone on (`future: expected`)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autotelic.functional.lookahead import Weights
from autotelic.preferences.objective import PPL
from autotelic.preferences.pairs import SIDES
from autotelic.preferences.sampling_policies import BehaviorPolicy, label_sequences, sample_continuations
from autotelic.runs.processes import preserved_rng


@dataclass(frozen=True)
class Side:
    """One side of a pair, tokenised.

    Attributes:
        prompt: token ids.
        response: token ids, the end token included.
        judged: tokens of the response that the judge saw.
        policy: id of the policy that wrote it.
        stored: log mu of its tokens, where the data have them.
        where: file and row, for messages.
    """

    prompt: list[int]
    response: list[int]
    judged: int
    policy: str = "all"
    stored: list[float] | None = None
    where: str = ""


def sides_of(dataset: Any, source: str) -> list[Side]:
    """Return all chosen sides of a tokenised data set, then all rejected ones."""
    found = []
    for side in SIDES:
        for row in dataset:
            response = row[f"{side}_ids"]
            found.append(
                Side(
                    row["prompt_ids"],
                    response,
                    min(row.get(f"{side}_segment_tokens") or len(response), len(response)),
                    row.get(f"{side}_policy_id") or "all",
                    row.get(f"{side}_sampler_logprobs"),
                    f"{source}, row {row.get('row', '?')}, {side}",
                )
            )
    return found


@dataclass(frozen=True)
class Continuations:
    """How `future: expected` samples.

    Attributes:
        count: K of each side.
        weights: `regret`: each continues a judged prefix, drawn uniformly; `tail`: each continues the judged segment.
        max_new_tokens: longest continuation.
        eos_token_id: ends one.
        pad_token_id: fills up a batch.
        seed: of prefixes and samples.
    """

    count: int
    weights: Weights
    max_new_tokens: int
    eos_token_id: int
    pad_token_id: int
    seed: int = 0

    def columns(self, model: Any, policy: BehaviorPolicy, sides: Sequence[Side], top_k: int) -> list[dict[str, Any]]:
        """Return `future_starts`, `future_ids` and, with top_k, mu's most likely tokens at them, for each side."""
        draws = random.Random(self.seed)
        starts = [self._start(side, draws) for side in sides for _ in range(self.count)]
        owners = [side for side in sides for _ in range(self.count)]
        prefixes = [[*side.prompt, *side.response[:start]] for side, start in zip(owners, starts, strict=True)]
        limits: dict[str, Any] = {"eos_token_id": self.eos_token_id, "pad_token_id": self.pad_token_id}
        with preserved_rng():
            torch.manual_seed(self.seed)
            futures = sample_continuations(model, policy, prefixes, max_new_tokens=self.max_new_tokens, **limits)
        labels = label_sequences(model, policy, prefixes, futures, top_k) if top_k else None
        found = []
        for own in (slice(i, i + self.count) for i in range(0, len(owners), self.count)):
            row: dict[str, Any] = {"future_starts": starts[own], "future_ids": futures[own]}
            if labels is not None:
                row["future_label_top_ids"] = [label.top_ids for label in labels[own]]
                row["future_label_top_logprobs"] = [label.top_logprobs for label in labels[own]]
            found.append(row)
        return found

    def _start(self, side: Side, draws: random.Random) -> int:
        return side.judged if self.weights == "tail" else draws.randint(1, side.judged)


def label_columns(
    model: Any, policy: BehaviorPolicy, sides: Sequence[Side], ppl: PPL, continuations: Continuations | None
) -> list[dict[str, Any]]:
    """Return what the objective reads of each side's label: columns, without the prefix `chosen_` or `rejected_`."""
    if continuations is not None:
        return continuations.columns(model, policy, sides, ppl.label_tokens)
    arguments = ([side.prompt for side in sides], [side.response for side in sides], max(ppl.label_tokens, 1))
    found = []
    for label in label_sequences(model, policy, *arguments):
        top = {"label_top_ids": label.top_ids, "label_top_logprobs": label.top_logprobs}
        found.append({"label_logprobs": label.logprobs} | (top if ppl.label_tokens else {}))
    return found


def continuations_of(ppl: PPL, tokenizer: Any, max_new_tokens: int, seed: int) -> Continuations | None:
    """Return how the objective's continuations are sampled; None where it reads none."""
    if not ppl.futures:
        return None
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Continuations(ppl.futures, ppl.lookahead.weights, max_new_tokens=max_new_tokens, seed=seed, **tokens)
