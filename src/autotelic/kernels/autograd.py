"""The fused head: from hidden states and the head's weight to log-probability and entropy, with gradients.

    z_j = softcap(logit_scale (h . w_j + b_j)) / T        p = softmax(z)        softcap(u) = c tanh(u / c)
    ln p_t = z_t - logsumexp(z)                           d ln p_t / dz_j = 1[j = t] - p_j
    H = -sum_j p_j ln p_j                                 dH / dz_j       = -p_j (ln p_j + H)

No memory is taken for logits but that of a gradient which is returned, and rows whose upstream gradients are zero cost
no backward. `linear_logprob_entropy` serves any loss. It leaves the logits of d rows (d / 2 in half
precision) in what becomes the weight's gradient: three matrix products for those rows, four for the others.
`linear_loss` serves a loss that is known token by token, with three products for any number of rows;
`linear_statistics` gives what rewards and diagnostics read, without gradient.

Arithmetic is in float32 (float64 for float64). Float16 and bfloat16 operands are taken as they are: logits are exact to
float32 on any device. On a GPU, and on a CPU with bfloat16 instructions, the gradient of the logits is rounded to the
operands' dtype before the last two products; on other CPUs these are made in float32 too.

Backends: `torch` runs anywhere (`autotelic.kernels.portable`); `triton` on CUDA (`autotelic.kernels.gpu`), tested in
Triton's interpreter and compiled, but never run on a GPU and never timed; `auto` takes Triton for CUDA tensors where
it is installed.

References: Milakov & Gimelshein 2018, arXiv:1805.02867 (streaming softmax); Wijmans et al. 2024, arXiv:2411.09009 (a
cross-entropy that never holds the logits).
Deviations: entropy, and its gradient, in the same pass; the largest term is kept out of the sums, for precision.
"""

import importlib.util
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from autotelic.errors import UserError
from autotelic.kernels import portable
from autotelic.kernels import two_ways as passes
from autotelic.kernels.rows import Head, Kept, Needs, RowLoss, Stats, widest

Backend = Literal["auto", "torch", "triton"]


class TokenStatistics(NamedTuple):
    """What the full distribution says at each token; nats."""

    logprobs: Float[Tensor, " N"]
    """ln p of the target."""
    entropy: Float[Tensor, " N"]
    log_normalizer: Float[Tensor, " N"]
    """logsumexp(z)."""
    mean_logit: Float[Tensor, " N"]
    """mean_v z(v)."""
    self_certainty: Float[Tensor, " N"]
    """KL(U || p), as `functional.token_self_certainty`."""
    max_logprob: Float[Tensor, " N"]
    """max_v ln p(v)."""
    sum_squares: Float[Tensor, " N"]
    """sum_v p(v)^2, the chance that two samples agree."""
    discriminator: Float[Tensor, " N"]
    """S of the target, p_t (H + ln p_t), as `functional.entropy_discriminator`."""
    expected_discriminator: Float[Tensor, " N"]
    """E_p[S] = sum_v p(v)^2 (H + ln p(v))."""


class LossOutput(NamedTuple):
    """Of `linear_loss`."""

    loss: Float[Tensor, ""]
    """sum_n weights_n loss_n; has the gradient."""
    losses: Float[Tensor, " N"]
    """loss_n, detached."""
    logprobs: Float[Tensor, " N"]
    """Detached."""
    entropy: Float[Tensor, " N"]
    """Detached."""


def linear_logprob_entropy(
    hidden: Float[Tensor, "N d"],
    weight: Float[Tensor, "V d"],
    targets: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float | int = 1.0,
    logit_scale: float | int = 1.0,
    softcap: float | int | None = None,
    keep_logits: bool = True,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the log-probability of each target and the entropy of its distribution, in nats, both differentiable.

    Gradients flow into `hidden`, `weight` and `bias`, into each only if it asks for one (a frozen weight costs no
    product), from any loss on the two results. A bias of -inf takes a word out of the vocabulary.

    Args:
        hidden: one row per token.
        weight: of the head.
        targets: token ids in [0, V); on a GPU one outside gives NaN, on a CPU an error.
        bias: of the head.
        temperature: divides the logits, last of all.
        logit_scale: multiplies h W^T + b, first of all (Cohere, Granite).
        softcap: c of c tanh(z / c), between the two (Gemma); None for none.
        keep_logits: keep as many rows' logits as find room in the memory of the weight's gradient, which is then taken
            in the forward pass: three products for those rows, not four, and no higher peak. Where several calls come
            before their backward passes, each takes that memory: give False there.
        backend: `auto`, `torch` or `triton`.

    Returns:
        Log-probabilities and entropies, in float32 (float64 for float64 operands).
    """
    head = check(hidden, weight, targets, bias, temperature, logit_scale, softcap)
    engine = choose(backend, hidden, weight)
    keep = keep_logits and torch.is_grad_enabled()
    return _LogprobEntropy.apply(hidden, weight, bias, targets, head, engine, keep)  # pyright: ignore[reportReturnType]


def linear_loss(
    hidden: Float[Tensor, "N d"],
    weight: Float[Tensor, "V d"],
    targets: Int[Tensor, " N"],
    loss_fn: Callable[..., Float[Tensor, " n"]],
    *columns: Shaped[Tensor, "N ..."],
    weights: Float[Tensor, " N"] | None = None,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float | int = 1.0,
    logit_scale: float | int = 1.0,
    softcap: float | int | None = None,
    max_logits_mib: int = 512,
    backend: Backend = "auto",
) -> LossOutput:
    """Return the sum of a loss that each token's log-probability and entropy determine; gradients from three products.

    The gradients are made in the forward pass, from logits that are kept for as many rows as `max_logits_mib` holds;
    the backward pass only multiplies them by what comes from above, once. Use `linear_logprob_entropy` where a token's
    loss depends on other tokens (ratios of sequences, quantiles of the current policy).

        linear_loss(h, w, y, lambda logprobs, entropy, a: -a * logprobs - 0.01 * entropy, advantages, weights=mask / n)

    Args:
        hidden: one row per token.
        weight: of the head.
        targets: token ids in [0, V).
        loss_fn: from log-probabilities and entropies of some rows, and the same rows of each column, to their losses.
            Called once or several times, with different rows; a row's loss may depend on that row alone.
        columns: what else `loss_fn` needs of each row, without gradient.
        weights: of each loss in the sum, such as mask / denominator; 1 by default. At 0 a row costs no backward.
        bias: see `linear_logprob_entropy`, as for the rest.
        temperature: divides the logits, last of all.
        logit_scale: multiplies h W^T + b.
        softcap: c of c tanh(z / c).
        max_logits_mib: MiB of logits to keep at once (at least one row's). Less memory means more passes over the
            weight's gradient.
        backend: `auto`, `torch` or `triton`.
    """
    head = check(hidden, weight, targets, bias, temperature, logit_scale, softcap)
    for x in (*columns, *([] if weights is None else [weights])):
        if x.shape[:1] != targets.shape:
            raise UserError(
                f"linear_loss: a column has {x.shape[0]} rows, targets {targets.shape[0]}; give one per token"
            )
    engine = choose(backend, hidden, weight)
    row_loss = differentiated(loss_fn, columns, weights)
    max_elements = max_logits_mib * 2**20 // widest(hidden, weight, bias).itemsize if torch.is_grad_enabled() else None
    losses, *rest = _Loss.apply(hidden, weight, bias, targets, head, engine, row_loss, weights, max_elements)  # pyright: ignore[reportGeneralTypeIssues]
    return LossOutput(losses, *rest)


def differentiated(loss_fn: Callable[..., Tensor], columns: tuple[Tensor, ...], weights: Tensor | None) -> RowLoss:
    """Return a function from some rows' log-probabilities and entropies to their losses and both derivatives."""

    def row_loss(logprobs: Tensor, entropy: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            pair = (logprobs.detach().requires_grad_(), entropy.detach().requires_grad_())
            losses = loss_fn(*pair, *(x[rows] for x in columns))
            if losses.shape != logprobs.shape:
                raise UserError(
                    f"loss_fn returned shape {tuple(losses.shape)}, not one loss per row {tuple(logprobs.shape)}"
                )
            if not losses.requires_grad:
                return losses, torch.zeros_like(logprobs), torch.zeros_like(entropy)
            scales = torch.ones_like(losses) if weights is None else weights[rows].to(losses.dtype)
            found = torch.autograd.grad(losses, pair, scales, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for g, x in zip(found, pair, strict=True)]
        return losses.detach(), grads[0], grads[1]

    return row_loss


@torch.no_grad()
def linear_statistics(
    hidden: Float[Tensor, "N d"],
    weight: Float[Tensor, "V d"],
    targets: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float | int = 1.0,
    logit_scale: float | int = 1.0,
    softcap: float | int | None = None,
    backend: Backend = "auto",
) -> TokenStatistics:
    """Return what label-free rewards and diagnostics read of the full distribution, without gradient, in one product.

    Args:
        hidden: one row per token.
        weight: of the head.
        targets: token ids in [0, V).
        bias: see `linear_logprob_entropy`, as for the rest.
        temperature: divides the logits, last of all.
        logit_scale: multiplies h W^T + b.
        softcap: c of c tanh(z / c).
        backend: `auto`, `torch` or `triton`.
    """
    head = check(hidden, weight, targets, bias, temperature, logit_scale, softcap)
    stats, moments = choose(backend, hidden, weight).forward(hidden, weight, bias, targets, head, moments=True)
    assert moments is not None
    logprobs, log_normalizer = stats.logprobs, stats.best + stats.rest.log1p()
    mean = moments.logits / weight.shape[0]
    if bias is not None:
        mean = torch.where(bias.isneginf().any(), -torch.inf, mean)
    return TokenStatistics(
        logprobs=logprobs,
        entropy=stats.entropy,
        log_normalizer=log_normalizer,
        mean_logit=mean,
        self_certainty=log_normalizer - mean - math.log(weight.shape[0]),
        max_logprob=-stats.rest.log1p(),
        sum_squares=moments.squares,
        discriminator=logprobs.exp() * (stats.target - stats.spread),
        expected_discriminator=moments.squares_log - stats.spread * moments.squares,
    )


def check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float | int,
    logit_scale: float | int,
    softcap: float | int | None,
) -> Head:
    """Return the head's constants; raise UserError on input that cannot be meant."""
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, got {temperature}: softmax(z / 0) is not defined; use e.g. 1.0")
    if not 0 < logit_scale < math.inf:
        raise UserError(f"logit_scale must be above 0, got {logit_scale}; 1 changes nothing")
    if softcap is not None and not softcap > 0:
        raise UserError(f"softcap must be above 0, got {softcap}; None turns it off")
    if hidden.shape[1] != weight.shape[1]:
        raise UserError(f"hidden has width {hidden.shape[1]}, weight {weight.shape[1]}: give weight as (V, d)")
    if targets.device.type == "cpu" and targets.numel():
        low, high = targets.min().item(), targets.max().item()
        if low < 0 or high >= weight.shape[0]:
            raise UserError(
                f"targets lie in [{low}, {high}], outside the vocabulary of {weight.shape[0]}: leave padding out, "
                "e.g. hidden[mask], targets[mask]"
            )
    return Head(float(temperature), float(logit_scale), None if softcap is None else float(softcap))


def choose(backend: Backend, hidden: Tensor, weight: Tensor) -> ModuleType:
    """Return the module that does the work."""
    if backend not in ("auto", "torch", "triton"):
        raise UserError(f"unknown backend {backend!r}: use auto, torch or triton")
    installed = importlib.util.find_spec("triton") is not None
    fits = hidden.is_cuda and torch.float64 not in (hidden.dtype, weight.dtype)
    if backend == "torch" or (backend == "auto" and not (fits and installed)):
        return portable
    if not installed:
        raise UserError("backend='triton' needs the package triton, which is not installed; use backend='auto'")
    from autotelic.kernels import gpu

    gpu.check(hidden, weight)
    return gpu


class _LogprobEntropy(torch.autograd.Function):
    """The forward keeps four numbers of each row and the logits that find room; the backward makes the others again."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        engine: ModuleType,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        keep = keep and ctx.needs_input_grad[1]
        ctx.kept = passes.room_in_gradient(engine, hidden, weight, widest(hidden, weight, bias)) if keep else None
        stats, _ = engine.forward(hidden, weight, bias, targets, head, kept=ctx.kept)
        ctx.save_for_backward(hidden, weight, bias, targets, *stats)
        ctx.head, ctx.engine = head, engine
        return stats.logprobs, stats.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, targets, *stats = ctx.saved_tensors
        kept: Kept | None = ctx.kept
        ctx.kept = None  # the gradient overwrites the logits: a second backward pass makes them again
        found = passes.backward(
            ctx.engine,
            *(hidden, weight, bias, targets),
            *(Stats(*stats), upstream[0], upstream[1]),
            *(ctx.head, kept, Needs(*ctx.needs_input_grad[:3])),
        )
        return *found, *[None] * 4


class _Loss(torch.autograd.Function):
    """The forward makes the gradients; the backward scales them."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        engine: ModuleType,
        row_loss: RowLoss,
        weights: Tensor | None,
        max_elements: int | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs = Needs(*ctx.needs_input_grad[:3])
        if any(needs) and max_elements is not None:
            losses, stats, ctx.gradients = passes.loss_and_gradients(
                engine, hidden, weight, bias, targets, row_loss, head, needs, max_elements
            )
        else:
            stats, _ = engine.forward(hidden, weight, bias, targets, head)
            losses = row_loss(stats.logprobs, stats.entropy, slice(None))[0]
        total = (losses if weights is None else torch.where(weights == 0, 0.0, losses * weights)).sum()
        logprobs, entropy = stats.logprobs, stats.entropy
        ctx.mark_non_differentiable(losses, logprobs, entropy)
        return total, losses, logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.gradients is None:
            raise RuntimeError("linear_loss holds its gradients once: a second backward through it is not possible")
        found, ctx.gradients = ctx.gradients, None
        return *(None if x is None else x.mul_(upstream) for x in found), *[None] * 6
