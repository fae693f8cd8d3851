"""What a trainer sees of a data set: prompts, and of the other columns only those that its rewards ask for by name.

A label-free reward asks for none, so no label is in reach of it. Plain questions become messages where the model has a
chat template: TRL then applies it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from autotelic.errors import UserError
from autotelic.lm.chat import as_messages, chat_note, uses_chat
from autotelic.rewards.label_reader import unread_labels
from autotelic.rewards.verifiers import VerifierReward, label_columns
from autotelic.tasks import load_problems


def training_rows(
    source: str | None,
    rewards: Sequence[Any],
    tokenizer: Any,
    *,
    prompt: str | None = None,
    limit: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    config: str | None = None,
    chat: str | bool = "auto",
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows to train on: `id`, `prompt`, and the columns that the rewards ask for.

    Args:
        source: a data set, see `autotelic.tasks.sources`.
        rewards: the run's reward functions.
        tokenizer: the model's.
        prompt: train on this one prompt, in place of a data set.
        limit: at most this many problems.
        prompt_column: column with the prompts.
        answer_column: column with the labels, where a reward asks for `answer`.
        config: of a hub data set that has several.
        chat: auto, on or off: whether plain questions go through the chat template (`autotelic.lm.chat`).
        say: takes remarks: which columns were taken, which labels cannot be read, whether the template is applied.

    Raises:
        UserError: no source, a column that a reward asks for is missing, or no label can be read.
    """
    wanted = list(dict.fromkeys(name for reward in rewards for name in label_columns(reward)))
    if prompt is not None:
        if source is not None:
            raise UserError(f"--prompt trains on one text and would leave the data set {source} unread: give one")
        if wanted:
            raise UserError(f"one prompt has no column {', '.join(wanted)}, and the reward asks for it: give --dataset")
        if not prompt.strip():
            raise UserError("--prompt is empty: give the text to train on")
        rows: list[dict[str, Any]] = [{"id": "prompt", "prompt": prompt}]
    elif source is None:
        raise UserError("nothing to train on: give --dataset SOURCE or --prompt TEXT")
    else:
        columns = {"prompt": prompt_column} | ({"answer": answer_column} if "answer" in wanted else {})
        found = load_problems(
            source,
            limit=limit,
            columns=columns,
            keep=[name for name in wanted if name not in ("id", "prompt")],
            config=config,
            require_answer="answer" in wanted,
            say=say,
        )
        kept = [name for name in ("prompt", *wanted) if name != "id"]
        rows = [{"id": row.get("id", str(i)), **{name: row[name] for name in kept}} for i, row in enumerate(found)]
        rows = with_readable_labels(rows, rewards, say)
    prompts = [row["prompt"] for row in rows]
    note = chat_note(prompts, tokenizer, chat)
    if note and say is not None:
        say(note)
    if uses_chat(prompts, tokenizer, chat):
        rows = [{**row, "prompt": as_messages(row["prompt"])} for row in rows]
    return rows


def with_readable_labels(
    rows: list[dict[str, Any]], rewards: Sequence[Any], say: Callable[[str], None] | None
) -> list[dict[str, Any]]:
    """Leave out the rows whose label the verifier cannot read, and say which."""
    for column in dict.fromkeys(reward.column for reward in rewards if isinstance(reward, VerifierReward)):
        places, note = unread_labels([row[column] for row in rows])
        if note and say is not None:
            say(f"warning: {note}: these problems are left out")
        rows = [row for place, row in enumerate(rows) if place not in set(places)]
    return rows
