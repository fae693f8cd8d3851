"""Which answers are one answer: spellings, pairs from public bug reports, and what is decided without a worker."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotelic.answers import MathEquivalence, Pool, as_fraction, cluster, default_pool, equivalent
from autotelic.answers.fast import decide, plain

CASES = [json.loads(line) for line in (Path(__file__).parent / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
"""Pairs (first, second, equal) with their kind and source; the doubtful ones follow the conventions of the docs."""

SAME = [
    ["1/2", "0.5", r"\frac12", r"\frac{1}{2}", r"50\%", "50%", r"\dfrac{2}{4}", ".5", "$0.50$", "x = 1/2", "½"],
    ["1000", "1,000", "1{,}000", r"1\,000", r"10^3", "1e3", r"\$1000", "1000.0", r"1{,}\!000"],
    [r"2\sqrt{3}", r"\sqrt{12}", r"2\sqrt3", r"2 \cdot \sqrt{3}", "2√3", r"\frac{6}{\sqrt{3}}"],
    [r"\frac{\pi}{2}", r"\pi/2", "π/2", r"\frac{1}{2}\pi", r"0.5\pi"],
    ["(1,2)", r"\left( 1, 2 \right)", "(1.0, 4/2)"],
    ["1, 2", r"\{2, 1\}", "2 and 1", r"1 \text{ or } 2", "x=1, x=2", r"\left\{1,2\right\}"],
    ["[3, 4)", r"\left[3,4\right)", r"3 \leq x < 4", r"x \in [3,4)"],
    [r"(-\infty, 3)", "x < 3", r"\left(-\infty,3\right)"],
    [r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"],
    [r"x^2 + 3x - 1", "3x - 1 + x^2", "y = x^2+3x-1", r"x^{2}+3\cdot x-1"],
    [r"1\frac{4}{5}", "9/5", "1.8", "1 4/5"],
    ["12 apples", r"12\text{ apples}", "12", "012"],
    ["15 cm^2", r"15\mbox{ cm}^2", "15", r"15 \text{ cm}^{2}"],
    [r"90^\circ", "90", "90°", "90 degrees", r"90^{\circ}"],
    ["A", "(A)", r"\text{A}", r"\textbf{(A)}", "A.", "(A)."],
    ["Yes", "yes.", r"\text{Yes}", "YES"],
    [r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"],
    ["6 - 5i", "-5i+6"],
    ["2x + 3y = 6", "4x+6y=12", "6 - 2x - 3y = 0"],
    [r"(0,9) \cup (9,36)", r"(9, 36)\cup(0,9)"],
    ["5!", "120"],
    [r"\binom{5}{2}", "10"],
]  # fmt: skip


@pytest.mark.parametrize("spellings", SAME, ids=lambda group: group[0])
def test_spellings_are_one_answer(spellings):
    assert cluster(spellings) == [0] * len(spellings)


def test_different_answers_are_different():
    firsts = [group[0] for group in SAME]
    assert cluster(firsts) == list(range(len(firsts)))
    for a, b in [
        ("5040", "5041"), ("512", "513"), ("180", r"\pi"), ("1/3", "0.333"), ("50%", "50"), ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"), ("(100,200)", "100200"), ("x=1, y=2", "x=2, y=1"), ("7:30", "7.5"), ("1011_2", "1011"),
        (r"\infty", r"-\infty"), ("1e400", "1e401"), ("3 AM", "3 PM"), ("x", "y"), ("|x|", "x"), ("x^2=4", "x^2=9"),
    ]:  # fmt: skip
        assert not equivalent(a, b), (a, b)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["kind"].replace(" ", "-"))
def test_pairs_from_bug_reports(case):
    rows = case.get("clear", []) + case.get("doubtful", [])
    assert not [row for row in rows if equivalent(row[0], row[1]) is not row[2]]
    assert not [row for row in rows if equivalent(row[1], row[0]) is not row[2]]


def test_what_is_decided_without_a_worker_is_right():
    """No clear pair is decided wrongly, and values never prove equality: whatever is True there has equal keys."""
    decided = Counter()
    for case in CASES:
        for a, b, equal in case.get("clear", []):
            first, second = plain(a), plain(b)
            if first is None or second is None:  # no answer is equal to nothing
                assert equal is False, (a, b)
                continue
            verdict = decide(first, second)
            assert verdict in (None, equal), (a, b)
            decided[verdict] += 1
    assert decided[True] > 150
    assert decided[False] > 5
    assert decide(plain(r"\sqrt{10^{60}+1}"), plain("10^{30}")) is None
    assert decide(plain(r"\sqrt{2}\sqrt{3}"), plain(r"\sqrt{6}")) is None


def test_agreement_of_values_is_no_proof():
    """e^(pi sqrt 163) misses an integer by 10^-12; the second pair differs beyond every digit that is compared."""
    assert not equivalent(r"e^{\pi\sqrt{163}}", "262537412640768744")
    assert not equivalent(r"\lfloor x \rfloor + \lfloor -x \rfloor", "-1")
    assert not equivalent(r"x + 10^{-200}", "x")
    assert equivalent(r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3")


@pytest.mark.parametrize("nothing", ["", "  ", "\n", "+", "...", "\x00", "\u202e"])
def test_nothing_is_none(nothing):
    assert plain(nothing) is None
    assert cluster([nothing, "1"]) == [-1, 0]


@given(st.fractions(max_denominator=10**6), st.integers(1, 50))
def test_rationals_are_exact(value, factor):
    top, bottom = value.numerator * factor, value.denominator * factor
    assert as_fraction(f"{top}/{bottom}") == value
    assert as_fraction(f"\\frac{{{top}}}{{{bottom}}}") == value
    assert as_fraction(f"\\frac{{{top * 100}}}{{{bottom}}}\\%") == value


def test_formulas_are_left_to_the_worker():
    before = default_pool().stats.requests
    for formula in (r"\sin x", r"2^n", r"\frac{x^2-1}{x-1}", r"\sqrt{x}", r"\log_2 8", "9**9**9**9"):
        assert decide(plain(formula), plain("7")) is None
    assert default_pool().stats.requests == before


def test_a_verdict_that_ran_out_of_time_is_not_remembered():
    pool = Pool(time_limit=0.0)
    equivalence = MathEquivalence(pool)
    answers = [r"\sin x + 1", r"1 + \sin(x)"]
    assert equivalence.compare(answers, [(0, 1)]) == [None]
    assert pool.stats.undecided == 1
    pool.time_limit = 2.0
    assert equivalence.compare(answers, [(0, 1)]) == [True]
    requests = pool.stats.requests
    assert equivalence.compare(answers, [(0, 1)]) == [True]
    assert pool.stats.requests == requests
    pool.close()
