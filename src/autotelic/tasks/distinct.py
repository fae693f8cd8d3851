"""What the generated tasks share: so many different problems of a split, drawn until there are enough."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from autotelic.errors import UserError, one_of

DRAWS = 100  # for each problem that is asked for; a task that has not given enough by then has too few


def distinct_problems(
    task: str,
    split: str,
    count: int,
    seed: int,
    *,
    splits: Sequence[str],
    draw: Callable[[random.Random], tuple[str, dict[str, Any]]],
    remedy: str,
) -> list[dict[str, Any]]:
    """Return `count` different rows of a split, each with an `id`.

    Args:
        task: its name.
        split: one of `splits`.
        count: number of rows.
        seed: the same seed gives the same rows; a larger count continues a smaller one.
        splits: those that the task has.
        draw: gives the question, by which two rows are told apart, and the row.
        remedy: what to change where there are too few.
    """
    if split not in splits:
        raise UserError(f"unknown split {split!r}{one_of(split, splits)}")
    if count < 1:
        raise UserError(f"the number of problems must be at least 1, got {count}.")
    rng = random.Random(f"{task}/{split}/{seed}")
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(DRAWS * count):
        question, row = draw(rng)
        rows.setdefault(question, {"id": f"{task}-{split}-{len(rows)}", **row})
        if len(rows) == count:
            return list(rows.values())
    raise UserError(f"{task} has too few {split} problems for {count}: {remedy}.")
