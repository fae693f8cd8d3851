"""One interface to every source of problems: rows `prompt`, optional `answer`, optional `id`.

| source | what it reads |
| --- | --- |
| `chain_sums:test` | the small world's split "train", "test" or "ood" |
| `word_sums:test` | one-step word problems for a chat model: split "train", "validation", "test" or "ood" |
| `reasoning_gym:NAME` | a data set of reasoning-gym, with settings of its own: `reasoning_gym:chain_sum,max_terms=2` |
| `FILE.jsonl`, `.json`, `.parquet`, `.csv`, `.tsv` | a file |
| `FOLDER` or `FOLDER:SPLIT` | what `Dataset.save_to_disk` wrote |
| `OWNER/NAME` or `OWNER/NAME:SPLIT` | a data set of the `datasets` hub (split "train", or the only one there is) |

A prompt is a text or a list of chat messages. Columns that are called otherwise are named by `columns`; the published
shapes in `SHAPES` (GSM8K, MATH-500, DAPO-Math, verl's parquet files, ...) are known.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autotelic.errors import UserError, closest, one_of
from autotelic.tasks import chain_sums, word_sums
from autotelic.tasks.chain_sums import ChainSums
from autotelic.tasks.conversations import is_conversation
from autotelic.tasks.word_sums import WordSums

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = ("id", "prompt", "answer")
DEFAULT_COUNT = 1000  # rows of a generated source when no limit is given
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")

SHAPES = (
    ("prompt", "reward_model.ground_truth"),  # verl, DAPO-Math-17k
    ("question", "answer"),  # GSM8K
    ("problem", "answer"),  # MATH-500, OpenR1-Math
    ("problem", "solution"),  # MATH, NuminaMath
    ("problem", "expected_answer"),  # OpenMathReasoning
    ("question", "reference_answer"),  # NaturalReasoning
    ("prompt", "solution"),  # TRL's examples
    ("prompt", "ground_truth"),
)
"""Columns of prompt and answer in published data sets; the first pair that a file has is taken."""


def load_problems(
    source: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    config: str | None = None,
    world: ChainSums | WordSums | None = None,
    require_answer: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Read problems from any source.

    Args:
        source: see the table at the top of this module.
        limit: at most this many rows; generated sources give 1000 when it is None.
        seed: of generated sources; files and hub data sets are read in order.
        columns: which column holds "prompt", "answer" or "id" where it has another name, as
            `{"prompt": "question"}`; a dot leads into a nested one, as in "reward_model.ground_truth".
        keep: further columns, kept as they are; without a column "solution" or "ground_truth", that is the answer.
        config: of a hub data set that has several, as "main" of openai/gsm8k.
        world: settings of `chain_sums:...` (default `ChainSums()`) or `word_sums:...` (default `WordSums()`).
        require_answer: refuse a source without the column "answer".
        say: takes remarks, such as which columns were taken.

    Returns:
        One dictionary per problem: "prompt" (text or messages) and, where the source has them, "answer" (a text, or a
        list of accepted ones), "id", and what `keep` names.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}.")
    for role in columns or {}:
        if role not in ROLES:
            raise UserError(f"columns: unknown role {role!r}{one_of(role, ROLES)}")
    name = str(source)
    kind, _, rest = name.partition(":")
    generated = kind in ("chain_sums", "word_sums", "reasoning_gym")
    other = [column for role, column in (columns or {}).items() if column != role]
    if generated and other:
        raise UserError(f"{name} is generated, with the columns prompt and answer: it has no column {other[0]!r}.")
    in_folder = Path(name).is_dir() or bool(Path(kind).is_dir() and rest)
    local = in_folder or Path(name).suffix in SUFFIXES or Path(name).exists()
    if config is not None and (generated or local):
        raise UserError(f"{name} is no hub data set, and has no configuration {config!r}: leave --dataset-config out.")
    if kind in ("chain_sums", "word_sums"):
        rows: Iterable[Mapping[str, Any]] = _generated(kind, rest, limit or DEFAULT_COUNT, seed, world)
        columns = {}
    elif kind == "reasoning_gym":
        rows, columns = _reasoning_gym(rest, limit or DEFAULT_COUNT, seed), {}
    elif in_folder:
        rows = _folder(Path(name), "") if Path(name).is_dir() else _folder(Path(kind), rest)
    elif local:
        rows = _read_file(Path(name))
    else:
        rows = _hub(name, config)
    return _select(rows, name, dict(columns or {}), limit, require_answer, tuple(keep), say)


def to_dataset(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> "Dataset":
    """Return rows as a `datasets.Dataset`.

    Args:
        rows: what `load_problems` returned.
        columns: the columns to keep; `("prompt", "id")` leaves the answers out, for label-free training.
    """
    from datasets import Dataset

    kept = list(columns) if columns is not None else list(rows[0])
    return Dataset.from_list([{name: row[name] for name in kept} for row in rows])


def nested(row: Mapping[str, Any], column: str) -> Any:
    """Return a column's value; `reward_model.ground_truth` is a field of a column that holds objects."""
    value: Any = row.get(column)
    if value is None and "." in column:
        value = row
        for part in column.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _generated(
    kind: str, split: str, count: int, seed: int, world: ChainSums | WordSums | None
) -> Sequence[Mapping[str, Any]]:
    splits = chain_sums.SPLITS if kind == "chain_sums" else word_sums.SPLITS
    if split not in splits:
        raise UserError(f"unknown split in '{kind}:{split}'{one_of(split, splits)}; write {kind}:SPLIT")
    settings = world or (ChainSums() if kind == "chain_sums" else WordSums())
    if isinstance(settings, WordSums) != (kind == "word_sums"):
        raise UserError(f"{kind} cannot use settings of the class {type(settings).__name__}.")
    if isinstance(settings, WordSums):
        return word_sums.problems(settings, split, count, seed)
    return chain_sums.problems(settings, split, count, seed)


def _reasoning_gym(spec: str, count: int, seed: int) -> list[dict[str, str]]:
    name, *given = (part.strip() for part in spec.split(","))
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(f"reasoning_gym:{name} needs reasoning-gym: pip install 'autotelic[tasks]'.") from error
    if name not in DATASETS:
        raise UserError(f"reasoning-gym has no data set {name!r}{closest(name, DATASETS)}")
    settings = _dataset_settings(f"reasoning_gym:{name}", given, DATASETS[name][1])
    try:
        data = reasoning_gym.create_dataset(name, size=count, seed=seed, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"reasoning_gym:{spec}: {error}") from error
    rows = []
    for index in range(count):
        entry = data[index]
        row = {"id": f"{name}-{seed}-{index}", "prompt": str(entry["question"])}
        rows.append(row if entry.get("answer") is None else {**row, "answer": str(entry["answer"])})
    return rows


def _dataset_settings(where: str, given: Sequence[str], config: type) -> dict[str, Any]:
    """Return the settings in `key=value` texts, of the types that the data set's own defaults have."""
    import yaml

    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    settings: dict[str, Any] = {}
    for text in given:
        key, _, value = text.partition("=")
        if not value or key in settings:
            raise UserError(f"{where}: {text!r} is not a setting, or given twice; write key=value")
        if key in ("size", "seed"):
            raise UserError(f"{where}: {key} is given by `{'limit' if key == 'size' else 'seed'}`, leave it out here")
        if key not in defaults:
            raise UserError(f"{where} has no setting {key!r}{closest(key, defaults)}")
        settings[key], kind = yaml.safe_load(value), type(defaults[key])
        if kind in (bool, int, float, str) and type(settings[key]) not in (kind, int if kind is float else kind):
            raise UserError(f"{where}: {key} is {value!r}, not {kind.__name__} as its default {defaults[key]!r} is")
    return settings


def _read_file(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a .jsonl or .parquet file, or a source such as chain_sums:test.")
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix in (".gguf", ".safetensors", ".bin", ".pt"):
        raise UserError(f"{path} holds a model, not problems: give it as the model, and a data set here.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix in (".csv", ".tsv"):
                return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
            if path.suffix == ".json":
                text = file.read()
                return _array(text, path) if text.lstrip().startswith("[") else _lines(text.split("\n"), path)
            return _lines(file, path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error


def _lines(lines: Iterable[str], path: Path) -> list[Mapping[str, Any]]:
    return [_parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _array(text: str, path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): give a list of objects.") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number} is a JSON {type(row).__name__}, not an object.")
    return rows


def _parse_row(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): write one object per line.") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is a JSON {type(row).__name__}, not an object: write one object per line.")
    return row


def read_parquet(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as parquet: {str(error).splitlines()[0]}") from error


def _folder(path: Path, split: str) -> Iterable[Mapping[str, Any]]:
    """Return what `save_to_disk` wrote: one data set, or several splits."""
    import datasets

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise UserError(
            f"{path} is a folder that no data set was saved to: give a file, or what Dataset.save_to_disk wrote."
        )
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # many kinds; all mean that it cannot be read
        raise UserError(f"cannot read the data set in {path}: {(str(error).splitlines() or [''])[0]}") from error
    return _one_split(found, split, str(path))


def _hub(name: str, config: str | None) -> Iterable[Mapping[str, Any]]:
    import datasets

    repository, _, split = name.partition(":")
    try:
        try:
            found: Any = datasets.load_dataset(repository, config, split=split or "train")
        except ValueError as error:
            if split or "nknown split" not in str(error):
                raise
            found = datasets.load_dataset(repository, config)
    except Exception as error:  # the hub client raises many kinds; all mean that it cannot be read
        first = (str(error).splitlines() or [""])[0]
        hint = " (name it with --dataset-config)" if "onfig name is missing" in str(error) else ""
        raise UserError(
            f"cannot read {name!r}: there is no such file, and as a hub data set it failed with "
            f"{type(error).__name__}: {first}{hint}"
        ) from error
    return _one_split(found, "", repository)


def _one_split(found: Any, split: str, name: str) -> Iterable[Mapping[str, Any]]:
    """Return a data set's split: the one asked for, "train", or the only one there is."""
    if not isinstance(found, dict):
        if split:
            raise UserError(f"{name} has no splits: leave out ':{split}'.")
        return cast("Iterable[Mapping[str, Any]]", found)
    chosen = split or ("train" if "train" in found else next(iter(found)) if len(found) == 1 else "")
    if chosen not in found:
        raise UserError(f"{name} has the splits {', '.join(map(str, found))}: choose one as {name}:SPLIT.")
    return found[chosen]


def _select(
    rows: Iterable[Mapping[str, Any]],
    name: str,
    columns: dict[str, str],
    limit: int | None,
    require_answer: bool,
    keep: tuple[str, ...],
    say: Callable[[str], None] | None,
) -> list[dict[str, Any]]:
    required = {"prompt", *columns} | ({"answer"} if require_answer else set())
    selected: list[dict[str, Any]] = []
    names: dict[str, str] | None = None
    for number, row in enumerate(rows, start=1):
        if limit is not None and len(selected) == limit:
            break
        names = _columns(row, columns, say) if names is None else names
        where = f"{name}, row {number}"
        found = {role: nested(row, column) for role, column in names.items()}
        for role in sorted(required):
            if found[role] is None:
                present = ", ".join(map(str, row)) or "none"
                raise UserError(f"{where}: no column {names[role]!r}; present: {present}.")
        cleaned = {
            role: _CLEAN[role](value, f"{where}, {names[role]}") for role, value in found.items() if value is not None
        }
        if isinstance(cleaned["prompt"], str) and not cleaned["prompt"].strip():
            raise UserError(f"{where}: the prompt is empty: give it a text, or take the row out.")
        selected.append(cleaned | {column: _kept(row, column, cleaned, where) for column in keep})
    if not selected:
        raise UserError(f"{name} is empty: it has no rows.")
    return _of_one_kind(selected, name)


def _columns(row: Mapping[str, Any], columns: Mapping[str, str], say: Callable[[str], None] | None) -> dict[str, str]:
    """Return which column holds each role: the one named, the role's own name, or that of a published shape."""
    names = {role: columns.get(role, role) for role in ROLES}
    open_roles = [role for role in ("prompt", "answer") if names[role] == role and row.get(role) is None]
    for prompt, answer in SHAPES if open_roles else ():
        shape = {"prompt": prompt, "answer": answer}
        chosen = names | {role: shape[role] for role in open_roles}
        fixed = all(
            names[role] == shape[role] or columns.get(role, role) != role for role in shape if role not in open_roles
        )
        if fixed and all(nested(row, chosen[role]) is not None for role in shape):
            if say is not None:
                say(f"columns: prompt = {chosen['prompt']}, answer = {chosen['answer']}")
            return chosen
    return names


def _kept(row: Mapping[str, Any], column: str, cleaned: Mapping[str, Any], where: str) -> Any:
    """Return a further column, or the answer where that is what the column's name means."""
    value = cleaned.get(column) if column in ROLES else row.get(column)
    if value is None and column in ("solution", "ground_truth", "answer"):
        value = cleaned.get("answer")
    if value is None:
        raise UserError(f"{where}: no column {column!r}; present: {', '.join(map(str, row))}.")
    return value


def _text(value: Any, where: str) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: a {type(value).__name__} is not text: give a string or a number.")


def _prompt(value: Any, where: str) -> str | list[dict[str, Any]]:
    """Return a prompt: a text, or chat messages."""
    if is_conversation(value):
        return [dict(message) for message in value]
    if isinstance(value, list):
        raise UserError(f"{where}: a list is not text: give a string, or messages with role and content.")
    return _text(value, where)


def _answer(value: Any, where: str) -> str | list[str]:
    """Return a label: a text, or a list of accepted ones."""
    if isinstance(value, list) and value:
        return [_text(item, where) for item in value]
    return _text(value, where)


_CLEAN: dict[str, Callable[[Any, str], Any]] = {"id": _text, "prompt": _prompt, "answer": _answer}


def _of_one_kind(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Make every answer a list where one is, as a table has one type a column; refuse texts among conversations."""
    texts = [isinstance(row["prompt"], str) for row in rows]
    if any(texts) and not all(texts):
        raise UserError(
            f"{name}, row {texts.index(not texts[0]) + 1}: texts and conversations are mixed: use one kind."
        )
    if any(isinstance(row.get("answer"), list) for row in rows):
        for row in rows:
            if isinstance(row.get("answer"), str):
                row["answer"] = [row["answer"]]
    return rows
