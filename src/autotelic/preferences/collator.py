"""The batch of policy-labelled preferences: TRL's, and beside it the judged tokens and the label of every token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DataCollatorForPreference

from autotelic.errors import UserError
from autotelic.preferences.pairs import SIDES
from autotelic.preferences.sampling_policies import NEVER, right_padded

TOKEN_LABELS = ("label_logprobs", "label_top_ids", "label_top_logprobs")
FUTURE = "future_"
COLUMNS = tuple(
    f"{side}_{name}"
    for side in SIDES
    for name in (
        "segment_tokens",
        *TOKEN_LABELS,
        "future_starts",
        "future_ids",
        *(FUTURE + n for n in TOKEN_LABELS[1:]),
    )
)
"""Columns of a data set that the collator reads beside TRL's."""


@dataclass
class PolicyLabelCollator(DataCollatorForPreference):
    """TRL's collator with more tensors, all aligned with the ids that they belong to.

    `completion_mask` marks the judged tokens. `response_mask` marks the whole response, where not all was judged.
    `label_*` are the policy label at the response's tokens. `future_*` are a batch of its own: K continuations of every
    side, chosen first, with ids, masks and labels under the same names.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; the first half are the chosen sides."""
        batch = super().torch_call(examples)
        sides = [(example, side) for side in SIDES for example in examples]
        lengths = [(len(example["prompt_ids"]), len(example[f"{side}_ids"])) for example, side in sides]
        judged = [
            example.get(f"{side}_segment_tokens") or n for (example, side), (_, n) in zip(sides, lengths, strict=True)
        ]
        if any(tokens < n for tokens, (_, n) in zip(judged, lengths, strict=True)):
            marks = [[1] * min(tokens, n) + [0] * (n - tokens) for tokens, (_, n) in zip(judged, lengths, strict=True)]
            segment = self.aligned(marks, lengths, batch["input_ids"].shape[1], torch.zeros((), dtype=torch.long))
            batch |= {"response_mask": batch["completion_mask"], "completion_mask": segment}
        for name in TOKEN_LABELS:
            if examples[0].get(f"chosen_{name}") is not None:
                values = [example[f"{side}_{name}"] for example, side in sides]
                self.check_lengths(sides, lengths, values, name)
                batch[name] = self.label(name, values, lengths, batch["input_ids"].shape[1])
        if examples[0].get("chosen_future_ids") is not None:
            batch |= self.futures(sides)
        return batch

    def futures(self, sides: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, Tensor]:
        """Return the continuations of all sides as a batch of their own."""
        if self.truncation_mode != "keep_start":
            raise UserError("future=expected continues prefixes: use truncation_mode keep_start")
        rows, lengths, labels = [], [], {name: [] for name in TOKEN_LABELS[1:]}
        for example, side in sides:
            for k, (start, future) in enumerate(
                zip(example[f"{side}_future_starts"], example[f"{side}_future_ids"], strict=True)
            ):
                prefix = [*example["prompt_ids"], *example[f"{side}_ids"][:start]]
                rows.append([*prefix, *future][: self.max_length])
                lengths.append((len(prefix), len(future)))
                for name, values in labels.items():
                    if example.get(f"{side}_{FUTURE}{name}") is not None:
                        values.append(example[f"{side}_{FUTURE}{name}"][k])
        ids, attention = right_padded(rows, "cpu")
        ones = [[1] * count for _, count in lengths]
        mask = self.aligned(ones, lengths, ids.shape[1], torch.zeros((), dtype=torch.long))
        batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": mask}
        batch |= {name: self.label(name, values, lengths, ids.shape[1]) for name, values in labels.items() if values}
        return {FUTURE + name: tensor for name, tensor in batch.items()}

    def label(self, name: str, values: Sequence[Any], lengths: Sequence[tuple[int, int]], width: int) -> Tensor:
        """Return one label tensor; places without a label hold probability 0, or 1 for the recorded token."""
        if name == "label_logprobs":
            return self.aligned(values, lengths, width, torch.zeros(()))
        k = max((len(tokens[0]) for tokens in values if tokens), default=1)
        fill = torch.zeros(k, dtype=torch.long) if name == "label_top_ids" else torch.full((k,), NEVER)
        return self.aligned(values, lengths, width, fill)

    def aligned(self, values: Sequence[Any], lengths: Sequence[tuple[int, int]], width: int, fill: Tensor) -> Tensor:
        """Return (rows, width, ...) with each row's values behind its prompt, cut as TRL cuts the ids."""
        limit, end = self.max_length, self.truncation_mode == "keep_end"
        result = fill.expand(len(values), width, *fill.shape).clone()
        for place, (row, (first, count)) in enumerate(zip(values, lengths, strict=True)):
            if not len(row):
                continue
            cut = max(first + count - limit, 0) if limit is not None and end else 0
            own = torch.tensor(row, dtype=fill.dtype)[max(cut - first, 0) :]
            begin = max(first - cut, 0)
            stop = min(begin + len(own), width)
            result[place, begin:stop] = own[: stop - begin]
        return result

    @staticmethod
    def check_lengths(sides: Any, lengths: Sequence[tuple[int, int]], values: Sequence[Any], name: str) -> None:
        """Refuse labels of another number of tokens."""
        for (example, side), (_, count), row in zip(sides, lengths, values, strict=True):
            if len(row) != count:
                raise UserError(
                    f"row {example.get('row', '?')}, {side}: {count} tokens but {len(row)} values of {name}"
                )
