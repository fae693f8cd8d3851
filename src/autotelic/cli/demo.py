"""Evaluate the carried model, train it six ways on a CPU, and write one page.

Writes DIR/results.json, DIR/report.html and DIR/runs/ (one folder per method). About three minutes on two cores.
"""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the demo; print the table and where the page is."""
    from autotelic.demo import run_demo, table

    results = run_demo(args.output, quiet=args.quiet)
    if args.json:
        print(json.dumps(results))
    else:
        print(table(results))
        print(f"page: {(args.output / 'report.html').resolve().as_uri()}")
    return 0
