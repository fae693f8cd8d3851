"""No control: the advantages stay, the diagnostics of every control are logged."""

from dataclasses import dataclass
from typing import ClassVar

from autotelic.controls.entropy_control import AdvantageControl, Rewritten, UpdateBatch


@dataclass(frozen=True)
class Observe(AdvantageControl):
    """No control: the advantages stay, the diagnostics of every control are logged."""

    name: ClassVar[str] = "observe"
    label: ClassVar[str] = "no control, observed"
    purpose: ClassVar[str] = "change nothing, and log what every control looks at"
    intervenes: ClassVar[bool] = False
    silences: ClassVar[bool] = True

    def rewritten(self, batch: UpdateBatch) -> Rewritten:
        """Return the advantages as they are."""
        return batch.advantages, None, {}
