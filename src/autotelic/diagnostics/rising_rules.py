"""Stop rules for the other failure: entropy that rises until the text falls apart.

    entropy_ceiling   H > threshold x H at the start
    entropy_slope     H rises by more than `threshold` nats a probe, over the last `probes` of them (least squares)
    turn_eruption     H of the last turn > threshold x H of the first, in responses of several turns
    garbled           words that neither the prompts nor the starting model knew: a share above `threshold`

H is the token entropy in nats. The dictionary is made of the probe's prompts and of the starting model's responses, so
it needs no language; text without words (three letters or more) has none. Each rule says what to change.

The thresholds are ours: docs/how-to/entropy_rises.md shows them on a run that is driven to it.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from autotelic.diagnostics.probe_statistics import History, Rule
from autotelic.errors import UserError
from autotelic.runs.method_settings import setting

WORD = re.compile(r"[^\W\d_]{3,}")
LOWER = (
    "lower the learning rate; with clip_cov or kl_cov a smaller fraction; with an entropy bonus a smaller coef, or "
    "entropy_band with high=; or entrocraft"
)


@dataclass(frozen=True)
class EntropyCeiling(Rule):
    """Stop when the token entropy is above `threshold` times that of the start."""

    name: ClassVar[str] = "entropy_ceiling"
    label: ClassVar[str] = "entropy ceiling"
    purpose: ClassVar[str] = "stop when token entropy is far above that of the start"
    advice: ClassVar[str] = LOWER
    rising: ClassVar[bool] = True
    threshold: float = setting(2.0, "largest multiple of the start's token entropy")

    def reason(self, history: History) -> str | None:
        """Compare the token entropy."""
        first, value = history[0].token_entropy, history[-1].token_entropy
        if first is None or value is None or value <= self.threshold * first:
            return None
        return f"token entropy rose to {value:.3f} nats (limit {self.threshold * first:.3f})"


@dataclass(frozen=True)
class EntropySlope(Rule):
    """Stop when the token entropy climbs steadily: by more than `threshold` nats a probe."""

    name: ClassVar[str] = "entropy_slope"
    label: ClassVar[str] = "rising entropy"
    purpose: ClassVar[str] = "stop when token entropy climbs steadily"
    advice: ClassVar[str] = LOWER
    rising: ClassVar[bool] = True
    threshold: float = setting(0.05, "largest slope", unit="nats a probe")
    probes: int = setting(5, "probes that the line is fitted to")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes < 3:
            raise UserError(
                f"entropy_slope: probes must be at least 3, got {self.probes}: two points always fit a line"
            )

    def reason(self, history: History) -> str | None:
        """Fit a line to the last probes."""
        values = [probe.token_entropy for probe in history[-self.probes :] if probe.token_entropy is not None]
        if len(values) < self.probes:
            return None
        slope = slope_of(values)
        return (
            f"token entropy rises by {slope:.3f} nats a probe (limit {self.threshold})"
            if slope > self.threshold
            else None
        )


@dataclass(frozen=True)
class TurnEruption(Rule):
    """Stop when the last turn of multi-turn responses has `threshold` times the entropy of the first."""

    name: ClassVar[str] = "turn_eruption"
    label: ClassVar[str] = "entropy eruption"
    purpose: ClassVar[str] = "stop when the last turn has far more entropy than the first"
    advice: ClassVar[str] = "fewer turns at first; a lower learning rate; aem; entropy_band with high="
    rising: ClassVar[bool] = True
    threshold: float = setting(2.0, "largest ratio of the last turn's entropy to the first's, where it has grown")

    def reason(self, history: History) -> str | None:
        """Compare the last turn with the first, and with that ratio at the start."""
        ratios = [probe.turn_ratio for probe in history if probe.turn_ratio is not None]
        if len(ratios) < 2 or ratios[-1] <= max(self.threshold, 1.2 * ratios[0]):
            return None
        return f"the last turn has {ratios[-1]:.2f} times the entropy of the first (limit {self.threshold})"


@dataclass(frozen=True)
class Garbled(Rule):
    """Stop when more than `threshold` of the words are unknown to prompts and starting model."""

    name: ClassVar[str] = "garbled"
    label: ClassVar[str] = "garbled text"
    purpose: ClassVar[str] = "stop when too many words are unknown ones"
    advice: ClassVar[str] = LOWER + "; check that the sampling temperature is that of training"
    rising: ClassVar[bool] = True
    threshold: float = setting(0.3, "largest share of unknown words", unit="share")

    def reason(self, history: History) -> str | None:
        """Compare with the first probe after the start, whose new words are ordinary ones."""
        shares = [probe.unknown_words for probe in history[1:] if probe.unknown_words is not None]
        if len(shares) < 2 or shares[-1] <= max(self.threshold, shares[0] + self.threshold / 2):
            return None
        return f"{shares[-1]:.2f} of the words are unknown (limit {self.threshold})"


def slope_of(values: Sequence[float]) -> float:
    """Return the least-squares slope of equally spaced values."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    spread = sum((i - middle) ** 2 for i in range(len(values)))
    return sum((i - middle) * (value - mean) for i, value in enumerate(values)) / spread


def words_of(texts: Sequence[str]) -> list[str]:
    """Return the words of some texts: runs of three letters or more, in lower case."""
    return [word.lower() for text in texts for word in WORD.findall(text)]


def unknown_share(texts: Sequence[str], known: Collection[str]) -> float | None:
    """Return the share of words that are not known; None where there are none."""
    words = words_of(texts)
    return sum(word not in known for word in words) / len(words) if words else None
