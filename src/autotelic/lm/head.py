"""The one place where our trainers get log-probabilities and entropies from hidden states.

TRL's trainers ask their model for both with `model(..., labels=labels, fused_lm_head=True)`. `use_fused_head` answers
that call with `autotelic.kernels.linear_logprob_entropy`: only the labelled positions reach the head, and only those
whose gradient is not zero cost a backward. Where that is not exact, or where `autotelic.lm.head_choice` prefers TRL's,
that answers as before; which head it is, and why, is logged once.

Served: bias, tied weights, LoRA on the head, `modules_to_save`, a factor on the logits (Cohere, Granite, Falcon-H1),
soft-capping (Gemma), FSDP 2 (the head is gathered once). Refused by name: mixture-of-experts losses, DeepSpeed ZeRO-3,
quantised or offloaded heads, LoRA variants, heads that are no linear layer, and any model whose own logits do not give
the log-probabilities that our head gives (this is tried once, on a few tokens, on the model's device).

Reference: the formulas stand in `autotelic.kernels`.
"""

import functools
import importlib.util
import logging
import math
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, make_dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from autotelic.errors import UserError
from autotelic.lm.head_choice import Choice, choose_head, place_of

MODES = ("auto", "on", "off")

Autocast = Callable[[], AbstractContextManager[Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits at one moment, softcap(scale (hidden W^T + bias))."""

    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, " V"] | None
    adapters: tuple[Any, ...] = ()
    """LoRA layers on it; see `augmented`."""
    scale: float = 1.0
    softcap: float | None = None


def use_fused_head(
    *models: Any,
    temperature: float | int = 1.0,
    mode: str = "auto",
    cast_to_fp32: bool = False,
    autocast: Autocast = nullcontext,
    statistics: bool = False,
    asked: str | None = None,
) -> Choice:
    """Make `model(..., labels=labels, fused_lm_head=True)` use our head, or leave it TRL's; return which, and why.

    A policy and its reference are given together: our head serves both or neither, so that in low precision the
    rounding errors of the two cancel in log pi - log pi_ref.

    Args:
        models: causal language models that TRL's `add_fused_lm_head` has prepared, or PEFT models around them.
        temperature: the logits are divided by it.
        mode: `auto` where it pays, `on` everywhere (refused where it cannot be exact), `off` nowhere.
        cast_to_fp32: hidden states go to float32 first, outside autocast (TRL's `cast_lm_head_to_fp32`).
        autocast: the trainer's mixed precision, entered in every call: accelerate has wrapped a reference's forward
            already, and ours stands outside its wrapper.
        statistics: the first model also returns `mean_logits`, `is_top1` and `log_sum_sq_probs` (no gradient), which
            TRL's DPO logs or weights by; a third more work in the head.
        asked: why only our head will do for this run; None where TRL's does too.

    Raises:
        UserError: mode `on`, and a model is refused.
    """
    bases = [model.get_base_model() if hasattr(model, "get_base_model") else model for model in models]

    def first(found: Iterable[str | None]) -> str | None:
        return next((reason for reason in found if reason is not None), None)

    if mode == "off":
        return Choice(False, "fused_head is off")
    reason = first(refusal(m) or head_refusal(m) for m in bases)
    found = Choice(True, "fused_head is on")
    if reason is None and mode == "auto":
        found = chosen(bases, asked, cast_to_fp32, autocast)
    if reason is None and found.ours:
        reason = first(disagreement(model, autocast) for model in bases)
    if reason is None and found.ours:
        for model in bases:
            install(model, temperature, cast_to_fp32, autocast, statistics and model is bases[0])
        return found
    if mode == "on":
        raise UserError(f"fused_head=on cannot be used: {reason}; take auto or off")
    found = found if reason is None else Choice(False, reason)
    say_once(f"the head is {found}", logging.INFO if reason is None else logging.WARNING)
    return found


def chosen(models: list[Any], asked: str | None, cast_to_fp32: bool, autocast: Autocast) -> Choice:
    """Return the head that `auto` takes for all of the models: TRL's if it is better for one of them."""
    heads = [unwrapped(model.get_output_embeddings()) for model in models]
    if any(adapters for _, adapters in heads):
        return Choice(True, "there is LoRA on the head, which TRL's leaves out")
    with autocast():
        choices = [choose_head(layer.weight, product_dtype(layer.weight, cast_to_fp32), asked) for layer, _ in heads]
    return min(choices)


def install(
    model: Any,
    temperature: float | int,
    cast_to_fp32: bool,
    autocast: Autocast = nullcontext,
    statistics: bool = False,
) -> None:
    """Replace the model's forward by one that serves `fused_lm_head=True` itself, and passes on everything else.

    It also takes `other_ids`, K further words for each of `log_probs`, and returns theirs as `other_log_probs`.
    """
    before = model.forward

    @functools.wraps(before)
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        other_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        given = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
        given = {name: value for name, value in given.items() if value is not None}
        if not fused_lm_head and other_ids is None:
            return before(*args, **given, **kwargs)
        reason = call_refusal(self, kwargs) if fused_lm_head else "fused_lm_head is off"
        if reason is not None:
            if other_ids is not None:
                raise UserError(f"log-probabilities of other tokens need our head: {reason}")
            say_once(f"the head is {Choice(False, reason)}")
            return before(*args, fused_lm_head=True, **given, **kwargs)
        kwargs["use_cache"] = False
        with autocast():
            hidden = self.base_model(*args, **kwargs).last_hidden_state
            if shift_labels is None:
                assert labels is not None
                hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
            rows = hidden[(shift_labels != -100).to(hidden.device)]
            options: dict[str, Any] = {"temperature": temperature, "cast_to_fp32": cast_to_fp32, "further": statistics}
            return scored(self, rows, shift_labels, other_ids, num_items_in_batch, **options)

    model.forward = types.MethodType(forward, model)


def scored(
    model: Any,
    rows: Float[Tensor, "N d"],
    labels: Int[Tensor, "B T"],
    other_ids: Int[Tensor, "B T K"] | None,
    num_items_in_batch: Any,
    *,
    temperature: float | int,
    cast_to_fp32: bool,
    further: bool = False,
) -> Any:
    """Return what TRL expects of `model(..., fused_lm_head=True)`; see `score` and `further_statistics`."""
    options = {"temperature": temperature, "cast_to_fp32": cast_to_fp32}
    head = head_of(model)
    logprobs, entropy, mask, others = score(rows, head, labels, other_ids, **options)
    more = further_statistics(rows, head, labels, **options) if further else {}
    count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return output_class()(
        loss=-logprobs.sum() / count,
        log_probs=logprobs,
        entropy=entropy,
        label_mask=mask,
        other_log_probs=others,
        **more,
    )


@torch.no_grad()
def further_statistics(
    rows: Float[Tensor, "N d"],
    head: Head,
    labels: Int[Tensor, "B T"],
    *,
    temperature: float | int,
    cast_to_fp32: bool,
) -> dict[str, Tensor]:
    """Return what TRL's DPO reads beside `score`, under its names: mean logit, arg max or not, ln sum_v p(v)^2."""
    from autotelic.kernels import linear_statistics

    rows, labels, dtype = operands(rows, head, labels, cast_to_fp32)
    mask = labels != -100
    with torch.autocast(rows.device.type, enabled=False):
        rows, weight = augmented(rows, head, dtype)
        bias = None if head.bias is None else head.bias.to(dtype)
        options = {"temperature": float(temperature), "logit_scale": head.scale, "softcap": head.softcap}
        found = linear_statistics(rows, weight, labels[mask], bias=bias, **options)
    values = {
        "mean_logits": found.mean_logit,
        "is_top1": found.logprobs >= found.max_logprob,
        "log_sum_sq_probs": found.sum_squares.log(),
    }
    return {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in values.items()}


def operands(rows: Tensor, head: Head, labels: Tensor, cast_to_fp32: bool) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return rows and labels on the head's device, and the dtype in which the head multiplies."""
    device = head.weight.device  # with the model spread over devices, the backbone may end on another
    rows, labels = rows.to(device), labels.to(device)
    return rows.float() if cast_to_fp32 else rows, labels, product_dtype(rows, cast_to_fp32)


def product_dtype(operand: Tensor, cast_to_fp32: bool) -> torch.dtype:
    """Return the dtype of a product with this operand."""
    if cast_to_fp32:
        return torch.float32
    autocast = torch.is_autocast_enabled(operand.device.type)
    return torch.get_autocast_dtype(operand.device.type) if autocast else operand.dtype


@functools.cache
def output_class() -> Any:
    """Return TRL's output class, with a place for the log-probabilities of other words."""
    from trl.trainer.utils import FusedCausalLMOutput

    return make_dataclass("ScoredOutput", [("other_log_probs", Any, None)], bases=(FusedCausalLMOutput,))


def score(
    rows: Float[Tensor, "N d"],
    head: Head,
    labels: Int[Tensor, "B T"],
    other_ids: Int[Tensor, "B T K"] | None = None,
    *,
    temperature: float | int,
    cast_to_fp32: bool = False,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Bool[Tensor, "B T"], Float[Tensor, "B T K"] | None]:
    """Return log-probability and entropy of every labelled position, 0 where the label is -100, and the labelled mask.

    Args:
        rows: hidden states of the positions before the labels that are not -100, in their order.
        head: from `head_of`.
        labels: token ids, -100 where nothing is asked.
        other_ids: further words at each position, whose log-probabilities are returned last.
        temperature: logits are divided by it.
        cast_to_fp32: see `use_fused_head`.
    """
    from autotelic.kernels import linear_logprob_entropy

    rows, labels, dtype = operands(rows, head, labels, cast_to_fp32)
    mask, device = labels != -100, rows.device
    with torch.autocast(device.type, enabled=False):
        rows, weight = augmented(rows, head, dtype)
        bias = None if head.bias is None else head.bias.to(dtype)
        options = {"temperature": float(temperature), "logit_scale": head.scale, "softcap": head.softcap}
        found = linear_logprob_entropy(rows, weight, labels[mask], bias=bias, **options)
        others = None
        if other_ids is not None:
            others = other_logprobs(rows, weight, bias, labels[mask], other_ids.to(device)[mask], found[0], options)
    # masked_scatter keeps a batch without any label connected to the model: it then has a gradient, of zero.
    logprobs, entropy = (x.new_zeros(mask.shape).masked_scatter(mask, x) for x in found[:2])
    if others is not None:
        wide = mask.unsqueeze(-1).expand(*mask.shape, others.shape[-1])
        others = others.new_zeros(wide.shape).masked_scatter(wide, others)
    return logprobs, entropy, mask, others


def other_logprobs(
    rows: Float[Tensor, "N d"],
    weight: Float[Tensor, "V d"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    ids: Int[Tensor, "N K"],
    logprobs: Float[Tensor, " N"],
    options: dict[str, Any],
) -> Float[Tensor, "N K"]:
    """Return ln p_k = z_k - z_t + ln p_t, from the log-probabilities ln p_t of the targets."""
    from autotelic.kernels import linear_selected

    z = linear_selected(rows, weight, torch.cat([targets.unsqueeze(1), ids], 1), bias) * options["logit_scale"]
    cap = options["softcap"]
    z = (z if cap is None else cap * (z / cap).tanh()) / options["temperature"]
    return z[:, 1:] - z[:, :1] + logprobs.unsqueeze(1)


@torch.no_grad()
def statistics(
    model: Any, labels: Int[Tensor, "B T"], *, temperature: float | int, **inputs: Any
) -> dict[str, Float[Tensor, "B T-1"]]:
    """Return `autotelic.kernels.TokenStatistics` of the labelled positions, by field; 0 elsewhere, without gradient.

    Args:
        model: one that `use_fused_head` has not refused.
        labels: token ids, -100 where nothing is asked; those of position t are predicted at t - 1.
        temperature: logits are divided by it.
        inputs: of the model's backbone.
    """
    from autotelic.kernels import linear_statistics

    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = labels[:, 1:]
    head, mask = head_of(model), labels != -100
    rows, weight = augmented(hidden[mask], head, hidden.dtype)
    bias = None if head.bias is None else head.bias.to(hidden.dtype)
    options = {"temperature": temperature, "logit_scale": head.scale, "softcap": head.softcap}
    found = linear_statistics(rows, weight, labels[mask], bias=bias, **options)._asdict()
    return {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in found.items()}


def augmented(
    rows: Float[Tensor, "N d"], head: Head, dtype: torch.dtype
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "V D"]]:
    """Write LoRA into the product, exactly: h W^T + s (h A^T) B^T = [h, s h A^T] [W, B]^T."""
    inputs, columns = [rows.to(dtype)], [head.weight.to(dtype)]
    for layer in head.adapters:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                a = layer.lora_A[name]
                low = a(layer.lora_dropout[name](rows.to(a.weight.dtype))) * layer.scaling[name]
                inputs.append(low.to(dtype))
                columns.append(layer.lora_B[name].weight.to(dtype))
    if len(inputs) == 1:
        return inputs[0], columns[0]
    return torch.cat(inputs, -1), torch.cat(columns, -1)


def head_of(model: Any) -> Head:
    """Return the model's head as it is at this moment; FSDP2's shards are gathered, with gradient."""
    layer, adapters = unwrapped(model.get_output_embeddings())
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
        bias = None if bias is None else bias.full_tensor()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return Head(weight, bias, adapters, logit_scale(model), None if softcap is None else float(softcap))


def unwrapped(layer: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the linear layer inside PEFT's wrappers, and the LoRA layers that act on it now."""
    adapters: list[Any] = []
    while True:
        if hasattr(layer, "modules_to_save"):
            names = () if layer.disable_adapters else layer.active_adapters
            name = next((name for name in names if name in layer.modules_to_save), None)
            layer = layer.original_module if name is None else layer.modules_to_save[name]
        elif hasattr(layer, "base_layer"):
            if not layer.disable_adapters and not layer.merged:
                adapters.append(layer)
            layer = layer.base_layer
        else:
            return layer, tuple(adapters)


def refusal(model: Any) -> str | None:
    """Return why this model cannot be served, as far as its configuration tells."""
    config = model.config.get_text_config()
    if importlib.util.find_spec("trl.kernels") is None:
        return "this TRL asks its model for logits (TRL 1.15.1 and later ask for log-probabilities)"
    if getattr(config, "output_router_logits", False):
        return "the loss of the experts' router is asked for"
    scale = logit_scale(model)
    if not math.isfinite(scale) or scale <= 0:
        return f"logits are multiplied by {scale:g}, which is no temperature"
    return None


def head_refusal(model: Any) -> str | None:
    """Return why the head cannot be taken as a matrix, in its present state."""
    layer, adapters = unwrapped(model.get_output_embeddings())
    for adapter in adapters:
        if not hasattr(adapter, "lora_A"):
            return f"the head carries a {type(adapter).__name__} adapter, which is not LoRA"
        names = [name for name in adapter.active_adapters if name in adapter.lora_A]
        if any(name in getattr(adapter, "lora_variant", {}) for name in names):
            return "the head carries a variant of LoRA (DoRA or another), which TRL's head leaves out too"
        if any(adapter.lora_B[name].bias is not None for name in names):
            return "LoRA on the head has a bias of its own"
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        return f"the head is a {type(layer).__name__}, not a plain linear layer"
    weight = layer.weight
    if hasattr(weight, "ds_id"):
        return "the head is split by DeepSpeed ZeRO-3"
    if weight.is_meta or getattr(layer, "_hf_hook", None) is not None:
        return "the head is not in memory (offloaded)"
    if weight.dim() != 2 or not weight.is_floating_point():
        return "the head is split by FSDP 1 or quantised"
    return None


def call_refusal(model: Any, kwargs: dict[str, Any]) -> str | None:
    """Return why this call must go to TRL's head: what wrapping or the call's options have changed."""
    if kwargs.get("output_router_logits"):
        return "the loss of the experts' router is asked for"
    return head_refusal(model)


def logit_scale(model: Any) -> float:
    """Return the factor that the model puts on its logits: the field has many names for it."""
    config = model.config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1 / float(divisor)


@torch.no_grad()
def disagreement(model: Any, autocast: Autocast = nullcontext) -> str | None:
    """Try a few tokens: the head must make the model's own logits, and our kernels their log-probabilities."""
    from autotelic.kernels import linear_logprob_entropy

    head = head_of(model)
    count = min(4, head.weight.shape[0])
    ids = torch.arange(count, device=model.get_input_embeddings().weight.device).unsqueeze(0)
    with evaluating(model), autocast():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        theirs = model(input_ids=ids, use_cache=False).logits[0]
        rows, weight = augmented(hidden[0], head, hidden.dtype)
        bias = None if head.bias is None else head.bias.to(hidden.dtype)
        ours = (rows @ weight.T + (0 if bias is None else bias)) * head.scale
        low_precision = torch.is_autocast_enabled(hidden.device.type)
    ours = ours if head.softcap is None else head.softcap * (ours / head.softcap).tanh()
    exact = not low_precision and hidden.dtype == torch.float32 and theirs.dtype == torch.float32

    def close(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a.float(), b.float(), rtol=1e-3 if exact else 0.05, atol=1e-3 if exact else 0.1)

    if not close(ours, theirs):
        return f"{type(model).__name__} makes its logits in a way of its own"
    targets = ids[0].to(rows.device)
    found = linear_logprob_entropy(rows, weight, targets, bias=bias, logit_scale=head.scale, softcap=head.softcap)
    log_p = theirs.float().log_softmax(-1)
    expected = log_p.gather(1, targets.unsqueeze(1)).squeeze(1), torch.special.entr(log_p.exp()).sum(-1)
    if all(close(a, b) for a, b in zip(found, expected, strict=True)):
        return None
    return f"our kernels give other log-probabilities than the logits on {place_of(head.weight)}"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, module by module, and back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@functools.cache
def say_once(message: str, level: int = logging.WARNING) -> None:
    """Log a message the first time it is given."""
    logger.log(level, message)
