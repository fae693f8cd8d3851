"""The world says what is true: answers are right, splits are disjoint, and the settings set what they name."""

import random
import subprocess
import sys
from itertools import islice

import pytest

from autotelic.errors import UserError
from autotelic.tasks.chain_sums import ChainSums, corpus, final_answer, problems, render, solve, split_of

FAITHFUL = {"leap_probability": 0.0, "slip_probability": 0.0}


def value(expression: str) -> int:
    """Add up `12+7-5` by an independent route: split at the signs."""
    return sum(int(term) for term in expression.replace("-", "+-").split("+") if term)


def test_answers_are_the_sums():
    for split in ("train", "test", "ood"):
        for row in problems(ChainSums(), split, 200):
            assert int(row["answer"]) == value(row["prompt"].removesuffix("=?"))


def test_splits_share_no_problem_and_ids_are_unique():
    rows = {split: problems(ChainSums(), split, 500) for split in ("train", "test", "ood")}
    prompts = [row["prompt"] for split in rows.values() for row in split]
    assert len(set(prompts)) == len(prompts)
    assert len({row["id"] for split in rows.values() for row in split}) == len(prompts)


def test_corpus_never_contains_a_test_problem():
    text = islice(corpus(ChainSums(), random.Random(0)), 2000)
    assert {split_of(prompt) for prompt, _ in text} == {"train"}


def test_out_of_distribution_problems_have_more_terms():
    world = ChainSums(max_terms=4, ood_extra_terms=2)
    counts = {sum(c in "+-" for c in row["prompt"]) + 1 for row in problems(world, "ood", 200)}
    assert counts == {5, 6}


def test_the_same_seed_gives_the_same_rows_and_more_rows_continue_them():
    assert problems(ChainSums(), "test", 30) == problems(ChainSums(), "test", 60)[:30]
    assert problems(ChainSums(), "test", 30) != problems(ChainSums(), "test", 30, seed=1)


@pytest.mark.parametrize("strategy", ["left_to_right", "any_pair"])
def test_without_slips_every_line_keeps_the_value(strategy: str):
    world = ChainSums(strategies=(strategy,), **FAITHFUL)
    for prompt, solution in islice(corpus(world, random.Random(0)), 300):
        values = {value(line) for line in solution.split("=")}
        assert values == {value(prompt.removesuffix("=?"))}


def test_left_to_right_has_one_way_and_any_pair_has_many():
    """10+2-3+4: the first pair, the middle pair or the last pair may go first."""
    terms = [10, 2, -3, 4]
    left = {solve(ChainSums(strategies=("left_to_right",), **FAITHFUL), terms, random.Random(s)) for s in range(50)}
    any_pair = {solve(ChainSums(strategies=("any_pair",), **FAITHFUL), terms, random.Random(s)) for s in range(200)}
    assert left == {"12-3+4=9+4=13"}
    assert {solution.split("=")[0] for solution in any_pair} == {"12-3+4", "10-1+4", "10+2+1"}


def test_a_leap_answers_at_once_and_a_slip_is_wrong():
    terms = [10, 2, -3, 4]
    leap = ChainSums(leap_probability=1.0, leap_slip_probability=0.0)
    assert solve(leap, terms, random.Random(0)) == "13"
    slip = ChainSums(leap_probability=1.0, leap_slip_probability=1.0, max_slip=2)
    assert {solve(slip, terms, random.Random(s)) for s in range(60)} == {"11", "12", "14", "15"}


def test_slips_happen_as_often_as_the_setting_says():
    """One step of a two-term problem: 2000 draws at 0.2 lie within four standard deviations, 0.036."""
    world = ChainSums(slip_probability=0.2, min_terms=2, max_terms=2)
    wrong = sum(value(p.removesuffix("=?")) != int(s) for p, s in islice(corpus(world, random.Random(0)), 2000))
    assert abs(wrong / 2000 - 0.2) < 0.036


@pytest.mark.parametrize(
    ("text", "answer"),
    [("19-5=14", "14"), ("14", "14"), ("3-12=-9", "-9"), ("1=007", "7"), ("4-4=-0", "0"), ("1=+5", "5")],
)
def test_final_answer_is_canonical(text: str, answer: str):
    assert final_answer(text) == answer


@pytest.mark.parametrize("text", ["", "=", "19-5", "14=", "1=?", "1=--2", "1=²", "1=" + "9" * 5000])
def test_final_answer_of_anything_else_is_none(text: str):
    assert final_answer(text) is None


def test_signed_terms_are_written_with_their_signs():
    assert render([-12, 7, -5, 0]) == "-12+7-5+0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategies": ("any_pairs",)}, "any_pair"),
        ({"strategies": ()}, "empty"),
        ({"leap_probability": 1.5}, "leap_probability"),
        ({"min_terms": 6}, "min_terms"),
        ({"max_number": 0}, "max_number"),
    ],
)
def test_a_world_that_cannot_be_is_refused(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        ChainSums(**settings)


def test_a_world_with_too_few_problems_says_so():
    with pytest.raises(UserError, match="too few"):
        problems(ChainSums(min_terms=2, max_terms=2, max_number=2), "test", 50)


def test_import_is_light():
    code = "import sys, autotelic.tasks; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
