"""Files of samples of every shape give the same rows, and what cannot be read is said in one line."""

import json

import pytest

from autotelic.errors import UserError
from autotelic.tasks.samples import read_samples

OURS = {"prompt": "1+1", "responses": ["2", "3"], "answer": "2"}
HARNESS = {
    "doc_id": 0,
    "doc": {"question": "1+1", "answer": "#### 2"},
    "target": "2",
    "arguments": [["1+1", {"until": ["\n"]}]],
    "resps": [["2", "3"]],
    "filtered_resps": ["2"],
    "filter": "strict-match",
}
NEWER = HARNESS | {"arguments": {"gen_args_0": {"arg_0": "1+1", "arg_1": {}}}, "filter": "flexible-extract"}


def choice(text):
    return {"message": {"role": "assistant", "content": text}}


SHAPES = {
    "ours": [OURS],
    "harness, two filters of one document": [HARNESS, NEWER],
    "harness, newer": [NEWER],
    "vllm": [{"prompt": "1+1", "outputs": [{"text": "2", "index": 0}, {"text": "3"}], "answer": "2"}],
    "open-r1": [{"problem": "1+1", "generations": ["2", "3"], "answer": "2"}],
    "openai": [
        {
            "custom_id": "1+1",
            "response": {"status_code": 200, "body": {"choices": [choice("2"), choice("3")]}},
            "answer": "2",
        }
    ],
    "verl": [{"input": "1+1", "output": text, "gts": "2", "score": 1, "step": 1} for text in "23"],
    "completions": [{"question": "1+1", "completions": ["2", "3"], "answer": "2"}],
    "outputs": [{"prompt": "1+1", "outputs": ["2", "3"], "answer": "2"}],
    "one response a row": [{"prompt": "1+1", "response": text, "answer": "2"} for text in "23"],
    "trl": [{"step": 1, "prompt": "1+1", "completion": text, "answer": "2"} for text in "23"],
    "messages": [OURS | {"responses": [[{"role": "tool", "content": "9"}, choice(t)["message"]] for t in "23"]}],
    "eval --out": [{"1.0": {"mean@2": {}, "samples": [OURS | {"id": "0", "correct": [True, False]}]}}],
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_row(tmp_path, shape):
    (row,) = read_samples(write(tmp_path / "s.jsonl", SHAPES[shape]), answers=True)
    assert {name: row[name] for name in OURS} == OURS


def test_columns_are_named_a_mark_is_skipped_and_parquet_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {"q": "1+1", "texts": ["2", "3"], "info": {"gold": "2"}}
    columns = {"prompt": "q", "responses": "texts", "answer": "info.gold"}
    path = tmp_path / "s.jsonl"
    path.write_text("\ufeff" + json.dumps(row) + "\r\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "s.parquet")
    for name in ("s.jsonl", "s.parquet"):
        (read,) = read_samples(tmp_path / name, columns=columns)
        assert {name: read[name] for name in OURS} == OURS


def test_one_response_a_row_in_a_named_column(tmp_path):
    path = write(tmp_path / "s.jsonl", [{"q": "1+1", "text": t} for t in "23"] + [{"q": "2", "text": "2"}] * 2)
    rows = read_samples(path, columns={"prompt": "q", "responses": "text"})
    assert [(row["prompt"], row["responses"]) for row in rows] == [("1+1", ["2", "3"]), ("2", ["2", "2"])]


def test_of_several_temperatures_the_first_is_read(tmp_path):
    said = []
    parts = {t: {"samples": [OURS | {"responses": [t, t]}]} for t in ("0.5", "1.0")}
    (row,) = read_samples(write(tmp_path / "s.json", [parts]), say=said.append)
    assert row["responses"] == ["0.5", "0.5"] and "those at 0.5 are read" in said[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([HARNESS | {"resps": [[["-1.2", "False"]]]}], "log-likelihoods"),
        ([{"custom_id": "a", "response": None, "choices": None, "error": "expired"}], "no column 'prompt'"),
        ([{"custom_id": "a", "response": {"status_code": 500}, "error": None}], "failed"),
        ([{"q": "1", "responses": ["1", "2"]}], "--prompt-column names another"),
        ([OURS | {"responses": ["1", None]}], "list of strings"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as error:
        read_samples(write(tmp_path / "s.jsonl", rows))
    assert "\n" not in str(error.value)


def test_unknown_roles_and_columns(tmp_path):
    path = write(tmp_path / "s.jsonl", [OURS])
    with pytest.raises(UserError, match="did you mean 'responses'"):
        read_samples(path, columns={"response": "x"})
    with pytest.raises(UserError, match=r"no column 'answers'.*did you mean 'answer'"):
        read_samples(path, columns={"answer": "answers"})
    with pytest.raises(UserError, match="one JSON array: give one JSON object a line"):
        (tmp_path / "a.json").write_text(json.dumps([OURS, OURS], indent=1))
        read_samples(tmp_path / "a.json")
    with pytest.raises(UserError, match="not UTF-8"):
        (tmp_path / "l.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
        read_samples(tmp_path / "l.jsonl")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt": None}, "column 'prompt' is null"),
        ({"prompt": {"role": "user"}}, "'prompt' must be a text"),
        ({"prompt": ["a"]}, "'prompt' must be a text"),
        ({"greedy": 5}, "'greedy' must be a string"),
        ({"entropy": "x"}, "'entropy' must be a number"),
        ({"entropy": float("nan")}, "'entropy' must be a number"),
        ({"temperatures": [1.0]}, "one number for each of the 2 responses"),
        ({"temperatures": "ab"}, "one number for each of the 2 responses"),
    ],
)
def test_values_of_another_kind_are_one_line(tmp_path, more, message):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"prompt": "a", "responses": ["1", "2"], **more}))
    with pytest.raises(UserError, match=message):
        read_samples(path)


def test_numbers_as_prompts_and_messages_as_the_greedy_response(tmp_path):
    path = tmp_path / "s.jsonl"
    greedy = [{"role": "assistant", "content": "= 1"}]
    path.write_text(json.dumps({"prompt": 5, "responses": ["1", "2"], "greedy": greedy}))
    (row,) = read_samples(path)
    assert row["prompt"] == "5" and row["greedy"] == "= 1"
