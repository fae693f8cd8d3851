"""One self-contained page for one or several runs: curves, the law, covariance, pass@k, and the rollout viewer.

RUN is a run folder (run.json, metrics.jsonl, rollouts.jsonl, followed.jsonl, evaluation.json) or a folder of them; a
results.json in it fills the table, a logits.json is drawn. A run with half the data gives half the page, and the page
says what is missing and which command makes it.

    autotelic report runs/demo -o page.html
    autotelic report runs/grpo-0 runs/grpo-1 runs/empo-0 -o page.html --watch
    autotelic report runs/sweep --group-by learning_rate --only 'method=kl_cov' --labels chain_sums:train
    autotelic report runs --serve                # at http://127.0.0.1:8000, for this machine only
"""

import argparse
import signal
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from autotelic.cli.options import add_output, as_json, finite, refuse_unread, say
from autotelic.errors import UserError

MAX_LABELS = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder, or a folder of run folders")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="page (default: %(default)s)")
    parser.add_argument(
        "--group-by", metavar="SETTING", help="one curve for each value of this setting; `run`: one for each run"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out runs that do not match: SETTING=VALUE, or a folder's name with * (repeatable: all must match)",
    )
    parser.add_argument(
        "--labels", metavar="SOURCE", help="problems with answers, such as chain_sums:train: marks responses as right"
    )
    parser.add_argument("--title", default="autotelic report", help="title of the page")
    parser.add_argument("--watch", action="store_true", help="write the page anew whenever a log grows, until Ctrl-C")
    parser.add_argument(
        "--every", type=finite, default=10.0, help="seconds between looks with --watch or --serve (default: 10)"
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve the page at http://127.0.0.1, and read growing logs again"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port of --serve; 0 takes any free one (default: %(default)s)"
    )
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page, once or until interrupted."""
    if args.every <= 0:
        raise UserError(f"--every must be above 0 seconds, got {args.every}")
    if args.serve and args.watch:
        raise UserError("--serve reads growing logs again by itself: leave --watch out")
    if not args.serve:
        refuse_unread(args, ["port"] if args.watch else ["port", "every"], "the page is written once, not served")
    if str(args.output.resolve()) in {str(Path(file).resolve()) for file, *_ in fingerprint(args.runs)}:
        raise UserError(f"cannot write {args.output}: it is a file of a run; choose another place with -o")
    if args.serve:
        return serve(args)
    refresh = max(1, round(args.every)) if args.watch else None
    last = None
    while True:
        state = fingerprint(args.runs)
        if state != last:
            written = write(args, refresh)
            size = written.stat().st_size
            if args.json:
                print(as_json({"page": str(written), "bytes": size}), flush=True)
            elif not args.quiet:
                print(f"{written} ({size / 1e6:.1f} MB)", flush=True)
            last = state
        if not args.watch:
            return 0
        try:
            time.sleep(args.every)
        except KeyboardInterrupt:
            write(args)  # the last page no longer loads itself anew
            say(args, "autotelic: stopped watching")
            return 0


def write(args: argparse.Namespace, refresh: int | None = None) -> Path:
    """Write the page as the options ask for it."""
    from autotelic.report import write_report

    labels = read_labels(args.labels) if args.labels else ()
    chosen = {"group_by": args.group_by, "only": args.only, "labels": labels}
    return write_report(args.runs, args.output, title=args.title, refresh=refresh, **chosen)


@cache
def read_labels(source: str) -> list[dict[str, Any]]:
    """Return the problems of a source, of a generated one as many as a run may have drawn; each needs an answer."""
    from autotelic.tasks import load_problems

    return load_problems(source, limit=MAX_LABELS, require_answer=True)


def serve(args: argparse.Namespace) -> int:
    """Show the page to this machine until interrupted; a request reads the runs again where a file has changed."""
    try:
        server = PageServer(args)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on 127.0.0.1:{args.port}: {error}; choose another --port") from None
    with server:
        server.page()  # a wrong folder is said here, not in the browser
        address = f"http://127.0.0.1:{server.server_port}"
        # not by KeyboardInterrupt: raised while an object is being freed, it is lost, and so is the Ctrl-C
        former = signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=server.shutdown).start())
        print(as_json({"address": address}) if args.json else f"{address}  (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        finally:
            signal.signal(signal.SIGINT, former)
        server.page()  # the file that stays has what was logged last
        say(args, "autotelic: stopped serving")
    return 0


class PageServer(ThreadingHTTPServer):
    """Serves one page on the loopback interface, written to --output and kept until a file of a run changes."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(("127.0.0.1", args.port), PageHandler)
        self.args, self.lock, self.state, self.content = args, threading.Lock(), None, b""

    def page(self) -> bytes:
        """Return the page as it is now."""
        with self.lock:
            state = fingerprint(self.args.runs)
            if state != self.state:
                self.content = write(self.args).read_bytes()
                self.state = state
            return self.content


class PageHandler(BaseHTTPRequestHandler):
    """Answers GET / only, and only under the server's own names: another site's name that leads here gets nothing."""

    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Send the page."""
        port = self.server.server_port
        if self.headers.get("Host") not in {f"127.0.0.1:{port}", f"localhost:{port}"}:
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            try:
                status, kind, content = 200, "text/html", self.server.page()
            except (UserError, OSError) as error:
                status, kind, content = 500, "text/plain", f"{error}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            # a header and no tag: the file on disk must not load itself anew, however the server ends
            self.send_header("Refresh", str(max(1, round(self.server.args.every))))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of single requests."""


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
