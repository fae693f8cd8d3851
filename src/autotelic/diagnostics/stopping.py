"""When to stop, without labels, and whether a run has collapsed.

A probe is a fixed set of prompts, sampled k times each, now and then. Its statistics need no answer key. A rule looks
at the history of probes, the first of which is the model before training, and says why to stop, or None.

    stop rules      majority_drift, diversity, entropy_floor, repetition, length, logit_skew
    collapse guard  length_collapse, repetition_collapse, one_answer_collapse, majority_lock_in

Reference: the peak of entropy minimisation comes early while its loss goes on falling: Gao et al. 2025,
arXiv:2505.20282; the modes of collapse of label-free rewards: Zhang et al. 2025, arXiv:2504.05812.
Deviations: the rules and their thresholds are ours. docs/papers/one_shot_em.md says what they are worth.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotelic.errors import UserError, closest


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
        }
        return {name: value for name, value in named.items() if value is not None}


def statistics_of(
    texts: Sequence[Sequence[str]],
    tokens: Sequence[Sequence[Sequence[int]]],
    *,
    token_entropy: float | None = None,
    logit_skewness: float | None = None,
) -> ProbeStatistics:
    """Return the statistics of one probe.

    Args:
        texts: k responses of each prompt.
        tokens: their token ids.
        token_entropy: see `ProbeStatistics`.
        logit_skewness: see `ProbeStatistics`.
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


def majority_drift(history: History, threshold: float) -> str | None:
    """Stop when more than `threshold` of the majority answers have changed since the start."""
    value = drift(history[0], history[-1])
    return f"{value:.2f} of the majority answers changed (limit {threshold})" if value > threshold else None


def diversity(history: History, threshold: float) -> str | None:
    """Stop when the number of different answers per prompt is below `threshold` times that of the start."""
    limit = threshold * history[0].diversity
    value = history[-1].diversity
    return f"answer diversity fell to {value:.3f} (limit {limit:.3f})" if value < limit else None


def entropy_floor(history: History, threshold: float) -> str | None:
    """Stop when the token entropy is below `threshold` times that of the start."""
    first, value = history[0].token_entropy, history[-1].token_entropy
    if first is None or value is None or value >= threshold * first:
        return None
    return f"token entropy fell to {value:.3f} nats (limit {threshold * first:.3f})"


def repetition(history: History, threshold: float) -> str | None:
    """Stop when repetition has risen by more than `threshold` since the start."""
    limit, value = history[0].repetition + threshold, history[-1].repetition
    return f"repetition rose to {value:.2f} (limit {limit:.2f})" if value > limit else None


def length(history: History, threshold: float) -> str | None:
    """Stop when responses are `threshold` times as long as at the start, or as many times shorter."""
    ratio = history[-1].mean_length / max(history[0].mean_length, 1e-9)
    if 1 / threshold <= ratio <= threshold:
        return None
    return f"responses have {ratio:.2f} times the length of the start (limit {threshold} either way)"


def logit_skew(history: History, threshold: float) -> str | None:
    """Stop when the skewness of the logits has moved by more than `threshold` since the start."""
    first, value = history[0].logit_skewness, history[-1].logit_skewness
    if first is None or value is None or abs(value - first) <= threshold:
        return None
    return f"logit skewness moved from {first:.2f} to {value:.2f} (limit {threshold})"


def length_collapse(history: History, threshold: float) -> str | None:
    """Responses have shrunk to less than `threshold` of what they were."""
    limit, value = threshold * history[0].mean_length, history[-1].mean_length
    return f"responses shrank to {value:.1f} tokens (limit {limit:.1f})" if value < limit else None


def repetition_collapse(history: History, threshold: float) -> str | None:
    """More than `threshold` of a response repeats itself, and it was not so at the start."""
    value = history[-1].repetition
    grown = value > max(threshold, history[0].repetition + threshold / 2)
    return f"{value:.2f} of a response repeats itself (limit {threshold})" if grown else None


def one_answer_collapse(history: History, threshold: float) -> str | None:
    """One answer is given to more than `threshold` of all prompts' responses, and it was not so at the start."""
    value, first = history[-1].modal_answer_share, history[0].modal_answer_share
    grown = len(history[-1].majority) > 1 and value > max(threshold, 1.5 * first)
    return f"one answer holds {value:.2f} of the responses of all prompts (limit {threshold})" if grown else None


def majority_lock_in(history: History, threshold: float) -> str | None:
    """More than `threshold` of the prompts are unanimous, in two probes running: nothing is left to learn from."""
    if len(history) < 3 or history[0].unanimous_share > threshold:
        return None
    values = [probe.unanimous_share for probe in history[-2:]]
    if min(values) <= threshold:
        return None
    return f"{values[-1]:.2f} of the prompts are unanimous, and were at the probe before (limit {threshold})"


@dataclass(frozen=True)
class Rule:
    """A rule and its threshold."""

    function: Callable[[History, float], str | None]
    threshold: float

    def __call__(self, history: History) -> str | None:
        """Return why to stop, or None; the first probe is the reference and never stops a run."""
        return self.function(history, self.threshold) if len(history) > 1 else None


STOP_RULES = {
    "majority_drift": Rule(majority_drift, 0.5),
    "diversity": Rule(diversity, 0.5),
    "entropy_floor": Rule(entropy_floor, 0.3),
    "repetition": Rule(repetition, 0.2),
    "length": Rule(length, 1.5),
    "logit_skew": Rule(logit_skew, 0.3),
}

COLLAPSE_RULES = {
    "length_collapse": Rule(length_collapse, 0.3),
    "repetition_collapse": Rule(repetition_collapse, 0.5),
    "one_answer_collapse": Rule(one_answer_collapse, 0.5),
    "majority_lock_in": Rule(majority_lock_in, 0.9),
}
"""From the most specific to the least: a text of one repeated token also gives one answer everywhere."""


def parse_rules(text: str) -> dict[str, Rule]:
    """Return the rules of `name`, `name=threshold`, several after commas; `collapse` stands for the whole guard.

    Raises:
        UserError: an unknown rule, or a threshold that is not a positive number.
    """
    known = STOP_RULES | COLLAPSE_RULES
    rules: dict[str, Rule] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name == "none":
            continue
        if name == "collapse":
            rules |= COLLAPSE_RULES
            continue
        if name not in known:
            names = ", ".join([*known, "collapse"])
            raise UserError(f"unknown stop rule {name!r}{closest(name, [*known, 'collapse'])}; there are {names}")
        rules[name] = known[name] if not value else Rule(known[name].function, _threshold(name, value))
    return rules


def _threshold(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"the threshold of {name} must be a positive number, got {value!r}")
    return number


def first_tripped(rules: dict[str, Rule], history: History) -> tuple[str, str] | None:
    """Return the name and the reason of the first rule that says stop."""
    for name, rule in rules.items():
        reason = rule(history)
        if reason is not None:
            return name, reason
    return None


def stopping_point(rule: Rule, history: History) -> int | None:
    """Return the index of the first probe at which a rule says stop, or None: what a finished run would have done."""
    return next((i for i in range(1, len(history)) if rule(history[: i + 1]) is not None), None)
