"""`autotelic eval`: files of samples and models, a table for people, JSON for machines, errors in one line."""

import json

import pytest

from autotelic.cli.main import main


def write_samples(path, rows=None):
    rows = rows or [
        {"prompt": "2+2=", "answer": "4", "responses": ["4", "the answer is 5"], "greedy": "4"},
        {"prompt": "1+2=", "answer": "3", "responses": ["3", "3"], "greedy": "4"},
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
    assert out["num_prompts"] == 2


def test_samples_as_table_and_file(tmp_path, capsys):
    path = write_samples(tmp_path / "samples.jsonl")
    out = tmp_path / "out.json"
    assert main(["eval", str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "mean@2     0.750  [" in text
    assert "\x1b" not in text
    written = json.loads(out.read_text())["samples"]
    assert written["samples"][0]["correct"] == [True, False]


def test_one_prompt_has_no_interval(tmp_path, capsys):
    path = write_samples(tmp_path / "s.jsonl", [{"prompt": "2+2=", "answer": 4, "responses": ["4"]}])
    assert main(["eval", str(path)]) == 0
    assert "no interval" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model of the small world's alphabet, saved as a folder."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from autotelic.tasks.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
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
