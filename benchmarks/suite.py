"""Every benchmark in turn, then docs/performance.md: `make bench`, or `python benchmarks/suite.py [--only NAME ...]`.

Each part runs in a process of its own, on one thread. Two parts run at a time, a core each: the sides of a part take
turns and are compared by CPU seconds. What measures wall seconds comes last, alone. A part that fails does not stop the
others; the exit status then is 1. Under fifteen minutes on two quiet cores.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
IN_PAIRS = ("head", "answers", "scaling", "grpo_step", "prefix", "memory", "em_step", "ppl_update", "covariance")
"""The longest first."""
ALONE = ("startup",)
PARTS = IN_PAIRS + ALONE


def run(part: str, smoke: bool) -> bool:
    """Run one benchmark, print what it printed when it is done, and return whether it succeeded."""
    print(f"{part} begins", flush=True)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / f"{part}.py"), *(["--smoke"] if smoke else [])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    how = "ends" if done.returncode == 0 else "failed"
    print(f"{done.stdout}{part} {how} after {time.perf_counter() - started:.0f} s", flush=True)
    return done.returncode == 0


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; nothing is written")
    args = parser.parse_args(options)
    began = time.perf_counter()
    succeeded = {}
    for parts, at_once in ((IN_PAIRS, 2), (ALONE, 1)):
        chosen = [part for part in parts if part in args.only]
        with ThreadPoolExecutor(at_once) as lanes:
            succeeded |= zip(chosen, lanes.map(lambda part: run(part, args.smoke), chosen), strict=True)
    failed = [part for part, well in succeeded.items() if not well]
    if not args.smoke:
        from page import page

        (HERE.parent / "docs" / "performance.md").write_text(page(HERE / "results"))
    print(f"{time.perf_counter() - began:.0f} s in all" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
