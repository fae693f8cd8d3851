"""EVOL-RL: the majority selects, novelty varies.

    majority:     r_i in [0.5, 1],    the more novel the higher
    minority:     r_i in [-1, -0.5],  the more novel the higher
    no answer:    r_i = -1
    novelty_i = 1 - (weight mean_{j in own side} s_ij + (1 - weight) max_{j != i} s_ij), min-max normalised on each side

Reference: Zhou et al. 2025, arXiv:2509.15194.
Deviations: s_ij is the cosine of counts of character 5-grams unless an embedding is given (the paper embeds with a
4B-parameter model); the authors call a box without a digit invalid, here a response without an answer is. Where one
side has equal novelty throughout it takes the middle of its band.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autotelic.rewards.formulas import majority_reward
from autotelic.rewards.label_free_reward import Batch, LabelFreeReward
from autotelic.runs.method_settings import setting

Embed = Callable[[Sequence[str]], Float[Tensor, "B D"]]
BUCKETS = 4096


def ngram_embedding(texts: Sequence[str]) -> Float[Tensor, "B D"]:
    """Return hashed counts of character 5-grams: a similarity of wording that needs no model."""
    vectors = torch.zeros(len(texts), BUCKETS)
    for row, text in enumerate(texts):
        words = " ".join(text.split())[-20_000:]
        counts = Counter(words[i : i + 5] for i in range(max(len(words) - 4, 1)))
        for gram, count in counts.items():
            vectors[row, zlib.crc32(gram.encode("utf-8", "replace")) % BUCKETS] += count
    return vectors


def novelty(similarity: Float[Tensor, "G G"], side: Sequence[int], weight: float) -> list[float]:
    """Return the novelty of each response, min-max normalised on its own side (0.5 where all are equal).

    Args:
        similarity: Symmetric, in [0, 1].
        side: 1 majority, 0 minority, -1 no answer (those get 0 and are no one's neighbours).
        weight: Share of the mean similarity within a side; the rest is the largest similarity to any other response.
    """
    present = [i for i, s in enumerate(side) if s >= 0]
    raw = {}
    for i in present:
        others = [float(similarity[i, j]) for j in present if j != i]
        own = [float(similarity[i, j]) for j in present if j != i and side[j] == side[i]]
        mean = sum(own) / len(own) if own else 0.0
        raw[i] = 1.0 - (weight * mean + (1.0 - weight) * max(others, default=0.0))
    scaled = [0.0] * len(side)
    for s in (0, 1):
        values = [raw[i] for i in present if side[i] == s]
        for i in present:
            if side[i] == s:
                spread = max(values) - min(values)
                scaled[i] = (raw[i] - min(values)) / spread if spread > 1e-9 else 0.5
    return scaled


@dataclass(kw_only=True)
class EvolRL(LabelFreeReward):
    """Majority vote with a novelty bonus (module docstring)."""

    name: ClassVar[str] = "evol_rl"
    title: ClassVar[str] = "EVOL-RL"
    purpose: ClassVar[str] = "reward the majority answer, with a bonus for responses unlike the others"
    paper: ClassVar[str] = "Zhou et al. 2025, arXiv:2509.15194"
    weight: float | int = setting(0.5, "share of the mean similarity within a side in the novelty", unit="share")
    embed: Embed | None = setting(None, "from Python: maps texts to vectors (B, D); character 5-grams by default")

    def rewards(self, batch: Batch) -> Float[Tensor, "P G"]:
        """Return the banded rewards."""
        winners = majority_reward(batch.clusters, "all")
        out = torch.full(batch.clusters.shape, -1.0, dtype=torch.float64)
        for p, group in enumerate(batch.groups):
            vectors = (self.embed or ngram_embedding)([row.text for row in group.rows]).double()
            unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-8)
            similarity = (unit @ unit.T).clamp(0.0, 1.0)
            side = [-1 if int(c) < 0 else int(w) for c, w in zip(batch.clusters[p], winners[p], strict=True)]
            scores = novelty(similarity, side, float(self.weight))
            for i, s in enumerate(side):
                if s >= 0:
                    out[p, i] = (0.5 if s else -1.0) + 0.5 * scores[i]
        return out
