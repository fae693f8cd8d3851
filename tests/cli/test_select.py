"""`autotelic select`: scores by hand, ties, labels and no labels, files, pictures, refusals."""

import json

import pytest

from autotelic.cli.main import main
from autotelic.diagnostics.prompt_selection import agreement, compare_scores, label_free_scores, labelled_scores, rank

ROWS = [
    {"id": "p10", "prompt": "a", "answer": "1", "responses": ["1", "1", "2", "3"]},  # p = 1/2
    {"id": "p2", "prompt": "b", "answer": "1", "responses": ["1", "1", "2", "2"]},  # p = 1/2
    {"id": "p1", "prompt": "c", "answer": "1", "responses": ["1", "1", "1", "1"]},  # p = 1
    {"id": "p3", "prompt": "d", "answer": "1", "responses": ["4", "5", "6", "no answer"]},  # p = 0
]


@pytest.fixture
def samples(tmp_path):
    def write(rows):
        path = tmp_path / "samples.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_scores_by_hand():
    scores = label_free_scores([0, 0, 1, 2])
    assert scores["majority_share"] == 0.5 and scores["majority_variance"] == 0.25
    assert scores["semantic_entropy"] == pytest.approx(1.0397, abs=1e-4)  # ln 4 - 1/2 ln 2
    assert scores["agreement"] is None and scores["token_entropy"] is None
    labelled = labelled_scores([True, False, False, True])
    assert (labelled["mean"], labelled["variance"]) == (0.5, 0.25)
    assert labelled["pass_at_k"] == {"1": 0.5, "2": pytest.approx(1 - 1 / 6), "4": 1.0}


def test_agreement_across_temperatures_by_hand():
    """Cold: 0, 0; hot: 0, 1: half of the pairs agree. What cannot be parsed agrees with nothing."""
    assert agreement([0, 0, 0, 1], [0.5, 0.5, 1.0, 1.0]) == 0.5
    assert agreement([-1, -1], [0.5, 1.0]) == 0.0
    assert agreement([0, 1], [1.0, 1.0]) is None
    first_only = label_free_scores([0, 0, 1, 2], temperatures=[1.0, 1.0, 0.5, 0.5])
    assert first_only["majority_share"] == 1.0 and first_only["disagreement"] == 1.0


def test_ties_go_to_the_smaller_id_whatever_the_order():
    rows = [{"id": f"p{i}", "variance": v} for i, v in ((10, 0.25), (2, 0.25 + 1e-15), (1, 0.1), (3, 0.25))]
    for order in (rows, rows[::-1]):
        assert [row["id"] for row in rank(order, "variance")] == ["p2", "p3", "p10", "p1"]
    assert rank(rows, "variance", reverse=True)[0]["id"] == "p1"


def test_comparison_of_scores():
    rows = [
        {"id": str(i), "variance": v, "majority_variance": v, "semantic_entropy": -v, "token_entropy": 1.0}
        for i, v in enumerate((0.0, 0.1, 0.2, 0.25))
    ]
    found = compare_scores(rows, num_top=2)
    assert found["majority_variance"] == {"spearman": pytest.approx(1.0), "top_overlap": 1.0, "chance": 0.5}
    assert found["semantic_entropy"]["spearman"] == pytest.approx(-1.0)
    assert found["semantic_entropy"]["top_overlap"] == 0.0
    assert found["token_entropy"]["spearman"] is None
    assert "disagreement" not in found


def test_a_file_of_samples_is_ranked(tmp_path, samples, capsys):
    out, plot = tmp_path / "ranked.jsonl", tmp_path / "plot.html"
    assert main(["select", samples(ROWS), "--out", str(out), "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert "ranked by variance" in text and "Spearman" in text
    ranked = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in ranked] == ["p2", "p10", "p1", "p3"]
    assert [row["rank"] for row in ranked] == [1, 2, 3, 4]
    assert "plotly" in plot.read_text().lower()


def test_without_labels_no_labelled_score_appears(tmp_path, samples, capsys):
    rows = [{key: row[key] for key in ("id", "prompt", "responses")} for row in ROWS]
    out = tmp_path / "ranked.jsonl"
    assert main(["select", samples(rows), "--out", str(out), "--take", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["by"] == "majority_variance" and printed["comparison"] == {}
    (chosen,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert chosen["id"] == "p2" and "variance" not in chosen and "answer" not in chosen


def test_labels_do_not_move_a_label_free_ranking(tmp_path, samples, capsys):
    shuffled = [row | {"answer": other["answer"] + "7"} for row, other in zip(ROWS, ROWS[::-1], strict=True)]
    rankings = []
    for rows in (ROWS, shuffled):
        assert main(["select", samples(rows), "--by", "semantic_entropy", "--json"]) == 0
        rankings.append([row["id"] for row in json.loads(capsys.readouterr().out)["ranking"]])
    assert rankings[0] == rankings[1] == ["p3", "p10", "p2", "p1"]


def test_a_model_is_sampled_at_several_temperatures(tmp_path, capsys):
    out = tmp_path / "ranked.jsonl"
    options = ["--model", "any_pair", "--limit", "4", "--k", "4", "--temperatures", "1.0", "0.5", "--quiet"]
    for _ in range(2):
        assert main(["select", "chain_sums:train", *options, "--out", str(out), "--max-new-tokens", "40"]) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == 4 and all(row["num_samples"] == 8 for row in rows)
        assert all(0 <= row["agreement"] <= 1 and row["token_entropy"] > 0 for row in rows)
    assert capsys.readouterr().out.count("ranked by variance") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "variancee"], "did you mean 'variance'"),
        (["--by", "token_entropy"], "cannot rank by"),
        (["--top", "0"], "at least 1"),
        (["--temperatures", "0"], "above 0"),
        (["--out", "/proc/x/y.jsonl"], "cannot write"),
    ],
)
def test_bad_options_are_one_line(samples, capsys, options, message):
    assert main(["select", samples(ROWS), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_bad_files_are_one_line(samples, capsys, tmp_path):
    cases = [
        ([ROWS[0], ROWS[0]], "two prompts have the id"),
        ([ROWS[0] | {"temperatures": [1.0]}], "one number for each"),
        ([{"prompt": "x"}], "responses"),
    ]
    for rows, message in cases:
        assert main(["select", samples(rows)]) == 2
        assert message in capsys.readouterr().err
    assert main(["select", "chain_sums:train"]) == 2
    assert "--model" in capsys.readouterr().err


def test_prompts_may_be_messages_and_labels_of_any_shape(samples, capsys):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "How many?"}]
    rows = [row | {"prompt": messages, "answer": f"so\n#### {row['answer']}"} for row in ROWS]
    rows[0]["answer"] = "It is one. Or is it two, after all?"
    assert main(["select", samples(rows)]) == 0
    captured = capsys.readouterr()
    assert "How many?" in captured.out and "role" not in captured.out
    assert "1 of 4 labels cannot be read (row 1" in captured.err and "ranked by majority_variance" in captured.out
    assert main(["select", samples([rows[0]])]) == 0  # no label can be read: ranked without


def test_an_interruption_ranks_what_was_sampled(capsys, monkeypatch):
    from autotelic.cli import progress_line

    def call(self, done, total):
        if done > 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress_line.ProgressLine, "__call__", call)
    options = [
        "--model",
        "any_pair",
        "--limit",
        "4",
        "--k",
        "2",
        "--batch-size",
        "2",
        "--max-new-tokens",
        "5",
        "--json",
    ]
    assert main(["select", "chain_sums:train", *options, "--quiet"]) == 130
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["ranking"]) == 2
    assert captured.err == "interrupted: 2 of 4 prompts at temperature 1.0\n"


def test_the_best_prompts_of_a_published_data_set(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "1+1=?", "answer": "so\n#### 2"}) + "\n")
    out = tmp_path / "chosen.jsonl"
    options = ["--model", "any_pair", "--k", "2", "--max-new-tokens", "5", "--out", str(out)]
    assert main(["select", str(path), *options]) == 0
    assert "columns: prompt = question, answer = answer" in capsys.readouterr().err
    assert json.loads(out.read_text())["prompt"] == "1+1=?"


def test_another_equivalence_groups_the_answers(samples, capsys):
    """By the last digit, 1 and 11 are one answer."""
    rows = [{"id": "p", "prompt": "a", "answer": "21", "responses": ["1", "11", "1", "11"]}]
    found = []
    for options in ([], ["--equivalence", "test_select.same_last_digit"]):
        assert main(["select", samples(rows), "--json", *options]) == 0
        (row,) = json.loads(capsys.readouterr().out)["ranking"]
        found.append((row["majority_share"], row["mean"]))
    assert found == [(0.5, 0.0), (1.0, 1.0)]
    assert main(["select", samples(rows), "--equivalence", "maths"]) == 2


def same_last_digit(first, second):
    return first[-1] == second[-1]
