"""`autotelic forecast A B C --across size`: the law's coefficients as lines in the logarithm of the model's size."""

import math
from pathlib import Path
from typing import Any

from autotelic.errors import UserError

COEFFICIENTS = ("a", "b", "ceiling")


def size_of(log: Path) -> int | None:
    """Return the number of parameters of the model that a run folder is about; None where nothing tells it.

    `run.json` of our own runs has it; else it is counted from the header of `model.safetensors`.
    """
    from autotelic.report.run_folders import read_object

    folder = log if log.is_dir() else log.parent
    try:
        known = read_object(folder / "run.json").get("parameters")
    except (OSError, UserError):
        known = None  # there is none, or it is another program's
    if isinstance(known, int):
        return known
    weights = folder / "model.safetensors"
    return parameters_in(weights) if weights.is_file() else None


def parameters_in(weights: Path) -> int:
    """Return how many numbers a safetensors file holds; a tied head is stored once."""
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def sizes_of(logs: list[Path], given: list[float] | None) -> list[float]:
    """Return one size per log: those given, or what the run folders tell."""
    if given:
        if len(given) != len(logs):
            raise UserError(f"--sizes has {len(given)} number(s) for {len(logs)} log(s): give one each, in their order")
        return given
    found = [size_of(log) for log in logs]
    unknown = [str(log) for log, size in zip(logs, found, strict=True) if size is None]
    if unknown:
        raise UserError(
            f"the size of the model is not known for {', '.join(unknown)}: give --sizes, one number of parameters per "
            "log, such as 1.5e9 3e9 7e9"
        )
    return [float(size) for size in found if size is not None]


def across_sizes(results: list[dict[str, Any]], sizes: list[float], at: list[float]) -> dict[str, Any]:
    """Return the line of a, b and the ceiling in ln N, what the smaller models say of the largest, and predictions.

    Args:
        results: one fitted law per log, as `autotelic forecast` returns it; logs without a law are left out.
        sizes: number of parameters, one per log.
        at: further sizes to predict.
    """
    from autotelic.functional.law_across_sizes import fit_sizes, predict_largest

    pairs = [(size, result) for size, result in zip(sizes, results, strict=True) if "error" not in result]
    known = [size for size, _ in pairs]
    found: dict[str, Any] = {"sizes": known}
    for name in COEFFICIENTS:
        values = [result[name] for _, result in pairs]
        line, largest = fit_sizes(known, values), predict_largest(known, values)
        found[name] = {
            "slope": line.slope,
            "slope_interval": list(line.slope_interval),
            "largest": largest
            and {
                "size": largest.size,
                "predicted": largest.predicted,
                "interval": list(largest.interval),
                "fitted": largest.fitted,
            },
            "predictions": [
                {"size": size, "value": line.predict(size), "interval": list(line.interval(size))} for size in at
            ],
        }
    return found


def across_text(found: dict[str, Any]) -> str:
    """Return the findings for people."""
    lines = [f"across {len(set(found['sizes']))} sizes, {len(found['sizes'])} runs: value = c0 + c1 ln N"]
    lines.append(f"  {'':<9}{'c1, for e times the parameters':>36}{'largest, from the smaller':>36}{'as fitted':>12}")
    for name in COEFFICIENTS:
        low, high = found[name]["slope_interval"]
        slope = f"{found[name]['slope']:+.4f}  [{low:+.4f}, {high:+.4f}]"
        cells = f"  {name:<9}{slope:>36}"
        largest = found[name]["largest"]
        if largest:
            low, high = largest["interval"]
            predicted = f"{largest['predicted']:.4f}  [{low:.4f}, {high:.4f}]"
            cells += f"{predicted:>36}{largest['fitted']:>12.4f}"
        lines.append(cells)
    for index, prediction in enumerate(found["a"]["predictions"]):
        each = [found[name]["predictions"][index] for name in COEFFICIENTS]
        texts = [
            f"{name} {p['value']:.4f} [{p['interval'][0]:.4f}, {p['interval'][1]:.4f}]"
            for name, p in zip(COEFFICIENTS, each, strict=True)
        ]
        lines.append(f"  at {prediction['size']:,.0f} parameters: " + ", ".join(texts))
    if not found["a"]["largest"]:
        lines.append("warning: the smaller models are too few to predict the largest: it takes three runs of two sizes")
    lines.append("intervals: 95 %, Student t over runs; the last two are for one further run of that size")
    return "\n".join(lines)
