"""The tables of `autotelic control lqr` in benchmarks/results/control_lqr.md: the full grid, then one change at a time.

python benchmarks/control_lqr.py run --output benchmarks/results/control_lqr.json     # about 5 minutes of one CPU
python benchmarks/control_lqr.py table benchmarks/results/control_lqr.json > benchmarks/results/control_lqr.md
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from autotelic.control.intervals import Interval
from autotelic.control.mdp.lqr_fits import ARMS, JUDGES, SETS
from autotelic.control.mdp.tables import lqr_chart, lqr_table

ALPHA = 0.12
FEW = ("cpl", "ppl", "ppl_regressed", "ppl_observed", "ppl_in_segment_mean")
CELLS = (("same", 8), ("mono", 8), ("anti", 1))
CHANGES: dict[str, dict[str, Any]] = {
    "slip 1": {"slip": 1.0},
    "judge never errs": {"temperature": 0.0},
    "temperature 10 alpha": {"temperature": 10 * ALPHA},
    "temperature 100 alpha": {"temperature": 100 * ALPHA},
    "200 pairs": {"num_pairs": 200},
    "5000 pairs": {"num_pairs": 5000},
}
DEFAULT = {"num_pairs": 1000, "temperature": None, "slip": 0.0}


def run(seeds: int) -> dict[str, Any]:
    def say(line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)

    started = time.process_time()
    grid = lqr_table(list(SETS), [1, 8, 32], JUDGES, num_seeds=seeds, progress=say, **DEFAULT)
    changed = {}
    for name, change in CHANGES.items():
        changed[name] = [
            row
            for behaviors, length in CELLS
            for row in lqr_table(
                [behaviors], [length], ["regret"], num_seeds=seeds, names=FEW, progress=say, **(DEFAULT | change)
            )
        ]
    spent = round(time.process_time() - started)
    return {
        "seeds": seeds,
        "cpu_seconds": spent,
        "grid": strip(grid),
        "changes": {k: strip(v) for k, v in changed.items()},
    }


def strip(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the texts, rounded."""
    return [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if not k.endswith("text")}
        for row in rows
    ]


def cell(row: dict[str, Any], seeds: int) -> str:
    """Mean, and the paired difference with CPL."""
    own = Interval(row["mean"], row["low"], row["high"], seeds).mean
    if row["method"] == "cpl":
        return f"{own:.2f}"
    gap = Interval(row["minus_cpl"], row["minus_cpl_low"], row["minus_cpl_high"], seeds)
    clear = gap.low is not None and gap.high is not None and (gap.high < 0 or gap.low > 0)
    text = f"{own:.2f} ({gap.short(2, sign=True)})"
    return f"**{text}**" if clear and gap.mean < 0 else text


def table(result: dict[str, Any]) -> str:
    seeds, lines = result["seeds"], []
    for judge in JUDGES:
        rows = [row for row in result["grid"] if row["judge"] == judge]
        lines += section(f"Judged by {judge}", rows, ARMS, seeds)
    for name, rows in result["changes"].items():
        lines += section(f"Judged by regret, {name}", rows, FEW, seeds)
    head = [
        "# Linear-Gaussian control in closed form: CPL and PPL",
        "",
        "`python benchmarks/control_lqr.py run`. Excess cost of the fitted policy: 0 is optimal, 1 the better "
        f"behaviour's, at most 10. {seeds} seeds; in brackets the paired difference with CPL and the half-width of its "
        "95 % interval; "
        "bold: below CPL, interval without zero. 1000 pairs, judge's temperature alpha, no slip, unless a title says "
        f"otherwise. {result['cpu_seconds']} s of one CPU.",
        "",
    ]
    return "\n".join(head + lines)


def section(title: str, rows: list[dict[str, Any]], arms: tuple[str, ...], seeds: int) -> list[str]:
    cells = list(dict.fromkeys((row["set"], row["segment"]) for row in rows))
    found = {(row["set"], row["segment"], row["method"]): row for row in rows}
    names = " | ".join(f"{behaviors}, {length}" for behaviors, length in cells)
    lines = [f"## {title}", "", f"| arm | {names} |", "| --- " * (len(cells) + 1) + "|"]
    for arm in arms:
        shown = [cell(row, seeds) if (row := found.get((*place, arm))) else "" for place in cells]
        lines.append(f"| {arm} | " + " | ".join(shown) + " |")
    chance = [f"{next(r['label_entropy'] for r in rows if (r['set'], r['segment']) == c):.3f}" for c in cells]
    return [*lines, "| chance in a label, nats | " + " | ".join(chance) + " |", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path, help="with `table`: draw the regret judge's grid into this SVG file")
    args = parser.parse_args()
    if args.what == "table":
        result = json.loads(args.path.read_text())
        print(table(result))
        if args.plot:
            args.plot.write_text(lqr_chart(result["grid"], "regret", (*FEW, "ppl_wrong")))
        return
    result = run(args.seeds)
    text = json.dumps(result).replace('{"set"', '\n{"set"')
    (args.output or Path("control_lqr.json")).write_text(text + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
