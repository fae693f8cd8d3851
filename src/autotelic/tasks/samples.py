"""Reads files of sampled responses: one row per prompt, with `prompt`, `responses`, and what else is known.

| file | recognised by |
| --- | --- |
| ours, one JSON object a line: `{"prompt", "responses", "answer"?, "id"?, "greedy"?}` | `responses` |
| `autotelic eval --output` | one JSON object that holds `samples` |
| lm-evaluation-harness, `samples_*.jsonl` (`--log_samples`) | `resps` |
| OpenAI batch outputs, and those of `vllm run-batch` | `response.body.choices` |
| vLLM's `RequestOutput`, as JSON | `outputs` |
| Open-R1: `{"problem", "generations", "answer"}`, and others' `completions`, `outputs` | these lists |
| one response a row: verl (`input`, `output`, `gts`), TRL (`prompt`, `completion`) | rows of a prompt are joined |

Columns with other names are named by `columns`.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotelic.errors import UserError, closest, one_of
from autotelic.tasks.conversations import final_text, is_conversation
from autotelic.tasks.sources import nested, read_parquet

ROLES = ("prompt", "responses", "answer", "id")
SINGLE = (("prompt", "completion"), ("input", "output"), ("prompt", "generated_text"), ("prompt", "response"),
          ("prompt", "output"), ("question", "response"), ("problem", "response"))  # fmt: skip
"""Columns of files with one response a row."""
ANSWERS = ("answer", "gts", "ground_truth", "solution")


def read_samples(
    path: Path,
    *,
    answers: bool = False,
    least: int = 2,
    columns: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Read samples; every complaint is one line and names its place.

    Args:
        path: the file; see the table at the top of this module.
        answers: every row must have an answer.
        least: responses that a row must have.
        columns: which column holds "prompt", "responses", "answer" or "id" where it has another name.
        say: takes remarks, such as which of several parts was read.
    """
    needed = ("prompt", "responses", *(["answer"] if answers else []))
    rows = _renamed(_rows(path, needed, say), dict(columns or {}))
    if not rows:
        raise UserError(f"{path} is empty: give one JSON object a line with {', '.join(needed)}")
    return [_checked(row, where, needed, least) for where, row in _joined(rows)]


def _rows(path: Path, needed: Sequence[str], say: Callable[[str], None] | None) -> list[tuple[str, dict[str, Any]]]:
    """Return (place, row) of every row, in our columns where the file's shape is known."""
    if path.suffix == ".parquet":
        found = [(f"{path}, row {number}", dict(row)) for number, row in enumerate(read_parquet(path), start=1)]
        return [(where, _in_our_columns(row, where)) for where, row in found]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    if text.startswith("[") and text.rstrip().endswith("]") and "{" in text[:200]:
        raise UserError(f"{path} is one JSON array: give one JSON object a line (jq -c '.[]' {path.name} writes that)")
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error}): give one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{where} is not a JSON object but {type(row).__name__}: give one a line, with {', '.join(needed)}"
            )
        evaluated = _evaluated(row, path, say)
        rows += [(where, _in_our_columns(row, where))] if evaluated is None else evaluated
    return rows


def _evaluated(
    row: dict[str, Any], path: Path, say: Callable[[str], None] | None
) -> list[tuple[str, dict[str, Any]]] | None:
    """Return the samples that `autotelic eval --output` wrote; None for any other row."""
    parts = {name: part for name, part in row.items() if isinstance(_field(part, "samples"), list)}
    if not parts or "prompt" in row:
        return None
    name = next(iter(parts))
    if len(parts) > 1 and say is not None:
        say(f"{path} holds {len(parts)} temperatures ({', '.join(parts)}): those at {name} are read")
    kept = ("id", "prompt", "answer", "responses", "greedy", "entropy")
    found = [*parts[name]["samples"], *parts[name].get("unscored", [])]
    return [
        (f"{path}, sample {number}", {key: sample[key] for key in kept if sample.get(key) is not None})
        for number, sample in enumerate(found, start=1)
    ]


def _in_our_columns(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the row with `prompt`, `responses`, `answer` and `id` where its shape is known, and as it is elsewhere."""
    if "responses" in row:
        return row
    if "resps" in row:
        return _harness(row, where)
    if isinstance(row.get("response"), Mapping) or isinstance(row.get("choices"), list):
        return _openai(row, where)
    for name in ("outputs", "generations", "completions"):
        if isinstance(row.get(name), list):
            texts = [_field(one, "text") if isinstance(one, Mapping) else one for one in row[name]]
            return row | {"prompt": row.get("prompt", row.get("problem", row.get("question"))), "responses": texts}
    return row


def _harness(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row of lm-evaluation-harness; one that compares log-likelihoods has no text."""
    responses = [text for request in row["resps"] for text in (request if isinstance(request, list) else [request])]
    if not all(isinstance(text, str) for text in responses):
        raise UserError(f"{where} holds log-likelihoods, not text: give samples of a task that generates")
    asked = row.get("arguments")
    while isinstance(asked, Mapping | list) and asked:
        asked = next(iter(asked.values())) if isinstance(asked, Mapping) else asked[0]
    doc = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
    prompt = asked if isinstance(asked, str) else doc.get("question", doc.get("problem"))
    found = {"prompt": prompt, "responses": responses, "answer": row.get("target"), "id": row.get("doc_id")}
    return {name: value for name, value in found.items() if value is not None} | (
        {"filter": row["filter"]} if "filter" in row else {}
    )


def _openai(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row of an OpenAI batch output; it holds no prompt, so its `custom_id` stands for it."""
    body = _field(row.get("response"), "body") or row
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list):
        reason = row.get("error") or _field(row.get("response"), "status_code") or "no choices"
        raise UserError(f"{where} is a request that failed ({reason}): take the line out, or ask again")
    name = row.get("custom_id", row.get("id"))
    responses = [_field(_field(choice, "message"), "content") or _field(choice, "text") or "" for choice in choices]
    return {"id": name, "prompt": name, "responses": responses} | {key: row[key] for key in ROLES if key in row}


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _renamed(rows: list[tuple[str, dict[str, Any]]], columns: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows with the user's columns under our names; a dot leads into a nested one."""
    for role in columns:
        if role not in ROLES:
            raise UserError(f"columns: unknown role {role!r}{one_of(role, ROLES)}")
    chosen = {role: column for role, column in columns.items() if column != role}
    if not chosen:
        return rows
    renamed = []
    for where, row in rows:
        row = dict(row)
        for role, column in chosen.items():
            value = nested(row, column)
            if value is None:
                raise UserError(f"{where} has no column {column!r}, it has {', '.join(row)}{closest(column, row)}")
            row[role] = value
        if "responses" in chosen and not isinstance(row["responses"], list):
            row["response_of_row"] = row.pop("responses")
        renamed.append((where, row))
    return renamed


def _joined(rows: Iterable[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Join rows of one response each by their prompt, and the filters of one document."""
    joined: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, (where, row) in enumerate(rows):
        if "responses" in row:
            key = f"doc {row['id']}" if "filter" in row and "id" in row else f"row {number}"
            joined.setdefault(key, (where, row))
            continue
        single = next(((p, r) for p, r in SINGLE if p in row and _is_text(row.get(r))), None)
        response = row.get("response_of_row", row[single[1]] if single else None)
        prompt = row.get("prompt", row[single[0]] if single else None)
        if response is None or prompt is None:
            joined[f"row {number}"] = (where, row)
            continue
        key = json.dumps([prompt, row.get("step")], sort_keys=True, default=str)
        answer = next((row[name] for name in ANSWERS if row.get(name) is not None), None)
        first = {"prompt": prompt, "responses": []} | ({} if answer is None else {"answer": answer})
        first |= {"id": row["id"]} if "id" in row else {}
        joined.setdefault(key, (where, first))[1]["responses"].append(response)
    return list(joined.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or is_conversation(value)


def _checked(row: dict[str, Any], where: str, columns: Sequence[str], least: int) -> dict[str, Any]:
    """Return the row if it is a sample, its responses as text."""
    for column in columns:
        if column in row and row[column] is None:
            raise UserError(f"{where}: column {column!r} is null: fill it, or take the row out")
        if column not in row:
            option = {"responses": "--response-column"}.get(column, f"--{column}-column")
            raise UserError(
                f"{where} has no column {column!r}, it has {', '.join(sorted(row))}{closest(column, row)}; "
                f"{option} names another"
            )
    responses = row["responses"]
    if isinstance(responses, list):
        responses = [final_text(text) if is_conversation(text) else text for text in responses]
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise UserError(f"{where}: 'responses' must be a list of strings")
    if len(responses) < least:
        raise UserError(
            f"{where} has a group of {len(responses)}: agreement needs at least {least} responses to a prompt"
            if least > 1
            else f"{where} has no responses: give a list of at least one string"
        )
    prompt = row["prompt"]
    if isinstance(prompt, int | float) and not isinstance(prompt, bool):
        prompt = str(prompt)
    if not isinstance(prompt, str) and not is_conversation(prompt):
        raise UserError(f"{where}: 'prompt' must be a text, or messages with role and content")
    return row | {"prompt": prompt, "responses": responses} | _measured(row, where, len(responses))


def _measured(row: dict[str, Any], where: str, count: int) -> dict[str, Any]:
    """Return what a row may tell of its sampling: the greedy response as text, the entropy, the temperatures."""
    found = {name: row[name] for name in ("greedy", "entropy", "temperatures") if row.get(name) is not None}
    if is_conversation(found.get("greedy")):
        found["greedy"] = final_text(found["greedy"])
    if not isinstance(found.get("greedy", ""), str):
        raise UserError(f"{where}: 'greedy' must be a string, the response of greedy decoding")
    if not is_number(found.get("entropy", 0.0)):
        raise UserError(f"{where}: 'entropy' must be a number, in nats per token, got {found['entropy']!r}")
    temperatures = found.get("temperatures", [1.0] * count)
    if not isinstance(temperatures, list) or len(temperatures) != count or not all(map(is_number, temperatures)):
        raise UserError(f"{where}: 'temperatures' must be a list with one number for each of the {count} responses")
    return found


def is_number(value: Any) -> bool:
    """Return whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
