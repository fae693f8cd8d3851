"""Run the TRL tests against other versions: `make test-matrix`, or `python tests/packaging/matrix.py trl==1.10.0`.

The oldest and newest TRL that pyproject.toml allows, and its oldest transformers. Each set goes into a thin environment
of its own (`build/trl-1.10.0`) that sees everything else of the environment that runs this script, which has the newest
of the rest. No other dependency moves.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from thin import thin_environment

ROOT = Path(__file__).parents[2]
OLDEST_TRANSFORMERS = ("transformers==5.0.0", "huggingface_hub==1.33.0", "tokenizers==0.22.2", "httpx==0.28.1")
OLDEST_TRANSFORMERS += ("httpcore==1.0.9", "jmespath==1.0.1")  # with which TRL reads calls of tools before 5.13
SETS = {
    "trl==1.10.0": ("trl==1.10.0",),
    "trl==1.13.0": ("trl==1.13.0",),
    "trl==1.16.0": ("trl==1.16.0",),
    "transformers==5.0.0": OLDEST_TRANSFORMERS,
    "trl==1.10.0,transformers==5.0.0": ("trl==1.10.0", *OLDEST_TRANSFORMERS),
}
TESTS = ("tests/trl", "tests/rewards", "tests/test_recipes.py")
LM_TESTS = ("tests/lm", "tests/test_evaluation.py")
"""Beside those above, where transformers is another one."""
NEEDS_NEWER_TRANSFORMERS = ("prefill_chunk_size",)
"""transformers 5.0 cannot read a prompt in chunks."""


def main(names: list[str]) -> int:
    """Test every set; print a line each, return 1 where one failed."""
    failed = 0
    for name in names or SETS:
        folder = ROOT / "build" / name.replace("==", "-").replace(",", "-")
        python = thin_environment(folder, SETS[name])
        shown = "import importlib.metadata as m; print(*(f'{n}=={m.version(n)}' for n in ('trl', 'transformers')))"
        command = [python, "-c", f"import trl, transformers; {shown}"]
        found = subprocess.run(command, capture_output=True, text=True)
        if not all(part in found.stdout.split() for part in name.split(",")):
            print(f"{name}: cannot be imported\n{found.stderr.strip().splitlines()[-1:]}")
            failed += 1
            continue
        started = time.monotonic()
        tests = TESTS if "transformers" not in name else (*TESTS, *LM_TESTS)
        command = [python, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", *tests]
        left_out = NEEDS_NEWER_TRANSFORMERS if "transformers" in name else ()
        command += ["-k", " and ".join(f"not {test}" for test in left_out)] if left_out else []
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
        folder.with_suffix(folder.suffix + ".log").write_text(run.stdout + run.stderr)
        last = (run.stdout.strip().splitlines() or ["no output"])[-1]
        outcome = "passed" if run.returncode == 0 else "FAILED"
        print(f"{name}: {outcome} in {time.monotonic() - started:.0f} s: {last}", flush=True)
        failed += run.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
