"""What the head knows of each row, and what both engines make of it.

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
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

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

    def like(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> "Gradients":
        """Return them in the dtypes of what they belong to."""
        of = (hidden, weight, bias)
        return Gradients(*(g if g is None or x is None else g.to(x.dtype) for g, x in zip(self, of, strict=True)))


class Coefficients(NamedTuple):
    """What turns logits into gradients, row by row."""

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


def active_rows(grad_logprobs: Tensor, grad_entropy: Tensor) -> Tensor:
    """Return the rows that have a gradient at all."""
    return ((grad_logprobs != 0) | (grad_entropy != 0)).nonzero().squeeze(1)


@dataclass(frozen=True)
class Active:
    """The rows that take part in a backward pass."""

    index: Tensor | None
    """Which they are, in rising order; None where all are."""
    coefficients: Coefficients

    @classmethod
    def of(cls, stats: Stats, grad_logprobs: Tensor, grad_entropy: Tensor) -> "Active":
        """Find them by their upstream gradients."""
        index = active_rows(grad_logprobs, grad_entropy)
        if index.numel() == grad_logprobs.numel():
            return cls(None, Coefficients.of(stats, grad_logprobs, grad_entropy))
        return cls(index, Coefficients.of(stats.rows(index), grad_logprobs[index], grad_entropy[index]))

    def take(self, rows: Tensor) -> Tensor:
        """Return the active ones among rows."""
        return rows if self.index is None else rows[self.index]

    def spread(self, rows: Tensor, num_rows: int) -> Tensor:
        """Return the inverse of `take`, zero elsewhere."""
        return (
            rows if self.index is None else rows.new_zeros(num_rows, *rows.shape[1:]).index_copy_(0, self.index, rows)
        )

    def num_kept(self, kept: "Kept | None") -> int:
        """Return how many of them, the first ones, have their logits kept."""
        if kept is None:
            return 0
        return kept.num_rows if self.index is None else int((self.index < kept.num_rows).sum())


class Kept(NamedTuple):
    """Logits that a forward pass leaves to the backward pass: those of the first rows, block of words after block.

    The weight's gradient has d numbers for each word, and the backward pass writes it block after block. Until then its
    memory is free, and holds the logits of d rows (of d / 2 where a gradient in half precision is to hold float32).
    """

    memory: Tensor
    """In one dimension, in the dtype of the arithmetic."""
    num_rows: int
    stride: int
    """Numbers of `memory` for each word; at least `num_rows`."""
    columns: int
    """Words of a block."""
    gradient: Tensor | None = None
    """The weight's gradient to be, whose memory this is."""

    @classmethod
    def in_gradient(cls, weight: Tensor, dtype: torch.dtype, num_rows: int, columns: int) -> "Kept | None":
        """Return the room in the gradient of a weight; None where its rows do not end between two numbers."""
        stride, rest = divmod(weight.shape[1] * weight.itemsize, dtype.itemsize)
        if rest or not stride or not weight.numel():
            return None
        gradient = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        return cls(gradient.view(-1).view(dtype), min(num_rows, stride), stride, columns, gradient)

    @classmethod
    def apart(cls, like: Tensor, num_rows: int, num_words: int, columns: int) -> "Kept":
        """Return room of its own, in the dtype and on the device of `like`."""
        return cls(like.new_empty(num_rows * num_words), num_rows, num_rows, columns)

    def block(self, words: slice) -> Tensor:
        """Return the logits of a block of words, all kept rows."""
        start, width = words.start * self.stride, words.stop - words.start
        return self.memory[start : start + self.num_rows * width].view(self.num_rows, width)


class GradientSums:
    """Base of the engines' accumulators: gradients that grow from one set of rows, or from several in turn.

    Args:
        hidden: the rows, or as many as there will be in all sets; only their dtypes and width are read.
        weight: of the head.
        bias: of the head.
        head: constants.
        needs: which gradients.
        gradient: where the weight's gradient is to be; its memory may hold kept logits until it is written.
        several: whether sets of rows will follow the first.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        needs: Needs,
        *,
        gradient: Tensor | None = None,
        several: bool = False,
    ):
        self.of, self.head, self.needs = (hidden, weight, bias), head, needs
        self.dtype = widest(hidden, weight, bias)
        if gradient is None and needs.weight:
            gradient = torch.empty(weight.shape, dtype=self.dtype if several else weight.dtype, device=weight.device)
        self.weight = gradient
        self.bias = torch.zeros_like(bias, dtype=self.dtype) if needs.bias and bias is not None else None
        self.untouched = True

    def collect(self, hidden: Tensor, targets: Tensor, active: Active, kept: Kept | None = None) -> Tensor | None:
        """Add the share of some rows to the gradients of weight and bias; return the gradient of the rows."""
        some = active.take(hidden)
        grad_hidden = torch.zeros_like(some, dtype=self.dtype) if self.needs.hidden else None
        if some.shape[0]:
            self.add(some, active.take(targets), active, kept, grad_hidden)
            self.untouched = False
        return None if grad_hidden is None else active.spread(grad_hidden, hidden.shape[0])

    def add(
        self, hidden: Tensor, targets: Tensor, active: Active, kept: Kept | None, grad_hidden: Tensor | None
    ) -> None:
        """Add what the active rows give to all gradients, `grad_hidden` among them."""
        raise NotImplementedError  # abstract

    def finish(self, grad_hidden: Tensor | None) -> Gradients:
        """Return the gradients in the dtypes of what they belong to; zero if no row ever came."""
        if self.weight is not None and self.untouched:
            self.weight.zero_()
        return Gradients(grad_hidden, self.weight, self.bias).like(*self.of)


RowLoss = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor, Tensor]]
"""From log-probabilities, entropy and which rows they are, to the loss of each and its two derivatives."""


def widest(*tensors: Tensor | None) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 if any operand is, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def spans(total: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
