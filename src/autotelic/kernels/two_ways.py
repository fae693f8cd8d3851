"""The two ways through the head, for either engine (`portable`, `gpu`): values first, or a loss known token by token.

An engine has `forward`, which returns the statistics of every row and may leave logits in a `Kept`; `Accumulators`,
which turn rows into gradients; and `block_columns`, the words of a block.
"""

from types import ModuleType

import torch
from torch import Tensor

from autotelic.kernels.rows import Active, Gradients, Head, Kept, Needs, RowLoss, Stats, spans, widest


def room_in_gradient(engine: ModuleType, hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Kept | None:
    """Return room for logits in the weight's gradient to be."""
    num_rows = hidden.shape[0]
    return Kept.in_gradient(weight, dtype, num_rows, engine.block_columns(weight, num_rows)) if num_rows else None


def backward(
    engine: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    stats: Stats,
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    head: Head,
    kept: Kept | None,
    needs: Needs,
) -> Gradients:
    """Return the gradients. Rows whose upstream gradients are both zero take no part: theirs are exactly zero."""
    active = Active.of(stats, grad_logprobs, grad_entropy)
    gradient = None if kept is None else kept.gradient
    sums = engine.Accumulators(hidden, weight, bias, head, needs, gradient=gradient)
    return sums.finish(sums.collect(hidden, targets, active, kept))


def loss_and_gradients(
    engine: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_loss: RowLoss,
    head: Head,
    needs: Needs,
    max_elements: int,
) -> tuple[Tensor, Stats, Gradients]:
    """Return the loss of every row, the statistics, and the gradients of the losses' sum, from three products.

    The logits are kept until their maxima and sums are known: in the weight's gradient if it has room for all rows,
    else those of as many rows at once as `max_elements` allows.
    """
    num_rows, vocabulary = hidden.shape[0], weight.shape[0]
    losses = torch.empty(num_rows, dtype=widest(hidden, weight, bias), device=hidden.device)
    kept = room_in_gradient(engine, hidden, weight, losses.dtype) if needs.weight else None
    size = max(num_rows, 1)
    if kept is None or kept.num_rows < num_rows:
        count = max(-(-num_rows // max(max_elements // vocabulary, 1)), 1)
        size = max(-(-num_rows // count), 1)
        kept = Kept.apart(losses, size, vocabulary, engine.block_columns(weight, size))
    sums = engine.Accumulators(hidden, weight, bias, head, needs, gradient=kept.gradient, several=size < num_rows)
    grad_hidden = losses.new_zeros(hidden.shape) if needs.hidden else None
    parts: list[Stats] = []
    for block in spans(num_rows, size):
        here = kept._replace(num_rows=block.stop - block.start)
        stats, _ = engine.forward(hidden[block], weight, bias, targets[block], head, kept=here)
        losses[block], *upstream = row_loss(stats.logprobs, stats.entropy, block)
        parts.append(stats)
        found = sums.collect(hidden[block], targets[block], Active.of(stats, *upstream), here)
        if grad_hidden is not None:
            grad_hidden[block] = found
    stats = Stats(*(torch.cat(column) for column in zip(*parts, strict=True))) if parts else Stats(*[losses] * 4)
    return losses, stats, sums.finish(grad_hidden)
