"""Evaluate the carried model, train it six ways on a CPU, and write one page.

Writes DIR/results.json, DIR/report.html and DIR/runs/ (one folder per method). About three minutes on two cores.
"""

import argparse
import json
from pathlib import Path

from autotelic.cli.options import add_output, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo; print the table and where the page is."""
    from autotelic.cli.demo_jobs import run_demo, table

    results = run_demo(args.output, quiet=args.quiet)
    print(json.dumps(results) if args.json else table(results))
    say(args, f"page: {(args.output / 'report.html').resolve().as_uri()}")
    return 0
