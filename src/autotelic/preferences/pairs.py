r"""Preference rows as people have them: files read, checked, and brought to one shape.

A row has `prompt`, `chosen`, `rejected`, each a text or TRL's list of messages, and per side (`chosen_...`,
`rejected_...`), as far as the policy label needs it:

    policy_id          which behaviour policy produced it, a name in the table of policies
    sampler_logprobs   log mu of each token under the *sampling* distribution, the end token included
    segment_tokens     the judge saw only this many tokens from the start; the rest is the rollout that followed

Other shapes are brought to this one:

    UltraFeedback      `prompt` a text, both sides the whole conversation: its last turn is the response
    no `prompt`        both sides whole conversations, or texts of HH-RLHF ("\n\nHuman: ...\n\nAssistant: ..."):
                       what they share, up to the last assistant turn, is the prompt

Texts go through the chat template of a model that has one, as the prompts of every command do (`--chat`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotelic.errors import UserError
from autotelic.lm.chat import as_messages, uses_chat
from autotelic.tasks.samples import is_number

SIDES = ("chosen", "rejected")
ASSISTANT = "\n\nAssistant:"


def load_pairs(source: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Read and check preference rows of a `.jsonl` or `.parquet` file; unknown columns are dropped.

    Raises:
        UserError: names the file, the row and what to do.
    """
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{source} is not a file: give preference pairs as .jsonl or .parquet")
    rows = [
        checked(shaped(row, f"{path}, row {n}"), f"{path}, row {n}") for n, row in enumerate(raw_rows(path, limit), 1)
    ]
    if not rows:
        raise UserError(f"{path} has no rows")
    columns = set(rows[0])
    for number, row in enumerate(rows, start=1):
        if set(row) != columns:
            differing = sorted(columns ^ set(row))[0]
            raise UserError(
                f"{path}, row {number}: column {differing!r} is in some rows only; give it in all or in none"
            )
    kinds = {tuple(isinstance(row[name], str) for name in ("prompt", *SIDES)) for row in rows}
    if len(kinds) > 1:
        raise UserError(f"{path}: some rows are texts and some lists of messages: give all rows in one shape")
    return [row | {"row": number} for number, row in enumerate(rows, start=1)]


def raw_rows(path: Path, limit: int | None) -> list[dict[str, Any]]:
    """Return the rows of a file as they stand there."""
    if path.suffix != ".parquet":
        from autotelic.runs.logs import read_jsonl

        return read_jsonl(path)[:limit]
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()[:limit]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as parquet: {str(error).splitlines()[0]}") from error


def shaped(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the row with `prompt`, `chosen` and `rejected` in one of TRL's two shapes: texts, or lists of messages."""
    row = dict(row)
    for side in SIDES:
        if row.get(side) is None:
            raise UserError(f"{where}: no column {side!r}; present: {', '.join(map(str, row)) or 'none'}")
        if not isinstance(row[side], str | list):
            raise UserError(f"{where}: {side} is a {type(row[side]).__name__}: give a string, or a list of messages")
    sides = [row[side] for side in SIDES]
    if isinstance(sides[0], str) != isinstance(sides[1], str):
        raise UserError(f"{where}: one side is a text and the other a list of messages: give both in one shape")
    if isinstance(sides[0], list):
        return row | conversation(row.get("prompt"), sides, where)
    if row.get("prompt") is None:
        return row | transcript(sides, where)
    if not isinstance(row["prompt"], str):
        raise UserError(
            f"{where}: the prompt is a list of messages and the responses are texts: give both in one shape"
        )
    return row


def conversation(prompt: Any, sides: Sequence[list[Any]], where: str) -> dict[str, Any]:
    """Return prompt and responses as messages; whole conversations are split where they begin to differ."""
    for messages in sides:
        if not messages or not all(isinstance(turn, Mapping) and {"role", "content"} <= set(turn) for turn in messages):
            raise UserError(f"{where}: a message is a mapping with role and content; one of the sides has another form")
    if prompt is None or (isinstance(prompt, str) and sides[0][0]["role"] != "assistant"):
        shared = common_turns(sides)
        if shared == 0:
            raise UserError(
                f"{where}: no column 'prompt', and the two conversations do not begin with the same message"
            )
        if prompt is not None and prompt.strip() not in {str(turn["content"]).strip() for turn in sides[0][:shared]}:
            raise UserError(f"{where}: the prompt is not among the messages that the two conversations share")
        return {"prompt": list(sides[0][:shared]), **{s: list(m[shared:]) for s, m in zip(SIDES, sides, strict=True)}}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list):
        raise UserError(f"{where}: prompt is a {type(prompt).__name__}: give a string, or a list of messages")
    return {"prompt": messages}


def common_turns(sides: Sequence[list[Any]]) -> int:
    """Return how many messages both begin with, so that each is left with an assistant's turn."""
    longest = min(map(len, sides)) - 1
    return next((i for i in range(longest) if sides[0][i] != sides[1][i]), max(longest, 0))


def transcript(sides: Sequence[str], where: str) -> dict[str, Any]:
    """Return prompt and responses of HH-RLHF's texts: the prompt ends with the last "Assistant:" that both share."""
    same = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), min(map(len, sides)))
    place = sides[0][:same].rfind(ASSISTANT)
    if place < 0:
        raise UserError(
            f"{where}: no column 'prompt', and the sides share no {ASSISTANT.strip()!r} turn from which to take it "
            "(HH-RLHF's form); add a column 'prompt'"
        )
    end = place + len(ASSISTANT)
    return {"prompt": sides[0][:end], **{side: text[end:] for side, text in zip(SIDES, sides, strict=True)}}


def is_transcript(prompt: Any) -> bool:
    """Tell whether a prompt is a text that names whose turn it is, as HH-RLHF's are."""
    return isinstance(prompt, str) and prompt.endswith(ASSISTANT)


def as_conversations(rows: Sequence[dict[str, Any]], tokenizer: Any, chat: str | bool) -> list[dict[str, Any]]:
    """Return text pairs as messages where the model's chat template is to write them (`autotelic.lm.chat.uses_chat`).

    Raises:
        UserError: the pairs are conversations already, and the tokenizer has no template.
    """
    if not uses_chat([row["prompt"] for row in rows], tokenizer, chat):
        return list(rows)

    def answered(side: Any) -> Any:
        return [{"role": "assistant", "content": side}] if isinstance(side, str) else side

    return [row | {"prompt": as_messages(row["prompt"])} | {s: answered(row[s]) for s in SIDES} for row in rows]


def checked(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the columns that training reads, of the right types."""
    if row["chosen"] == row["rejected"]:
        raise UserError(f"{where}: chosen and rejected are the same response: drop the row, it holds no preference")
    kept: dict[str, Any] = {name: row[name] for name in ("prompt", *SIDES)}
    for side in SIDES:
        if row.get(f"{side}_policy_id") is not None:
            kept[f"{side}_policy_id"] = str(row[f"{side}_policy_id"])
        tokens = row.get(f"{side}_segment_tokens")
        if tokens is not None:
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
                raise UserError(f"{where}: {side}_segment_tokens must be a whole number of at least 1, got {tokens!r}")
            kept[f"{side}_segment_tokens"] = tokens
        logprobs = row.get(f"{side}_sampler_logprobs")
        if logprobs is not None:
            kept[f"{side}_sampler_logprobs"] = sampled_logprobs(logprobs, f"{where}: {side}_sampler_logprobs")
    return kept


def sampled_logprobs(values: Any, where: str) -> list[float]:
    """Return log-probabilities of sampled tokens: finite, and at most 0."""
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} must be a list with one number per token, the end token included")
    for place, value in enumerate(values):
        if not is_number(value) or value > 1e-4:
            raise UserError(
                f"{where}, token {place + 1} is {value!r}: a log-probability is finite and at most 0; a token that the "
                "sampler could not draw means that these are not those of the sampling distribution"
            )
    return [min(float(value), 0.0) for value in values]


def write_pairs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write preference rows as JSON lines, whole or not at all."""
    from autotelic.runs.files import write_atomically

    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
