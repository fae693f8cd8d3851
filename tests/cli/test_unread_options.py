"""An option works or is refused: none is read and dropped."""

import json

import pytest
import synthetic_runs

from autotelic.cli.main import main
from autotelic.cli.options import as_json

ROWS = [{"prompt": p, "responses": ["= 1", "= 2", "= 1"], "answer": "1", "id": p} for p in "abc"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    synthetic_runs.write_run(folder / "run", "grpo", steps=12)
    (folder / "s.yaml").write_text("method: grpo\n")
    (folder / "verl.log").write_text("step:1 - actor/entropy:0.5 - critic/score/mean:0.5\n")
    return folder


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("score s.jsonl --dataset-config main", "--dataset-config"),
        ("score s.jsonl --reward empo --reward random", "--reward is given twice, as empo and as random"),
        ("score s.jsonl --low nan", "'nan' is not a finite number"),
        ("score s.jsonl --low x", "'x' is not a finite number"),
        ("eval s.jsonl --k 3", "--k would not be read"),
        ("eval s.jsonl --temperature 0.5 --top-p 0.9", "--temperature, --top-p would not be read"),
        ("eval s.jsonl --engine nope", "--engine would not be read"),
        ("eval s.jsonl --no-greedy", "--no-greedy is for a model"),
        ("eval s.jsonl --seed -1", "not a whole number from 0 up"),
        ("eval any_pair --response-column x", "--response-column would not be read"),
        ("eval any_pair --prompt-column x", "it has no column 'x'"),
        ("eval any_pair --dataset-config main", "no configuration 'main'"),
        ("eval any_pair --problems s.jsonl --dataset-config main", "no configuration 'main'"),
        ("select s.jsonl --k 3", "--k would not be read"),
        ("select s.jsonl --temperatures 0.5 0.7", "--temperatures would not be read"),
        ("select s.jsonl --seed 3", "--seed would not be read"),
        ("select s.jsonl --take 2", "--take says how many prompts are written"),
        ("select s.jsonl --model any_pair --response-column x", "--response-column would not be read"),
        ("logits any_pair --prompts s.jsonl --k 2", "--k would not be read"),
        ("logits any_pair --response-column x", "--response-column would not be read"),
        ("logits any_pair --answer-column x", "--answer-column"),
        ("report run --port 99", "--port would not be read"),
        ("report run --every 3", "--every would not be read"),
        ("report run --watch --port 99", "--port would not be read"),
        ("report run --serve --watch", "leave --watch out"),
        ("forecast verl.log --step-column nope", "no column 'nope'"),
        ("forecast run --entropy-column policy/entropy --reward-column policy/entropy", "name two columns"),
        ("forecast run --at inf", "not a finite number"),
        ("forecast run --at 1e6", "entropies in nats per token"),
        ("forecast run nope", "nope does not exist"),
        ("sweep --config s.yaml --table-only --workers 2", "--workers would not be read"),
        ("sweep --config s.yaml --workers 0", "--workers must be at least 1"),
        ("sweep --config s.yaml --grid a=1 --grid b=2", "--grid is given twice"),
        ("control tree --temperature nan", "not a finite number"),
    ],
)
def test_refused_in_one_line(words, shown, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and shown in captured.err and captured.err.count("\n") == 1


def test_the_same_value_twice_is_no_contradiction_and_limit_is_read_of_a_file(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["eval", "s.jsonl", "--limit", "2", "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_prompts"] == 2


def test_predictions_of_several_logs_are_shown(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["forecast", "run", "run", "--at", "0.25"]) == 0
    assert capsys.readouterr().out.count("R at H = 0.250") == 2


def test_a_control_with_one_action_has_nothing_to_learn(capsys):
    assert main(["control", "mdp", "--pairs", "10", "--seeds", "1", "--num-actions", "1", "--methods", "cpl"]) == 0


def test_an_equivalence_of_the_users_own_that_fails_is_one_line(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["score", "s.jsonl", "--equivalence", "math.sqrt"]) == 2
    assert "equivalence sqrt failed with TypeError" in capsys.readouterr().err


def test_json_has_no_nan():
    assert as_json({"a": [float("nan"), (1.0, float("inf"))], "b": "nan"}) == '{"a": [null, [1.0, null]], "b": "nan"}'
