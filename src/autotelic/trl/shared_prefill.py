"""Generation that reads a prompt once, however often it is asked for.

Every prompt but its last token goes through the model once; its keys and values are handed to each of its rollouts, and
transformers' own `generate` goes on from there: sampling, processors and stopping are untouched, and with the same seed
the samples are those of plain generation (but where rounding tips a draw). On a CPU, where the rows of a prompt lie
together and groups are of one size, the prompt's keys and values stay stored once (`grouped_cache`); elsewhere each row
gets a copy, as in plain generation.

Reference: none.
Deviations: none.
"""

import functools
import logging
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from autotelic.errors import UserError
from autotelic.trl.grouped_cache import NAME, grouped, grouping_refusal
from autotelic.trl.shared_prefix import drops_out

logger = logging.getLogger(__name__)

MIN_TOKENS = 512
"""`auto` shares where so many prompt tokens need not be read again: one more pass costs about a decoding step."""
NEUTRAL = {
    "num_beams": (1, None),
    "num_return_sequences": (1, None),
    "use_cache": (True, None),
    "cache_implementation": ("dynamic", None),
    "prefill_chunk_size": (None,),
    "assistant_model": (None,),
    "prompt_lookup_num_tokens": (None,),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
    "past_key_values": (None,),
    "inputs_embeds": (None,),
    "position_ids": (None,),
    "pixel_values": (None,),
    "token_type_ids": (None,),
    "mm_token_type_ids": (None,),
    "synced_gpus": (False, None),
}
"""What a call, its configuration and the model's may say of these for prompts to be shared."""
LAYER_TYPES = ("full_attention", "sliding_attention")


def use_shared_prefill(model: Any, mode: str) -> str | None:
    """Make the model's `generate` read repeated prompts once; return None, or why it does not.

    Args:
        model: a causal language model, or a PEFT model around one.
        mode: `on`; `auto`: where enough tokens are saved; `off`.

    Raises:
        UserError: mode `on`, and the model is refused.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    reason = "shared_prefix is off" if mode == "off" else prefill_refusal(model)
    if mode == "on" and reason is not None:
        raise UserError(f"shared_prefix=on cannot be used in generation: {reason}; take auto or off")
    if reason is None:
        install_shared_prefill(model, mode)
    return reason


def install_shared_prefill(model: Any, mode: str) -> None:
    """Replace the model's `generate`; see `use_shared_prefill`."""
    before = getattr(model.generate, "unshared", model.generate)  # not around itself

    @functools.wraps(before)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids, attention = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if not args and ids is not None and attention is not None and plain(self, kwargs):
            first, row = unique_prompts(ids, attention)
            saved = (ids.shape[0] - len(first)) * (ids.shape[1] - 1)
            if saved >= (MIN_TOKENS if mode == "auto" else 1):
                cache = prefilled(self, ids[first, :-1], attention[first, :-1])
                if in_groups(row) and can_group(self):
                    with grouped_attention_of(self):
                        return before(**kwargs, past_key_values=grouped(cache))
                cache.batch_select_indices(row)
                kwargs["past_key_values"] = cache
        return before(*args, **kwargs)

    generate.unshared = before  # pyright: ignore[reportAttributeAccessIssue]
    model.generate = types.MethodType(generate, model)


def prefill_refusal(model: Any) -> str | None:
    """Return why a prompt's keys and values cannot be handed on, as far as the configuration tells."""
    config = model.config.get_text_config()
    if config.is_encoder_decoder:
        return "an encoder-decoder has no prompt in its decoder"
    other = set(getattr(config, "layer_types", None) or ()) - set(LAYER_TYPES)
    return f"the model has layers of another kind ({', '.join(sorted(other))})" if other else None


def plain(model: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a call samples row by row, with an ordinary cache, from a model that is whole and drops nothing.

    Processes that share a model's parameters must make the same passes, and whether prompts repeat is each one's own.
    """
    sources = (kwargs.get("generation_config"), model.generation_config)
    return (
        all(kwargs.get(name) in allowed for name, allowed in NEUTRAL.items())
        and all(getattr(source, name, None) in allowed for source in sources for name, allowed in NEUTRAL.items())
        and not sharded(model)
        and not (model.training and drops_out(model))
    )


def sharded(model: Any) -> bool:
    """Return whether the parameters are spread over processes."""
    parameter = next(model.parameters())
    return (
        hasattr(parameter, "ds_id")
        or hasattr(parameter, "full_tensor")
        or any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    )


def unique_prompts(
    ids: Int[Tensor, "B T"], attention: Int[Tensor, "B T"]
) -> tuple[Int[Tensor, " P"], Int[Tensor, " B"]]:
    """Return the first row of each different prompt, in rising order, and which of these prompts each row has."""
    _, label = torch.unique(ids.masked_fill(attention == 0, -1), dim=0, return_inverse=True)
    rows = torch.arange(len(label), device=label.device)
    first = torch.full_like(label, len(label)).scatter_reduce(0, label, rows, "amin")[label]
    return torch.unique(first, return_inverse=True)


def in_groups(row: Int[Tensor, " B"]) -> bool:
    """Return whether each prompt's rows lie together, and are as many as every other prompt's."""
    prompts = int(row.max()) + 1
    return len(row) % prompts == 0 and torch.equal(
        row, torch.arange(prompts, device=row.device).repeat_interleave(len(row) // prompts)
    )


def can_group(model: Any) -> bool:
    """Return whether the model decodes with a prompt's keys stored once: on a CPU, where a trial gives the same."""
    if model.device.type != "cpu":
        return False
    if not hasattr(model, "_groups_prompts"):
        model._groups_prompts = grouping_refusal(model) is None and grouping_agrees(model)
    return model._groups_prompts


@torch.no_grad()
def grouping_agrees(model: Any) -> bool:
    """Try a few tokens: with a prompt's keys stored once, the next token has the logits that it has without."""
    words = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]) % words
    attention = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    row, last = torch.tensor([0, 0, 1, 1]), torch.tensor([[1], [2], [3], [4]]) % words
    step = {
        "input_ids": last,
        "attention_mask": torch.cat([attention[row], torch.ones_like(last)], 1),
        "position_ids": (attention.sum(1)[row]).unsqueeze(1),
        "use_cache": True,
    }
    training = model.training
    model.eval()
    try:
        cache = prefilled(model, ids, attention)
        with grouped_attention_of(model):
            ours = model(**step, past_key_values=grouped(cache)).logits
        cache.batch_select_indices(row)
        plain = model(**step, past_key_values=cache).logits
    except Exception as error:  # a model's own code, given a cache that it may never have seen: anything can come
        logger.info("keys and values of prompts are stored for every response: %s", error)
        return False
    finally:
        model.train(training)
    return torch.allclose(ours.float(), plain.float(), rtol=1e-3, atol=1e-3 if plain.dtype == torch.float32 else 0.1)


@contextmanager
def grouped_attention_of(model: Any) -> Iterator[None]:
    """Let the model attend by `grouped_cache` in the block."""
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def prefilled(model: Any, ids: Int[Tensor, "P T"], attention: Int[Tensor, "P T"]) -> Any:
    """Return a cache with the prompts, each read once.

    Args:
        model: the model.
        ids: the different prompts, without their last token.
        attention: 1 on real tokens.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.get_text_config())
    positions = (attention.long().cumsum(-1) - 1).masked_fill(attention == 0, 0)  # as `generate` counts them
    model.base_model(
        input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return cache
