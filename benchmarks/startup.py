"""How long until something happens: `python benchmarks/startup.py`. Wall seconds of fresh processes.

`import autotelic` and `autotelic --help` are to take less than a second, the help of a command less than two, and
`autotelic train` less than twenty to its first update. `import trl`, which every training run needs, is beside them: it
is what no adapter can do without.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import parser_for, write

CODE = {
    "import autotelic": ("import autotelic", 1.0),
    "autotelic --help": ("from autotelic.cli.main import main; main(['--help'])", 1.0),
    "import torch": ("import torch", None),
    "import trl's GRPOTrainer": ("from trl import GRPOTrainer", None),
}


def helps() -> dict[str, tuple[str, float]]:
    """Return the code that shows the help of each command, and of the longest: `train METHOD`."""
    from autotelic.cli.main import COMMANDS

    words = [[name] for name in COMMANDS] + [["train", "grpo"]]
    return {
        f"autotelic {' '.join(w)} --help": (f"from autotelic.cli.main import main; main({[*w, '--help']})", 2.0)
        for w in words
    }


def fresh(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def first_update() -> float:
    """Seconds from the start of `autotelic train` to the first row of its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["train", "grpo", "--model_name_or_path", "any_pair", "--dataset", "chain_sums:train", "--quiet"]
        sizes = ["--per_device_train_batch_size", "16", "--max_completion_length", "16", "--max_steps", "1"]
        started = time.perf_counter()
        command = [sys.executable, "-m", "autotelic", *options, *sizes, "--output_dir", f"{folder}/run"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        metrics = Path(folder) / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() not in (None, 0):
                raise RuntimeError(process.stderr.read().decode() if process.stderr else "train failed")
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        process.communicate()
        return seconds


def main(options: list[str] | None = None) -> dict[str, Any]:
    args = parser_for(__doc__, repeats=2).parse_args(options)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    turns = {name: (lambda code=code: fresh(code), limit) for name, (code, limit) in (CODE | helps()).items()}
    if args.smoke:
        turns = {"import autotelic": turns["import autotelic"]}
    else:
        turns["autotelic train, to the first update"] = (first_update, 20.0)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(args.repeats + (not args.smoke)):
        for name, (run, _) in turns.items():
            taken = run()
            if turn or args.smoke:  # the first finds nothing in the file cache
                seconds[name].append(taken)
    rows = []
    for name, (_, limit) in turns.items():
        middle = statistics.median(seconds[name])
        print(f"{name}: {middle:.2f} s", flush=True)
        rows.append({"name": name, "seconds": {"median": middle, "all": seconds[name]}, "at_most": limit})
    return write("startup", args, rows, work={"state": "file cache warm"}, clock="wall seconds")


if __name__ == "__main__":
    main()
