"""The tables behind `autotelic control tree` and `autotelic control mdp`: rows with intervals, over seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from autotelic.control.mdp import random_mdps
from autotelic.control.mdp.tree import METHODS, Judge, build_tree, population_fit, sample_fit
from autotelic.errors import UserError, closest

Number = float | int
Row = dict[str, Any]
Progress = Callable[[str], None]


def mean_interval(values: Float[ndarray, " N"], level: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds with Student's t interval; the interval of a single seed is the whole line."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def share_interval(successes: int, count: int, level: float = 0.95) -> tuple[float, float, float]:
    """Share of seeds with Wilson's score interval."""
    interval = stats.binomtest(successes, count).proportion_ci(level, method="wilson")
    return successes / count, float(interval.low), float(interval.high)


def check_methods(names: Sequence[str], valid: Sequence[str]) -> None:
    """Refuse an unknown method by name."""
    for name in names:
        if name not in valid:
            raise UserError(f"unknown method {name!r}{closest(name, valid)}: one of {', '.join(valid)}.")


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
    rows = []
    for share in p_bad:
        tree = build_tree(share, slip, judge, temperature)
        for name in names:
            row: Row = {"p_bad": share, "method": name, "truth": tree.truth, "population": population_fit(tree, name)}
            if num_seeds and num_pairs:
                fits = np.array([sample_fit(tree, name, num_pairs, seed) for seed in range(num_seeds)])
                row["mean"], row["low"], row["high"] = mean_interval(fits)
                hits = int(((fits > 0.5) == (tree.truth > 0.5)).sum())
                row["right"], row["right_low"], row["right_high"] = share_interval(hits, num_seeds)
            rows.append(row)
        progress(f"p_bad {share}: {len(names)} methods x {num_seeds} seeds")
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
    for judge in judges:
        for count in pairs:
            seeds = [random_mdps.run_seed(count, judge, seed, chosen, setup) for seed in range(num_seeds)]
            results = {name: np.array([seed[name] for seed in seeds]) for name in seeds[0]}
            for name in chosen:
                row: Row = {"judge": judge, "pairs": count, "method": name}
                row["mean"], row["low"], row["high"] = mean_interval(results[name])
                gap = mean_interval(results[name] - results["cpl"])
                row["minus_cpl"], row["minus_cpl_low"], row["minus_cpl_high"] = gap
                if name == "auto":
                    row["auto_is_ppl"] = float(results["auto_is_ppl"].mean())
                rows.append(row)
            progress(f"{judge}, {count} pairs: {len(chosen)} methods x {num_seeds} seeds")
    return rows


def format_table(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> str:
    """Return an aligned plain-text table; `columns` are (heading, format of the row), as in ('KL', '{mean:.3f}')."""
    cells = [[heading for heading, _ in columns]]
    cells += [[template.format(**row) for _, template in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)
