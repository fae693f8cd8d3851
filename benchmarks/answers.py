"""Answers clustered by meaning, against math-verify on pairs: `python benchmarks/answers.py`.

First a table of pairs by kind: how many each grader gets right, and how many it wrongly calls equal. The pairs, from
public bug reports and variants of ours, are in `tests/answers/cases.jsonl`; `--cases FILE ...` reads others.
Then time: groups of 16 answers, other ones in every turn, so that no cache helps ours; math-verify is used as reward
functions for label-free training usually use it: parse both, verify, the first member of each cluster represents it.
Import and worker start-up are outside the clock for both. CPU seconds, those of the workers included.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import OURS, case, cpu_seconds, interleave, parser_for, write

G = 16
CASES = Path(__file__).parents[1] / "tests" / "answers" / "cases.jsonl"

Pair = tuple[str, str, str, bool]
"""Kind, two answers, whether they are equal."""


def pairs_of(path: Path) -> Iterator[Pair]:
    """Read the clear pairs of a file: rows of one pair (a, b, equal, doubtful), or of many (clear)."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "a" not in row:
            yield from ((row["kind"], a, b, equal) for a, b, equal in row.get("clear", []))
        elif not row.get("doubtful"):
            yield row["kind"], row["a"], row["b"], row["equal"]


def math_verify_equal(first: str, second: str) -> bool:
    """math-verify, either answer as the truth."""
    from math_verify import parse, verify

    one, two = parse(f"${first}$"), parse(f"${second}$")
    return verify(one, two) or verify(two, one)


def official_equal(mode: str) -> Callable[[str, str], bool]:
    """A grader of a published reward, asked about a group of two."""
    from autotelic.compat import rewards

    def equal(first: str, second: str) -> bool:
        try:
            return rewards.rewards([f"\\boxed{{{first}}}", f"\\boxed{{{second}}}"], mode) == [1.0, 1.0]
        except rewards.UnsafeQuirkError:
            return False

    return equal


def kinds(paths: list[Path]) -> dict[str, dict[str, list[int]]]:
    """Return and print, for each kind and grader: pairs right, pairs wrongly equal."""
    from autotelic.answers import equivalent

    graders = {OURS: equivalent, "math-verify": math_verify_equal}
    graders |= {"EMPO": official_equal("empo_verl"), "TTRL": official_equal("ttrl")}
    pairs = [pair for path in paths for pair in pairs_of(path)]
    found: dict[str, dict[str, list[int]]] = {}
    for kind, a, b, equal in pairs:
        row = found.setdefault(kind, {"pairs": [0]} | {name: [0, 0] for name in graders})
        total = found.setdefault("all", {"pairs": [0]} | {name: [0, 0] for name in graders})
        for counts in (row, total):
            counts["pairs"][0] += 1
        for name, grader in graders.items():
            said = grader(a, b)
            for counts in (row, total):
                counts[name][0] += said == equal
                counts[name][1] += said and not equal
    print("right (wrongly equal)".ljust(48), "pairs", *(name.rjust(14) for name in graders))
    for kind, row in [*((k, r) for k, r in found.items() if k != "all"), ("all", found["all"])]:
        cells = (f"{row[name][0]} ({row[name][1]})".rjust(14) for name in graders)
        print(kind.ljust(48), f"{row['pairs'][0]:5}", *cells)
    return found


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


def by_autotelic(answers: list[str]) -> list[int]:
    from autotelic.answers import cluster

    return cluster(answers)


def over_groups(method: Callable[[list[str]], list[int]], make: Callable[[int], list[str]], per_turn: int) -> Any:
    """Return a function that clusters the next few groups at each call; equal for every method."""
    seeds = iter(range(10**9))

    def turn() -> None:
        for _ in range(per_turn):
            method(make(next(seeds)))

    return turn


KINDS = {
    # name: (generator, answers a second to reach, groups a turn)
    "at most 4 different": (few_unique, 5000, 3),
    "16 different polynomials": (unique_polynomials, None, 1),
    "16 different symbolic": (unique_symbolic, 80, 1),
    "4 symbolic in 4 spellings": (few_symbolic, 50, 2),
}


def main(options: list[str] | None = None) -> dict[str, Any]:
    parser = parser_for(__doc__, repeats=3)
    parser.add_argument("--cases", nargs="+", type=Path, default=[CASES], help="files of pairs with their kinds")
    parser.add_argument("--only-cases", action="store_true", help="print the table by kind and stop")
    args = parser.parse_args(options)
    table = kinds(args.cases) if not args.smoke else {}
    if args.only_cases:
        return table
    from autotelic.answers import default_pool

    default_pool().warm_up()
    by_autotelic([r"\sin x", r"\cos x"])
    by_math_verify(["1", "\\frac12"])
    cases = []
    for name, (make, wanted, per_turn) in KINDS.items():
        if args.smoke and make is not few_unique:
            continue
        per_turn = 1 if args.smoke else per_turn
        sides = {
            OURS: over_groups(by_autotelic, make, per_turn),
            "math-verify": over_groups(by_math_verify, make, per_turn),
        }
        seconds = interleave(sides, args.repeats, clock=cpu_seconds)
        rates = {side: G * per_turn * len(turns) / sum(turns) for side, turns in seconds.items()}
        row = case(name, seconds, answers_per_second=rates, target=1.0)
        if wanted is not None:
            row["floor"] = {"answers per second": rates[OURS], "at least": wanted}
        cases.append(row)
    work = {"pairs_by_kind": table, "group": G, "groups_a_turn": {name: kind[2] for name, kind in KINDS.items()}}
    return write("answers", args, cases, work=work, clock="CPU seconds, workers included")


if __name__ == "__main__":
    main()
