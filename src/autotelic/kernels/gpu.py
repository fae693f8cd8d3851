"""The head on a GPU, in Triton: two kernels around the matrix product, the other two products by the vendor's library.

    measure     logits of a tile in registers -> (M, S', X, z_t) of each row and split of the vocabulary
    spread      logits of a tile again (or read, where they were kept) -> dL/dz of a block of words
    then        dH += dz W_block (in float32),  dW_block = dz^T H: library products over the whole block

The formulas are those of `autotelic.kernels.rows`. Splits are joined as tiles are there. Logits are accumulated in
float32 from operands of any dtype; float32 operands are multiplied as such unless
`torch.set_float32_matmul_precision` allows less. Block sizes are fixed by dtype and shared memory: nothing is tuned at
run time, so the kernels also run in Triton's interpreter (TRITON_INTERPRET=1, set before Triton is imported), which is
where they are tested; they also compile for compute capability 8.0 and 9.0. They have never run on a GPU: nothing is
known of their speed.

See `autotelic.kernels.rows`.
Deviations: half-precision dL/dz is rounded to the operands' dtype before the last two products.
"""

import functools
import os
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from autotelic.errors import UserError
from autotelic.kernels import rows as of_rows
from autotelic.kernels.rows import Active, GradientSums, Head, Kept, Moments, Stats, spans

LOWEST = tl.constexpr(of_rows.LOWEST)
WIDE_PRODUCTS = tuple(int(x) for x in torch.__version__.split(".")[:2]) >= (2, 8)
"""Whether half-precision products can be accumulated into float32 on CUDA (torch 2.8)."""
BLOCK_MIB = 256
"""Memory for dL/dz of one block of words, all active rows."""
UNIT = 256
"""Words of a block are a multiple of this, and this of the words of any tile."""
TILES = 8
"""Tiles of the vocabulary that one program goes through."""
GROUP = 16
"""Blocks of rows that share the second-level cache with a few splits of the vocabulary."""


class Blocks(NamedTuple):
    """Sizes of a tile and how it is computed."""

    rows: int
    words: int
    dims: int
    warps: int
    stages: int


def interpreted() -> bool:
    """Return whether Triton runs in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check(hidden: Tensor, weight: Tensor) -> None:
    """Refuse what these kernels cannot take."""
    if not (hidden.is_cuda or interpreted()):
        raise UserError(f"backend='triton' needs CUDA tensors, got {hidden.device.type}; use backend='auto'")
    if torch.float64 in (hidden.dtype, weight.dtype):
        raise UserError("backend='triton' has no float64; use backend='torch'")


@functools.cache
def shared_memory(device: int) -> int:
    """Return the bytes of shared memory that a program may take."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def blocks_for(hidden: Tensor) -> Blocks:
    """Return the sizes for this dtype and device."""
    if not hidden.is_cuda:
        return Blocks(32, 64, 16, 1, 1)
    if hidden.dtype == torch.float32:
        return Blocks(64, 128, 32, 4, 2)
    stage = (128 + 256) * 64 * 2
    stages = (shared_memory(hidden.device.index or 0) - 16384) // stage
    return Blocks(128, 256, 64, 8, min(stages, 4)) if stages >= 3 else Blocks(128, 128, 64, 8, 2)


def block_columns(weight: Tensor, num_rows: int) -> int:
    """Return how many words' dL/dz is held at once, for all rows."""
    return max(BLOCK_MIB * 2**20 // (num_rows * weight.element_size()) // UNIT * UNIT, UNIT)


@no_type_check  # a type checker's wrapper would hide the source from Triton
@triton.jit
def tile_logits(
    hidden, weight, bias, row, word, num_words, dim,
    h_row, h_dim, w_row, w_dim, scale, cap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, WORDS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Return the logits of a tile, soft-capped and scaled, and the tanh of the soft-capping (0 without)."""
    k = tl.arange(0, DIMS)
    h = hidden + row.to(tl.int64)[:, None] * h_row + k[None, :] * h_dim
    w = weight + word.to(tl.int64)[None, :] * w_row + k[:, None] * w_dim
    acc = tl.zeros((ROWS, WORDS), dtype=tl.float32)
    for start in range(0, dim, DIMS):
        if EVEN:
            a, b = tl.load(h), tl.load(w)
        else:
            a = tl.load(h, mask=(start + k < dim)[None, :], other=0.0)
            b = tl.load(w, mask=(start + k < dim)[:, None], other=0.0)
        acc = tl.dot(a, b.to(a.dtype), acc, input_precision=PRECISION)
        h += DIMS * h_dim
        w += DIMS * w_dim
    if HAS_BIAS:
        acc += tl.maximum(tl.load(bias + word).to(tl.float32), LOWEST)[None, :]
    z = acc * scale
    t = 0.0
    if HAS_CAP:
        t = 2 * tl.sigmoid(2 * z) - 1
        z = cap * t
    return z, t


@no_type_check  # a type checker's wrapper would hide the source from Triton
@triton.jit
def measure(
    hidden, weight, bias, targets, out, logits, num_rows, num_words, dim, num_splits, plane, num_kept, stride, columns,
    h_row, h_dim, w_row, w_dim, scale, cap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    MOMENTS: tl.constexpr, KEEP: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, WORDS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Write (M, S', X, z_t[, sum z, Q', Y]) of a block of rows over a split of the vocabulary, and kept logits."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(num_rows, ROWS)
    first = program // (GROUP * num_splits) * GROUP
    size = tl.minimum(row_blocks - first, GROUP)
    place = program % (GROUP * num_splits)
    split = place // size
    offset = (first + place % size) * ROWS + tl.arange(0, ROWS)
    row = offset % num_rows
    target = tl.load(targets + row)
    best = tl.full((ROWS,), LOWEST, tl.float32)
    rest = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    squares_log = tl.zeros((ROWS,), tl.float32)
    for tile in range(0, TILES):
        start = (split * TILES + tile) * WORDS
        if start < num_words:
            column = start + tl.arange(0, WORDS)
            inside = (column < num_words)[None, :]
            z, _ = tile_logits(
                hidden, weight, bias, row, column % num_words, num_words, dim, h_row, h_dim, w_row, w_dim, scale, cap,
                HAS_BIAS, HAS_CAP, EVEN, PRECISION, ROWS, WORDS, DIMS,
            )  # fmt: skip
            if KEEP:  # a tile lies within one block of words
                word = start // columns * columns
                there = logits + word.to(tl.int64) * stride + (column - word)[None, :]
                there += offset.to(tl.int64)[:, None] * tl.minimum(columns, num_words - word)
                tl.store(there, z, mask=(offset < num_kept)[:, None] & inside)
            found += tl.sum(tl.where(column[None, :] == target[:, None], z, 0.0), axis=1)
            if MOMENTS:
                total += tl.sum(tl.where(inside, z, 0.0), axis=1)
            top = tl.max(tl.where(inside, z, LOWEST), axis=1)
            higher = tl.maximum(top, best)
            improved = (top > best).to(tl.float32)
            shift = best - higher
            decay = tl.exp(shift)
            q = z - higher[:, None]
            below = inside & (z < top[:, None])
            e = tl.where(below, tl.exp(tl.where(below, q, 0.0)), 0.0)
            # As many as are equal to the tile's largest; the largest of all stays out of the sum, once.
            equal = tl.sum((inside & (z == top[:, None])).to(tl.float32), axis=1)
            top_q = top - higher
            top_e = tl.exp(top_q)
            weighted = decay * (weighted + shift * (rest + improved))
            rest = decay * (rest + improved) + tl.sum(e, axis=1) + (top_e * equal - improved)
            weighted += tl.sum(e * q, axis=1) + equal * top_e * top_q
            if MOMENTS:
                squares_log = decay * decay * (squares_log + shift * (squares + improved))
                squares = decay * decay * (squares + improved) + tl.sum(e * e, axis=1)
                squares += top_e * top_e * equal - improved
                squares_log += tl.sum(e * e * q, axis=1) + equal * top_e * top_e * top_q
            best = higher
    keep = offset < num_rows
    there = out + split.to(tl.int64) * num_rows + offset
    tl.store(there, best, mask=keep)
    tl.store(there + plane, rest, mask=keep)
    tl.store(there + 2 * plane, weighted, mask=keep)
    tl.store(there + 3 * plane, found, mask=keep)
    if MOMENTS:
        tl.store(there + 4 * plane, total, mask=keep)
        tl.store(there + 5 * plane, squares, mask=keep)
        tl.store(there + 6 * plane, squares_log, mask=keep)


@no_type_check  # a type checker's wrapper would hide the source from Triton
@triton.jit
def spread(
    hidden, weight, bias, targets, best, constant, linear, at_target, index, logits, out,
    num_rows, first_word, last_word, num_words, dim, h_row, h_dim, w_row, w_dim, scale, cap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    LINEAR: tl.constexpr, KEPT: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, WORDS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Write dL/d(h . w + b), the slope aside, of a block of rows and words."""
    program = tl.program_id(0)
    word_blocks = tl.cdiv(last_word - first_word, WORDS)
    first = program // (GROUP * word_blocks) * GROUP
    size = tl.minimum(tl.cdiv(num_rows, ROWS) - first, GROUP)
    place = program % (GROUP * word_blocks)
    offset = (first + place % size) * ROWS + tl.arange(0, ROWS)
    column = first_word + place // size * WORDS + tl.arange(0, WORDS)
    row = offset % num_rows
    inside = (offset < num_rows)[:, None] & (column < last_word)[None, :]
    if KEPT:
        source = tl.load(index + row).to(tl.int64)
        z = tl.load(
            logits + source[:, None] * (last_word - first_word) + (column - first_word)[None, :], mask=inside, other=0.0
        )
        t = z / cap
    else:
        z, t = tile_logits(
            hidden, weight, bias, row, column % num_words, num_words, dim, h_row, h_dim, w_row, w_dim, scale, cap,
            HAS_BIAS, HAS_CAP, EVEN, PRECISION, ROWS, WORDS, DIMS,
        )  # fmt: skip
    q = z - tl.load(best + row)[:, None]
    factor = tl.load(constant + row)[:, None]
    if LINEAR:
        factor = factor + tl.load(linear + row)[:, None] * q
    dz = tl.exp(q) * factor
    dz = tl.where(column[None, :] == tl.load(targets + row)[:, None], tl.load(at_target + row)[:, None], dz)
    if HAS_CAP:
        dz = dz * (1 - t * t)
    there = out + offset.to(tl.int64)[:, None] * (last_word - first_word) + (column - first_word)[None, :]
    tl.store(there, dz.to(out.dtype.element_ty), mask=inside)


def start(kernel: Any, num_programs: int, *args: Any, **flags: Any) -> None:
    """Run a kernel in so many programs, on the device of its first argument."""
    with torch.cuda.device_of(args[0]):
        kernel[(num_programs,)](*args, **flags)


class Launch:
    """What both kernels are given in common."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head):
        self.blocks = blocks_for(hidden)
        (self.num_rows, dim), self.num_words = hidden.shape, weight.shape[0]
        self.operands = (hidden, weight, weight if bias is None else bias)
        self.strides = (*hidden.stride(), *weight.stride())
        scale = head.slope if head.softcap is None else head.logit_scale / head.softcap
        self.scales = (scale, 1.0 if head.softcap is None else head.softcap / head.temperature)
        exact = hidden.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
        self.flags = {
            "HAS_BIAS": bias is not None,
            "HAS_CAP": head.softcap is not None,
            "EVEN": dim % self.blocks.dims == 0,
            "PRECISION": "ieee" if exact else "tf32",
            "GROUP": GROUP,
            "ROWS": self.blocks.rows,
            "WORDS": self.blocks.words,
            "DIMS": self.blocks.dims,
        }
        self.dim = dim
        if not interpreted():
            self.flags |= {"num_warps": self.blocks.warps, "num_stages": self.blocks.stages}


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
    launch = Launch(hidden, weight, bias, head)
    num_rows, num_words = launch.num_rows, launch.num_words
    splits = triton.cdiv(num_words, TILES * launch.blocks.words)
    out = torch.zeros(7 if moments else 4, splits, num_rows, dtype=torch.float32, device=hidden.device)
    if num_rows:
        start(
            measure, triton.cdiv(num_rows, launch.blocks.rows) * splits,
            *launch.operands, targets, out, out if kept is None else kept.memory,
            num_rows, num_words, launch.dim, splits, splits * num_rows, *(kept[1:4] if kept is not None else (0, 0, 1)),
            *launch.strides, *launch.scales, MOMENTS=moments, KEEP=kept is not None, TILES=TILES, **launch.flags,
        )  # fmt: skip
    return join(out, targets, num_words)


def join(parts: Tensor, targets: Tensor, num_words: int) -> tuple[Stats, Moments | None]:
    """Join the splits of the vocabulary."""
    best, winner = parts[0].max(0)
    shift = parts[0] - best
    decay = shift.exp()
    one = torch.ones_like(decay)
    others = one.scatter(0, winner.unsqueeze(0), 0.0)  # the largest term of all stays out of the sum
    rest = (decay * (parts[1] + others)).sum(0)
    weighted = (decay * (parts[2] + shift * (1 + parts[1]))).sum(0)
    known = (targets >= 0) & (targets < num_words)
    target = torch.where(known, parts[3].sum(0) - best, torch.nan)
    stats = Stats(best, rest, weighted / (1 + rest), target)
    if len(parts) == 4:
        return stats, None
    squares = 1 + (decay.square() * (parts[5] + others)).sum(0)
    squares_log = (decay.square() * (parts[6] + shift * (1 + parts[5]))).sum(0)
    total = (1 + rest).square()
    return stats, Moments(parts[4].sum(0), squares / total, squares_log / total)


def add_product(into: Tensor, a: Tensor, b: Tensor, alpha: float, beta: float) -> None:
    """Write beta into + alpha a b; a product is not rounded before it is added to a float32 matrix."""
    if into.dtype == a.dtype:
        torch.addmm(into, a, b, beta=beta, alpha=alpha, out=into)
    elif a.is_cuda and into.dtype == torch.float32 and WIDE_PRODUCTS:
        torch.addmm(into, a, b, out_dtype=torch.float32, beta=beta, alpha=alpha, out=into)
    else:
        torch.addmm(into, a.to(into.dtype), b.to(into.dtype), beta=beta, alpha=alpha, out=into)


class Accumulators(GradientSums):
    """The gradients as they grow, block of the vocabulary by block."""

    def add(
        self, hidden: Tensor, targets: Tensor, active: Active, kept: Kept | None, grad_hidden: Tensor | None
    ) -> None:
        """Add what the active rows give to all gradients."""
        weight = self.of[1]
        num_rows, num_words, num_kept = hidden.shape[0], weight.shape[0], active.num_kept(kept)
        columns = kept.columns if kept is not None else block_columns(weight, num_rows)
        parts = [
            Part(self, hidden, targets, active, rows)
            for rows in (slice(0, num_kept), slice(num_kept, num_rows))
            if rows.start < rows.stop
        ]
        buffer = hidden.new_empty(num_rows * min(columns, num_words))
        for words in spans(num_words, columns):
            dz = buffer[: num_rows * (words.stop - words.start)].view(num_rows, -1)
            for part in parts:
                part.spread(dz, words, kept if part.rows.start < num_kept else None)
            self._add_products(hidden, words, dz, grad_hidden)

    def _add_products(self, hidden: Tensor, words: slice, dz: Tensor, grad_hidden: Tensor | None) -> None:
        """Add a block's share; the logits that were kept in its part of the weight's gradient have been read."""
        weight, slope = self.of[1], self.head.slope
        if grad_hidden is not None:
            add_product(grad_hidden, dz, weight[words].to(hidden.dtype), slope, 1.0)
        if self.weight is not None:
            add_product(self.weight[words], dz.T, hidden, slope, 0.0 if self.untouched else 1.0)
        if self.bias is not None:
            self.bias[words].add_(dz.sum(0, dtype=torch.float32), alpha=slope)


class Part:
    """Some rows, all with kept logits or all without, on their way to dL/dz."""

    def __init__(self, sums: Accumulators, hidden: Tensor, targets: Tensor, active: Active, rows: slice):
        _, weight, bias = sums.of
        self.rows, self.targets = rows, targets[rows]
        index = torch.arange(hidden.shape[0], device=hidden.device) if active.index is None else active.index
        self.index = index[rows]
        found = active.coefficients
        linear = found.constant if found.linear is None else found.linear
        self.columns = [x[rows] for x in (found.best, found.constant, linear, found.target)]
        self.launch = Launch(hidden[rows], weight, bias, sums.head)
        self.flags = {"LINEAR": found.linear is not None, **self.launch.flags}

    def spread(self, dz: Tensor, words: slice, kept: Kept | None) -> None:
        """Write dL/d(h . w + b), the slope aside, of a block of words."""
        launch, width = self.launch, words.stop - words.start
        logits = self.columns[0] if kept is None else kept.block(words)
        start(
            spread, triton.cdiv(launch.num_rows, launch.blocks.rows) * triton.cdiv(width, launch.blocks.words),
            *launch.operands, self.targets, *self.columns, self.index, logits, dz[self.rows],
            launch.num_rows, words.start, words.stop, launch.num_words, launch.dim, *launch.strides, *launch.scales,
            KEPT=kept is not None, **self.flags,
        )  # fmt: skip
