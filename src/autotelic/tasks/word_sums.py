r"""One-step word problems, for a small chat model: add, take away or multiply two numbers.

A prompt is a list of chat messages: what to do, a worked example of each operator, the question. The answer belongs in
a box:

    Tom has 12 apples. Tom gets 7 more. How many apples does Tom have now?
    12 + 7 = 19. The answer is \boxed{19}.

The splits share no sum: an operator with its two numbers (in either order, where order does not matter) belongs to one
split, whatever story is told about it. "ood" has larger numbers than the other splits.
Randomness comes from a `random.Random`, so that this module needs no torch.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from autotelic.errors import UserError
from autotelic.tasks.distinct import distinct_problems

SPLITS = ("train", "validation", "test", "ood")
OPERATORS = ("+", "-", "*")
_SHARES = {"validation": 0.1, "test": 0.2}  # of all sums, by hash; the rest is "train"
_MOST_DRAWS = 2000  # until a split is taken to have no sum of an operator

INSTRUCTION = "Answer with one sum."
EXAMPLES = (
    ("Ann has 5 pens and gets 3 more. How many pens?", "5 + 3 = 8. The answer is \\boxed{8}."),
    ("There are 9 birds. 4 fly away. How many are left?", "9 - 4 = 5. The answer is \\boxed{5}."),
    ("There are 2 nests with 3 eggs each. How many eggs?", "2 * 3 = 6. The answer is \\boxed{6}."),
)
NAMES = ("Tom", "Mia", "Leo", "Eva", "Sam", "Zoe", "Max", "Ida", "Ben", "Amy")
THINGS = ("apples", "books", "coins", "cards", "shells", "stamps", "eggs", "balls", "keys", "cups")
STORIES = {
    "+": (
        "{name} has {a} {things}. {name} gets {b} more. How many {things} does {name} have now?",
        "There are {a} {things} on the table and {b} {things} in a bag. How many {things} are there in all?",
        "{name} has {a} {things} and {other} has {b} {things}. How many {things} do they have in all?",
    ),
    "-": (
        "{name} has {a} {things} and gives {b} to {other}. How many {things} does {name} have left?",
        "There are {a} {things} in a box. {name} takes out {b}. How many {things} are left in the box?",
        "{name} has {a} {things}. {name} loses {b} of them. How many {things} are left?",
    ),
    "*": (
        "There are {a} boxes with {b} {things} in each box. How many {things} are there in all?",
        "{name} packs {a} bags. Each bag holds {b} {things}. How many {things} does {name} pack?",
        "{a} children have {b} {things} each. How many {things} do they have in all?",
    ),
}


@dataclass(frozen=True)
class WordSums:
    """Difficulty.

    Args:
        operators: which sums are asked, each equally often: "+", "-", "*".
        min_number: smallest number of a problem.
        max_number: largest number of a sum or a difference.
        max_factor: largest number of a product.
        ood_factor: the numbers of the split "ood" go up to so many times these bounds, and one of the two lies above.
        examples: worked examples in a prompt, the first of `EXAMPLES`. They teach a small model the form of an answer.
    """

    operators: tuple[str, ...] = OPERATORS
    min_number: int = 2
    max_number: int = 20
    max_factor: int = 9
    ood_factor: int = 2
    examples: int = len(EXAMPLES)

    def __post_init__(self) -> None:
        """Refuse settings that leave nothing to ask."""
        object.__setattr__(self, "operators", tuple(self.operators))
        for operator in self.operators or ("",):
            if operator not in OPERATORS:
                raise UserError(f"word_sums has no operator {operator!r}: use {', '.join(OPERATORS)}.")
        if self.min_number < 0:
            raise UserError(f"min_number must not be negative, got {self.min_number}.")
        for name in ("max_number", "max_factor"):
            if getattr(self, name) <= self.min_number:
                raise UserError(f"{name} must lie above min_number = {self.min_number}, got {getattr(self, name)}.")
        if self.ood_factor < 2:
            raise UserError(f"ood_factor must be at least 2, got {self.ood_factor}.")
        if not 0 <= self.examples <= len(EXAMPLES):
            raise UserError(f"examples must be from 0 to {len(EXAMPLES)}, got {self.examples}.")

    def bound(self, operator: str) -> int:
        """Return the largest number of an operator's problems."""
        return self.max_factor if operator == "*" else self.max_number


def split_of(operator: str, a: int, b: int) -> str:
    """Return the split that a sum belongs to, decided by a hash of the sum alone ("ood" is decided by size)."""
    first, second = (a, b) if operator == "-" else sorted((a, b))
    digest = hashlib.sha256(f"{first}{operator}{second}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < _SHARES["validation"]:
        return "validation"
    return "test" if place < _SHARES["validation"] + _SHARES["test"] else "train"


def problems(settings: WordSums, split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` different problems of a split: rows `id`, `prompt` (chat messages), `answer`, `operator`.

    Args:
        settings: the difficulty.
        split: "train", "validation", "test" or "ood".
        count: number of rows.
        seed: the same seed gives the same rows; a larger count continues a smaller one.
    """

    def draw(rng: random.Random) -> tuple[str, dict[str, Any]]:
        operator, a, b = _draw(settings, split, rng)
        question = _tell(operator, a, b, rng)
        answer = {"+": a + b, "-": a - b, "*": a * b}[operator]
        row = {"prompt": messages(question, settings.examples), "answer": str(answer), "operator": operator}
        return question, row

    remedy = "raise max_number or max_factor"
    return distinct_problems("word_sums", split, count, seed, splits=SPLITS, draw=draw, remedy=remedy)


def messages(question: str, examples: int = len(EXAMPLES)) -> list[dict[str, str]]:
    """Return the chat that asks a question: the instruction, so many worked examples, the question."""
    chat = [{"role": "system", "content": INSTRUCTION}]
    for asked, answered in EXAMPLES[:examples]:
        chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*chat, {"role": "user", "content": question}]


def _draw(settings: WordSums, split: str, rng: random.Random) -> tuple[str, int, int]:
    """Draw operator and numbers of one problem (by rejection, so that the splits share no sum)."""
    operator = rng.choice(settings.operators)
    bound = settings.bound(operator)
    most = bound * settings.ood_factor if split == "ood" else bound
    for _ in range(_MOST_DRAWS):
        a, b = (rng.randint(settings.min_number, most) for _ in range(2))
        if operator == "-" and a <= b:
            continue
        if max(a, b) > bound if split == "ood" else split_of(operator, a, b) == split:
            return operator, a, b
    raise UserError(f"word_sums has no {split} problem with {operator}: raise max_number or max_factor.")


def _tell(operator: str, a: int, b: int, rng: random.Random) -> str:
    name, other = rng.sample(NAMES, 2)
    return rng.choice(STORIES[operator]).format(name=name, other=other, things=rng.choice(THINGS), a=a, b=b)
