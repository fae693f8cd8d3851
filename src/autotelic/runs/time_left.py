"""How long something will still take, by its pace so far."""

import time


class TimeLeft:
    """Says `12 s left` after part of the work.

    Args:
        total: units of work, of equal length.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started = total, 0, time.monotonic()

    def after(self, steps: int = 1) -> str:
        """Count work as done, and return `, 12 s left`; nothing at the end."""
        self.done += steps
        if not 0 < self.done < self.total:
            return ""
        return f", {duration((time.monotonic() - self.started) * (self.total - self.done) / self.done)} left"


def duration(seconds: float | int) -> str:
    """Return seconds as people say them: `40 s`, `3 min`, `1 h 20 min`."""
    if seconds != seconds:
        return "?"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
