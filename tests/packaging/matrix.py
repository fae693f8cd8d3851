"""Run the TRL tests against other versions of TRL: `make test-matrix`, or `python tests/packaging/matrix.py 1.10.0`.

Each version goes into a thin environment of its own (`build/trl-VERSION`) that sees everything else of the environment
that runs this script. Downloads one wheel per version; no other dependency moves.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from thin import thin_environment

ROOT = Path(__file__).parents[2]
VERSIONS = ("1.10.0", "1.13.0", "1.16.0")
TESTS = ("tests/trl", "tests/rewards", "tests/test_recipes.py")
NEEDS_1_16 = (
    "one_shot_em",
    "on_policy_entropy_term",
    "entropy_minimisation",
    "test_a_token_without_a_log_probability",
    "test_ppl",
)
"""Before 1.16 TRL gives entropies without a gradient, and its DPO no log-probabilities: these refuse, and say so. TRL
1.10 takes a log-probability that is NaN for a ratio, where later versions take 1."""


def main(versions: list[str]) -> int:
    """Test every version; print a line each, return 1 where one failed."""
    failed = 0
    for version in versions or VERSIONS:
        python = thin_environment(ROOT / "build" / f"trl-{version}", [f"trl=={version}"])
        shown = subprocess.run([python, "-c", "import trl; print(trl.__version__)"], capture_output=True, text=True)
        if shown.stdout.strip() != version:
            print(f"trl {version}: cannot be imported\n{shown.stderr.strip().splitlines()[-1:]}")
            failed += 1
            continue
        started = time.monotonic()
        command = [python, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", *TESTS]
        if tuple(map(int, version.split("."))) < (1, 16):
            command += ["-k", " and ".join(f"not {name}" for name in NEEDS_1_16)]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
        (ROOT / "build" / f"trl-{version}.log").write_text(run.stdout + run.stderr)
        last = (run.stdout.strip().splitlines() or ["no output"])[-1]
        outcome = "passed" if run.returncode == 0 else "FAILED"
        print(f"trl {version}: {outcome} in {time.monotonic() - started:.0f} s: {last}", flush=True)
        failed += run.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
