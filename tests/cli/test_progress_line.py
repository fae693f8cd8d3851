"""The progress line: in place on a terminal, rare elsewhere, silent when asked."""

import io

from autotelic.cli import progress_line
from autotelic.cli.progress_line import ProgressLine
from autotelic.runs import time_left
from autotelic.runs.time_left import TimeLeft, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_with_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now[0])
    for file, expected in (
        (Terminal(), "\r30/40 responses, 19 s left"),
        (io.StringIO(), "30/40 responses, 19 s left\n"),
    ):
        now[0] = 0.0
        line = ProgressLine(file=file)
        line(1, 40)
        now[0] = 60.0
        line(30.5, 40)
        assert file.getvalue() == expected
        line.close()
    assert "\r" not in file.getvalue()


def test_quiet_says_nothing():
    file = Terminal()
    line = ProgressLine(quiet=True, file=file)
    line.last -= 100
    line(1, 2)
    line.close()
    assert file.getvalue() == ""


def test_time_left_by_the_pace_so_far(monkeypatch):
    """Two of six cells in 30 s: the other four take 60 s; at the end nothing is left."""
    now = [0.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    clock = TimeLeft(6)
    assert clock.after(0) == ""
    now[0] = 30.0
    assert clock.after(2) == ", 60 s left"
    assert clock.after(4) == ""


def test_durations():
    assert [duration(s) for s in (float("nan"), 4.4, 200, 4000)] == ["?", "4 s", "3 min", "1 h 7 min"]
