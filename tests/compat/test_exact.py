"""The exact ring of the official graders' comparisons."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotelic.compat.exact import NotExactError, Poly
from autotelic.compat.latex import parse_expression


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
