"""Canonical forms: what is the same answer, what is not, and what is left to the workers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotelic.answers import as_fraction, canonical, default_pool
from autotelic.answers.exact import NotExactError, Poly
from autotelic.answers.latex import parse_expression

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
def test_spellings_have_one_exact_form(spellings):
    forms = {canonical(s).key for s in spellings}
    assert len(forms) == 1
    assert all(canonical(s).exact for s in spellings)


def test_different_answers_have_different_forms():
    keys = [canonical(group[0]).key for group in SAME]
    assert len(set(keys)) == len(keys)
    for a, b in [
        ("5040", "5041"), ("512", "513"), ("180", r"\pi"), ("1/3", "0.333"), ("50%", "50"), ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"), ("(100,200)", "100200"), ("x=1, y=2", "x=2, y=1"), ("7:30", "7.5"), ("1011_2", "1011"),
        (r"\infty", r"-\infty"), ("1e400", "1e401"), ("3 AM", "3 PM"), ("x", "y"),
    ]:  # fmt: skip
        assert canonical(a).exact
        assert canonical(b).exact
        assert canonical(a).key != canonical(b).key, (a, b)


def test_formulas_outside_the_ring_are_left_to_the_workers():
    before = default_pool().stats.requests
    for formula in (r"\sin x", r"2^n", r"\frac{x^2-1}{x-1}", r"\sqrt{x}", r"\log_2 8", "9**9**9**9"):
        assert not canonical(formula).exact
    assert default_pool().stats.requests == before  # a canonical form never asks one


@pytest.mark.parametrize("nothing", ["", "  ", "\n", "+", "...", "\x00", "\u202e"])
def test_nothing_is_none(nothing):
    assert canonical(nothing) is None


@given(st.fractions(max_denominator=10**6), st.integers(1, 50))
def test_rationals_are_exact(value, factor):
    top, bottom = value.numerator * factor, value.denominator * factor
    assert as_fraction(f"{top}/{bottom}") == value
    assert as_fraction(f"\\frac{{{top}}}{{{bottom}}}") == value
    assert as_fraction(f"\\frac{{{top * 100}}}{{{bottom}}}\\%") == value


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_square_roots_square_back(n, d):
    root = Poly.number(Fraction(n, d)).root(2)
    assert (root * root).rational() == Fraction(n, d)
    assert (root * root.inverse()).rational() == 1


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=5), st.integers(-5, 5))
def test_polynomials_evaluate_like_their_text(coefficients, x):
    text = " + ".join(f"({c}) x^{{{k}}}" for k, c in enumerate(coefficients))
    assert parse_expression(text.replace("x", f"({x})")).rational() == sum(c * x**k for k, c in enumerate(coefficients))


@pytest.mark.parametrize("huge", ["10^{99999}", "2^{4097}", "999!", "1" * 1001, "(x+y+z+w+v)^{40}", r"\sqrt[3]{2}"])
def test_what_is_too_large_is_refused_before_it_is_computed(huge):
    with pytest.raises(NotExactError):
        parse_expression(huge)
