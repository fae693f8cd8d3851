"""Preference rows: what is wrong is named, and other people's shapes are brought to one."""

import pytest
from preference_parts import pairs, write

from autotelic.errors import UserError
from autotelic.preferences.pairs import as_conversations, is_transcript, load_pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": None}, "row 3: no column 'rejected'"),
        ({"chosen": 7}, "row 3: chosen is a int"),
        ({"chosen": "same", "rejected": "same"}, "row 3: chosen and rejected are the same"),
        ({"chosen_segment_tokens": 0}, "row 3: chosen_segment_tokens"),
        ({"chosen_sampler_logprobs": [-0.1, 0.4]}, "row 3: chosen_sampler_logprobs, token 2 is 0.4"),
        ({"chosen_sampler_logprobs": [float("nan")]}, "row 3: chosen_sampler_logprobs, token 1 is nan"),
        ({"chosen_policy_id": None}, "row 3: column 'chosen_policy_id' is in some rows only"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    rows = pairs(4)
    rows[2] |= change
    with pytest.raises(UserError, match=message):
        load_pairs(write(tmp_path / "pairs.jsonl", rows))


HUMAN = "\n\nHuman: what is 1+1?\n\nAssistant: 2.\n\nHuman: and 2+2?\n\nAssistant:"


def test_transcripts_are_split_after_the_last_shared_turn(tmp_path):
    """HH-RLHF: two transcripts without a prompt, which may go on alike for a while."""
    rows = [
        {"chosen": HUMAN + " It is 4.", "rejected": HUMAN + " It is 5."},
        {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    ]
    first, second = load_pairs(write(tmp_path / "hh.jsonl", rows))
    assert (first["prompt"], first["chosen"], first["rejected"]) == (HUMAN, " It is 4.", " It is 5.")
    assert second["prompt"] == "\n\nHuman: hi\n\nAssistant:" and second["rejected"] == " no"


def turns(*texts):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("prompt", [{}, {"prompt": "2+2?"}, {"prompt": turns("2+2?")}], ids=["none", "text", "turns"])
def test_conversations_are_split_where_they_differ(tmp_path, prompt):
    """UltraFeedback: whole conversations on both sides, with a text prompt or none; TRL's shape has answers alone."""
    sides = {"chosen": turns("2+2?", "4"), "rejected": turns("2+2?", "5")}
    if isinstance(prompt.get("prompt"), list):
        sides = {side: messages[1:] for side, messages in sides.items()}
    row = {**prompt, **sides, "score_chosen": 9.0, "score_rejected": 2.0, "prompt_id": "a"}
    (found,) = load_pairs(write(tmp_path / "uf.jsonl", [row]))
    assert found["prompt"] == turns("2+2?")
    assert [found[side] for side in ("chosen", "rejected")] == [[turns("", x)[1]] for x in ("4", "5")]
    assert set(found) == {"prompt", "chosen", "rejected", "row"}


def test_a_text_prompt_becomes_a_message_where_the_answers_are_messages(tmp_path):
    row = {"prompt": "2+2?", "chosen": turns("", "4")[1:], "rejected": turns("", "5")[1:]}
    assert load_pairs(write(tmp_path / "pairs.jsonl", [row]))[0]["prompt"] == turns("2+2?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "yes", "rejected": "no"}, "row 1: no column 'prompt', and the sides share no 'Assistant:' turn"),
        ({"prompt": "x", "chosen": "yes", "rejected": turns("", "no")[1:]}, "one side is a text"),
        ({"prompt": turns("x"), "chosen": "yes", "rejected": "no"}, "the prompt is a list of messages"),
        ({"chosen": turns("a", "b"), "rejected": turns("c", "b")}, "do not begin with the same message"),
        ({"prompt": "z", "chosen": turns("a", "b"), "rejected": turns("a", "c")}, "not among the messages"),
        ({"prompt": "x", "chosen": [{"text": "yes"}], "rejected": [{"text": "no"}]}, "a mapping with role and content"),
    ],
)
def test_other_shapes_get_one_line(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        load_pairs(write(tmp_path / "pairs.jsonl", [row]))
    assert "\n" not in str(caught.value)


def test_texts_become_messages_where_the_model_has_a_template(tokenizer, monkeypatch):
    rows = pairs(2)
    assert as_conversations(rows, tokenizer, "auto") == rows
    monkeypatch.setattr(tokenizer, "chat_template", "x")
    first, _ = as_conversations(rows, tokenizer, "auto")
    sides = {side: [{"role": "assistant", "content": rows[0][side]}] for side in ("chosen", "rejected")}
    assert first == rows[0] | {"prompt": turns(rows[0]["prompt"])} | sides
    assert as_conversations(rows, tokenizer, "off") == rows
    assert (
        is_transcript("\n\nHuman: 1+1?\n\nAssistant:") and not is_transcript("1+1?") and not is_transcript(turns("a"))
    )
