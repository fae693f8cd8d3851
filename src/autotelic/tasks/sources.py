"""One interface to every source of problems: rows `prompt`, optional `answer`, optional `id`.

| source | what it reads |
| --- | --- |
| `chain_sums:test` | the small world's split "train", "test" or "ood" |
| `reasoning_gym:NAME` | a data set of reasoning-gym, such as `reasoning_gym:chain_sum` |
| `FILE.jsonl`, `FILE.parquet` | a file |
| `OWNER/NAME` or `OWNER/NAME:SPLIT` | a data set of the `datasets` hub (split "train" when none is given) |
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autotelic.errors import UserError, closest
from autotelic.tasks.chain_sums import SPLITS, ChainSums, problems

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = ("id", "prompt", "answer")
DEFAULT_COUNT = 1000  # rows of a generated source when no limit is given


def load_problems(
    source: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    world: ChainSums | None = None,
    require_answer: bool = False,
) -> list[dict[str, str]]:
    """Read problems from any source.

    Args:
        source: see the table at the top of this module.
        limit: at most this many rows; generated sources give 1000 when it is None.
        seed: of generated sources; files and hub data sets are read in order.
        columns: which column holds "prompt", "answer" or "id" where it has another name, as
            `{"prompt": "question"}`.
        world: settings of the small world, for `chain_sums:...` (default `ChainSums()`).
        require_answer: refuse a source without the column "answer".

    Returns:
        One dictionary per problem, with "prompt" and, where the source has them, "answer" and "id".
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}.")
    for role in columns or {}:
        if role not in ROLES:
            raise UserError(f"columns: unknown role {role!r}{closest(role, ROLES)} Valid: {', '.join(ROLES)}.")
    name = str(source)
    kind, _, rest = name.partition(":")
    if kind == "chain_sums":
        if rest not in SPLITS:
            raise UserError(f"unknown split in {name!r}{closest(rest, SPLITS)} Write chain_sums:SPLIT, {SPLITS}.")
        return problems(world or ChainSums(), rest, limit or DEFAULT_COUNT, seed)
    if kind == "reasoning_gym":
        return _reasoning_gym(rest, limit or DEFAULT_COUNT, seed)
    if Path(name).suffix in (".jsonl", ".parquet") or Path(name).exists():
        rows: Iterable[Mapping[str, Any]] = _read_file(Path(name))
    else:
        rows = _hub(name)
    return _select(rows, name, dict(columns or {}), limit, require_answer)


def to_dataset(rows: Sequence[Mapping[str, str]], columns: Sequence[str] | None = None) -> "Dataset":
    """Return rows as a `datasets.Dataset`.

    Args:
        rows: what `load_problems` returned.
        columns: the columns to keep; `("prompt", "id")` leaves the answers out, for label-free training.
    """
    from datasets import Dataset

    kept = list(columns) if columns is not None else list(rows[0])
    return Dataset.from_list([{name: row[name] for name in kept} for row in rows])


def _reasoning_gym(name: str, count: int, seed: int) -> list[dict[str, str]]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(f"reasoning_gym:{name} needs reasoning-gym: pip install 'autotelic[tasks]'.") from error
    if name not in DATASETS:
        raise UserError(f"reasoning-gym has no data set {name!r}{closest(name, DATASETS)}")
    data = reasoning_gym.create_dataset(name, size=count, seed=seed)
    rows = []
    for index in range(count):
        entry = data[index]
        row = {"id": f"{name}-{seed}-{index}", "prompt": str(entry["question"])}
        rows.append(row if entry.get("answer") is None else {**row, "answer": str(entry["answer"])})
    return rows


def _read_file(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a .jsonl or .parquet file, or a source such as chain_sums:test.")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    rows: list[Mapping[str, Any]] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                rows.append(_parse_row(line, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    return rows


def _parse_row(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): write one object per line.") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is a JSON {type(row).__name__}, not an object: write one object per line.")
    return row


def _read_parquet(path: Path) -> list[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as parquet: {str(error).splitlines()[0]}") from error


def _hub(name: str) -> Iterable[Mapping[str, Any]]:
    import datasets

    repository, _, split = name.partition(":")
    try:
        return cast("Iterable[Mapping[str, Any]]", datasets.load_dataset(repository, split=split or "train"))
    except Exception as error:  # the hub client raises many kinds; all mean that it cannot be read
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"cannot read {name!r}: there is no such file, and as a hub data set it failed with "
            f"{type(error).__name__}: {first}"
        ) from error


def _select(
    rows: Iterable[Mapping[str, Any]], name: str, columns: dict[str, str], limit: int | None, require_answer: bool
) -> list[dict[str, str]]:
    required = {"prompt", *columns} | ({"answer"} if require_answer else set())
    selected: list[dict[str, str]] = []
    for number, row in enumerate(rows, start=1):
        if limit is not None and len(selected) == limit:
            break
        for role in sorted(required):
            column = columns.get(role, role)
            if row.get(column) is None:
                raise UserError(f"{name}, row {number}: no column {column!r}; present: {', '.join(row) or 'none'}.")
        names = {role: columns.get(role, role) for role in ROLES}
        found = {role: row[column] for role, column in names.items() if row.get(column) is not None}
        selected.append({role: _text(value, f"{name}, row {number}, {names[role]}") for role, value in found.items()})
    if not selected:
        raise UserError(f"{name} is empty: it has no rows.")
    return selected


def _text(value: Any, where: str) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: a {type(value).__name__} is not text: give a string or a number.")
