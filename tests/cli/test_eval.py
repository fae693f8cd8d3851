"""`autotelic eval`: files of samples and models, a table for people, JSON for machines, errors in one line."""

import json

import pytest

from autotelic.cli.main import main
from autotelic.errors import UserError


def write_samples(path, rows=None):
    rows = rows or [
        {"prompt": "2+2=", "answer": "4", "responses": ["4", "the answer is 5"], "greedy": "4"},
        {"prompt": "1+2=", "answer": "3", "responses": ["3", "3"], "greedy": "4"},
        {"prompt": "3+3=", "answer": "6", "responses": ["6", "6"], "greedy": "6"},
        {"prompt": "4+4=", "answer": "8", "responses": ["8", "1"], "greedy": "1"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_samples_as_json(tmp_path, capsys):
    path = write_samples(tmp_path / "samples.jsonl")
    assert main(["eval", str(path), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["mean@2"]["value"] == 0.75
    assert out["pass@2"]["value"] == 1.0
    assert out["greedy"]["value"] == 0.5
    low, high = out["mean@2"]["interval"]
    assert low <= 0.75 <= high
    assert out["num_prompts"] == 4


def test_samples_as_table_and_file(tmp_path, capsys):
    path = write_samples(tmp_path / "samples.jsonl")
    out = tmp_path / "out.json"
    assert main(["eval", str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "mean@2     0.750  [" in text
    assert "\x1b" not in text
    written = json.loads(out.read_text())["samples"]
    assert written["samples"][0]["correct"] == [True, False]


@pytest.mark.parametrize("prompts", [1, 2])
def test_few_prompts_have_no_interval(tmp_path, capsys, prompts):
    path = write_samples(tmp_path / "s.jsonl", [{"prompt": "2+2=", "answer": 4, "responses": ["4"]}] * prompts)
    assert main(["eval", str(path)]) == 0
    assert "no interval" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model(make_model, tokenizer, tmp_path_factory):
    """An untrained model of the small world's alphabet, saved as a folder."""
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_model_folder_with_a_sweep(model, capsys):
    arguments = ["--problems", "chain_sums:test", "--limit", "4", "--k", "2", "--max-new-tokens", "5", "--json"]
    assert main(["eval", str(model), *arguments, "--temperature", "0.5", "2"]) == 0
    captured = capsys.readouterr()
    out = json.loads(captured.out)
    assert list(out) == ["0.5", "2.0"]
    assert out["0.5"]["entropy"]["value"] == pytest.approx(out["2.0"]["entropy"]["value"], rel=0.2)
    assert "greedy" in out["0.5"]
    assert "4 problems x 2 samples" in captured.err
    assert main(["eval", str(model), *arguments, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "problems x" not in captured.err
    assert json.loads(captured.out)["settings"]["k"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"prompt": "a", "answer": 1, "responses": ["1"]}\nnope\n', "line 2 is not JSON"),
        ("[]\n", "line 1 is not a JSON object"),
        ('{"prompt": "a", "responses": ["1"]}\n', "line 1 has no column 'answer'"),
        ('{"prompt": "a", "answers": 1, "responses": ["1"]}\n', "did you mean 'answers'"),
        ('{"prompt": "a", "answer": 1, "responses": "1"}\n', "'responses' must be a list of strings"),
    ],
)
def test_bad_files_are_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "samples.jsonl"
    path.write_text(content)
    out = tmp_path / "out.json"
    assert main(["eval", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["samples.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "neither a file, a model folder nor a carried model"),
        (["any_pair", "--problems", "chain_sums:tset"], "chain_sums"),
        (["any_pair", "--limit", "0"], "--limit must be at least 1"),
        (["EMPTY"], "has no config.json"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, message):
    assert main(["eval", *[str(tmp_path) if a == "EMPTY" else a for a in arguments]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_impossible_settings_are_refused(model, capsys):
    assert main(["eval", str(model), "--limit", "2", "--temperature", "0", "--quiet"]) == 2
    assert "temperature above 0" in capsys.readouterr().err


@pytest.fixture
def interrupted_after(monkeypatch):
    """Ctrl-C in the middle of sampling, once so many responses are there."""
    from autotelic.cli import progress_line

    def set_limit(limit):
        def call(self, done, total):
            if done > limit:
                raise KeyboardInterrupt

        monkeypatch.setattr(progress_line.ProgressLine, "__call__", call)

    return set_limit


def test_an_interruption_keeps_what_was_sampled_and_score_reads_it(model, tmp_path, capsys, interrupted_after):
    interrupted_after(4)
    out = tmp_path / "out.json"
    options = ["--limit", "4", "--k", "2", "--max-new-tokens", "5", "--batch-size", "2", "--out", str(out), "--quiet"]
    assert main(["eval", str(model), *options]) == 130
    captured = capsys.readouterr()
    assert captured.err == "warning: interrupted: 2 of 4 prompts were sampled\n"
    assert captured.out.startswith("2 prompts")
    assert main(["score", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 2
    interrupted_after(0)
    assert main(["eval", str(model), *options]) == 130
    assert capsys.readouterr().err == "autotelic: interrupted\n"


@pytest.mark.parametrize("scored", [0, 1])
def test_a_judge_that_dies_loses_no_response(model, tmp_path, capsys, monkeypatch, scored):
    """What is not compared is written as it is, and a later `eval` of that file compares it."""
    from autotelic import evaluation

    score, calls = evaluation.score_prompt, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) > scored:
            raise UserError("the judge does not answer")
        return score(*args, **kwargs)

    monkeypatch.setattr(evaluation, "score_prompt", dying)
    out = tmp_path / "out.json"
    options = ["--limit", "4", "--k", "2", "--max-new-tokens", "5", "--out", str(out), "--quiet"]
    assert main(["eval", str(model), *options]) == 130
    captured = capsys.readouterr()
    assert f"the judge does not answer: {scored} of 4 prompts were scored before that" in captured.err
    assert f"not every response was compared with its answer: autotelic eval {out}" in captured.err
    assert len(calls) == scored + 1  # a judge that is gone is asked once
    monkeypatch.undo()
    assert main(["eval", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_prompts"] == 4


def test_a_sweep_that_is_interrupted_keeps_its_first_temperatures(model, capsys, interrupted_after):
    interrupted_after(5)  # greedy decoding of the first temperature is cut
    options = ["--limit", "2", "--k", "2", "--max-new-tokens", "3", "--batch-size", "1", "--json", "--quiet"]
    assert main(["eval", str(model), *options, "--temperature", "1", "2"]) == 130
    out = json.loads(capsys.readouterr().out)
    assert "greedy" not in out and out["num_prompts"] == 2


def test_labels_that_cannot_be_read_are_named_and_left_out(tmp_path, capsys):
    rows = [
        {"prompt": "a", "answer": "She buys 2.\n#### 2", "responses": ["2", "3"]},
        {"prompt": "b", "answer": "First one. Then another, which is all.", "responses": ["2", "3"]},
        {"prompt": "c", "answer": ["4", "four"], "responses": ["4", "\\boxed{four}"]},
    ]
    path = write_samples(tmp_path / "s.jsonl", rows)
    assert main(["eval", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["mean@2"]["value"] == 0.75
    assert captured.err.startswith("warning: 1 of 3 labels cannot be read (row 2; the first is 'First one.")
    assert main(["eval", str(write_samples(path, rows[1:2]))]) == 2
    assert "1 of 1 labels cannot be read" in capsys.readouterr().err


def test_maj_at_k_and_the_largest_cluster_are_one_number(tmp_path, capsys):
    """A tie of the right answer with another is half right, in both commands."""
    rows = [
        {"prompt": "a", "answer": "1", "responses": ["1", "1", "2", "2"]},
        {"prompt": "b", "answer": "1", "responses": ["1", "2", "2", "3"]},
        {"prompt": "c", "answer": "1", "responses": ["1", "2", "3", "4"]},
    ]
    path = write_samples(tmp_path / "s.jsonl", rows)
    assert main(["eval", str(path), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert main(["score", str(path), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["largest_cluster_correct"] / 3 == pytest.approx(evaluated["maj@4"]["value"]) == pytest.approx(0.25)


def test_a_chat_model_gets_its_template_and_says_so(model, tmp_path, capsys):
    import shutil

    from transformers import AutoTokenizer

    folder = shutil.copytree(model, tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}="
    tokenizer.save_pretrained(folder)
    options = ["--limit", "2", "--k", "2", "--max-new-tokens", "3", "--no-greedy"]
    results = []
    for chat in ([], ["--chat", "off"]):
        assert main(["eval", str(folder), *options, *chat, "--out", str(tmp_path / "out.json")]) == 0
        results.append(capsys.readouterr().err)
    assert results[0].count("go through the model's chat template") == 1
    assert results[1].count("without the model's chat template") == 1
    assert main(["eval", str(model), *options, "--chat", "on"]) == 2
    assert "--chat on needs a chat template" in capsys.readouterr().err


def test_problems_of_a_published_shape(model, tmp_path, capsys):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps({"question": "1+1=?", "answer": "so\n#### 2"}) + "\n")
    options = ["--k", "2", "--max-new-tokens", "3", "--no-greedy"]
    assert main(["eval", str(model), "--problems", str(path), *options]) == 0
    assert "columns: prompt = question, answer = answer" in capsys.readouterr().err
    path.write_text(json.dumps({"q": "1+1=?", "gold": "2"}) + "\n")
    named = ["--prompt-column", "q", "--answer-column", "gold"]
    assert main(["eval", str(model), "--problems", str(path), *options, *named]) == 0
    assert main(["eval", str(model), "--problems", str(path), *options]) == 2
    assert "no column 'answer'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--k 0", "--temperature 1 0", "--top-p 0", "--batch-size 0"])
def test_what_samples_nothing_is_refused_before_the_model_is_loaded(monkeypatch, capsys, option):
    monkeypatch.setattr("autotelic.cli.eval.open_model", lambda *args: pytest.fail("the model was loaded"))
    assert main(["eval", "any_pair", *option.split()]) == 2
    assert capsys.readouterr().err.startswith("autotelic: error: evaluation needs k")
