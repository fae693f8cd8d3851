"""Texts and lists of chat messages: what a conversation says, and what the model said in it."""

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
Completion = str | Sequence[Message]


def is_conversation(value: Any) -> bool:
    """Tell whether a value is a list of chat messages."""
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)
    )


def content_text(message: Message) -> str:
    """Return a message's text; of content blocks, the text blocks."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text") or "" for block in content if isinstance(block, Mapping))


def assistant_text(completion: Completion) -> str:
    """Return what the model wrote: a string as it is, of chat messages those of the assistant, joined."""
    if isinstance(completion, str):
        return completion
    return "\n".join(content_text(message) for message in completion if _is_assistant(message))


def final_text(completion: Completion) -> str:
    """Return where the answer stands: the assistant's last message; empty where the assistant wrote none.

    What a tool or a user wrote is never the model's answer.
    """
    if isinstance(completion, str):
        return completion
    return next((content_text(message) for message in reversed(completion) if _is_assistant(message)), "")


def question_text(prompt: Prompt) -> str:
    """Return what is asked: the text, or the last user message."""
    if isinstance(prompt, str):
        return prompt
    users = [message for message in prompt if message.get("role") == "user"]
    return content_text((users or list(prompt) or [{}])[-1])


def _is_assistant(message: Message) -> bool:
    return message.get("role", "assistant") == "assistant"
