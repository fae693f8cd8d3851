"""Word problems: splits share no sum, answers are right, difficulty is kept, prompts are chats."""

import re

import pytest

from autotelic.errors import UserError
from autotelic.tasks import load_problems, word_sums
from autotelic.tasks.word_sums import EXAMPLES, INSTRUCTION, OPERATORS, SPLITS, STORIES, WordSums, problems, split_of


def numbers(row):
    return [int(number) for number in re.findall(r"\d+", row["prompt"][-1]["content"])]


def sums(row):
    """The sum that a row asks for; the two numbers in either order where order does not matter."""
    return (row["operator"], *(numbers(row) if row["operator"] == "-" else sorted(numbers(row))))


def test_the_splits_share_no_sum():
    seen = {split: {sums(row) for row in problems(WordSums(), split, 300)} for split in SPLITS}
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not seen[one] & seen[other]


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right_and_every_operator_is_asked(split):
    rows = problems(WordSums(), split, 120)
    for row in rows:
        a, b = numbers(row)
        found = {"+": {a + b}, "*": {a * b}, "-": {a - b, b - a}}[row["operator"]]
        assert int(row["answer"]) in found
        assert int(row["answer"]) >= 0
    for operator in STORIES:
        assert sum(row["operator"] == operator for row in rows) > 20


def test_every_story_names_its_numbers_once():
    for stories in STORIES.values():
        for story in stories:
            assert story.count("{a}") == story.count("{b}") == 1
            assert not re.search(r"\d", story)


def test_difficulty_bounds_the_numbers_and_ood_goes_beyond():
    world = WordSums(min_number=3, max_number=30, max_factor=7)
    for row in problems(world, "train", 150):
        assert all(3 <= number <= world.bound(row["operator"]) for number in numbers(row))
    for row in problems(world, "ood", 150):
        assert world.bound(row["operator"]) < max(numbers(row)) <= 2 * world.bound(row["operator"])


def test_a_larger_count_continues_a_smaller_one_and_the_seed_decides():
    few, many = problems(WordSums(), "train", 20), problems(WordSums(), "train", 40)
    assert many[:20] == few
    assert problems(WordSums(), "train", 20, seed=1) != few
    assert len({row["prompt"][-1]["content"] for row in many}) == 40


def test_order_matters_for_differences_only():
    assert all(split_of("+", a, b) == split_of("+", b, a) for a in range(9) for b in range(9))
    assert {split_of("-", a, b) == split_of("-", b, a) for a in range(20) for b in range(20)} == {True, False}


def test_a_prompt_is_a_chat_that_ends_with_the_question():
    row = load_problems("word_sums:test", limit=1)[0]
    assert [message["role"] for message in row["prompt"]] == ["system", *(("user", "assistant") * 3), "user"]
    assert row["prompt"][0]["content"] == INSTRUCTION
    assert row["prompt"][-1]["content"].endswith("?")
    assert (
        load_problems("word_sums:test", limit=1, world=WordSums(operators=("*",)), keep=["operator"])[0]["operator"]
        == "*"
    )


def test_an_example_of_each_operator_is_worked_and_fewer_make_it_harder():
    for (asked, answered), operator in zip(EXAMPLES, OPERATORS, strict=True):
        a, sign, b, _, result = answered.split(". ")[0].split()
        assert sign == operator
        assert re.findall(r"\d+", asked) == [a, b]
        assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert f"\\boxed{{{result}}}" in answered
    for count in range(4):
        assert len(problems(WordSums(examples=count), "train", 1)[0]["prompt"]) == 2 + 2 * count


def test_what_cannot_be_asked_gets_one_line():
    for settings in (
        {"operators": ()},
        {"operators": ("/",)},
        {"min_number": -1},
        {"max_factor": 2},
        {"ood_factor": 1},
        {"examples": 4},
    ):
        with pytest.raises(UserError):
            WordSums(**settings)
    with pytest.raises(UserError, match="did you mean 'train'"):
        load_problems("word_sums:trian")
    empty = next(split for split in SPLITS if split not in {split_of("*", a, b) for a in (2, 3) for b in (2, 3)})
    with pytest.raises(UserError, match=f"no {empty} problem"):
        problems(WordSums(operators=("*",), max_factor=3), empty, 1)


def test_too_few_problems_get_one_line(monkeypatch):
    monkeypatch.setattr(word_sums, "THINGS", ("apples",))
    monkeypatch.setattr(word_sums, "STORIES", {"*": ("{a} times {b} {things}?",)})
    with pytest.raises(UserError, match="too few"):
        problems(WordSums(operators=("*",), max_factor=4), "train", 20)
