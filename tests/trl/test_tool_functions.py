"""`--tools`: functions are found, described to the model, and refused in one line where that cannot work."""

import json
import sys

import pytest
from tiny_trainer import random_model

from autotelic.cli.main import main
from autotelic.errors import UserError
from autotelic.trl.tool_functions import read_tools

MODULE = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


def undescribed(a, b):
    return a + b
'''
MESSAGES = [{"prompt": [{"role": "user", "content": "1+2?"}]}]


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_tools.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_tools"
    sys.modules.pop("my_tools", None)


def test_functions_are_found_by_name(module):
    (tool,) = read_tools("my_tools.add", MESSAGES)
    assert tool(1, 2) == 3
    assert [t.__name__ for t in read_tools(["my_tools.add", "my_tools.add"], MESSAGES)] == ["add", "add"]
    assert read_tools("", [{"prompt": "text"}]) == []


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        ("my_tools.add", [{"prompt": "1+2?"}], "lists of messages"),
        ("my_tools.subtract", MESSAGES, "write package.module.function"),
        ("nowhere.at.all", MESSAGES, "cannot import the tool"),
        ("add", MESSAGES, "write package.module.function"),
        ("my_tools.undescribed", MESSAGES, "needs type hints, and a docstring"),
    ],
)
def test_what_cannot_work_is_refused(module, names, rows, message):
    with pytest.raises(UserError, match=message):
        read_tools(names, rows)


def words(folder, *more):
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": f"{i}+1=?"}) + "\n" for i in range(8)))
    sizes = ["--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "4"]
    run = ["--dataset", str(folder / "data.jsonl"), "--max_steps", "1", "--output_dir", str(folder / "run"), "--quiet"]
    return ["train", "empo", *sizes, *run, "--tools", "my_tools.add", *more]


def test_train_takes_tools_and_tells_the_model(module, tmp_path, byte_tokenizer, monkeypatch):
    """The prompt that the trainer reads describes the function; the run goes on to its update."""
    words_of_model = {"eos_token_id": byte_tokenizer.eos_token_id, "pad_token_id": byte_tokenizer.pad_token_id}
    shape = {"vocab_size": len(byte_tokenizer), "max_position_embeddings": 2048, "bos_token_id": None}
    model = random_model("Qwen3ForCausalLM", **shape, **words_of_model)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    from trl import GRPOTrainer

    told = []
    generate = GRPOTrainer._generate_single_turn

    def spy(self, prompt_ids, *args, **kwargs):
        told.append(byte_tokenizer.decode(prompt_ids[0]))
        return generate(self, prompt_ids, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", spy)
    assert main(words(tmp_path, "--model_name_or_path", str(tmp_path / "model"))) == 0
    assert '"name": "add"' in told[0] and "The first number." in told[0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["run"]["tools"] == "my_tools.add"


def test_a_model_without_a_template_is_refused_in_one_line(module, tmp_path, capsys):
    assert main(words(tmp_path, "--model_name_or_path", "any_pair")) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and "lists of messages" in error


def test_a_file_in_the_folder_of_the_command_is_found(module, tmp_path, monkeypatch, capsys):
    """Also by the installed command, whose path does not hold the folder."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    with pytest.raises(UserError, match="cannot import"):
        read_tools("my_tools.add", MESSAGES)
    assert main(words(tmp_path, "--model_name_or_path", "any_pair")) == 2
    error = capsys.readouterr().err
    assert "cannot import" not in error and "lists of messages" in error
