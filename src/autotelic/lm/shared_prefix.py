"""The prompt of a group is computed once in training: the seam between `autotelic.lm.packing` and a TRL trainer.

TRL asks its model for log-probabilities with `model(..., labels=labels, fused_lm_head=True)`, in the loss and in the
passes for old and reference log-probabilities. `share_prefix` answers such a call, where rows of the batch have the
same prompt, with one pass of the backbone over packed rows and our head (`autotelic.lm.head`). Everything else, and
every call that it cannot serve exactly, goes on as before.

Refused by name: attention that takes no mask of its own form (flash, flex), layers that keep a state or compress,
bidirectional attention, encoder-decoders, inputs beside the tokens, dropout in training (the rows would share one
mask), batches longer than a sliding window or than the range in which positions are encoded the same, and any model
whose packed hidden states are not those of its rows (this is tried once, on a few tokens).

Reference: `autotelic.lm.packing`.
"""

import functools
import logging
import types
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autotelic.errors import UserError
from autotelic.lm.head import Autocast, call_refusal, disagreement, evaluating, head_refusal, refusal, say_once, scored
from autotelic.lm.packing import Packed, Packs, Rows, best_packs, pack, rows_of

MARGIN = 0.9
"""`auto` packs where the estimate says that packed rows cost at most this share of the rows themselves."""
PAIR_FLOPS = 1.3
"""Time of a masked attention's floating-point operation over that of a matrix product's: measured on one CPU thread,
forward and backward, 1.0 to 1.5 for widths 256 and 512 and lengths 512 to 2048 (float32, torch 2.13)."""
OVERHEAD_FLOPS = 1e8
"""What packing a batch costs, about 2 ms, in operations of a forward pass."""
SCORING = ("fused_lm_head", "labels", "shift_labels", "other_ids", "num_items_in_batch")
SERVED = {"input_ids", "attention_mask", "use_cache", "output_router_logits"}
LIMITS = "the model's sliding window or the range of its position encoding"


@dataclass(frozen=True)
class Sharing:
    """How one model shares prompts."""

    mode: str
    temperature: float | int
    cast_to_fp32: bool
    pair_cost: float
    """Of a query-key pair, in tokens of the linear layers."""
    overhead: float
    """Of packing, in tokens of the linear layers."""
    longest: int | None
    """Columns up to which the model treats equal distances equally."""
    drops_out: bool

    @property
    def level(self) -> int:
        """How loudly a call is refused: nobody has asked for `auto`."""
        return logging.WARNING if self.mode == "on" else logging.INFO

    def packs(self, rows: Rows) -> Packs:
        """Return the packs that pay (`on`: the best), or none."""
        packs, share = best_packs(rows, self.pair_cost, self.overhead)
        return packs if self.mode == "on" or share <= MARGIN else []

    def packed(self, model: Any, labels: Tensor | None, inputs: dict[str, Any]) -> Packed | None:
        """Return the packed form of a call's rows, or None where the call is better, or only, served without."""
        if labels is None or inputs.get("input_ids") is None or len(labels) < 2:
            return None
        reason = self.call_refusal(model, labels, inputs)
        if reason is not None:
            say_once(f"prompts are not shared: {reason}", self.level)
            return None
        ids, attention = inputs["input_ids"], inputs.get("attention_mask")
        attention = torch.ones_like(ids) if attention is None else attention
        packs = self.packs(rows_of(ids, attention, labels))
        return pack(ids, attention, labels, packs) if packs else None

    def call_refusal(self, model: Any, labels: Tensor, inputs: dict[str, Any]) -> str | None:
        """Return why this call cannot be served."""
        beside = sorted(name for name, value in inputs.items() if name not in SERVED and value is not None)
        if beside:
            return f"the model is given {', '.join(beside)} beside its tokens"
        if self.drops_out and model.training:
            return "there is dropout, and the rows would share one mask"
        if self.longest is not None and labels.shape[1] > self.longest:
            return f"rows of {labels.shape[1]} columns are longer than {self.longest}, {LIMITS}"
        if not follows_tokens(labels, inputs.get("attention_mask")):
            return "a label stands behind padding"
        return attention_refusal(model) or call_refusal(model, inputs)


def share_prefix(
    model: Any,
    *,
    temperature: float | int = 1.0,
    mode: str = "auto",
    cast_to_fp32: bool = False,
    head: str = "auto",
    autocast: Autocast = nullcontext,
    statistics: bool = False,
) -> Sharing | str:
    """Make `model(..., labels=labels, fused_lm_head=True)` compute shared prompts once; return how, or why it does not.

    Args:
        model: a causal language model that TRL's `add_fused_lm_head` has prepared, or a PEFT model around one.
        temperature: the logits are divided by it.
        mode: `auto` where it pays, `on` wherever rows share a prompt (refused where it cannot be exact), `off` nowhere.
        cast_to_fp32: see `autotelic.lm.head.use_fused_head`.
        head: the mode of `use_fused_head`; `off` rules sharing out.
        autocast: see `autotelic.lm.head.use_fused_head`.
        statistics: likewise.

    Raises:
        UserError: mode `on`, and the model is refused.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    reason = "shared_prefix is off" if mode == "off" else "fused_head is off" if head == "off" else None
    reason = reason or refusal(model) or head_refusal(model) or model_refusal(model)
    if reason is None and mode == "auto" and model.device.type != "cpu":
        reason = f"sharing has not been timed on {model.device.type}; shared_prefix=on takes it"
    reason = reason or disagreement(model, autocast) or packing_disagreement(model)
    if reason is None:
        sharing = sharing_of(model, mode, temperature, cast_to_fp32)
        install(model, sharing, autocast, statistics)
        return sharing
    if mode == "on":
        raise UserError(f"shared_prefix=on cannot be used: {reason}; take auto or off")
    if mode == "auto":
        say_once(f"prompts are not shared: {reason}", logging.INFO)
    return reason


def install(model: Any, sharing: Sharing, autocast: Autocast = nullcontext, statistics: bool = False) -> None:
    """Replace the model's forward by one that packs where it may, and passes on everything else."""
    before = model.forward

    @functools.wraps(before)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.get("fused_lm_head") and not args and kwargs.get("shift_labels") is None
        inputs = {name: value for name, value in kwargs.items() if name not in SCORING}
        packed = sharing.packed(self, kwargs.get("labels"), inputs) if asked else None
        if packed is None:
            return before(*args, **kwargs)
        targets = kwargs["labels"][:, 1:]
        with autocast():
            hidden = packed_hidden(self, packed)
            rows = packed.rows(hidden, nn.functional.pad(targets != -100, (0, 1)))
            precision = {"temperature": sharing.temperature, "cast_to_fp32": sharing.cast_to_fp32}
            options: dict[str, Any] = {**precision, "further": statistics}
            return scored(self, rows, targets, kwargs.get("other_ids"), kwargs.get("num_items_in_batch"), **options)

    model.forward = types.MethodType(forward, model)


def packed_hidden(model: Any, packed: Packed) -> Float[Tensor, "N L d"]:
    """Return the backbone's hidden states of a packed batch."""
    mask = packed.allowed
    if model.config.get_text_config()._attn_implementation == "eager":  # it adds the mask to the scores
        lowest = torch.finfo(model.dtype).min
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, lowest)
    given = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "attention_mask": mask}
    return model.base_model(**given, use_cache=False).last_hidden_state


def sharing_of(model: Any, mode: str, temperature: float | int, cast_to_fp32: bool) -> Sharing:
    """Return how this model shares prompts, with costs from its configuration."""
    config = model.config.get_text_config()
    heads, width = config.num_attention_heads, config.hidden_size
    size = getattr(config, "head_dim", None) or width // heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "moe_intermediate_size", None)
    inner = inner * getattr(config, "num_experts_per_tok", 1) if inner else getattr(config, "intermediate_size", None)
    per_token = 4 * width * size * (heads + kv) + 6 * width * (inner or 4 * width)
    return Sharing(
        mode=mode,
        temperature=temperature,
        cast_to_fp32=cast_to_fp32,
        pair_cost=PAIR_FLOPS * 4 * heads * size / per_token,
        overhead=OVERHEAD_FLOPS / (per_token * config.num_hidden_layers),
        longest=longest_exact(config),
        drops_out=drops_out(model),
    )


def longest_exact(config: Any) -> int | None:
    """Return the width up to which neither a sliding window nor a changing position encoding shows, if there is one."""
    limits = []
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "sliding_window", None) and (kinds is None or "sliding_attention" in kinds):
        limits.append(config.sliding_window)
    rope = getattr(config, "rope_parameters", None) or {}
    for entry in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if entry.get("rope_type") in ("dynamic", "longrope"):
            limits.append(entry.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min(limits, default=None)


def drops_out(model: nn.Module) -> bool:
    """Return whether something random happens to a token in training."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return True
        names = [name for name in vars(module) if "drop" in name or "jitter" in name]
        if any(isinstance(vars(module)[name], float) and vars(module)[name] > 0 for name in names):
            return True
    return False


def follows_tokens(labels: Tensor, attention: Tensor | None) -> bool:
    """Return whether a token stands before every label, so that a packed row can predict it."""
    return attention is None or not bool(((labels[:, 1:] != -100) & (attention[:, :-1] == 0)).any())


def attention_refusal(model: Any) -> str | None:
    """Return why the attention, as it is set now, cannot take a mask."""
    name = model.config.get_text_config()._attn_implementation
    return None if name in ("sdpa", "eager") else f"{name} attention takes no mask of ours (sdpa and eager do)"


def model_refusal(model: Any) -> str | None:
    """Return why this model cannot share prompts, as far as its class and configuration tell."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    if getattr(model, "_is_stateful", False) or not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} keeps a state, or attends in a way of its own"
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        return f"the model has layers of {', '.join(sorted(others))}"
    if getattr(config, "use_bidirectional_attention", None):
        return "the model attends in both directions"
    return attention_refusal(model)


@torch.no_grad()
def packing_disagreement(model: Any) -> str | None:
    """Try a few tokens: the hidden states of a packed row must be those of its rows."""
    ids, attention, labels = (x.to(model.get_input_embeddings().weight.device) for x in trial(model.config))
    packed = pack(ids, attention, labels, [[0, 1], [2]])
    try:
        with evaluating(model):
            plain = model.base_model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
            hidden = packed_hidden(model, packed)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"{type(model).__name__} does not take packed rows ({type(error).__name__}: {error})"
    wanted = nn.functional.pad(labels[:, 1:] != -100, (0, 1))
    ours, theirs = packed.rows(hidden, wanted).float(), plain[wanted].float()
    if same_states(ours, theirs, plain.dtype):
        return None
    return f"the hidden states of packed rows are not those of {type(model).__name__}'s rows"


def same_states(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether two ways to compute hidden states, `(..., T, H)` in float32, agree but for the rounding of a dtype.

    A lower precision may round much of one state away: of SmolLM2 in bfloat16, trained for ten updates, one state in
    four differs by .7 between one pass and token by token, half of them by less than .09. So half of each row counts.
    """
    if dtype == torch.float32:
        return bool((ours - theirs).norm() <= 1e-4 * theirs.norm())
    change = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return bool(change.median(-1).values.max() <= 0.2)


def trial(config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return three short rows, two of them with one prompt: padding left and right, completions of several lengths."""
    lengths, width, start = ((4, 5), (4, 3), (6, 2)), 11, 6
    ids = torch.arange(3 * width).view(3, width) % min(config.get_text_config().vocab_size, 29)
    ids[1, :start] = ids[0, :start]
    columns = torch.arange(width).expand(3, width)
    first = torch.tensor([[start - prompt] for prompt, _ in lengths])
    last = torch.tensor([[start + completion] for _, completion in lengths])
    attention = ((columns >= first) & (columns < last)).long()
    return ids, attention, ids.masked_fill((columns < start) | (attention == 0), -100)
