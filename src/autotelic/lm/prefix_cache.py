"""Keys and values of a prompt kept once for all its responses, and the attention that reads them there.

    softmax([q K_prompt^T, q K_own^T] / sqrt(d)) [V_prompt; V_own]

The prompt's part is one product for all responses to it, and its keys are never copied, where transformers' own cache
holds them once per response and copies all of them for every token. Scores and their softmax are taken in float32 at
least, whatever the model's numbers are.

Reference: as in Juravsky et al. 2024 (Hydragen), arXiv:2402.05099.
Deviations: one softmax over both parts; the paper joins two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "autotelic_shared_prefix"
FIRST_ROOM = 64
"""Places for own tokens to begin with; they double when full."""

active: ContextVar[Cache | None] = ContextVar("active", default=None)


class PrefixLayer(DynamicLayer):
    """One layer's cache: U prompts, and the tokens since of B rows, those of a prompt side by side."""

    def __init__(self, keys: Float[Tensor, "U K P D"], values: Float[Tensor, "U K P D"]):
        super().__init__()
        self.prompt_keys = wide(keys).transpose(-1, -2).contiguous()
        self.prompt_values = wide(values)
        self.room: list[Tensor] = []
        self.length = 0
        self.lazy_initialization(keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and return the keys and values since the prompt."""
        new, end = (key_states, value_states), self.length + key_states.shape[-2]
        if not self.room or end > self.room[0].shape[-2]:
            wider = [x.new_empty(*x.shape[:2], max(FIRST_ROOM, 2 * end), x.shape[-1]) for x in new]
            for old, room in zip(self.room, wider, strict=False):
                room[:, :, : self.length] = old[:, :, : self.length]
            self.room = wider
        for room, x in zip(self.room, new, strict=True):
            room[:, :, self.length : end] = x
        self.length = end
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens seen: the prompt's and those since."""
        return self.prompt_values.shape[-2] + self.length


def attend(
    module: nn.Module,
    query: Float[Tensor, "B H 1 D"],
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to prompt and own tokens where the keys are of the active cache; as transformers' `sdpa` elsewhere."""
    cache = active.get()
    layer: Any = None if cache is None else cache.layers[module.layer_idx]  # pyright: ignore[reportArgumentType, reportCallIssue]
    if layer is None or key is not layer.keys:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    (rows, heads, _, size), (prompts, kept, length, _) = query.shape, layer.prompt_values.shape
    shared = (prompts, rows // prompts, kept, heads // kept)
    narrow, key, value = query.dtype, wide(key), wide(value)
    query = wide(query).squeeze(2).view(*shared, size) * (size**-0.5 if scaling is None else scaling)

    def by_prompt(x: Tensor) -> Tensor:
        return x.view(*shared, -1).transpose(1, 2).flatten(2, 3)

    def by_row(x: Tensor) -> Tensor:
        return x.view(prompts, kept, shared[1], shared[3], -1).transpose(1, 2).reshape(rows, kept, shared[3], -1)

    own = query.view(rows, kept, shared[3], size) @ key.transpose(-1, -2)
    scores = torch.cat([by_row(by_prompt(query) @ layer.prompt_keys), own], -1)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask.view(rows, 1, 1, -1), -torch.inf)
    p = scores.softmax(-1)
    found = by_row(by_prompt(p[..., :length].reshape(*shared, length)) @ layer.prompt_values)
    return (found + p[..., length:] @ value).reshape(rows, 1, heads, -1).to(narrow), None


def wide(x: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def kept_once(model: Any, cache: Cache) -> Iterator[Cache]:
    """Give the prompts' cache for one generation, in which the model attends by `attend`."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    layers: list[Any] = cache.layers
    shared = Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in layers])
    token = active.set(shared)
    config._attn_implementation = NAME
    try:
        yield shared
    finally:
        config._attn_implementation = before
        active.reset(token)
