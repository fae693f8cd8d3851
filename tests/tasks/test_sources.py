"""One interface to every source: the same rows come out, and what is wrong with a file is said in one line."""

import json
import re
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


def test_reasoning_gym_takes_its_data_sets_own_settings():
    pytest.importorskip("reasoning_gym")
    rows = load_problems("reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1", limit=20)
    assert all(len(re.findall(r"\d+", row["prompt"])) == 2 and abs(int(row["answer"])) < 20 for row in rows)
    for wrong, message in [
        ("max_term=2", "did you mean 'max_terms'"),
        ("max_terms=many", "max_terms is 'many', not int as its default 6 is"),
        ("max_terms", "'max_terms' is not a setting"),
        ("min_terms=3,max_terms=2", "reasoning_gym:chain_sum,min_terms=3,max_terms=2: "),
        ("size=4", "size is given by `limit`"),
    ]:
        with pytest.raises(UserError, match=message):
            load_problems(f"reasoning_gym:chain_sum,{wrong}")


def test_a_dataset_without_answers_is_made_by_naming_the_columns():
    rows = load_problems("chain_sums:train", limit=4)
    data = to_dataset(rows, columns=("prompt", "id"))
    assert sorted(data.column_names) == ["id", "prompt"]
    assert data["prompt"][:] == [row["prompt"] for row in rows]


GSM8K = {"question": "1+1=?", "answer": "He has <<1+1=2>>2\n#### 2"}
MATH_500 = {
    "problem": "1+1=?",
    "solution": "So \\boxed{2}",
    "answer": "2",
    "subject": "Algebra",
    "level": 2,
    "unique_id": "test/a/1.json",
}
DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"content": "1+1=?", "role": "user"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}
PUBLISHED = {
    "openai/gsm8k": (GSM8K, "1+1=?", GSM8K["answer"]),
    "HuggingFaceH4/MATH-500": (MATH_500, "1+1=?", "2"),
    "BytedTsinghua-SIA/DAPO-Math-17k": (DAPO, DAPO["prompt"], "2"),
    "AI-MO/NuminaMath-CoT": (
        {"problem": "1+1=?", "solution": "So \\boxed{2}", "source": "x"},
        "1+1=?",
        "So \\boxed{2}",
    ),
    "facebook/natural_reasoning": ({"question": "1+1=?", "reference_answer": "2", "responses": []}, "1+1=?", "2"),
    "trl": ({"prompt": DAPO["prompt"], "solution": "2"}, DAPO["prompt"], "2"),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "disk"])
def test_published_data_sets_load_as_they_are(tmp_path: Path, name: str, suffix: str):
    import datasets
    import pyarrow
    import pyarrow.parquet

    row, prompt, answer = PUBLISHED[name]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        write(path, [row] * 2)
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 2), path)
    else:
        datasets.DatasetDict({"test": datasets.Dataset.from_list([row] * 2)}).save_to_disk(path)
    said: list[str] = []
    assert load_problems(path, require_answer=True, say=said.append) == [{"prompt": prompt, "answer": answer}] * 2
    assert said and said[0].startswith("columns: prompt = ")
    assert to_dataset(load_problems(path), columns=("prompt",))[0] == {"prompt": prompt}


def test_columns_by_name_nested_ones_too(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{"q": "1+1=?", "info": {"gold": ["2", 2.0]}, "level": 3}])
    rows = load_problems(path, columns={"prompt": "q", "answer": "info.gold"}, keep=("level", "solution"))
    assert rows == [{"prompt": "1+1=?", "answer": ["2", "2.0"], "level": 3, "solution": ["2", "2.0"]}]
    with pytest.raises(UserError, match="no column 'difficulty'"):
        load_problems(path, columns={"prompt": "q"}, keep=("difficulty",))


def test_an_answer_list_makes_every_answer_a_list(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": [2, "two"]}])
    assert [row["answer"] for row in load_problems(path)] == [["1"], ["2", "two"]]


def test_csv_and_json_arrays(tmp_path: Path):
    (tmp_path / "rows.csv").write_bytes('\ufeffprompt,answer\r\n1+1=?,2\r\n"a, b",\r\n'.encode())
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=1))
    assert load_problems(tmp_path / "rows.csv") == [
        {"prompt": "1+1=?", "answer": "2"},
        {"prompt": "a, b", "answer": ""},
    ]
    assert load_problems(tmp_path / "rows.json") == ROWS


def test_folders_and_splits(tmp_path: Path):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"dev": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    assert load_problems(tmp_path / "one") == ROWS
    assert load_problems(f"{tmp_path / 'two'}:test") == ROWS[1:]
    for source, message in (
        (tmp_path / "two", "has the splits dev, test"),
        (f"{tmp_path / 'one'}:test", "has no splits"),
        (tmp_path, "no data set was saved to"),
    ):
        with pytest.raises(UserError, match=message):
            load_problems(source)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "1<2?", "answer": True}], "a bool is not text"),
        ([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}], "row 2: texts and conversations are mixed"),
        ([{"prompt": [{"content": "b"}]}], "a list is not text"),
    ],
)
def test_rows_that_make_no_problem(tmp_path: Path, rows: list, message: str):
    with pytest.raises(UserError, match=message):
        load_problems(write(tmp_path / "rows.jsonl", rows))


def test_a_model_is_no_data_set(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="holds a model, not problems"):
        load_problems(tmp_path / "x.gguf")


def test_hub_data_sets_take_a_configuration_and_the_only_split(monkeypatch):
    """As the hub's client answers: GSM8K needs a configuration, MATH-500 has no split "train"."""
    import datasets

    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        if name == "openai/gsm8k" and config is None:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main']")
        if split == "train" and name != "openai/gsm8k":
            raise ValueError("Unknown split \"train\". Should be one of ['test'].")
        rows = datasets.Dataset.from_list([GSM8K])
        return rows if split else datasets.DatasetDict({"test": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_problems("openai/gsm8k:test", config="main")[0]["prompt"] == GSM8K["question"]
    assert load_problems("HuggingFaceH4/MATH-500")[0]["answer"] == GSM8K["answer"]
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("HuggingFaceH4/MATH-500", None, "train"),
        ("HuggingFaceH4/MATH-500", None, None),
    ]
    with pytest.raises(UserError, match=r"Config name is missing. \(name it with --dataset-config\)"):
        load_problems("openai/gsm8k")
