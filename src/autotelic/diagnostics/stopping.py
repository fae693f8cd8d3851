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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autotelic.errors import UserError
from autotelic.runs.method_settings import Spec, make, read_all, setting


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


@dataclass(frozen=True)
class Rule:
    """A rule: looks at the history of probes and says why to stop, or None."""

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    collapse: ClassVar[bool] = False
    """Whether it belongs to the guard against collapse, which `collapse` stands for."""

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


@dataclass(frozen=True)
class MajorityDrift(Rule):
    """Stop when more than `threshold` of the majority answers have changed since the start."""

    name: ClassVar[str] = "majority_drift"
    label: ClassVar[str] = "majority drift"
    threshold: float = setting(0.5, "most of the majority answers that may change", unit="share")

    def reason(self, history: History) -> str | None:
        """Compare the majority answers with those of the start."""
        value = drift(history[0], history[-1])
        if value <= self.threshold:
            return None
        return f"{value:.2f} of the majority answers changed (limit {self.threshold})"


@dataclass(frozen=True)
class Diversity(Rule):
    """Stop when the number of different answers per prompt is below `threshold` times that of the start."""

    name: ClassVar[str] = "diversity"
    label: ClassVar[str] = "answer diversity"
    threshold: float = setting(0.5, "least share of the start's different answers", unit="share")

    def reason(self, history: History) -> str | None:
        """Compare the number of different answers."""
        limit, value = self.threshold * history[0].diversity, history[-1].diversity
        return f"answer diversity fell to {value:.3f} (limit {limit:.3f})" if value < limit else None


@dataclass(frozen=True)
class EntropyFloor(Rule):
    """Stop when the token entropy is below `threshold` times that of the start."""

    name: ClassVar[str] = "entropy_floor"
    label: ClassVar[str] = "entropy floor"
    threshold: float = setting(0.3, "least share of the start's token entropy", unit="share")

    def reason(self, history: History) -> str | None:
        """Compare the token entropy."""
        first, value = history[0].token_entropy, history[-1].token_entropy
        if first is None or value is None or value >= self.threshold * first:
            return None
        return f"token entropy fell to {value:.3f} nats (limit {self.threshold * first:.3f})"


@dataclass(frozen=True)
class Repetition(Rule):
    """Stop when repetition has risen by more than `threshold` since the start."""

    name: ClassVar[str] = "repetition"
    label: ClassVar[str] = "repetition"
    threshold: float = setting(0.2, "largest rise of the share of repeated 4-grams", unit="share")

    def reason(self, history: History) -> str | None:
        """Compare the share of repeated 4-grams."""
        limit, value = history[0].repetition + self.threshold, history[-1].repetition
        return f"repetition rose to {value:.2f} (limit {limit:.2f})" if value > limit else None


@dataclass(frozen=True)
class Length(Rule):
    """Stop when responses are `threshold` times as long as at the start, or as many times shorter."""

    name: ClassVar[str] = "length"
    label: ClassVar[str] = "response length"
    threshold: float = setting(1.5, "largest ratio of lengths, either way")

    def reason(self, history: History) -> str | None:
        """Compare the mean length."""
        ratio = history[-1].mean_length / max(history[0].mean_length, 1e-9)
        if 1 / self.threshold <= ratio <= self.threshold:
            return None
        return f"responses have {ratio:.2f} times the length of the start (limit {self.threshold} either way)"


@dataclass(frozen=True)
class LogitSkew(Rule):
    """Stop when the skewness of the logits has moved by more than `threshold` since the start."""

    name: ClassVar[str] = "logit_skew"
    label: ClassVar[str] = "logit skewness"
    threshold: float = setting(0.3, "largest change of the skewness, either way")

    def reason(self, history: History) -> str | None:
        """Compare the skewness of the raw logits."""
        first, value = history[0].logit_skewness, history[-1].logit_skewness
        if first is None or value is None or abs(value - first) <= self.threshold:
            return None
        return f"logit skewness moved from {first:.2f} to {value:.2f} (limit {self.threshold})"


@dataclass(frozen=True)
class LengthCollapse(Rule):
    """Responses have shrunk to less than `threshold` of what they were."""

    name: ClassVar[str] = "length_collapse"
    label: ClassVar[str] = "length collapse"
    collapse: ClassVar[bool] = True
    threshold: float = setting(0.3, "least share of the start's length", unit="share")

    def reason(self, history: History) -> str | None:
        """Compare the mean length."""
        limit, value = self.threshold * history[0].mean_length, history[-1].mean_length
        return f"responses shrank to {value:.1f} tokens (limit {limit:.1f})" if value < limit else None


@dataclass(frozen=True)
class RepetitionCollapse(Rule):
    """More than `threshold` of a response repeats itself, and it was not so at the start."""

    name: ClassVar[str] = "repetition_collapse"
    label: ClassVar[str] = "repetition collapse"
    collapse: ClassVar[bool] = True
    threshold: float = setting(0.5, "largest share of repeated 4-grams", unit="share")

    def reason(self, history: History) -> str | None:
        """Look at repetition, where it has grown."""
        value = history[-1].repetition
        grown = value > max(self.threshold, history[0].repetition + self.threshold / 2)
        return f"{value:.2f} of a response repeats itself (limit {self.threshold})" if grown else None


@dataclass(frozen=True)
class OneAnswerCollapse(Rule):
    """One answer is given to more than `threshold` of all prompts' responses, and it was not so at the start."""

    name: ClassVar[str] = "one_answer_collapse"
    label: ClassVar[str] = "one answer everywhere"
    collapse: ClassVar[bool] = True
    threshold: float = setting(0.5, "largest share of one answer", unit="share")

    def reason(self, history: History) -> str | None:
        """Look at the most common answer over several prompts."""
        value, first = history[-1].modal_answer_share, history[0].modal_answer_share
        grown = len(history[-1].majority) > 1 and value > max(self.threshold, 1.5 * first)
        if not grown:
            return None
        return f"one answer holds {value:.2f} of the responses of all prompts (limit {self.threshold})"


@dataclass(frozen=True)
class MajorityLockIn(Rule):
    """More than `threshold` of the prompts are unanimous, in two probes running: nothing is left to learn from."""

    name: ClassVar[str] = "majority_lock_in"
    label: ClassVar[str] = "majority lock-in"
    collapse: ClassVar[bool] = True
    threshold: float = setting(0.9, "largest share of unanimous prompts", unit="share")

    def reason(self, history: History) -> str | None:
        """Look at the last two probes."""
        if len(history) < 3 or history[0].unanimous_share > self.threshold:
            return None
        values = [probe.unanimous_share for probe in history[-2:]]
        if min(values) <= self.threshold:
            return None
        return f"{values[-1]:.2f} of the prompts are unanimous, and were at the probe before (limit {self.threshold})"


RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        MajorityDrift,
        Diversity,
        EntropyFloor,
        Repetition,
        Length,
        LogitSkew,
        # The guard against collapse, from the most specific to the least: a text of one repeated token also gives one
        # answer everywhere.
        LengthCollapse,
        RepetitionCollapse,
        OneAnswerCollapse,
        MajorityLockIn,
    )
}
COLLAPSE = {"collapse": [name for name, rule in RULES.items() if rule.collapse]}


def read_rules(specs: Spec | Sequence[Spec]) -> dict[str, Rule]:
    """Return the rules of `diversity,threshold=0.4,collapse`, of mappings, or of a list of both.

    `collapse` stands for the whole guard.

    Raises:
        UserError: an unknown rule or setting, or a threshold that is not a positive number.
    """
    for text in [specs] if isinstance(specs, str) else specs:
        for key, _, value in (part.strip().partition("=") for part in str(text).split(",")):
            if key in RULES and value:
                raise UserError(f"a threshold is a setting of its rule: write {key},threshold={value}")
    rules: dict[str, Rule] = {}
    for name, given in read_all(specs or "none", "stop_rule"):
        if name == "none":
            continue
        if name in COLLAPSE and not given:
            rules |= {each: RULES[each]() for each in COLLAPSE[name]}  # pyright: ignore[reportCallIssue]
        else:
            rules[name] = make("stop_rule", {"name": name, **given}, {**RULES, **dict.fromkeys(COLLAPSE, Rule)})
    return rules


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
