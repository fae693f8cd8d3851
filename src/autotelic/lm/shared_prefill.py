"""The prompt of a group is computed once in generation: the seam between transformers' `generate` and a trainer.

TRL calls `model.generate` with every prompt repeated for each of its responses. `share_prefill` computes each prompt
once, up to its last token, and hands `generate` the cache: sampling, processors and stopping stay transformers' own,
and so do the samples, up to rounding. Where a model's layers all attend to everything, what all prompts begin with
(instructions, worked examples) is computed once for them all, and the prompt's keys and values stay one for the whole
group (`autotelic.lm.prefix_cache`); elsewhere they are copied to every row.

Left alone: beams and other searches, static or quantised caches, inputs beside the tokens, right padding, dropout in
training, models split over processes (their forward passes must agree in number), continuous batching and vLLM, which
has a prefix cache of its own. Refused by name: models that keep a state, encoder-decoders, and any model whose hidden
states after such a prefill are not those without (this is tried once, on a few tokens).
"""

import functools
import logging
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autotelic.errors import UserError
from autotelic.lm.head import evaluating, say_once
from autotelic.lm.packing import prompt_numbers
from autotelic.lm.shared_prefix import drops_out, same_states, trial

MIN_COMMON = 16
"""Tokens that all prompts must begin with, to be computed in a pass of their own."""
MIN_PROMPT = 64
"""`auto` shares prompts of this many tokens up. On a CPU it pays below too (1.1 to 1.3 times at 16 to 32), but there it
is a hundredth of an update, and a run keeps the samples of transformers to the bit."""
SERVED = {"input_ids", "attention_mask", "generation_config", "logits_processor", "stopping_criteria", "synced_gpus"}
PLAIN = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "guidance_scale": None,
    "prefill_chunk_size": None,
    "return_dict_in_generate": False,
    "token_healing": False,
    "synced_gpus": False,
}
"""Settings of a generation that is sampled or greedy, with a growing cache, and their values there."""


def share_prefill(model: Any, *, mode: str = "auto") -> str | None:
    """Make `model.generate` compute repeated prompts once; return None, or why it does not.

    Args:
        model: a causal language model, or a PEFT model around one.
        mode: `auto` where it pays, `on` wherever prompts repeat (refused where it cannot be exact), `off` nowhere.

    Raises:
        UserError: mode `on`, and the model is refused.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    reason = "shared_prefix is off" if mode == "off" else refusal(model)
    if reason is None and mode == "auto" and model.device.type != "cpu":
        reason = f"sharing has not been timed on {model.device.type}; shared_prefix=on takes it"
    reason = reason or disagreement(model)
    if reason is None:
        install(model, mode)
        return None
    if mode == "on":
        raise UserError(f"shared_prefix=on cannot be used in generation: {reason}; take auto or off")
    if mode == "auto":
        say_once(f"prompts are not shared in generation: {reason}", logging.INFO)
    return reason


def install(model: Any, mode: str) -> None:
    """Replace the model's `generate` by one that prefills repeated prompts once, and passes on everything else."""
    before, random = model.generate, drops_out(model)

    @functools.wraps(before)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        numbers = None if args else shared_prompts(self, kwargs, mode, random)
        if numbers is None:
            return before(*args, **kwargs)
        with prefilled(self, kwargs["input_ids"], kwargs["attention_mask"], numbers) as cache:
            return before(**kwargs, **as_argument(cache))

    model.generate = types.MethodType(generate, model)


def shared_prompts(model: Any, kwargs: dict[str, Any], mode: str, random: bool) -> list[int] | None:
    """Return each row's prompt, by number; None where this call is better, or only, served as it is."""
    ids, attention = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if ids is None or attention is None or ids.shape != attention.shape or min(ids.shape) < 2:
        return None
    if mode == "auto" and ids.shape[1] < MIN_PROMPT:
        return None
    numbers = prompt_numbers(ids, attention)
    common = common_beginning(ids, attention) if all_plain(empty_cache(model)) else 0
    common = common if common >= MIN_COMMON else 0
    passed = common + len(set(numbers)) * (ids.shape[1] - common)
    if passed > len(numbers) * ids.shape[1] / (2 if mode == "auto" else 1.01):
        return None
    reason = call_refusal(model, kwargs)
    if random and model.training:
        reason = "there is dropout, and the rows would share one mask"
    if reason is not None:
        say_once(f"prompts are not shared in generation: {reason}", logging.WARNING if mode == "on" else logging.INFO)
    return numbers if reason is None else None


def call_refusal(model: Any, kwargs: dict[str, Any]) -> str | None:
    """Return why this call cannot be served."""
    configs = [config for config in (kwargs.get("generation_config"), model.generation_config) if config is not None]
    settings = [kwargs, *map(vars, configs)]
    for name, plain in PLAIN.items():
        value = next((given[name] for given in settings if given.get(name) is not None), None)
        if value is not None and value != plain:
            return f"{name}={value}"
    known = SERVED | set(vars(model.generation_config))
    beside = sorted(name for name, value in kwargs.items() if name not in known and value is not None)
    if beside:
        return f"the model is given {', '.join(beside)} beside its tokens"
    if bool((kwargs["attention_mask"][:, -1] == 0).any()):
        return "prompts are padded on the right"
    name = "is_activation_checkpointing"  # transformers 5.23 gave it this name
    if model.training and getattr(model, name if hasattr(model, name) else "is_gradient_checkpointing"):
        return "activations are recomputed"
    return split_over_processes(model)


def split_over_processes(model: Any) -> str | None:
    """Return why one process must not make a forward pass of its own."""
    split = any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in model.parameters())
    if split or any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return "the model is split over processes"
    return None


@contextmanager
def prefilled(model: Any, ids: Tensor, attention: Tensor, numbers: list[int]) -> Iterator[Any]:
    """Give the cache of all rows but for their last token, each prompt computed once."""
    cache = prompt_cache(model, ids, attention, numbers)
    if keeps_once(model, cache, numbers):
        from autotelic.lm.prefix_cache import kept_once

        with kept_once(model, cache) as shared:
            yield shared
    else:
        cache.batch_select_indices(torch.tensor(numbers, device=ids.device))
        yield cache


def as_argument(cache: Any) -> dict[str, Any]:
    """Return the cache under the name that this transformers gives it: `cache` since 5.24, before `past_key_values`."""
    import transformers
    from packaging.version import Version

    renamed = Version(transformers.__version__) >= Version("5.24")
    return {"cache" if renamed else "past_key_values": cache}


@torch.no_grad()
def prompt_cache(model: Any, ids: Tensor, attention: Tensor, numbers: list[int]) -> Any:
    """Return the cache of each prompt but for its last token; what all prompts begin with is passed once."""
    first = [numbers.index(number) for number in range(max(numbers) + 1)]
    ids, attention = ids[first, :-1], attention[first, :-1]
    positions = (attention.long().cumsum(-1) - 1).clamp(min=0)  # as `generate` counts them
    cache = empty_cache(model)

    def go_on(ids: Tensor, attention: Tensor, positions: Tensor) -> None:
        given = {"input_ids": ids, "attention_mask": attention, "position_ids": positions}
        model.base_model(**given, **as_argument(cache), use_cache=True)

    common = common_beginning(ids, attention) if len(ids) > 1 and all_plain(cache) else 0
    if common < MIN_COMMON:
        go_on(ids, attention, positions)
        return cache
    padding = (attention == 0).sum(1)
    longest, start = int(padding.argmin()), int(padding.min())
    begin, rest = (
        (slice(longest, longest + 1), slice(start, start + common)),
        (slice(None), slice(start + common, None)),
    )
    go_on(ids[begin], attention[begin], positions[begin])
    cache.batch_repeat_interleave(len(ids))
    columns, ends = torch.arange(ids.shape[1], device=ids.device), (padding + common).unsqueeze(1)
    seen = torch.cat([attention.new_ones(len(ids), common), (columns >= ends)[rest].to(attention.dtype)], 1)
    go_on(ids[rest], seen, positions[rest])
    source = torch.where(columns < ends, columns - padding.unsqueeze(1), columns - start).clamp(min=0)
    for layer in cache.layers:  # each row's beginning now stands behind its padding
        index = source[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
        layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
    return cache


def common_beginning(ids: Tensor, attention: Tensor) -> int:
    """Return how many tokens all rows begin with, of the shortest all but one; 0 unless padding is on the left."""
    lengths, width = attention.sum(1, keepdim=True), ids.shape[1]
    columns, shortest = torch.arange(width, device=ids.device), int(lengths.min())
    if not torch.equal(attention.bool(), columns >= width - lengths):
        return 0
    beginnings = ids.gather(1, (width - lengths) + columns[:shortest])
    same = (beginnings == beginnings[:1]).all(0)
    return max(0, min(int(same.long().cumprod(0).sum()), shortest - 1))


def empty_cache(model: Any) -> Any:
    """Return an empty cache with the model's kinds of layers."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config(decoder=True))


def all_plain(cache: Any) -> bool:
    """Return whether every layer keeps all that it has seen."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def keeps_once(model: Any, cache: Any, numbers: list[int]) -> bool:
    """Return whether prompts can stay one in the cache: plain layers, and rows that come in equal groups."""
    group = numbers.count(0)
    equal = numbers == [row // group for row in range(len(numbers))]
    plain = all_plain(cache) and all(layer.is_initialized for layer in cache.layers)
    exact = not torch.is_autocast_enabled(model.device.type)
    return equal and exact and plain and model.config.get_text_config()._attn_implementation == "sdpa"


def refusal(model: Any) -> str | None:
    """Return why this model cannot share prompts, as far as its class and configuration tell."""
    if model.config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    if getattr(model, "_is_stateful", False) or not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} keeps a state, or attends in a way of its own"
    return None


@torch.no_grad()
def disagreement(model: Any) -> str | None:
    """Try a few tokens: what follows a shared prefill must be what follows the prompts themselves."""
    ids, attention, _ = (x.to(model.get_input_embeddings().weight.device) for x in trial(model.config))
    rows = [0, 0, 2, 2]
    ids, attention, numbers = ids[rows, :6], attention[rows, :6], [0, 0, 1, 1]
    further = torch.stack([ids[:, 1], ids[:, 2], ids[:, 3]], 1)
    whole = {"input_ids": torch.cat([ids, further], 1), "attention_mask": torch.cat([attention, further >= 0], 1)}
    positions = (whole["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    try:
        with evaluating(model):
            plain = model.base_model(**whole, position_ids=positions, use_cache=False).last_hidden_state[:, 5:]
            found = []
            with prefilled(model, ids, attention, numbers) as cache:
                for place in range(5, 9):
                    given = {"input_ids": whole["input_ids"][:, place : place + 1], **as_argument(cache)}
                    given |= {"position_ids": positions[:, place : place + 1], "use_cache": True}
                    seen = whole["attention_mask"][:, : place + 1]
                    found.append(model.base_model(**given, attention_mask=seen).last_hidden_state)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"{type(model).__name__} does not take the cache of a prompt ({type(error).__name__}: {error})"
    if same_states(torch.cat(found, 1).float(), plain.float(), plain.dtype):
        return None
    return f"what {type(model).__name__} makes of a shared prompt is not what it makes of the rows"
