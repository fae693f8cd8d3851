"""What training changed in the logits: moments, histograms and per-rank means on shared text.

    mean = 1/n sum z     std = sqrt(m_2)     skewness = m_3 / m_2^(3/2),    m_k = 1/n sum (z - mean)^k

over all positions of all responses and the whole vocabulary, raw, teacher-forced. Sums are streamed in float64, one
batch of sequences at a time; intervals are percentile bootstraps over sequences, paired between models on shared text.

Reference: Gao et al. 2025, arXiv:2505.20282, Sec. 4 (the logit shift).
Deviations: the paper's plot has the 50 largest scores divided by 0.6, each model on its own text: `OFFICIAL`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autotelic.errors import UserError

MAX_LOGIT_ELEMENTS = 32_000_000
NUM_RESAMPLES = 1000
LOW, HIGH = -256.0, 256.0  # outside them the outermost bins count
BIN_WIDTH = 0.25  # of the histograms, in units of logits

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Form:
    """What is taken of each position's logits: all of them, or the `top` largest, divided by `divisor`."""

    top: int | None = None
    divisor: float = 1.0

    def __call__(self, logits: Float[Tensor, "*T V"]) -> Float[Tensor, "*T K"]:
        """Return the values that the statistics run over."""
        values = logits if self.top is None else logits.topk(min(self.top, logits.shape[-1]), dim=-1).values
        return values / self.divisor


RAW, OFFICIAL = Form(), Form(top=50, divisor=0.6)


@dataclass
class LogitStatistics:
    """Streaming statistics of one model: per-sequence power sums about a fixed centre, one histogram, rank sums."""

    form: Form = RAW
    num_ranks: int = 64
    centre: float | None = None
    sums: list[list[float]] = field(default_factory=list)  # per sequence: n, sum d, sum d^2, sum d^3, d = z - centre
    not_finite: int = 0

    def __post_init__(self) -> None:
        self.histogram = np.zeros(round((HIGH - LOW) / BIN_WIDTH), dtype=np.int64)
        self.rank_sums: Any = None
        self.ranks: Any = None
        self.positions = 0

    def add(self, logits: Float[Tensor, "T V"]) -> None:
        """Add one sequence: the logits of its response positions."""
        values = self.form(logits.detach().double()).cpu()
        finite = values[torch.isfinite(values)]
        self.not_finite += values.numel() - finite.numel()
        if self.centre is None:
            self.centre = float(finite.mean()) if finite.numel() else 0.0
        d = finite - self.centre
        self.sums.append([float(d.numel()), float(d.sum()), float((d * d).sum()), float((d * d * d).sum())])
        index = ((finite - LOW) / BIN_WIDTH).floor().clamp(0, len(self.histogram) - 1).long()
        self.histogram += torch.bincount(index, minlength=len(self.histogram)).numpy()
        if self.ranks is None:
            last = values.shape[-1]
            self.ranks = np.unique(np.geomspace(1, last, min(self.num_ranks, last)).round().astype(int))
            self.rank_sums = np.zeros(len(self.ranks))
        ordered = values.sort(dim=-1, descending=True).values[:, self.ranks - 1]
        self.rank_sums += ordered.sum(0).numpy()
        self.positions += len(values)

    def moments(self, weights: Float[np.ndarray, "R S"] | None = None) -> Float[np.ndarray, "R 3"]:
        """Return mean, std and skewness, once per row of weights (how often each sequence counts)."""
        sums = np.array(self.sums)
        weights = np.ones((1, len(sums))) if weights is None else weights
        n, s1, s2, s3 = (weights @ sums).T
        m = s1 / n
        m2 = s2 / n - m**2
        m3 = s3 / n - 3 * m * s2 / n + 2 * m**3
        std = np.sqrt(np.maximum(m2, 0.0))
        with np.errstate(invalid="ignore", divide="ignore"):
            skewness = np.where(std > 0, m3 / std**3, 0.0)
        return np.stack([m + (self.centre or 0.0), std, skewness], axis=1)

    def summary(self, base: "LogitStatistics | None" = None, *, seed: int = 0, level: float = 0.95) -> dict[str, Any]:
        """Return the moments with intervals; against `base`, on the same sequences, also their differences."""
        if not self.sums:
            raise UserError("no sequence to take statistics of; give at least one prompt")
        names, n = ("mean", "std", "skewness"), len(self.sums)
        value = self.moments()[0]
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=NUM_RESAMPLES).astype(float)
        draws = self.moments(weights)
        bounds = [(1 - level) / 2, (1 + level) / 2]

        def interval(values: np.ndarray) -> list[float] | None:
            return None if n == 1 else [float(q) for q in np.quantile(values, bounds)]

        result: dict[str, Any] = {
            name: {"value": float(value[i]), "interval": interval(draws[:, i])} for i, name in enumerate(names)
        }
        if base is not None and len(base.sums) == n:
            difference, paired = value - base.moments()[0], draws - base.moments(weights)
            result["shift"] = {
                name: {"value": float(difference[i]), "interval": interval(paired[:, i])}
                for i, name in enumerate(names)
            }
        occupied = np.flatnonzero(self.histogram)
        first, last = int(occupied[0]), int(occupied[-1])
        result |= {
            "num_sequences": n,
            "num_positions": self.positions,
            "num_values": int(np.array(self.sums)[:, 0].sum()),
            "not_finite": self.not_finite,
            "histogram": {
                "low": LOW + first * BIN_WIDTH,
                "bin_width": BIN_WIDTH,
                "counts": self.histogram[first : last + 1].tolist(),
            },
            "ranks": {"rank": self.ranks.tolist(), "mean": (self.rank_sums / max(self.positions, 1)).tolist()},
        }
        return result


@torch.no_grad()
def response_logits(model: Any, sequences: Sequences, *, pad_id: int = 0) -> Iterator[Float[Tensor, "T V"]]:
    """Yield, sequence by sequence, the logits that predict each response token and the one after the last.

    Args:
        model: a causal language model of transformers; its training mode is restored.
        sequences: pairs of prompt and response token ids; a prompt needs at least one.
        pad_id: any token; padding is on the right and masked.
    """
    vocabulary = model.config.get_text_config().vocab_size
    training = model.training
    model.eval()
    try:
        for rows in _batches(sequences, vocabulary):
            width = max(len(prompt) + len(response) for prompt, response in rows)
            ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
            attention = torch.zeros_like(ids)
            for i, (prompt, response) in enumerate(rows):
                text = torch.tensor([*prompt, *response])
                ids[i, : len(text)], attention[i, : len(text)] = text, 1
            ids, attention = ids.to(model.device), attention.to(model.device)
            logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
            for row, (prompt, response) in zip(logits, rows, strict=True):
                yield row[len(prompt) - 1 : len(prompt) + len(response)]
    finally:
        model.train(training)


def _batches(sequences: Sequences, vocabulary: int) -> Iterator[list[tuple[Sequence[int], Sequence[int]]]]:
    """Cut the sequences, in order, so that a batch's logits stay within `MAX_LOGIT_ELEMENTS`."""
    batch: list[tuple[Sequence[int], Sequence[int]]] = []
    width = 0
    for prompt, response in sequences:
        if not prompt:
            raise UserError("a prompt is empty: there is no position before its response")
        wider = max(width, len(prompt) + len(response))
        if batch and (len(batch) + 1) * wider * vocabulary > MAX_LOGIT_ELEMENTS:
            yield batch
            batch, wider = [], len(prompt) + len(response)
        batch.append((prompt, response))
        width = wider
    if batch:
        yield batch


def logit_shift(
    load: Mapping[str, Callable[[], Any]],
    sequences: Mapping[str, Sequences],
    *,
    form: Form = RAW,
    seed: int = 0,
    pad_id: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return each model's statistics; the first model is the base that the others are compared with.

    An interruption keeps the models that were measured.

    Args:
        load: name -> function returning the model; one model is held at a time.
        sequences: name -> its text; the same for all, unless each is to be seen on its own.
        form: what is taken of the logits.
        seed: of the bootstrap.
        pad_id: see `response_logits`.
        progress: called with the sequences that are measured, over all models, and how many there are.
    """
    measured, total = 0, sum(len(sequences[name]) for name in load)
    results: dict[str, Any] = {}
    base: LogitStatistics | None = None
    base_sequences: Any = None
    for name, loader in load.items():
        statistics = LogitStatistics(form=form)
        try:
            for logits in response_logits(loader(), sequences[name], pad_id=pad_id):
                statistics.add(logits)
                measured += 1
                progress(measured, total)
        except KeyboardInterrupt:
            if not results:
                raise
            break
        shared = base is not None and sequences[name] == base_sequences
        results[name] = statistics.summary(base if shared else None, seed=seed)
        if base is None:
            base, base_sequences = statistics, sequences[name]
    return results
