"""What a probe of the stop rules measures, without labels, and what a rule is.

A probe is a fixed set of prompts, sampled k times each, now and then. A rule looks at the history of probes, the first
of which is the model before training, and says why to stop, or None.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autotelic.errors import UserError


@dataclass(frozen=True)
class ProbeStatistics:
    """One probe of P prompts x k responses.

    Args:
        majority: each prompt's most frequent answer, None where nothing could be read.
        parse_rate: share of responses with an answer.
        majority_share: mean over prompts of the largest cluster's share.
        unanimous_share: share of prompts whose k answers are all the same.
        diversity: mean over prompts of the number of different answers, divided by k: what pass@k lives on.
        semantic_entropy: nats, mean over prompts.
        modal_answer_share: share of responses that give the answer most common across all prompts.
        mean_length: tokens of a response.
        repetition: share of a response's 4-grams of tokens that it had before, mean over responses.
        token_entropy: nats per token at temperature 1, where it was measured.
        logit_skewness: of the raw logits over the vocabulary, where it was measured.
        unknown_words: share of the words that neither prompts nor the starting model used, where there are words.
        turn_ratio: entropy of the last turn over that of the first, in training's multi-turn responses.
    """

    majority: tuple[str | None, ...]
    parse_rate: float
    majority_share: float
    unanimous_share: float
    diversity: float
    semantic_entropy: float
    modal_answer_share: float
    mean_length: float
    repetition: float
    token_entropy: float | None = None
    logit_skewness: float | None = None
    unknown_words: float | None = None
    turn_ratio: float | None = None

    def metrics(self) -> dict[str, float]:
        """Return the figures under their names in the glossary."""
        named = {
            "probe/parse_rate": self.parse_rate,
            "probe/majority_share": self.majority_share,
            "probe/unanimous_share": self.unanimous_share,
            "probe/diversity": self.diversity,
            "probe/semantic_entropy": self.semantic_entropy,
            "probe/modal_answer_share": self.modal_answer_share,
            "probe/mean_length": self.mean_length,
            "probe/repetition": self.repetition,
            "probe/token_entropy": self.token_entropy,
            "probe/logit_skewness": self.logit_skewness,
            "probe/unknown_words": self.unknown_words,
            "probe/turn_ratio": self.turn_ratio,
        }
        return {name: value for name, value in named.items() if value is not None}


def statistics_of(
    texts: Sequence[Sequence[str]],
    tokens: Sequence[Sequence[Sequence[int]]],
    *,
    token_entropy: float | None = None,
    logit_skewness: float | None = None,
    unknown_words: float | None = None,
) -> ProbeStatistics:
    """Return the statistics of one probe.

    Args:
        texts: k responses of each prompt.
        tokens: their token ids.
        token_entropy: see `ProbeStatistics`.
        logit_skewness: see `ProbeStatistics`.
        unknown_words: see `ProbeStatistics`.
    """
    import torch

    from autotelic.answers import cluster, extract
    from autotelic.functional import majority_share, semantic_entropy

    answers = [[extract(text) for text in group] for group in texts]
    clusters = [cluster(group) for group in answers]
    table = torch.tensor(clusters)
    k = table.shape[1]
    given = [answer for group in answers for answer in group if answer is not None]
    distinct = [len({c for c in row if c >= 0}) for row in clusters]
    rows = [row for group in tokens for row in group]
    return ProbeStatistics(
        majority=tuple(_majority(group, row) for group, row in zip(answers, clusters, strict=True)),
        parse_rate=len(given) / table.numel(),
        majority_share=float(majority_share(table).mean()),
        unanimous_share=sum(d == 1 and min(row) >= 0 for d, row in zip(distinct, clusters, strict=True)) / len(table),
        diversity=sum(distinct) / k / len(table),
        semantic_entropy=float(semantic_entropy(table).mean()),
        modal_answer_share=max(Counter(given).values(), default=0) / table.numel(),
        mean_length=sum(map(len, rows)) / len(rows),
        repetition=sum(map(repeated_share, rows)) / len(rows),
        token_entropy=token_entropy,
        logit_skewness=logit_skewness,
        unknown_words=unknown_words,
    )


def _majority(answers: Sequence[str | None], clusters: Sequence[int]) -> str | None:
    """Return the first answer of the largest cluster; of several largest, the one that appeared first."""
    counts = Counter(c for c in clusters if c >= 0)
    if not counts:
        return None
    largest = max(counts.values())
    return answers[next(i for i, c in enumerate(clusters) if c >= 0 and counts[c] == largest)]


def repeated_share(tokens: Sequence[int], n: int = 4) -> float:
    """Return the share of n-grams that occurred before in the same text; 0 for a text shorter than n + 1."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def drift(first: ProbeStatistics, last: ProbeStatistics) -> float:
    """Return the share of prompts whose majority answer is no longer the one it was."""
    from autotelic.answers import equivalent

    changed = [
        a != b and (a is None or b is None or not equivalent(a, b))
        for a, b in zip(first.majority, last.majority, strict=True)
    ]
    return sum(changed) / len(changed)


History = Sequence[ProbeStatistics]


@dataclass(frozen=True)
class Rule:
    """A rule: looks at the history of probes and says why to stop, or None."""

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    purpose: ClassVar[str] = ""
    """What it is for, in one line of `autotelic list`."""
    collapse: ClassVar[bool] = False
    """Whether it belongs to the guard against collapse, which `collapse` stands for."""
    rising: ClassVar[bool] = False
    """Whether it belongs to the guard against entropy that rises, which `rising` stands for."""
    advice: ClassVar[str] = ""
    """What to change."""

    threshold: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise UserError(f"{self.name}: the threshold must be a positive number, got {self.threshold}")

    def reason(self, history: History) -> str | None:
        """Return why the last probe should stop the run, or None."""
        raise NotImplementedError  # abstract

    def __call__(self, history: History) -> str | None:
        """Return why to stop, or None; the first probe is the reference and never stops a run."""
        return self.reason(history) if len(history) > 1 else None
