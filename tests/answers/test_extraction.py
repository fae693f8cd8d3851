"""Where the final answer of a response is."""

import json
import time
from pathlib import Path

import pytest

from autotelic.answers import METHODS, equivalent, extract, last_boxed, last_number

LINES = (Path(__file__).parent / "extraction_cases.jsonl").read_text(encoding="utf-8").splitlines()
CASES = [json.loads(line) for line in LINES]
"""Responses with their answers, by kind, from public bug reports; the doubtful ones follow the docs."""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} and done", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{\sqrt{\frac{2}{3}}}", r"\sqrt{\frac{2}{3}}"),
        (r"\boxed{7} and a second one cut off \boxed{12", "7"),
        (r"first \boxed{12", None),
        (r"$\boxed 5$", "5"),
        (r"\fbox{9}", "9"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", None),
        ("<think>3</think><answer> 42 </answer>", "42"),
        (r"<answer>so \boxed{3}</answer>", "3"),
        ("It follows.\n#### 1,234", "1,234"),
        ("The answer is 3.14.", "3.14"),
        ("Therefore, the final answer is: $\\frac{1}{2}$. I hope so.", r"\frac{1}{2}"),
        ("Answer: (B)", "(B)"),
        ("The answer is 5. No, wait. The answer is 6.", "6"),
        ("The correct option is C", "C"),
        ("...\nB", "B"),
        ("19-5=14", "14"),
        ("12+7-5=?19-5=14\n", "14"),
        ("=-4", "-4"),
        ("3-4", "4"),
        ("(3)-4", "4"),
        ("x-4", "4"),
        ("gives - 4 or -4", "-4"),
        ("it costs $1,250.50", "1,250.50"),
        ("a ratio of 3/4", "3/4"),
        ("no answer here", None),
        ("", None),
        ("\\boxed", None),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["kind"].replace(" ", "-"))
def test_responses_from_bug_reports(case):
    for text, answer in case.get("clear", []) + case.get("doubtful", []):
        found = extract(text)
        assert (found is None) == (answer is None) and (found is None or equivalent(found, answer)), (text, found)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("reasoning \\boxed{1}\n<answer>2</answer>", "2"),
        ("<answer>1</answer> no, \\boxed{2}", "2"),
        ("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>", "4"),
        ("<think>\\boxed{3}", None),
        ("We conclude that $f(x)=x^2$ for all $x$.", "f(x)=x^2"),
        ("It costs $3 for 2, so 12 cost $18", "18"),
        ("The answer is 9, as shown in 2 steps.", "9"),
        ("$x = \\boxed{1}$ or $x = \\boxed{2}$", "1,2"),
    ],
)
def test_what_comes_last_decides(text, answer):
    assert extract(text) == answer


def test_each_way_can_be_switched_off():
    text = "The answer is 6. <answer>5</answer> \\boxed{4} 7"
    assert extract(text) == "4"
    assert extract(text, methods=[m for m in METHODS if m != "boxed"]) == "5"
    assert extract(text, methods=("phrase",)) == "6"
    assert extract(text, methods=("last_number",)) == "7"
    assert extract(text, methods=("hashes",)) is None
    with pytest.raises(ValueError, match="unknown extraction methods"):
        extract(text, methods=("box",))


def test_helpers():
    assert last_boxed(r"\boxedsomething \boxed{a\}b}") == r"a\}b"
    assert last_number("1.5e3 and 2") == "2"
    assert last_number("none") is None


@pytest.mark.parametrize(
    "attack", ["\\boxed{" * 50_000, "{" * 500_000, "the answer is " * 40_000, "(" * 1_000_000, "$" * 300_000]
)
def test_extraction_is_linear(attack):
    started = time.perf_counter()
    extract(attack)
    assert time.perf_counter() - started < 2
