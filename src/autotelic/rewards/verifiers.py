"""Rewards that know the labels: ours, and a user's own. Beside `autotelic.evaluation`, this folder alone may see one.

They are the supervised baselines that label-free rewards are compared with, and never a part of them.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
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


PROTOCOL = (
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
    "num_generations",
    "token_stats",
)
"""What a trainer gives to every reward function; any other parameter is a column of the data set."""


def label_columns(reward: Any) -> tuple[str, ...]:
    """Return the columns of the data set that a reward asks for by name; a label-free reward gets none.

    Args:
        reward: a reward function of TRL's protocol, or an object with such a `__call__`. Its parameters beside the
            protocol's are columns; what `**kwargs` takes is not asked for by name.
    """
    from autotelic.rewards.label_free_reward import LabelFreeReward
    from autotelic.rewards.mixing import MixedReward

    if isinstance(reward, LabelFreeReward):
        return ()
    if isinstance(reward, VerifierReward):
        return (reward.column,)
    if isinstance(reward, MixedReward):
        return tuple(dict.fromkeys(name for part, _ in reward.components for name in label_columns(part)))
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(reward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds and p.name not in PROTOCOL)


def takes_messages(reward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reward of TRL's own that also takes completions of plain prompts, which are texts and not messages."""

    @functools.wraps(reward)
    def call(*, completions: Sequence[Completion], **kwargs: Any) -> Any:
        messages = [[{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in completions]
        return reward(completions=messages, **kwargs)

    return call
