"""The reward that knows the labels. Beside `autotelic.evaluation`, this folder alone may see one.

It is the supervised baseline that label-free rewards are compared with, and never a part of them.
"""

import logging
from collections.abc import Sequence
from typing import Any

from autotelic.answers import extract
from autotelic.errors import UserError, closest
from autotelic.rewards.label_reader import is_right, read_label
from autotelic.tasks.conversations import Completion, Prompt, final_text

logger = logging.getLogger(__name__)


class VerifierReward:
    """1 where the response's answer is equivalent to the label, 0 where it is not or there is none.

    Args:
        column: The data set's column of labels, read by `autotelic.rewards.label_reader`.
        extraction: How an answer is found in a response; ``None`` is the default order.
        equivalence: Of `autotelic.answers`; ``None`` is mathematics.
    """

    __name__ = "verifier"

    def __init__(
        self, column: str = "answer", extraction: Sequence[str] | None = None, equivalence: Any = None
    ) -> None:
        self.column = column
        self.extraction = extraction
        self.equivalence = equivalence
        self.num_unread = 0

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], completion_ids: Any = None, **kwargs: Any
    ) -> list[float | None]:
        """Return one reward per completion (TRL's protocol); the labels are in the column named at construction.

        A label that cannot be read gives no reward (None), which TRL leaves out, and is counted in `num_unread`.
        """
        labels = kwargs.get(self.column)
        if labels is None:
            columns = [name for name, value in kwargs.items() if isinstance(value, list)]
            raise UserError(
                f"the verifier needs a column {self.column!r} of labels, and the data set has {columns}"
                f"{closest(self.column, columns)}: name it with VerifierReward(column=...), or use a label-free reward"
            )
        rewards = [self.verify(final_text(text), label) for text, label in zip(completions, labels, strict=True)]
        unread = [label for label, reward in zip(labels, rewards, strict=True) if reward is None]
        if unread and not self.num_unread:
            logger.warning("a label cannot be read, its responses get no reward: %.100r", unread[0])
        self.num_unread += len(unread)
        return rewards

    def verify(self, text: str, label: Any) -> float | None:
        """Return 1.0 if the answer in `text` is equivalent to `label`, else 0.0; None if the label cannot be read."""
        accepted = read_label(label, free_text=self.equivalence is not None)
        if not accepted:
            return None
        options = {} if self.extraction is None else {"methods": self.extraction}
        return float(is_right(extract(text, **options), accepted, self.equivalence))
