"""Which tokens a method touches: a quota over the whole update batch, filled from the highest values down.

    select:  the min(max(floor(fraction N), at_least), number of candidates) candidates of largest value

N counts the response tokens of the update, not the candidates. Ties go to the lower token identity, so that the choice
is the same on every rank and for every split of the batch.
"""

import math
from typing import TypedDict, Unpack

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from autotelic.errors import UserError
from autotelic.functional.distributed import global_sum, top_k_mask
from autotelic.functional.masking import as_mask


class Choice(TypedDict, total=False):
    """What a choice of tokens may be told.

    Keys:
        token_ids: (B, T) identities that break ties; the position in the tensor where missing.
        num_tokens: N of the whole batch, where the call sees only part of it.
        at_least_one: select one token even where the quota is below one, as several reference codes do.
        across_ranks: choose over all processes of ``group``; every one must call, with ``token_ids``.
        group: the process group, the default one where missing.
    """

    token_ids: Int[Tensor, "B T"] | None
    num_tokens: int | None
    at_least_one: bool
    across_ranks: bool
    group: object


def quota(fraction: float | int, num_tokens: int, *, at_least_one: bool = False) -> int:
    """Return floor(fraction * num_tokens); refuses a fraction outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise UserError(
            f"fraction must be in (0, 1], got {fraction}: it is a share of the response tokens, not a "
            "percentage; the paper uses 0.0002 to 0.002"
        )
    return max(math.floor(fraction * num_tokens), int(at_least_one))


def count_tokens(mask: Bool[Tensor, "B T"], *, across_ranks: bool = False, group: object = None) -> int:
    """Return the number of true entries, over all ranks where asked."""
    return int(global_sum(mask.sum(), group=group) if across_ranks else mask.sum())


def select(
    values: Float[Tensor, "B T"],
    candidates: Bool[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    fraction: float | int,
    **choice: Unpack[Choice],
) -> Bool[Tensor, "B T"]:
    """Return the floor(fraction N) candidates of largest value, N the number of response tokens.

    Args:
        values: what is ranked; read at the candidates only.
        candidates: tokens that may be chosen.
        mask: response tokens, which N counts.
        fraction: share of the response tokens, in (0, 1].
        choice: see `Choice`.
    """
    ranks = {"across_ranks": choice.get("across_ranks", False), "group": choice.get("group")}
    num_tokens = choice.get("num_tokens")
    num_tokens = count_tokens(as_mask(mask), **ranks) if num_tokens is None else num_tokens
    count = quota(fraction, num_tokens, at_least_one=choice.get("at_least_one", False))
    return top_k_mask(values, candidates & as_mask(mask), count, token_ids=choice.get("token_ids"), **ranks)


def random_values(mask: Shaped[Tensor, "B T"], generator: torch.Generator | None = None) -> Float[Tensor, "B T"]:
    """Return a uniform number per token, in float64; across ranks use ``hash_uniform``, which follows the token."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(mask.shape, generator=generator, dtype=torch.float64, device=device).to(mask.device)
