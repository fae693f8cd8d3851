"""Keys and values of a prompt stored once for its group, for decoding on a CPU.

    scores = [q K_prompt^T, q K_own^T]        out = softmax(scores) [V_prompt; V_own]

K_prompt belongs to the prompt, K_own to the response. The first product is made for all responses of a prompt at once,
and the prompt's keys are read once a step, not once for each response; the responses' own keys grow in place, where
transformers' dynamic cache copies everything at each step.

Reference: none.
Deviations: none.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import sdpa_mask

NAME = "autotelic_grouped"
"""Of this attention, among transformers' implementations."""


class GroupLayer(DynamicLayer):
    """One layer's keys and values: `prompt_keys` (P, H, T, D) for all, and each response's own (B, H, t, D)."""

    def __init__(self, keys: Float[Tensor, "P H T D"], values: Float[Tensor, "P H T D"]):
        super().__init__()
        self.prompt_keys, self.prompt_values, self.length = keys, values, 0
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append to the responses' own, and return those; the keys carry this layer to `grouped_attention`."""
        until = self.length + key_states.shape[2]
        for name, states in (("keys", key_states), ("values", value_states)):
            stored = getattr(self, name)
            if stored is None or stored.shape[2] < until:
                grown = states.new_empty(*states.shape[:2], max(2 * until, 32), states.shape[3])
                if stored is not None:
                    grown[:, :, : self.length] = stored[:, :, : self.length]
                setattr(self, name, grown)
            getattr(self, name)[:, :, self.length : until] = states
        self.length = until
        assert self.keys is not None and self.values is not None  # set above
        keys = self.keys[:, :, :until]
        keys.group_layer = self  # pyright: ignore[reportAttributeAccessIssue]
        return keys, self.values[:, :, :until]

    def get_seq_length(self) -> int:
        """Tokens of the prompt and of a response so far."""
        return self.prompt_keys.shape[2] + self.length


def grouped_attention(
    module: Any,
    query: Float[Tensor, "B Q 1 D"],
    key: Float[Tensor, "B H t D"],
    value: Float[Tensor, "B H t D"],
    attention_mask: Tensor | None,
    dropout: float | int = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B 1 Q D"], None]:
    """Attend to the prompt and to a response's own tokens; transformers' signature, one new token a row."""
    layer: GroupLayer = key.group_layer  # pyright: ignore[reportAttributeAccessIssue]
    (batch, num_queries, _, dim), num_heads = query.shape, key.shape[1]
    prompts, length, repeat = layer.prompt_keys.shape[0], layer.prompt_keys.shape[2], num_queries // num_heads
    group = batch // prompts
    q = query.reshape(batch, num_heads, repeat, dim) * (dim**-0.5 if scaling is None else scaling)

    def together(x: Tensor) -> Tensor:
        x = x.view(prompts, group, num_heads, repeat, -1).transpose(1, 2)
        return x.reshape(prompts, num_heads, group * repeat, -1)

    def apart(x: Tensor) -> Tensor:
        x = x.view(prompts, num_heads, group, repeat, -1).transpose(1, 2)
        return x.reshape(batch, num_heads, repeat, -1)

    of_prompt = apart(together(q) @ layer.prompt_keys.transpose(-1, -2))
    scores = torch.cat([of_prompt, q @ key.transpose(-1, -2)], -1)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    out = apart(together(weights[..., :length]) @ layer.prompt_values) + weights[..., length:] @ value
    return out.view(batch, 1, num_queries, dim), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def grouped(cache: Any) -> Cache:
    """Return a cache for groups of responses from one with their prompts."""
    return Cache(layers=[GroupLayer(layer.keys, layer.values) for layer in cache.layers])


def grouping_refusal(model: Any) -> str | None:
    """Return why this model's attention cannot be ours, as far as its configuration tells."""
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {config._attn_implementation}"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "it has windows"
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        return "it has windows"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention scores are capped"
    return None
