"""Names what an update does now, for the progress line: sampling, scoring, updating."""

from collections.abc import Callable

from autotelic.trl.seam import Part, Rollout, Update


class Phases(Part):
    """Calls a function with the name of each phase as it begins; sampling begins with the step itself."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say

    def on_responses(self, rollout: Rollout) -> None:
        """The responses are there."""
        self.say("scoring")

    def on_update(self, update: Update) -> None:
        """The gradient comes next."""
        self.say("updating")
