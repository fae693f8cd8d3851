"""Chat templates: where they are applied, and where they are refused."""

import pytest

from autotelic.errors import UserError
from autotelic.lm.chat import as_messages, chat_note, prompt_text, prompt_texts, uses_chat
from autotelic.tasks.tokenizer import build_tokenizer

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]


@pytest.fixture
def chatty():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("prompts", "mode", "expected"),
    [
        (["q"], "auto", True),
        (["q"], "off", False),
        (["q"], True, True),
        (["<s>user:q>"], "auto", False),
        (["<s>user:q>"], "on", True),
    ],
)
def test_a_plain_question_goes_through_the_template(chatty, prompts, mode, expected):
    assert uses_chat(prompts, chatty, mode) is expected
    assert ("go through" in (chat_note(prompts, chatty, mode) or "")) is expected


def test_messages_always_go_through_it(chatty):
    assert prompt_texts([MESSAGES, "q"], chatty, "off") == ["<s>system:s<s>user:q>", "q"]
    assert prompt_text("q", chatty, chat=True) == "<s>user:q>"
    assert as_messages("q") == [{"role": "user", "content": "q"}]


def test_a_tokenizer_without_a_template_takes_text_only():
    plain = build_tokenizer()
    assert prompt_texts(["q"], plain) == ["q"] and chat_note(["q"], plain) is None
    with pytest.raises(UserError, match="no chat template"):
        prompt_texts([MESSAGES], plain)
    with pytest.raises(UserError, match="--chat on needs a chat template"):
        uses_chat(["q"], plain, "on")


def test_images_and_templates_that_refuse_are_one_line(chatty):
    with pytest.raises(UserError, match="holds an image"):
        prompt_text([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}], chatty)
    chatty.chat_template = "{{ raise_exception('only user turns') }}"
    with pytest.raises(UserError, match="only user turns"):
        prompt_text("q", chatty, chat=True)
    with pytest.raises(UserError, match="unknown chat mode"):
        uses_chat(["q"], chatty, "maybe")
