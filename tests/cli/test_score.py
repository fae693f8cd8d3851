"""`autotelic score`: rows, summary, and one clear line for bad input."""

import json

import pytest

from autotelic.cli.main import main

ROWS = [
    {
        "prompt": "a",
        "responses": [r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{2}", "none"],
        "answer": "0.5",
        "id": "first",
    },
    {"prompt": "b", "responses": ["= 3", "= 3", "= 3", "= 3"], "answer": "3"},
    {"prompt": "c", "responses": ["= 1", "= 2", "= 3", "= 4"], "answer": "9"},
]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.fixture
def samples(tmp_path):
    return write(tmp_path / "samples.jsonl", ROWS)


def test_rows(samples, tmp_path, capsys):
    """Entropies by hand: {2, 1, 1 unparseable} of 4: 1.0397; one cluster: 0; four: ln 4 = 1.3863."""
    out = tmp_path / "out.jsonl"
    assert main(["score", str(samples), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["first", "1", "2"]
    assert rows[0]["clusters"] == [0, 0, 1, -1]
    assert rows[0]["rewards"] == [0.5, 0.5, 0.25, 0.0]
    assert [row["semantic_entropy"] for row in rows] == pytest.approx([1.0397207708, 0.0, 1.3862943611])
    assert [row["kept"] for row in rows] == [True, False, False]
    assert set(rows[0]) == {"id", "clusters", "semantic_entropy", "rewards", "kept"}
    printed = capsys.readouterr().out
    assert "parse rate               0.917" in printed
    assert "largest cluster correct  0.667 (2 of 3 labelled)" in printed
    assert "AUROC of entropy         1.000" in printed


def test_answers_change_the_summary_only(samples, tmp_path):
    permuted = [{**row, "answer": "17"} for row in ROWS]
    other = write(tmp_path / "other.jsonl", permuted)
    bare = write(tmp_path / "bare.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in ROWS])
    outputs = []
    for k, path in enumerate((samples, other, bare)):
        out = tmp_path / f"out{k}"
        assert main(["score", str(path), "--out", str(out)]) == 0
        outputs.append(out.read_text())
    assert len(set(outputs)) == 1


@pytest.mark.parametrize("options", [["--reward", "majority_vote"], ["--reward", "srt"], ["--reward", "evol_rl"],
                                     ["--denominator", "parseable"], ["--units", "p_max", "--low", "0.3"],
                                     ["--units", "nats", "--high", "0.7"], ["--linkage", "greedy"]])  # fmt: skip
def test_options(samples, options, capsys):
    assert main(["score", str(samples), *options]) == 0
    assert "AUROC" in capsys.readouterr().out


def test_without_answers_there_is_no_accuracy(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", [{"prompt": "a", "responses": ["1", "2"]}])
    assert main(["score", str(path)]) == 0
    assert "correct" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"prompt": "a", "response": ["1", "2"]}', "no column 'responses'"),
        ('{"responses": ["1", "2"]}', "no column 'prompt'"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"prompt": "a", "responses": ["1", "2"]}\n{oops', "line 2 is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"prompt": "a", "responses": ["1"]}', "group of 1"),
        ('{"prompt": "a", "responses": [1, 2]}', "list of strings"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(text, complaint, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    out = tmp_path / "out.jsonl"
    assert main(["score", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_unreadable_and_unwritable(samples, tmp_path, capsys):
    assert main(["score", str(tmp_path / "missing.jsonl")]) == 2
    assert "cannot read" in capsys.readouterr().err
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert main(["score", str(binary)]) == 2
    assert main(["score", str(samples), "--out", str(tmp_path)]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["score", str(samples), "--out", str(samples / "x" / "y.jsonl")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["score", str(samples), "--reward", "empi"]) == 2
    assert "did you mean 'empo'" in capsys.readouterr().err
    assert main(["score", str(samples), "--low", "2"]) == 2


def test_settings_of_another_reward_are_refused(samples, capsys):
    assert main(["score", str(samples), "--reward", "srt", "--denominator", "parseable"]) == 2
    assert "--denominator is of the EMPO reward" in capsys.readouterr().err


def test_thresholds_decide_what_is_kept_whatever_the_reward(samples, capsys):
    """Entropies 1.04, 0 and 1.39 nats."""
    kept = []
    for options in ([], ["--low", "1.1", "--units", "nats"], ["--high", "1.2", "--units", "nats"]):
        for reward in ("empo", "majority_vote"):
            assert main(["score", str(samples), "--reward", reward, *options, "--json"]) == 0
            kept.append(json.loads(capsys.readouterr().out)["kept"])
    assert kept == [1, 1, 0, 0, 1, 1]


def test_columns_by_name(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", [{"q": "a", "texts": ["1", "2"], "gold": "1"}])
    named = ["--prompt-column", "q", "--response-column", "texts", "--answer-column", "gold"]
    assert main(["score", str(path), *named]) == 0
    assert "1 labelled" in capsys.readouterr().out
    assert main(["score", str(path)]) == 2
    assert "--prompt-column names another" in capsys.readouterr().err


def test_labels_that_cannot_be_read_are_named(tmp_path, capsys):
    rows = [ROWS[0] | {"answer": "First this. Then that, so to say."}, ROWS[1] | {"answer": "thus\n#### 3"}]
    assert main(["score", str(write(tmp_path / "x.jsonl", rows))]) == 0
    captured = capsys.readouterr()
    assert "1.000 (1 of 1 labelled)" in captured.out
    assert captured.err.startswith("warning: 1 of 2 labels cannot be read (row 1")
    assert main(["score", str(write(tmp_path / "x.jsonl", rows[:1]))]) == 0
    assert "correct" not in capsys.readouterr().out
