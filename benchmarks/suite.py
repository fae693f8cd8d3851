"""Every benchmark in turn, then docs/performance.md: `make bench`, or `python benchmarks/suite.py [--only NAME ...]`.

Each part runs in a process of its own, on one thread. A part that fails does not stop the others; the exit status then
is 1. Under fifteen minutes on two cores, without peers that are not installed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PARTS = (
    "head",
    "covariance",
    "answers",
    "em_step",
    "grpo_step",
    "prefix",
    "ppl_update",
    "scaling",
    "memory",
    "startup",
)


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; nothing is written")
    args = parser.parse_args(options)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    failed, began = [], time.perf_counter()
    for part in args.only:
        print(f"== {part}", flush=True)
        started = time.perf_counter()
        command = [sys.executable, str(HERE / f"{part}.py"), *(["--smoke"] if args.smoke else [])]
        if subprocess.run(command, env=environment, check=False).returncode:
            failed.append(part)
        print(f"   {time.perf_counter() - started:.0f} s", flush=True)
    if not args.smoke:
        from page import page

        (HERE.parent / "docs" / "performance.md").write_text(page(HERE / "results"))
    print(f"{time.perf_counter() - began:.0f} s in all" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
