"""A small reasoning world: chain sums, worked out step by step.

A problem is `12+7-5=?`; a solution rewrites the sum with one adjacent pair reduced at a time, separated by `=`:
`19-5=14`. The answer is the number after the last `=` (or the whole text when there is none).

What a model pretrained on this text knows, and how sure it is, is set by five things in `ChainSums`: the strategies,
how often the rest is answered in one leap, how often a result is wrong (a slip), the number of terms and their range.
Randomness comes from a `random.Random` that the caller passes in, so that this module needs no torch.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from autotelic.errors import UserError, one_of
from autotelic.tasks.distinct import distinct_problems

STRATEGIES = ("left_to_right", "any_pair")
SPLITS = ("train", "test", "ood")
_TEST_SHARE = 0.1  # of all problems, by hash


@dataclass(frozen=True)
class ChainSums:
    """Settings of the world.

    Args:
        strategies: which adjacent pair is reduced next: the first ("left_to_right"), or any with equal chance
            ("any_pair"). Each solution of the corpus follows one of them, drawn with equal chance.
        leap_probability: chance, before each step, that the rest is answered at once.
        slip_probability: chance that a step's result is wrong.
        leap_slip_probability: chance that a leap's result is wrong.
        max_slip: a wrong result is off by 1 to `max_slip`, in either direction, all equally likely.
        min_terms: fewest terms of a problem.
        max_terms: most terms of a problem.
        max_number: terms are drawn from 1 to `max_number`.
        ood_extra_terms: the split "ood" has `max_terms + 1` to `max_terms + ood_extra_terms` terms.
    """

    strategies: tuple[str, ...] = ("any_pair",)
    leap_probability: float = 0.2
    slip_probability: float = 0.15
    leap_slip_probability: float = 0.5
    max_slip: int = 9
    min_terms: int = 3
    max_terms: int = 5
    max_number: int = 10
    ood_extra_terms: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that cannot describe a world."""
        object.__setattr__(self, "strategies", tuple(self.strategies))
        if not self.strategies:
            raise UserError(f"strategies is empty: a solution needs one of {', '.join(STRATEGIES)}.")
        for name in self.strategies:
            if name not in STRATEGIES:
                raise UserError(f"unknown strategy {name!r}{one_of(name, STRATEGIES)}")
        for name in ("leap_probability", "slip_probability", "leap_slip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a probability and must lie in [0, 1], got {getattr(self, name)}.")
        if not 2 <= self.min_terms <= self.max_terms:
            raise UserError(f"need 2 <= min_terms <= max_terms, got {self.min_terms} and {self.max_terms}.")
        for name in ("max_number", "max_slip", "ood_extra_terms"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")


def render(terms: list[int]) -> str:
    """Write signed terms as a sum: `[12, 7, -5]` is `12+7-5`."""
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def split_of(prompt: str) -> str:
    """Return "train" or "test": which of the two a problem belongs to, decided by a hash of its text alone."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < _TEST_SHARE * 2**64 else "train"


def sample_terms(world: ChainSums, split: str, rng: random.Random) -> list[int]:
    """Draw the signed terms of one problem of a split (by rejection: the splits share no problem)."""
    if split == "ood":
        fewest, most = world.max_terms + 1, world.max_terms + world.ood_extra_terms
    else:
        fewest, most = world.min_terms, world.max_terms
    while True:
        terms = [rng.randint(1, world.max_number) for _ in range(rng.randint(fewest, most))]
        terms = terms[:1] + [term if rng.random() < 0.5 else -term for term in terms[1:]]
        if split == "ood" or split_of(f"{render(terms)}=?") == split:
            return terms


def solve(world: ChainSums, terms: list[int], rng: random.Random) -> str:
    """Write one solution as the corpus has it: a strategy, sometimes a leap, sometimes a slip."""
    strategy = rng.choice(world.strategies)
    rest, lines = list(terms), []
    while len(rest) > 1:
        leap = len(rest) > 2 and rng.random() < world.leap_probability
        if leap:
            first, count = 0, len(rest)
        else:
            first, count = (rng.randrange(len(rest) - 1) if strategy == "any_pair" else 0), 2
        slips = rng.random() < (world.leap_slip_probability if leap else world.slip_probability)
        slip = rng.choice((-1, 1)) * rng.randint(1, world.max_slip) if slips else 0
        rest[first : first + count] = [sum(rest[first : first + count]) + slip]
        lines.append(render(rest))
    return "=".join(lines)


def problems(world: ChainSums, split: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `count` different problems of a split: rows `id`, `prompt`, `answer`.

    Args:
        world: the settings.
        split: "train", "test" or "ood" (more terms than the corpus has). The splits share no problem.
        count: number of rows.
        seed: the same seed gives the same rows; a larger count continues a smaller one.
    """

    def draw(rng: random.Random) -> tuple[str, dict[str, str]]:
        terms = sample_terms(world, split, rng)
        prompt = f"{render(terms)}=?"
        return prompt, {"prompt": prompt, "answer": str(sum(terms))}

    remedy = "raise max_terms or max_number"
    return distinct_problems("chain_sums", split, count, seed, splits=SPLITS, draw=draw, remedy=remedy)


def corpus(world: ChainSums, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield pretraining text without end: (prompt, solution) of problems of the split "train"."""
    while True:
        terms = sample_terms(world, "train", rng)
        yield f"{render(terms)}=?", solve(world, terms, rng)


def final_answer(text: str) -> str | None:
    """Return the number after the last `=` of a response as a canonical string, or None when it is not one."""
    last = text.rsplit("=", 1)[-1].strip()
    digits = last[1:] if last[:1] in ("-", "+") else last
    return str(int(last)) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
