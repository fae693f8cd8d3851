"""One self-contained page for one or many runs: works from disk, asks nothing of any server."""

from autotelic.report.page import write_report

__all__ = ["write_report"]
