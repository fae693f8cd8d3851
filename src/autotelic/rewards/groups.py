"""Put groups together, wherever their responses are.

A group is the G responses to one prompt. A reward function of the TRL protocol is called once per process, with that
process's rows only, and a group may lie on several of them (2 processes, G = 8: 4 of 8 each). Here every process sends
what a reward needs (prompts, answers, scalars), receives everyone's, forms the groups from the concatenation in rank
order, and keeps those in which it has a row. So a group has the same rewards on one process as on many.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotelic.errors import UserError
from autotelic.tasks.conversations import Prompt, question_text


@dataclass(frozen=True)
class Row:
    """One response, as it travels between processes: no label has a place in it.

    Attributes:
        prompt: The prompt's identity (its text).
        text: The response.
        answer: Its final answer, ``None`` where there is none.
        stats: One number per statistic that the reward asked for (for example the mean token entropy).
        valid: Whether the response counts; a False one (say, truncated) stays out of its group.
    """

    prompt: str
    text: str
    answer: str | None
    stats: Mapping[str, float] = field(default_factory=dict)
    valid: bool = True


@dataclass(frozen=True)
class Group:
    """The responses to one prompt, in their global order; `first` is the global index of the first of them."""

    rows: tuple[Row, ...]
    first: int = 0

    @property
    def prompt(self) -> str:
        """The prompt that all rows share."""
        return self.rows[0].prompt

    @property
    def question(self) -> str:
        """What is asked: the prompt's text, or its last user message."""
        if not self.prompt.startswith('[{"'):
            return self.prompt
        try:
            return question_text(json.loads(self.prompt))
        except ValueError:  # a text that begins like messages
            return self.prompt

    @classmethod
    def of(cls, prompt: str, texts: Sequence[str], answers: Sequence[str | None], **stats: Sequence[float]) -> "Group":
        """Build a group from parallel lists."""
        if not len(texts) == len(answers) or any(len(values) != len(texts) for values in stats.values()):
            raise UserError("a group needs one answer and one statistic per response")
        columns = [{name: float(values[i]) for name, values in stats.items()} for i in range(len(texts))]
        return cls(tuple(Row(prompt, t, a, s) for t, a, s in zip(texts, answers, columns, strict=True)))


def prompt_key(prompt: Prompt) -> str:
    """Return what identifies a prompt: its text, or its messages in one spelling, with pictures by their content."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps(prompt, sort_keys=True, default=_content_key, ensure_ascii=False)


def _content_key(value: Any) -> str:
    """Return a name for what is not text (an image, a tensor, bytes) that depends on its content alone.

    A default `str` would name the place in memory, and two copies of one picture would be two prompts.
    """
    kind = type(value).__qualname__
    if callable(getattr(value, "detach", None)):
        value = value.detach().float().cpu().numpy()
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
    elif callable(getattr(value, "tobytes", None)):  # PIL images and arrays: pixels, not their encoding
        kind += f" {getattr(value, 'size', '')} {getattr(value, 'mode', getattr(value, 'dtype', ''))}"
        content = value.tobytes()
    else:
        content = pickle.dumps(value)  # read by nobody
    return f"{kind} {hashlib.sha256(content).hexdigest()}"


def gather_groups(
    rows: Sequence[Row], num_generations: int | None, *, everyone: bool = False
) -> tuple[list[Group], list[tuple[int, int]]]:
    """Return the groups in which this process has a row, and where each of its rows is.

    Every process of the default process group must call this at the same time (TRL calls rewards so).

    Args:
        rows: This process's responses, in order.
        num_generations: G, where it is known; otherwise neighbouring equal prompts are a group.
        everyone: Return every group, not only those in which this process has a row.

    Returns:
        The groups, and for each local row the pair (index of its group in that list, index within the group).
    """
    gathered = _all_gather(list(rows))
    all_rows = [row for part in gathered for row in part]
    start = sum(len(part) for part in gathered[: _rank()])
    groups = form_groups(all_rows, num_generations)
    mine, places = [], []
    for group in groups:
        members = range(max(group.first, start), min(group.first + len(group.rows), start + len(rows)))
        places += [(len(mine), index - group.first) for index in members]
        if members or everyone:
            mine.append(group)
    return mine, places


def form_groups(rows: Sequence[Row], num_generations: int | None) -> list[Group]:
    """Split rows into groups: every `num_generations` of them, or runs of equal prompts."""
    if num_generations is not None:
        if num_generations < 1 or len(rows) % num_generations:
            raise UserError(
                f"{len(rows)} responses do not form groups of num_generations={num_generations}: "
                "set num_generations to the number of responses per prompt"
            )
        chunks = [(i, tuple(rows[i : i + num_generations])) for i in range(0, len(rows), num_generations)]
        for start, chunk in chunks:
            if any(row.prompt != chunk[0].prompt for row in chunk):
                raise UserError(
                    f"responses {start} to {start + num_generations - 1} should answer one prompt and do not: "
                    f"keep the {num_generations} responses of a prompt next to each other"
                )
        return [Group(chunk, start) for start, chunk in chunks]
    groups: list[Group] = []
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i].prompt != rows[start].prompt:
            groups.append(Group(tuple(rows[start:i]), start))
            start = i
    return groups


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _all_gather(rows: list[Row]) -> list[list[Row]]:
    """Return every process's rows, in rank order."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [rows]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)  # between our own processes: the pickled rows never leave the job
    return parts
