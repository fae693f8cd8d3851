"""What a trainer sees: prompts as the model reads them, labels only where a reward asks for them by name."""

import json

import pytest

from autotelic.errors import UserError
from autotelic.rewards import VerifierReward, empo
from autotelic.tasks.tokenizer import build_tokenizer
from autotelic.trl.training_rows import training_rows

ROWS = [
    {"question": "1+1=?", "answer": "so\n#### 2", "level": 1},
    {"question": "why?", "answer": "Because of this. And of that, too.", "level": 2},
]


def leveled(prompts, completions, level, **kwargs):
    return [1.0] * len(completions)


def solved(completions, solution, **kwargs):
    return [1.0] * len(completions)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def chatty():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def test_labels_are_in_reach_of_the_rewards_that_name_them_only(source):
    plain = build_tokenizer()
    assert [sorted(row) for row in training_rows(source, [empo], plain)] == [["id", "prompt"]] * 2
    assert training_rows(source, [empo, leveled], plain)[1] == {"id": "1", "prompt": "why?", "level": 2}
    assert training_rows(source, [solved], plain)[0]["solution"] == "so\n#### 2"
    with pytest.raises(UserError, match="no column 'level'"):
        training_rows("chain_sums:train", [leveled], plain, limit=2)
    with pytest.raises(UserError, match="no column 'gold'"):
        training_rows(source, [VerifierReward("gold")], plain)


def test_labels_that_the_verifier_cannot_read_are_left_out_and_named(source):
    said = []
    (row,) = training_rows(source, [VerifierReward()], build_tokenizer(), say=said.append)
    assert row == {"id": "0", "prompt": "1+1=?", "answer": "so\n#### 2"}
    assert said[0] == "columns: prompt = question, answer = answer"
    assert "1 of 2 labels cannot be read (row 2" in said[1]


def test_plain_questions_become_messages_where_the_model_chats(source, chatty):
    said = []
    rows = training_rows(source, [empo], chatty, say=said.append)
    assert rows[0]["prompt"] == [{"role": "user", "content": "1+1=?"}]
    assert "go through the model's chat template" in said[-1]
    assert training_rows(source, [empo], chatty, chat="off")[0]["prompt"] == "1+1=?"
    assert training_rows(None, [empo], chatty, prompt="1+1=?")[0]["prompt"][0]["content"] == "1+1=?"
    assert training_rows(None, [empo], build_tokenizer(), prompt="1+1=?") == [{"id": "prompt", "prompt": "1+1=?"}]


def test_nothing_to_train_on(chatty):
    with pytest.raises(UserError, match="nothing to train on"):
        training_rows(None, [empo], chatty)
    with pytest.raises(UserError, match="the reward asks for it"):
        training_rows(None, [VerifierReward()], chatty, prompt="1+1=?")


def test_an_empty_prompt_is_refused(tmp_path):
    """Nothing could be sampled from it: transformers would end in a traceback."""
    with pytest.raises(UserError, match="--prompt is empty"):
        training_rows(None, [empo], build_tokenizer(), prompt="  ")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1+1=?"}\n{"prompt": ""}\n')
    with pytest.raises(UserError, match="row 2: the prompt is empty"):
        training_rows(str(path), [empo], build_tokenizer())
