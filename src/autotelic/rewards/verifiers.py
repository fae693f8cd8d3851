"""The reward that knows the labels. Beside `autotelic.evaluation`, this module alone may see one.

It is the supervised baseline that label-free rewards are compared with, and never a part of them.
"""

from collections.abc import Sequence
from typing import Any

from autotelic.answers import MathEquivalence, extract
from autotelic.errors import UserError, closest
from autotelic.rewards.groups import Completion, Prompt, as_text


class VerifierReward:
    """1 where the response's answer is equivalent to the label, 0 where it is not or there is none.

    Args:
        column: The data set's column of labels.
        extraction: How an answer is found in a response; ``None`` is the default order.
    """

    __name__ = "verifier"

    def __init__(self, column: str = "answer", extraction: Sequence[str] | None = None) -> None:
        self.column = column
        self.extraction = extraction
        self._equivalence = MathEquivalence()

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], completion_ids: Any = None, **kwargs: Any
    ) -> list[float]:
        """Return one reward per completion (TRL's protocol); the labels are in the column named at construction."""
        labels = kwargs.get(self.column)
        if labels is None:
            columns = [name for name, value in kwargs.items() if isinstance(value, list)]
            raise UserError(
                f"the verifier needs a column {self.column!r} of labels, and the data set has {columns}"
                f"{closest(self.column, columns)}: name it with VerifierReward(column=...), or use a label-free reward"
            )
        return [
            self.verify(as_text(completion), str(label)) for completion, label in zip(completions, labels, strict=True)
        ]

    def verify(self, text: str, label: str) -> float:
        """Return 1.0 if the answer in `text` is equivalent to `label`, else 0.0."""
        options = {} if self.extraction is None else {"methods": self.extraction}
        answer = extract(text, **options)
        gold = extract(label, methods=("boxed", "hashes")) or label
        if answer is None or not gold.strip():
            return 0.0
        return float(self._equivalence.compare([answer, gold], [(0, 1)])[0] is True)
