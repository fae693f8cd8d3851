"""One interface to every source: the same rows come out, and what is wrong with a file is said in one line."""

import json
from pathlib import Path

import pytest

from autotelic.errors import UserError
from autotelic.tasks import load_problems, to_dataset

ROWS = [{"prompt": "1+1=?", "answer": "2", "id": "a"}, {"prompt": "2+2=?", "answer": "4", "id": "b"}]


def write(path: Path, rows: list) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def test_jsonl_and_parquet_give_the_same_rows(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert load_problems(write(tmp_path / "rows.jsonl", ROWS)) == ROWS
    assert load_problems(str(tmp_path / "rows.parquet")) == ROWS


def test_columns_are_renamed_numbers_become_text_and_the_rest_is_dropped(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{"question": "1+1=?", "solution": 2, "level": "easy"}])
    rows = load_problems(path, columns={"prompt": "question", "answer": "solution"})
    assert rows == [{"prompt": "1+1=?", "answer": "2"}]


def test_answers_are_optional_unless_required(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "1+1=?", "id": 7}])
    assert load_problems(path) == [{"id": "7", "prompt": "1+1=?"}]
    with pytest.raises(UserError, match=r"no column 'answer'; present: prompt, id"):
        load_problems(path, require_answer=True)


def test_limit_takes_the_first_rows(tmp_path: Path):
    assert load_problems(write(tmp_path / "rows.jsonl", ROWS), limit=1) == ROWS[:1]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + json.dumps(ROWS[0]), encoding="utf-8")
    assert load_problems(path) == ROWS[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n\n["b"]\n', "line 3 is a JSON list"),
        ('{"question": "a", "solution": "b"}', r"no column 'prompt'; present: question, solution"),
        ('{"prompt": "a"}\n{"prompt": null}', "row 2: no column 'prompt'"),
        ('{"prompt": ["a"]}', "a list is not text"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_problems(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    for name, message in (("binary.jsonl", "UTF-8"), ("bad.parquet", "parquet"), ("absent.jsonl", "is not a file")):
        with pytest.raises(UserError, match=message):
            load_problems(tmp_path / name)


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(UserError, match="did you mean 'test'"):
        load_problems("chain_sums:tset")
    with pytest.raises(UserError, match="did you mean 'answer'"):
        load_problems("chain_sums.jsonl", columns={"anwser": "x"})
    with pytest.raises(UserError, match="limit"):
        load_problems("chain_sums:test", limit=0)


def test_reasoning_gym_gives_the_same_interface():
    pytest.importorskip("reasoning_gym")
    rows = load_problems("reasoning_gym:chain_sum", limit=3, seed=1)
    assert rows == load_problems("reasoning_gym:chain_sum", limit=3, seed=1)
    assert [sorted(row) for row in rows] == [["answer", "id", "prompt"]] * 3
    with pytest.raises(UserError, match="did you mean 'chain_sum'"):
        load_problems("reasoning_gym:chain_summ")


def test_a_dataset_without_answers_is_made_by_naming_the_columns():
    rows = load_problems("chain_sums:train", limit=4)
    data = to_dataset(rows, columns=("prompt", "id"))
    assert sorted(data.column_names) == ["id", "prompt"]
    assert data["prompt"][:] == [row["prompt"] for row in rows]
