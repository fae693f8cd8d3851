"""How many answers a second? ``python benchmarks/answers.py [--out FILE.json]``, on one core.

Groups of 16 answers, clustered by autotelic (cold cache in every repetition: other answers each time) and, in the same
run, by math-verify used pairwise (parse both, verify; the first member of each cluster represents it), which is what
reward functions for label-free training usually do. Import and worker start-up are outside the clock for both.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

G = 16


def few_unique(seed: int) -> list[str]:
    """At most 4 different answers, in several spellings."""
    rng = random.Random(seed)
    n, d = rng.randrange(100, 10**6), rng.choice((2, 4, 5, 8))
    pool = [f"\\frac{{{n}}}{{{d}}}", str(n / d), str(n + 1), f"{n}\\sqrt{{3}}"]
    return [rng.choice(pool) for _ in range(G)]


def unique_polynomials(seed: int) -> list[str]:
    """16 different polynomials: symbolic, and inside the exact ring."""
    rng = random.Random(seed)
    return [f"{rng.randrange(2, 999)}x^2 + {rng.randrange(2, 999)}x - {k}" for k in range(G)]


def unique_symbolic(seed: int) -> list[str]:
    """16 different formulas that need symbolic work."""
    rng = random.Random(seed)
    shapes = (
        "\\sin({}x) + {}",
        "{}^{{n}} + {}",
        "\\frac{{x^2 + {}}}{{x + {}}}",
        "\\log({}x) - {}",
        "\\sqrt{{x + {}}} + {}",
    )
    return [shapes[k % len(shapes)].format(rng.randrange(2, 999), 2 + k) for k in range(G)]


def few_symbolic(seed: int) -> list[str]:
    """16 spellings of 4 formulas: equality has to be proved, by the worker."""
    rng = random.Random(seed)
    a, b = rng.randrange(2, 999), rng.randrange(2, 999)
    formulas = (
        [f"\\sin({a}x) + {b}", f"{b} + \\sin({a}x)", f"\\sin({a} x)+{b}", f"{b}+\\sin(x \\cdot {a})"],
        [f"{a}^{{n+1}}", f"{a} \\cdot {a}^n", f"{a}^n \\cdot {a}", f"{a}^{{1+n}}"],
        [f"\\frac{{x^2-{b * b}}}{{x-{b}}}", f"x+{b}", f"{b}+x", f"\\frac{{(x-{b})(x+{b})}}{{x-{b}}}"],
        [f"\\sqrt{{x+{a}}}", f"\\sqrt{{{a}+x}}", f"(x+{a})^{{1/2}}", f"({a}+x)^{{\\frac12}}"],
    )
    return [spelling for group in formulas for spelling in group]


def by_math_verify(answers: list[str]) -> list[int]:
    """Cluster by calling math-verify on pairs."""
    from math_verify import parse, verify

    firsts: list[str] = []
    labels = []
    for answer in answers:
        same = (label for label, first in enumerate(firsts) if verify(parse(f"${first}$"), parse(f"${answer}$")))
        label = next(same, len(firsts))
        if label == len(firsts):
            firsts.append(answer)
        labels.append(label)
    return labels


def rate(method: Callable[[list[str]], list[int]], groups: list[list[str]]) -> float:
    """Return answers per second."""
    started = time.perf_counter()
    for group in groups:
        method(group)
    return sum(map(len, groups)) / (time.perf_counter() - started)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--groups", type=int, default=60)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for everything, workers included

    from autotelic.answers import cluster, default_pool

    default_pool().warm_up()
    cluster([r"\sin x", r"\cos x"])
    by_math_verify(["1", "\\frac12"])
    rows = []
    for name, make, target in (
        ("<= 4 unique", few_unique, 500),
        ("16 unique polynomials", unique_polynomials, None),
        ("16 unique symbolic", unique_symbolic, 50),
        ("4 symbolic x 4 spellings", few_symbolic, 50),
    ):
        groups = [make(seed) for seed in range(args.groups)]
        few = [make(seed) for seed in range(10**6, 10**6 + max(args.groups // 20, 1))]
        ours, theirs = rate(cluster, groups), rate(by_math_verify, few)
        rows.append(
            {"groups": name, "autotelic": ours, "math_verify": theirs, "ratio": ours / theirs, "target": target}
        )
        print(
            f"{name:24} autotelic {ours:7.0f}/s  math-verify {theirs:6.1f}/s  x {ours / theirs:6.1f}  (target {target})"
        )
    print(f"worker: {default_pool().stats}")
    if args.out:
        args.out.write_text(json.dumps({"G": G, "cpu_count": 1, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
