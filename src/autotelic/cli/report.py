"""One self-contained page for one or several runs: curves, the law, covariance, pass@k, and the rollout viewer.

RUN is a run folder (run.json, metrics.jsonl, rollouts.jsonl, followed.jsonl, evaluation.json) or a folder of them; a
results.json in it fills the table, a logits.json is drawn. A run with half the data gives half the page, and the page
says what is missing and which command makes it.

    autotelic report runs/demo -o page.html
    autotelic report runs/grpo-0 runs/grpo-1 runs/empo-0 -o page.html --watch
"""

import argparse
import json
import time
from pathlib import Path

from autotelic.cli.options import add_output, say
from autotelic.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder, or a folder of run folders")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="page (default: %(default)s)")
    parser.add_argument("--title", default="autotelic report", help="title of the page")
    parser.add_argument("--watch", action="store_true", help="write the page anew whenever a log grows, until Ctrl-C")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between looks with --watch (default: 10)")
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page, once or until interrupted."""
    from autotelic.report import write_report

    if args.every <= 0:
        raise UserError(f"--every must be above 0 seconds, got {args.every}")
    refresh = max(1, round(args.every)) if args.watch else None
    last = None
    while True:
        state = fingerprint(args.runs)
        if state != last:
            written = write_report(args.runs, args.output, title=args.title, refresh=refresh)
            size = written.stat().st_size
            if args.json:
                print(json.dumps({"page": str(written), "bytes": size}), flush=True)
            elif not args.quiet:
                print(f"{written} ({size / 1e6:.1f} MB)", flush=True)
            last = state
        if not args.watch:
            return 0
        try:
            time.sleep(args.every)
        except KeyboardInterrupt:
            write_report(args.runs, args.output, title=args.title)  # the last page no longer loads itself anew
            say(args, "autotelic: stopped watching")
            return 0


def fingerprint(runs: list[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return size and time of every file that the page is made of."""
    from autotelic.report.run_folders import BELOW, RUN_FILES

    found = []
    for folder in runs:
        for name in (*RUN_FILES, "results.json", "logits.json"):
            for file in sorted({*folder.glob(name), *(f for below in BELOW for f in folder.glob(f"{below}/{name}"))}):
                status = file.stat()
                found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(found)
