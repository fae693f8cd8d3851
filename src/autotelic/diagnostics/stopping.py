"""When to stop, without labels, and whether a run has collapsed.

    stop rules      majority_drift, diversity, entropy_floor, repetition, length, logit_skew
    collapse        length_collapse, repetition_collapse, one_answer_collapse, majority_lock_in: the guard
    rising          entropy_ceiling, entropy_slope, turn_eruption, garbled: against entropy that rises (`rising_rules`)

A rule that trips names what to change.

Reference: the peak of entropy minimisation comes early while its loss goes on falling: Gao et al. 2025,
arXiv:2505.20282; the modes of collapse of label-free rewards: Zhang et al. 2025, arXiv:2504.05812.
Deviations: the rules and their thresholds are ours. docs/papers/one_shot_em.md says what they are worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autotelic.diagnostics.probe_statistics import History, Rule, drift
from autotelic.diagnostics.rising_rules import EntropyCeiling, EntropySlope, Garbled, TurnEruption
from autotelic.errors import UserError
from autotelic.runs.method_settings import Spec, make, read_all, setting

FALL = (
    "more entropy control (a larger fraction or coef, entropy_band with low=), a lower learning rate, or fewer updates"
)
KEEP = "take the weights before (action=rollback), then a lower learning rate, EMPO's thresholds or an entropy control"


@dataclass(frozen=True)
class MajorityDrift(Rule):
    """Stop when more than `threshold` of the majority answers have changed since the start."""

    name: ClassVar[str] = "majority_drift"
    label: ClassVar[str] = "majority drift"
    purpose: ClassVar[str] = "stop when the majority answers have changed on too many prompts"
    advice: ClassVar[str] = KEEP
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
    purpose: ClassVar[str] = "stop when there are far fewer different answers than at the start"
    advice: ClassVar[str] = FALL
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
    purpose: ClassVar[str] = "stop when token entropy is far below that of the start"
    advice: ClassVar[str] = FALL
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
    purpose: ClassVar[str] = "stop when responses repeat themselves more than at the start"
    advice: ClassVar[str] = KEEP
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
    purpose: ClassVar[str] = "stop when responses are far longer or shorter than at the start"
    advice: ClassVar[str] = KEEP
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
    purpose: ClassVar[str] = "stop when the skewness of the logits has moved"
    advice: ClassVar[str] = KEEP
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
    purpose: ClassVar[str] = "stop when responses have shrunk to almost nothing"
    collapse: ClassVar[bool] = True
    advice: ClassVar[str] = KEEP
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
    purpose: ClassVar[str] = "stop when responses mostly repeat themselves"
    collapse: ClassVar[bool] = True
    advice: ClassVar[str] = KEEP
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
    purpose: ClassVar[str] = "stop when one answer is given to most prompts"
    collapse: ClassVar[bool] = True
    advice: ClassVar[str] = KEEP
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
    purpose: ClassVar[str] = "stop when most prompts are unanimous: nothing is left to learn from"
    collapse: ClassVar[bool] = True
    advice: ClassVar[str] = FALL
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
        # The guard against entropy that rises.
        EntropyCeiling,
        EntropySlope,
        TurnEruption,
        Garbled,
    )
}
GUARDS = {
    "collapse": [name for name, rule in RULES.items() if rule.collapse],
    "rising": [name for name, rule in RULES.items() if rule.rising],
}


def read_rules(specs: Spec | Sequence[Spec]) -> dict[str, Rule]:
    """Return the rules of `diversity,threshold=0.4,collapse`, of mappings, or of a list of both.

    `collapse` and `rising` stand for the whole guard each.

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
        if name in GUARDS and not given:
            rules |= {each: RULES[each]() for each in GUARDS[name]}  # pyright: ignore[reportCallIssue]
        else:
            rules[name] = make("stop_rule", {"name": name, **given}, {**RULES, **dict.fromkeys(GUARDS, Rule)})
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
