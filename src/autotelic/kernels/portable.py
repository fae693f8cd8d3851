"""The head on any device in plain torch: vocabulary outer, rows inner, tiles that stay in a CPU's cache.

    z_j = softcap(logit_scale (h . w_j + b_j)) / T          M = max_j z_j          q_j = z_j - M
    S' = sum_{j != argmax} e^(q_j)      X = sum_j e^(q_j) q_j      S = 1 + S'
    ln p_t = q_t - ln(1 + S')           H = ln(1 + S') - X / S
    dL/dz_j = e^(q_j) / S (g_H X / S - g_l - g_H q_j) + g_l 1[j = t]

S' and X are kept while the vocabulary streams past; when the maximum rises from M to M', with c = e^(M - M'),
X <- c (X + (M - M')(1 + S')) and S' <- c (1 + S'). The largest term, exactly 1, stays out of the sum: ln p and H keep
their relative precision down to zero. At j = t the gradient is set, not added: -g_l (p_t - 1) - g_H p_t (ln p_t + H).

Reference: Milakov & Gimelshein 2018, arXiv:1805.02867 (streaming softmax).
Deviations: the sum for the entropy, and the largest term apart.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 512
"""Rows of a tile: enough for a fast matrix product."""
TILE = 2**19
"""Elements of a tile of logits: two of them are 4 MiB in float32."""
BLOCK = 2**21
"""Elements at most of a block of the weight, so that it too stays in cache (at least 128 columns all the same)."""
LOWEST = -1e30
"""Stands for -inf: its exponential is zero, and zero times it is zero."""


class Head(NamedTuple):
    """What lies between the matrix product and the softmax."""

    temperature: float = 1.0
    logit_scale: float = 1.0
    softcap: float | None = None

    @property
    def slope(self) -> float:
        """The derivative of a logit by h . w + b, the soft-capping aside."""
        return self.logit_scale / self.temperature


class Stats(NamedTuple):
    """What the backward pass needs of each row."""

    best: Tensor
    """M, the largest logit."""
    rest: Tensor
    """S', the sum of e^(z - M) over all but the largest."""
    spread: Tensor
    """X / S, the mean of z - M under p; not above 0."""
    target: Tensor
    """z_t - M."""

    @property
    def logprobs(self) -> Tensor:
        """Return ln p of the targets."""
        return self.target - self.rest.log1p()

    @property
    def entropy(self) -> Tensor:
        """Return the entropy over the vocabulary."""
        return self.rest.log1p() - self.spread

    def rows(self, index: Tensor) -> "Stats":
        """Return the statistics of some rows."""
        return Stats(*(column[index] for column in self))


class Moments(NamedTuple):
    """Further sums over the vocabulary."""

    logits: Tensor
    """sum z."""
    squares: Tensor
    """sum p^2."""
    squares_log: Tensor
    """sum p^2 (z - M)."""


class Needs(NamedTuple):
    """The gradients that are asked for."""

    hidden: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """The gradients; None where none was asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def widest(*tensors: Tensor | None) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 if any operand is, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def num_columns(vocabulary: int, dim: int, num_rows: int) -> int:
    """Return how many words of the vocabulary one tile holds."""
    columns = min(max(BLOCK // dim, 128), TILE // min(ROWS, max(num_rows, 64)))
    return max(min(columns, vocabulary), 1)


def spans(total: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


class Operands:
    """Hidden states, weight, bias and targets, cut into tiles in the dtype of the arithmetic."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head):
        self.hidden, self.weight, self.bias, self.targets, self.head = hidden, weight, bias, targets, head
        self.dtype = widest(hidden, weight, bias)
        self.num_rows, self.dim = hidden.shape
        self.vocabulary = weight.shape[0]
        self.columns = num_columns(self.vocabulary, self.dim, self.num_rows)

    def empty(self, *shape: int) -> Tensor:
        """Return an uninitialised tensor in the dtype of the arithmetic."""
        return torch.empty(shape, dtype=self.dtype, device=self.hidden.device)

    def rows(self, index: Tensor | slice) -> "Operands":
        """Return the operands with some rows only, cut at the same columns."""
        some = Operands(self.hidden[index], self.weight, self.bias, self.targets[index], self.head)
        some.columns = self.columns
        return some

    def scratch(self, num: int) -> list[Tensor]:
        """Return flat buffers of one tile each."""
        return [self.empty(min(ROWS, self.num_rows) * self.columns) for _ in range(num)]

    def weight_block(self, words: slice) -> tuple[Tensor, Tensor | None]:
        """Return a block of the weight, and of the bias with -inf made finite."""
        bias = None if self.bias is None else self.bias[words].to(self.dtype).clamp(min=LOWEST)
        return self.weight[words].to(self.dtype), bias

    def logits(self, out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Write the logits of a tile into `out`."""
        head = self.head
        scale = head.slope if head.softcap is None else head.logit_scale / head.softcap
        if bias is None:
            torch.addmm(out, hidden, weight.T, beta=0, alpha=scale, out=out)
        else:
            torch.addmm(bias, hidden, weight.T, beta=scale, alpha=scale, out=out)
        return out if head.softcap is None else out.tanh_().mul_(head.softcap / head.temperature)

    def hits(self, rows: slice, words: slice) -> tuple[Tensor, Tensor]:
        """Return the rows of a tile whose target is in it, and the column of that target."""
        local = self.targets[rows] - words.start
        index = ((local >= 0) & (local < words.stop - words.start)).nonzero().squeeze(1)
        return index, local[index]


class Streaming:
    """The running maximum and sums of every row."""

    def __init__(self, operands: Operands, moments: bool = False):
        columns = [operands.empty(operands.num_rows).zero_() for _ in range(7 if moments else 4)]
        self.best, self.rest, self.weighted, self.target, *self.moments = columns
        self.best.fill_(LOWEST)

    def add(self, rows: slice, z: Tensor, hits: tuple[Tensor, Tensor], q: Tensor, e: Tensor) -> None:
        """Take in a tile of logits. `q` and `e` are scratch of the tile's shape; `q` may be `z` itself."""
        best, rest, weighted, target = (x[rows] for x in (self.best, self.rest, self.weighted, self.target))
        target[hits[0]] = z[hits]
        if self.moments:
            self.moments[0][rows] += z.sum(1)
        top = z.amax(1)
        improved = top > best
        higher = torch.maximum(top, best)
        shift = best - higher
        decay = shift.exp()
        old = rest + improved
        weighted.add_(shift * old).mul_(decay)
        rest.copy_(decay * old)
        index = improved.nonzero().squeeze(1)
        first = z[index].argmax(1)
        torch.sub(z, higher.unsqueeze(1), out=q)
        torch.exp(q, out=e)
        e[index, first] = 0
        rest.add_(e.sum(1))
        if self.moments:
            self._add_moments(rows, shift, decay, improved, q, e)
        weighted.add_(e.mul_(q).sum(1))
        best.copy_(higher)

    def _add_moments(self, rows: slice, shift: Tensor, decay: Tensor, improved: Tensor, q: Tensor, e: Tensor) -> None:
        squares, squares_log = (x[rows] for x in self.moments[1:])
        old = squares + improved
        squares_log.add_(shift * old).mul_(decay.square())
        squares.copy_(decay.square() * old)
        square = e.square()
        squares.add_(square.sum(1))
        squares_log.add_(square.mul_(q).sum(1))

    def stats(self) -> Stats:
        """Return the statistics once the whole vocabulary is in."""
        return Stats(self.best, self.rest, self.weighted / (1 + self.rest), self.target - self.best)

    def sums(self) -> Moments:
        """Return the further sums."""
        logits, squares, squares_log = self.moments
        total = (1 + self.rest).square()
        return Moments(logits, (1 + squares) / total, squares_log / total)


def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, moments: bool = False
) -> tuple[Stats, Moments | None]:
    """Return the statistics of every row, and the further sums if asked for."""
    operands = Operands(hidden, weight, bias, targets, head)
    streaming = Streaming(operands, moments)
    scratch, other = operands.scratch(2)
    for words in spans(operands.vocabulary, operands.columns):
        w, b = operands.weight_block(words)
        for rows in spans(operands.num_rows, ROWS):
            h = hidden[rows].to(operands.dtype)
            z, e = (x[: h.shape[0] * w.shape[0]].view(h.shape[0], w.shape[0]) for x in (scratch, other))
            operands.logits(z, h, w, b)
            streaming.add(rows, z, operands.hits(rows, words), z, e)
    return streaming.stats(), streaming.sums() if moments else None


class Coefficients(NamedTuple):
    """What turns a tile of logits into a tile of gradients, row by row."""

    best: Tensor
    constant: Tensor
    """(g_H X / S - g_l) / S."""
    linear: Tensor | None
    """-g_H / S; None where no row has one."""
    target: Tensor
    """dL/dz of the target."""

    @classmethod
    def of(cls, stats: Stats, grad_logprobs: Tensor, grad_entropy: Tensor) -> "Coefficients":
        """Return the coefficients of rows with these upstream gradients."""
        total, logprobs = 1 + stats.rest, stats.logprobs
        # ln p_t + H is z_t - M - X / S
        through_entropy = -grad_entropy * logprobs.exp() * (stats.target - stats.spread)
        target = torch.where(grad_entropy == 0, 0.0, through_entropy) - grad_logprobs * logprobs.expm1()
        constant = (grad_entropy * stats.spread - grad_logprobs) / total
        linear = -grad_entropy / total if grad_entropy.any() else None
        return cls(stats.best, constant, linear, target)

    def gradients(self, rows: slice, z: Tensor, hits: tuple[Tensor, Tensor], q: Tensor, e: Tensor) -> Tensor:
        """Return dL/dz of a tile, in one of the scratch tensors; `q` may be `z` itself."""
        torch.sub(z, self.best[rows].unsqueeze(1), out=q)
        torch.exp(q, out=e)
        if self.linear is None:
            result = e.mul_(self.constant[rows].unsqueeze(1))
        else:
            result = q.mul_(self.linear[rows].unsqueeze(1)).add_(self.constant[rows].unsqueeze(1)).mul_(e)
        result[hits] = self.target[rows][hits[0]]
        return result


class Accumulators:
    """The gradients as they grow, block of the vocabulary by block, from one set of rows or from several in turn."""

    def __init__(self, operands: Operands, needs: Needs, several: bool = False):
        weight, bias = operands.weight, operands.bias
        self.operands, self.needs, self.slope = operands, needs, operands.head.slope
        dtype = operands.dtype if several else weight.dtype
        self.weight = torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format)
        self.weight = self.weight if needs.weight else None
        self.block = (
            operands.empty(operands.columns, operands.dim) if needs.weight and dtype != operands.dtype else None
        )
        self.bias = operands.empty(operands.vocabulary).zero_() if needs.bias and bias is not None else None

    def collect(self, operands: Operands, coefficients: Coefficients, tile: "Tile", first: bool) -> Tensor | None:
        """Add the share of some rows to the gradients of weight and bias; return the gradient of the rows."""
        hidden = operands.empty(operands.num_rows, operands.dim).zero_() if self.needs.hidden else None
        head, scratch = operands.head, operands.scratch(2 if operands.head.softcap is None else 3)
        for words in spans(operands.vocabulary, operands.columns):
            w, b = operands.weight_block(words)
            into = self._begin(words, first)
            for rows in spans(operands.num_rows, ROWS):
                h = operands.hidden[rows].to(operands.dtype)
                shape = (h.shape[0], w.shape[0])
                q, e, *cap = (x[: shape[0] * shape[1]].view(shape) for x in scratch)
                z = tile(rows, words, h, w, b, q)
                for c in cap:
                    torch.mul(z, head.temperature / (head.softcap or 1.0), out=c).square_()
                dz = coefficients.gradients(rows, z, operands.hits(rows, words), q, e)
                for c in cap:
                    dz.addcmul_(dz, c, value=-1)
                if hidden is not None:
                    hidden[rows].addmm_(dz, w, alpha=self.slope)
                if into is not None:
                    into.addmm_(dz.T, h, alpha=self.slope)
                if self.bias is not None:
                    self.bias[words].add_(dz.sum(0), alpha=self.slope)
            if self.weight is not None and self.block is not None and into is not None:
                self.weight[words] = into.to(self.weight.dtype)
        return hidden

    def _begin(self, words: slice, first: bool) -> Tensor | None:
        """Return where a block of the weight's gradient grows; at first it is zero, also if no row ever comes."""
        if self.weight is None:
            return None
        into = self.weight[words] if self.block is None else self.block[: words.stop - words.start]
        return into.zero_() if first else into

    def finish(self, hidden: Tensor | None) -> Gradients:
        """Return the gradients in the dtypes of what they belong to."""
        operands = self.operands
        return Gradients(
            None if hidden is None else hidden.to(operands.hidden.dtype),
            None if self.weight is None else self.weight.to(operands.weight.dtype),
            None if self.bias is None or operands.bias is None else self.bias.to(operands.bias.dtype),
        )


Tile = Callable[[slice, slice, Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""From rows, words, their hidden states, weight and bias, and scratch, to the logits of the tile."""


def operands_tile(operands: Operands) -> Tile:
    """Return what makes the logits of a tile again."""

    def again(rows: slice, words: slice, h: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
        return operands.logits(out, h, w, b)

    return again


def active_rows(grad_logprobs: Tensor, grad_entropy: Tensor) -> Tensor:
    """Return the rows that have a gradient at all."""
    return ((grad_logprobs != 0) | (grad_entropy != 0)).nonzero().squeeze(1)


def backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    stats: Stats,
    grad_logprobs: Tensor,
    grad_entropy: Tensor,
    head: Head,
    needs: Needs,
) -> Gradients:
    """Return the gradients. Rows whose upstream gradients are both zero take no part: theirs are exactly zero."""
    operands = Operands(hidden, weight, bias, targets, head)
    active = active_rows(grad_logprobs, grad_entropy)
    dense = active.numel() == operands.num_rows
    some = operands if dense else operands.rows(active)
    if not dense:
        stats, grad_logprobs, grad_entropy = stats.rows(active), grad_logprobs[active], grad_entropy[active]
    sums = Accumulators(some, needs)
    coefficients = Coefficients.of(stats, grad_logprobs, grad_entropy)
    grad_hidden = sums.collect(some, coefficients, operands_tile(some), first=True)
    if grad_hidden is not None and not dense:
        grad_hidden = operands.empty(*hidden.shape).zero_().index_copy_(0, active, grad_hidden)
    return sums.finish(grad_hidden)


RowLoss = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor, Tensor]]
"""From log-probabilities, entropy and which rows they are, to the loss of each and its two derivatives."""


def loss_and_gradients(
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

    The logits of as many rows as `max_elements` allows are kept until their maxima and sums are known.
    """
    operands = Operands(hidden, weight, bias, targets, head)
    num_rows, vocabulary = operands.num_rows, operands.vocabulary
    count = max(-(-num_rows // max(max_elements // vocabulary, 1)), 1)
    size = max(-(-num_rows // count), 1)
    kept = operands.empty(size * vocabulary)
    sums = Accumulators(operands, needs, several=count > 1)
    losses, parts = operands.empty(num_rows), []
    grad_hidden = operands.empty(*hidden.shape).zero_() if needs.hidden else None
    for block in spans(num_rows, size):
        rows = operands.rows(block)
        stats = keep_logits(rows, kept)
        losses[block], *upstream = row_loss(stats.logprobs, stats.entropy, block)
        parts.append(stats)
        active = active_rows(*upstream)
        part = spend_logits(rows, kept, stats, upstream, active, sums, first=block.start == 0)
        if grad_hidden is not None and part is not None:
            grad_hidden[block].index_copy_(0, active, part)
    if not parts:  # no rows: nothing has set the gradients to zero yet
        sums.collect(
            operands, Coefficients.of(Stats(*[losses] * 4), losses, losses), operands_tile(operands), first=True
        )
        parts.append(Stats(*[losses] * 4))
    stats = Stats(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return losses, stats, sums.finish(grad_hidden)


def keep_logits(operands: Operands, kept: Tensor) -> Stats:
    """Write the logits of all rows into `kept`, block of words after block, and return the statistics."""
    streaming = Streaming(operands)
    scratch = operands.scratch(2)
    for words in spans(operands.vocabulary, operands.columns):
        w, b = operands.weight_block(words)
        logits = block_of(kept, words, operands.num_rows)
        for rows in spans(operands.num_rows, ROWS):
            z = operands.logits(logits[rows], operands.hidden[rows].to(operands.dtype), w, b)
            q, e = (x[: z.numel()].view_as(z) for x in scratch)
            streaming.add(rows, z, operands.hits(rows, words), q, e)
    return streaming.stats()


def spend_logits(
    operands: Operands,
    kept: Tensor,
    stats: Stats,
    upstream: list[Tensor],
    active: Tensor,
    sums: Accumulators,
    first: bool,
) -> Tensor | None:
    """Add the gradients of the active rows to `sums`, from their logits in `kept`; return the hidden states'."""
    num_rows = operands.num_rows
    dense = active.numel() == num_rows
    some = operands if dense else operands.rows(active)
    if not dense:
        stats, upstream = stats.rows(active), [x[active] for x in upstream]

    def again(rows: slice, words: slice, h: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
        logits = block_of(kept, words, num_rows)
        return logits[rows] if dense else torch.index_select(logits, 0, active[rows], out=out)

    return sums.collect(some, Coefficients.of(stats, *upstream), again, first)


def block_of(kept: Tensor, words: slice, num_rows: int) -> Tensor:
    """Return the kept logits of one block of words, all rows."""
    return kept[words.start * num_rows : words.stop * num_rows].view(num_rows, -1)
