"""What the model said in a conversation: assistant messages only, and the answer in the last of them."""

from autotelic.tasks.conversations import assistant_text, content_text, final_text, is_conversation, question_text

TOOLS = [
    {"role": "assistant", "content": "I ask the tool.", "tool_calls": [{}]},
    {"role": "tool", "content": r"\boxed{42}"},
    {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "image"}, {"text": "7."}]},
]


def test_a_tools_text_is_never_the_models():
    assert assistant_text(TOOLS) == "I ask the tool.\nIt is 7."
    assert final_text(TOOLS) == "It is 7."
    assert final_text([{"role": "assistant", "content": None}, TOOLS[1]]) == ""
    assert final_text([TOOLS[1]]) == assistant_text([TOOLS[1]]) == ""
    assert assistant_text("text") == final_text("text") == "text"


def test_questions_and_recognition():
    prompt = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    assert question_text(prompt) == "q" and question_text("q") == "q" and question_text([]) == ""
    assert is_conversation(prompt) and is_conversation(tuple(prompt))
    assert not any(map(is_conversation, ("q", [], ["q"], [{"content": "q"}], None)))
    assert content_text({"role": "user"}) == ""
