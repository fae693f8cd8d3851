"""Statistics and choices over the whole update batch, however it is spread over processes.

    moments:  the sums of every rank are added in float64, then divided
    top-k:    every rank offers its own k best (value, token identity) pairs; the k-th best offer is the threshold

The global k best are among the ranks' k best, so the choice is exact. Pairs are ordered by value, highest first, then
by token identity, lowest first; identities are unique in the batch, so every rank finds the same threshold and no tie
is left to chance. A rank without tokens offers nothing and still takes part. Without an initialised process group
everything is local.
"""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.masking import as_mask, compute_dtype, wide
from autotelic.functional.token_covariance import TokenMoments, moments_from_sums, token_sums

_HASH_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_HASH_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)


def world_size(group: object = None) -> int:
    """Return the number of processes in the group; 1 where torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1  # pyright: ignore[reportArgumentType]


def global_sum(x: Shaped[Tensor, "*A"], *, group: object = None) -> Shaped[Tensor, "*A"]:
    """Return the sum of ``x`` over all ranks."""
    if world_size(group) == 1:
        return x
    total = x.clone()
    dist.all_reduce(total, group=group)  # pyright: ignore[reportArgumentType]
    return total


def global_max(x: Shaped[Tensor, "*A"], *, group: object = None) -> Shaped[Tensor, "*A"]:
    """Return the largest ``x`` over all ranks."""
    if world_size(group) == 1:
        return x
    largest = x.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)  # pyright: ignore[reportArgumentType]
    return largest


def global_moments(
    logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    group: object = None,
) -> TokenMoments:
    """Return means and token count over all ranks, the same numbers on each."""
    sums = global_sum(token_sums(logprobs, advantages, mask), group=group)
    return moments_from_sums(sums, compute_dtype(logprobs))


def _best(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best pairs in order: value descending, then identity ascending."""
    if 0 < k < values.numel():
        # Only what can be among the k best is sorted: at k of a thousandth of the tokens that is nearly nothing.
        near = values >= values.topk(k, sorted=False).values.min()
        values, ids = values[near], ids[near]
    by_id = ids.argsort(stable=True)
    order = by_id[values[by_id].argsort(descending=True, stable=True)][:k]
    return values[order], ids[order]


def _gather_pairs(values: Tensor, ids: Tensor, group: object) -> tuple[Tensor, Tensor]:
    """Return all ranks' pairs; ranks may offer different numbers of them, or none."""
    size = world_size(group)
    counts = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(size)]
    count = torch.tensor([values.numel()], dtype=torch.int64, device=values.device)
    dist.all_gather(counts, count, group=group)  # pyright: ignore[reportArgumentType]
    lengths = [int(c) for c in counts]
    width = max(lengths)
    if width == 0:
        return values, ids
    gathered = []
    for x in (values, ids):
        padded = torch.zeros(width, dtype=x.dtype, device=x.device)
        padded[: x.numel()] = x
        parts = [torch.zeros_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded, group=group)  # pyright: ignore[reportArgumentType]
        gathered.append(torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]))
    return gathered[0], gathered[1]


def top_k_mask(
    values: Float[Tensor, "B T"],
    eligible: Shaped[Tensor, "B T"],
    k: int,
    *,
    token_ids: Int[Tensor, "B T"] | None = None,
    across_ranks: bool = False,
    group: object = None,
) -> Bool[Tensor, "B T"]:
    """Return the mask of the min(k, number eligible) eligible entries of largest value.

    Args:
        values: what is ranked; NaN is an error of the caller, outside ``eligible`` nothing is read.
        eligible: entries that may be chosen.
        k: how many, over all ranks where ``across_ranks``.
        token_ids: unique identity of each token in the whole batch, for ties; the position where None.
        across_ranks: rank over all processes of ``group``; every one must call, with the same k and with token_ids.
        group: the process group, the default one where None.
    """
    many = across_ranks and world_size(group) > 1
    if many and token_ids is None:
        raise UserError("a choice over several ranks needs token_ids: positions are not unique between ranks")
    mask = as_mask(eligible)
    places = mask.flatten().nonzero().squeeze(-1)  # only what may be chosen is widened and ranked
    ranked = wide(values.flatten()[places])
    ids = places if token_ids is None else token_ids.flatten()[places].to(torch.int64)
    offered, offered_ids = _best(ranked, ids, k)
    if many:
        offered, offered_ids = _best(*_gather_pairs(offered, offered_ids, group), k)
    chosen = torch.zeros_like(mask)
    if k > 0 and offered.numel() > 0:
        threshold, last_id = offered[-1], offered_ids[-1]
        best = (ranked > threshold) | ((ranked == threshold) & (ids <= last_id))
        chosen.view(-1)[places[best]] = True
    return chosen


def _mix_(x: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64 to each int64 in its place, arithmetic modulo 2^64."""
    for multiplier, shift in zip((*_HASH_MULTIPLIERS, None), (30, 27, 31), strict=True):
        # int64 shifts keep the sign; the mask makes the shift logical.
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        if multiplier is not None:
            x.mul_(multiplier)
    return x


def hash_uniform(
    seed: int, step: int, row_ids: Int[Tensor, " B"], positions: Int[Tensor, "B T"] | Int[Tensor, " T"]
) -> Float[Tensor, "B T"]:
    """Return a uniform number in [0, 1) per token, a pure function of (seed, step, row identity, position).

    It does not depend on how the batch is split, ordered or padded, as long as ``positions`` counts the response's own
    tokens. float64, 53 random bits; splitmix64 (Steele, Lea and Flood 2014) chained over the four keys.
    """
    positions = positions if positions.ndim == 2 else positions.unsqueeze(0)
    state = torch.tensor(0, dtype=torch.int64, device=row_ids.device)
    for key in (torch.tensor(seed), torch.tensor(step), row_ids.unsqueeze(-1), positions):
        state = _mix_((state ^ key.to(device=row_ids.device, dtype=torch.int64)).add_(_HASH_INCREMENT))
    bits = (state >> 11).bitwise_and_((1 << 53) - 1)
    return wide(bits).mul_(2.0**-53)


def response_positions(mask: Shaped[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return each token's index among its row's own response tokens, the same for left and right padding."""
    return as_mask(mask).to(torch.int64).cumsum(-1) - 1
