"""The head on any device in plain torch: vocabulary outer, rows inner, tiles that stay in a CPU's cache.

The formulas are those of `autotelic.kernels.rows`. Products are made in float32 (float64 for float64) from tiles cast
on the way; only where all operands are bfloat16, and the CPU multiplies that at twice the speed, is the gradient of the
logits rounded to it before the last two products, whose results are returned in bfloat16 anyway.

See `autotelic.kernels.rows`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from autotelic.kernels.cpu_matmul import bfloat16_is_fast, quick_float32
from autotelic.kernels.rows import (
    LOWEST,
    Active,
    Coefficients,
    GradientSums,
    Head,
    Kept,
    Moments,
    Stats,
    spans,
    widest,
)

ROWS = 512
"""Rows of a tile: enough for a fast matrix product."""
TILE = 2**19
"""Elements of a tile of logits: two of them are 4 MiB in float32."""
BLOCK = 2**21
"""Elements at most of a block of the weight, so that it too stays in cache (at least 128 columns all the same)."""


def block_columns(weight: Tensor, num_rows: int) -> int:
    """Return how many words of the vocabulary one tile holds."""
    vocabulary, dim = weight.shape
    columns = min(max(BLOCK // dim, 128), TILE // min(ROWS, max(num_rows, 64)))
    return max(min(columns, vocabulary), 1)


def row_spans(num_rows: int, num_kept: int) -> Iterator[slice]:
    """Yield tiles of rows, the kept ones and the others apart."""
    yield from spans(num_kept, ROWS)
    for rows in spans(num_rows - num_kept, ROWS):
        yield slice(rows.start + num_kept, rows.stop + num_kept)


class Operands:
    """Hidden states, weight, bias and targets, cut into tiles in the dtype of the arithmetic."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, columns: int | None
    ):
        self.hidden, self.weight, self.bias, self.targets, self.head = hidden, weight, bias, targets, head
        self.dtype = widest(hidden, weight, bias)
        self.num_rows, self.dim = hidden.shape
        self.vocabulary = weight.shape[0]
        self.columns = columns or block_columns(weight, self.num_rows)

    def empty(self, *shape: int) -> Tensor:
        """Return an uninitialised tensor in the dtype of the arithmetic."""
        return torch.empty(shape, dtype=self.dtype, device=self.hidden.device)

    def scratch(self, num: int) -> list[Tensor]:
        """Return flat buffers of one tile each."""
        return [self.empty(min(ROWS, self.num_rows) * self.columns) for _ in range(num)]

    def logits(self, rows: slice, words: slice, out: Tensor) -> Tensor:
        """Write the logits of a tile into `out`."""
        head, hidden, weight = self.head, self.hidden[rows].to(self.dtype), self.weight[words].to(self.dtype)
        scale = head.slope if head.softcap is None else head.logit_scale / head.softcap
        if self.bias is None:
            torch.addmm(out, hidden, weight.T, beta=0, alpha=scale, out=out)
        else:
            bias = self.bias[words].to(self.dtype).clamp(min=LOWEST)
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
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    head: Head,
    *,
    moments: bool = False,
    kept: Kept | None = None,
) -> tuple[Stats, Moments | None]:
    """Return the statistics of every row, and the further sums if asked for; leave logits where there is room."""
    operands = Operands(hidden, weight, bias, targets, head, kept and kept.columns)
    streaming = Streaming(operands, moments)
    scratch = operands.scratch(2)
    num_kept = 0 if kept is None else kept.num_rows
    with quick_float32(hidden.device):
        for words in spans(operands.vocabulary, operands.columns):
            logits = kept.block(words) if kept is not None else None
            for rows in row_spans(operands.num_rows, num_kept):
                shape = (rows.stop - rows.start, words.stop - words.start)
                q, e = (x[: shape[0] * shape[1]].view(shape) for x in scratch)
                z = operands.logits(rows, words, q if logits is None or rows.start >= num_kept else logits[rows])
                streaming.add(rows, z, operands.hits(rows, words), q, e)
    return streaming.stats(), streaming.sums() if moments else None


def logit_gradients(
    coefficients: Coefficients, rows: slice, z: Tensor, hits: tuple[Tensor, Tensor], q: Tensor, e: Tensor
) -> Tensor:
    """Return dL/dz of a tile, in one of the scratch tensors `q` and `e`; `q` may be `z` itself."""
    torch.sub(z, coefficients.best[rows].unsqueeze(1), out=q)
    torch.exp(q, out=e)
    constant = coefficients.constant[rows].unsqueeze(1)
    if coefficients.linear is None:
        result = e.mul_(constant)
    else:
        result = q.mul_(coefficients.linear[rows].unsqueeze(1)).add_(constant).mul_(e)
    result[hits] = coefficients.target[rows][hits[0]]
    return result


class Accumulators(GradientSums):
    """The gradients as they grow, block of the vocabulary by block."""

    @property
    def half(self) -> bool:
        """Whether the gradient of the logits is rounded to bfloat16 before the last two products."""
        hidden, weight, _ = self.of
        all_half = hidden.dtype == weight.dtype == torch.bfloat16
        return all_half and weight.device.type == "cpu" and bfloat16_is_fast()

    def add(
        self, hidden: Tensor, targets: Tensor, active: Active, kept: Kept | None, grad_hidden: Tensor | None
    ) -> None:
        """Add what the active rows give to all gradients."""
        _, weight, bias = self.of
        operands = Operands(hidden, weight, bias, targets, self.head, None if kept is None else kept.columns)
        num_kept = active.num_kept(kept)
        tiles = list(row_spans(operands.num_rows, num_kept))
        scratch = operands.scratch(2 if self.head.softcap is None else 3)
        held = 0 if kept is None or kept.gradient is None else sum(rows.start < num_kept for rows in tiles)
        apart = None if self._in_place(len(tiles), held) else operands.empty(operands.columns, operands.dim)
        with quick_float32(hidden.device):
            for words in spans(operands.vocabulary, operands.columns):
                into = None if self.weight is None else self.weight[words]
                grown = into if apart is None else apart[: words.stop - words.start]
                for rows in tiles:
                    source = kept if rows.start < num_kept else None
                    dz = self._logit_gradients(operands, rows, words, active, source, scratch)
                    beta = 1.0 if rows.start or not self.untouched else 0.0
                    self._add_products(operands, rows, words, dz, grad_hidden, grown, beta)
                if into is not None and grown is not None and apart is not None:
                    into.copy_(grown)

    def _in_place(self, num_tiles: int, num_held: int) -> bool:
        """Return whether a block of the weight's gradient can grow where it belongs.

        Not where the first of several tiles would overwrite the logits that are held there for the others, nor where
        a narrower dtype would round the sum at each tile.
        """
        if self.weight is None:
            return True
        return num_held < 2 and (self.weight.dtype == self.dtype or (self.half and num_tiles == 1))

    def _logit_gradients(
        self,
        operands: Operands,
        rows: slice,
        words: slice,
        active: Active,
        kept: Kept | None,
        scratch: list[Tensor],
    ) -> Tensor:
        """Return dL/d(h . w + b) of a tile, the slope aside, in scratch; from kept logits or from new ones."""
        shape = (rows.stop - rows.start, words.stop - words.start)
        q, e, *cap = (x[: shape[0] * shape[1]].view(shape) for x in scratch)
        if kept is None:
            z = operands.logits(rows, words, q)
        elif active.index is None:
            z = kept.block(words)[rows]
        else:
            z = torch.index_select(kept.block(words), 0, active.index[rows], out=q)
        for c in cap:
            torch.mul(z, self.head.temperature / (self.head.softcap or 1.0), out=c).square_()
        dz = logit_gradients(active.coefficients, rows, z, operands.hits(rows, words), q, e)
        for c in cap:
            dz.addcmul_(dz, c, value=-1)
        return dz

    def _add_products(
        self,
        operands: Operands,
        rows: slice,
        words: slice,
        dz: Tensor,
        grad_hidden: Tensor | None,
        grad_weight: Tensor | None,
        beta: float,
    ) -> None:
        """Add a tile's share to the gradients: of its rows, its block of words (times `beta` before), its biases."""
        dtype, slope = torch.bfloat16 if self.half else self.dtype, self.head.slope
        if self.bias is not None:
            self.bias[words].add_(dz.sum(0), alpha=slope)
        dz = dz.to(dtype)
        if grad_hidden is not None:
            add_product(grad_hidden[rows], dz, operands.weight[words].to(dtype), slope, 1.0)
        if grad_weight is not None:
            add_product(grad_weight, dz.T, operands.hidden[rows].to(dtype), slope, beta)


def add_product(into: Tensor, a: Tensor, b: Tensor, alpha: float, beta: float) -> None:
    """Write beta into + alpha a b; a product in half precision is rounded before it is added to a wider one."""
    if into.dtype == a.dtype:
        torch.addmm(into, a, b, beta=beta, alpha=alpha, out=into)
    else:
        into.mul_(beta) if beta else into.zero_()
        into.add_(a @ b, alpha=alpha)
