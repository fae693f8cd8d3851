"""The tables behind `autotelic control tree`, `mdp` and `lqr`: rows with intervals, over seeds.

An interval of fewer than three seeds is None; a row's `text` says so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autotelic.control.intervals import mean_interval, share_interval
from autotelic.control.mdp import lqr_fits, random_mdps
from autotelic.control.mdp.tree import METHODS, Judge, build_tree, population_fit, sample_fit
from autotelic.control.plot import line_chart
from autotelic.errors import UserError, one_of
from autotelic.functional.lookahead import Lookahead
from autotelic.runs.time_left import TimeLeft

Number = float | int
Row = dict[str, Any]

Progress = Callable[[str], None]


def check_methods(names: Sequence[str], valid: Sequence[str]) -> None:
    """Refuse an unknown method by name."""
    for name in names:
        if name not in valid:
            raise UserError(f"unknown method {name!r}{one_of(name, valid)}")


def tree_table(
    p_bad: Sequence[Number],
    slip: Number,
    judge: Judge,
    num_pairs: int,
    num_seeds: int,
    names: Sequence[str] = tuple(METHODS),
    temperature: Number = 1.0,
    progress: Progress = lambda line: None,
) -> list[Row]:
    """Fitted pi(up) per mixture and method: for infinite data, and over seeds of `num_pairs` sampled comparisons.

    Row: `p_bad`, `method`, `truth`, `population`, and with seeds `mean`, `low`, `high` (of pi(up)), `right`,
    `right_low`, `right_high` (share of seeds whose most likely action at s0 is the true one).
    """
    check_methods(names, tuple(METHODS))
    rows, clock = [], TimeLeft(len(p_bad))
    for share in p_bad:
        tree = build_tree(share, slip, judge, temperature)
        for name in names:
            row: Row = {"p_bad": share, "method": name, "truth": tree.truth, "population": population_fit(tree, name)}
            if num_seeds and num_pairs:
                fits = np.array([sample_fit(tree, name, num_pairs, seed) for seed in range(num_seeds)])
                found = mean_interval(fits, within=(0, 1))
                row |= {"mean": found.mean, "low": found.low, "high": found.high, "text": found.text()}
                hits = int(((fits > 0.5) == (tree.truth > 0.5)).sum())
                row["right"], row["right_low"], row["right_high"] = share_interval(hits, num_seeds)
            rows.append(row)
        progress(f"p_bad {share}: {len(names)} methods x {num_seeds} seeds{clock.after()}")
    return rows


def mdp_table(
    pairs: Sequence[int],
    judges: Sequence[random_mdps.Judge],
    num_seeds: int,
    names: Sequence[str] | None = None,
    setup: random_mdps.Setup = random_mdps.DEFAULT,
    progress: Progress = lambda line: None,
) -> list[Row]:
    """KL(pi* || fit) per judge, number of pairs and method, over seeds (one random MDP each).

    Row: `judge`, `pairs`, `method`, `mean`, `low`, `high` in nats, and the same paired with CPL: `minus_cpl`,
    `minus_cpl_low`, `minus_cpl_high` (below 0: nearer to pi* than CPL). `auto` rows also hold `auto_is_ppl`, a share.
    """
    valid = (*random_mdps.methods(setup.gamma), "auto")
    chosen = list(valid if names is None else names)
    check_methods(chosen, valid)
    chosen = chosen if "cpl" in chosen else ["cpl", *chosen]
    rows: list[Row] = []
    clock = TimeLeft(len(judges) * sum(pairs))  # a fit takes as long as it has pairs
    for judge in judges:
        for count in pairs:
            seeds = [random_mdps.run_seed(count, judge, seed, chosen, setup) for seed in range(num_seeds)]
            results = {name: np.array([seed[name] for seed in seeds]) for name in seeds[0]}
            for name in chosen:
                row: Row = {"judge": judge, "pairs": count, "method": name}
                found, gap = mean_interval(results[name]), mean_interval(results[name] - results["cpl"])
                row |= {"mean": found.mean, "low": found.low, "high": found.high, "text": found.text(4)}
                row |= {"minus_cpl": gap.mean, "minus_cpl_low": gap.low, "minus_cpl_high": gap.high}
                row["minus_cpl_text"] = gap.text(4, sign=True)
                if name == "auto":
                    row["auto_is_ppl"] = float(results["auto_is_ppl"].mean())
                rows.append(row)
            progress(f"{judge}, {count} pairs: {len(chosen)} methods x {num_seeds} seeds{clock.after(count)}")
    return rows


def lqr_table(
    sets: Sequence[str],
    segments: Sequence[int],
    judges: Sequence[str],
    num_pairs: int,
    temperature: Number | None,
    slip: Number,
    num_seeds: int,
    names: Sequence[str] | None = None,
    progress: Progress = lambda line: None,
) -> list[Row]:
    """Excess cost on linear-Gaussian control per set of behaviours, segment length, judge and arm, over seeds.

    Row: `set`, `segment`, `judge`, `method`, `mean`, `low`, `high`, the same paired with CPL (`minus_cpl`, ...; below
    0: cheaper than CPL), and `label_entropy`: nats of chance that the judge leaves in an answer.
    """
    chosen = list(names or lqr_fits.ARMS)
    check_methods(chosen, lqr_fits.ARMS)
    rows: list[Row] = []
    clock = TimeLeft(len(sets) * len(segments) * num_seeds)
    for behaviors in sets:
        for length in segments:
            cells = []
            for seed in range(num_seeds):
                cells.append(lqr_fits.run_cell(behaviors, length, judges, num_pairs, temperature, slip, seed, chosen))
                progress(f"{behaviors}, segments of {length}: seed {seed + 1}/{num_seeds}{clock.after()}")
            for judge in judges:
                results = {name: np.array([cell[judge][name] for cell in cells]) for name in cells[0][judge]}
                entropy = float(results.pop("label_entropy").mean())
                for name, values in results.items():
                    found = mean_interval(values, within=(0, lqr_fits.WORST))
                    gap = mean_interval(values - results["cpl"])
                    row: Row = {"set": behaviors, "segment": length, "judge": judge, "method": name}
                    row |= {"mean": found.mean, "low": found.low, "high": found.high, "text": found.text()}
                    row |= {"minus_cpl": gap.mean, "minus_cpl_low": gap.low, "minus_cpl_high": gap.high}
                    rows.append(row | {"minus_cpl_text": gap.text(sign=True), "label_entropy": entropy})
    for name, lookahead in (("ppl_observed", Lookahead("observed")), ("ppl_in_segment", Lookahead("in_segment"))):
        if any(method.startswith(name) for method in chosen):
            lookahead.warn_if_biased(True)
    return rows


def lqr_chart(rows: Sequence[Row], judge: str, names: Sequence[str] | None = None) -> str:
    """Draw the excess cost of some arms under one judge, cell by cell, on a logarithmic axis."""
    kept = [row for row in rows if row["judge"] == judge and (names is None or row["method"] in names)]
    cells = list(dict.fromkeys((row["set"], row["segment"]) for row in kept))
    series: dict[str, list[tuple[Number, Number, Number, Number]]] = {}
    for row in kept:
        place, mean = cells.index((row["set"], row["segment"])) + 1, row["mean"]
        low, high = (mean if row[side] is None else max(row[side], 0.005) for side in ("low", "high"))
        series.setdefault(row["method"], []).append((place, mean, low, high))
    shown = ", ".join(f"{i + 1}: {name} {length}" for i, (name, length) in enumerate(cells))
    title = f"Linear-Gaussian control, judged by {judge}"
    return line_chart(series, title, shown, "excess cost: 0 is optimal, 1 the better behaviour", log_y=True)


def format_table(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> str:
    """Return an aligned plain-text table; `columns` are (heading, format of the row), as in ('KL', '{mean:.3f}')."""
    cells = [[heading for heading, _ in columns]]
    cells += [[template.format(**row) for _, template in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)
