"""Rows that have the same prompt, packed into one row in which the prompt stands once.

    [prompt, completion 1, ..., completion k]

A token attends to the prompt and to the earlier tokens of its own completion, and its position is the column that it
had. Its hidden state is then, up to rounding, the one of its own row: every layer sees the same keys at the same
distances. Padding inside a row is dropped. A group may be spread over several packs, since attention is computed over
all pairs of a pack: `best_packs` weighs the prompts saved against the pairs added.

Reference: the idea, Liu et al. 2025 (Prefix Grouper), arXiv:2506.05433.
Deviations: one attention call with a mask, where the paper splits it into two; so it needs nothing of the model's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Packs = list[list[int]]
"""Row numbers, pack by pack; the rows of a pack have one prompt."""


@dataclass(frozen=True)
class Rows:
    """What packing needs to know of a batch: where prompts end, which are the same, and how long everything is."""

    width: int
    """Columns."""
    padded: bool
    """Some column of some row holds no token."""
    groups: Packs
    """Rows by prompt, in order of first appearance; rows without a label are left out."""
    prompts: list[int]
    """Tokens before the first label, per row."""
    completions: list[int]
    """Tokens from the first label on, per row."""


@dataclass(frozen=True)
class Packed:
    """A packed batch, N packs of L places."""

    input_ids: Int[Tensor, "N L"]
    position_ids: Int[Tensor, "N L"]
    allowed: Bool[Tensor, "N 1 L L"]
    """Which place (last axis) each place attends to."""
    places: Int[Tensor, "B T"]
    """Where the token of each row and column lies, counted over all packs; 0 where there is none."""

    def rows(self, hidden: Float[Tensor, "N L d"], wanted: Bool[Tensor, "B T"]) -> Float[Tensor, "M d"]:
        """Return the hidden states at the wanted rows and columns, in their order."""
        places = self.places[wanted.to(self.places.device)].to(hidden.device)
        return hidden.flatten(0, 1).index_select(0, places)


def rows_of(
    ids: Int[Tensor, "B T"], attention: Int[Tensor, "B T"] | Bool[Tensor, "B T"], labels: Int[Tensor, "B T"]
) -> Rows:
    """Find each row's prompt, the tokens before its first label; two rows share one if tokens and columns agree.

    Args:
        ids: token ids.
        attention: 1 where there is a token; padding may stand anywhere.
        labels: -100 where nothing is asked.
    """
    real, labelled, prompt = split(attention, labels)
    lengths = torch.stack([prompt.sum(1), (real & ~prompt).sum(1), labelled.any(1)]).tolist()
    groups: dict[int, list[int]] = {}
    for row, (number, asked) in enumerate(zip(prompt_numbers(ids, prompt), lengths[2], strict=True)):
        if asked:
            groups.setdefault(number, []).append(row)
    return Rows(ids.shape[1], not bool(real.all()), list(groups.values()), lengths[0], lengths[1])


def prompt_numbers(ids: Int[Tensor, "B T"], prompt: Int[Tensor, "B T"] | Bool[Tensor, "B T"]) -> list[int]:
    """Return one number per prompt, in order of first appearance; the same where tokens and columns are.

    Args:
        ids: token ids.
        prompt: which of them are the prompt.
    """
    first: dict[bytes, int] = {}
    seen = ids.masked_fill(prompt == 0, -1).cpu().numpy()
    return [first.setdefault(row.tobytes(), len(first)) for row in seen]


def split(
    attention: Int[Tensor, "B T"] | Bool[Tensor, "B T"], labels: Int[Tensor, "B T"]
) -> tuple[Bool[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Return where there is a token, a label, and a token of the prompt."""
    real, labelled = attention.bool(), labels != -100
    return real, labelled, real & (labelled.cumsum(1) == 0)


def spread(rows: Rows, most: int) -> Packs:
    """Return packs of at most `most` rows: each group in as few as that takes, of about the same length."""
    packs: Packs = []
    for group in rows.groups:
        bins: Packs = [[] for _ in range(-(-len(group) // most))]
        filled = [0] * len(bins)
        for row in sorted(group, key=lambda row: -rows.completions[row]):
            place = min((i for i in range(len(bins)) if len(bins[i]) < most), key=lambda i: filled[i])
            bins[place].append(row)
            filled[place] += rows.completions[row]
        packs += [sorted(pack) for pack in bins]
    return packs


def longest(rows: Rows, packs: Packs) -> int:
    """Return the length L that these packs take."""
    return max(rows.prompts[pack[0]] + sum(rows.completions[row] for row in pack) for pack in packs)


def cost(count: int, length: int, pair_cost: float, causal: bool = False) -> float:
    """Return what a pass over `count` rows of `length` tokens costs, in tokens of the linear layers.

    Args:
        count: rows.
        length: of each.
        pair_cost: of one query-key pair, in tokens of the linear layers.
        causal: the attention skips what lies ahead, which it does where there is no mask.
    """
    return count * length * (1 + pair_cost * length * (0.5 if causal else 1))


def best_packs(rows: Rows, pair_cost: float, overhead: float = 0.0) -> tuple[Packs, float]:
    """Return the cheapest packs, and their cost as a share of the rows' own; no packs where no prompt is shared.

    Args:
        rows: from `rows_of`.
        pair_cost: see `cost`.
        overhead: of packing, in tokens of the linear layers.
    """
    largest = max(map(len, rows.groups), default=1)
    found = [spread(rows, most) for most in sorted({-(-largest // parts) for parts in range(1, largest)})]
    if not found:
        return [], 1.0
    costs = [cost(len(packs), longest(rows, packs), pair_cost) for packs in found]
    least = min(range(len(found)), key=costs.__getitem__)
    whole = cost(len(rows.prompts), rows.width, pair_cost, causal=not rows.padded)
    return found[least], (costs[least] + overhead) / whole


def pack(
    ids: Int[Tensor, "B T"],
    attention: Int[Tensor, "B T"] | Bool[Tensor, "B T"],
    labels: Int[Tensor, "B T"],
    packs: Sequence[Sequence[int]],
) -> Packed:
    """Return the packed batch; rows that are in no pack are left out of it.

    Args:
        ids: token ids.
        attention: see `rows_of`.
        labels: see `rows_of`.
        packs: rows by pack; those of one pack must have the same prompt.
    """
    real, _, prompt = split(attention, labels)
    order = real.cumsum(1) - 1
    prompts, totals = prompt.sum(1).tolist(), real.sum(1).tolist()
    length = max(prompts[rows[0]] + sum(totals[row] - prompts[row] for row in rows) for rows in packs)
    start, ahead, segment = [-1] * len(totals), [0] * len(totals), [0] * len(totals)
    for number, rows in enumerate(packs):
        others = 0  # tokens of the completions before this one
        for nth, row in enumerate(rows, 1):
            start[row], ahead[row], segment[row] = number * length, others, nth
            others += totals[row] - prompts[row]
    base, shift, names = (torch.tensor(x, device=ids.device).unsqueeze(1) for x in (start, ahead, segment))
    real = real & (base >= 0)
    places = (base + order + shift * ~prompt) * real
    columns = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)

    def filled(values: Tensor, elsewhere: int) -> Tensor:
        flat = values.new_full((len(packs) * length,), elsewhere)
        flat[places[real]] = values[real]  # a prompt is written once by each of its rows
        return flat.view(len(packs), length)

    positions = filled(columns, 0)
    return Packed(filled(ids, 0), positions, allowed_pairs(positions, filled(names * ~prompt, -1)), places)


def allowed_pairs(positions: Int[Tensor, "N L"], segments: Int[Tensor, "N L"]) -> Bool[Tensor, "N 1 L L"]:
    """Return who attends to whom: to what is not later, in the prompt (segment 0) or in one's own completion."""
    seen, asking = segments.unsqueeze(1), segments.unsqueeze(2)
    not_later = positions.unsqueeze(1) <= positions.unsqueeze(2)
    return (((seen == 0) | (seen == asking)) & not_later).unsqueeze(1)
