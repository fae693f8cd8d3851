"""Chat templates: when a prompt goes through one, and what the model then continues.

A plain question given to a chat model without its template is not the text that the model was trained to answer.
"""

from collections.abc import Sequence
from typing import Any

from autotelic.errors import UserError
from autotelic.tasks.conversations import Message, content_text

MODES = ("auto", "on", "off")
"""`auto` applies the template where the tokenizer has one and the prompts are plain questions; `off` suits base models.
Lists of messages always go through it."""


def uses_chat(prompts: Sequence[str | Sequence[Message]], tokenizer: Any, mode: str | bool = "auto") -> bool:
    """Tell whether text prompts go through the chat template.

    Args:
        prompts: texts or lists of messages.
        tokenizer: the model's; None: a server has it, and applies its template in every mode but `off`.
        mode: one of `MODES`; True and False are `on` and `off`.

    Raises:
        UserError: an unknown mode, or a template is needed and the tokenizer has none.
    """
    mode = {True: "on", False: "off"}.get(mode, mode) if isinstance(mode, bool) else mode
    if mode not in MODES:
        raise UserError(f"unknown chat mode {mode!r}: use {', '.join(MODES)}")
    if tokenizer is None:  # a server has it, and the template
        return mode != "off"
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if not has_template and any(not isinstance(prompt, str) for prompt in prompts):
        raise UserError(
            "the prompt is a conversation but the tokenizer has no chat template; give plain text prompts or set one"
        )
    if mode == "on" and not has_template:
        raise UserError("--chat on needs a chat template, and the tokenizer has none; use --chat off")
    if mode == "off" or not has_template:
        return False
    return mode == "on" or not any(is_rendered(prompt, tokenizer) for prompt in prompts)


def is_rendered(prompt: str | Sequence[Message], tokenizer: Any) -> bool:
    """Tell whether a text already holds the tokens of a template, such as `<|im_start|>`."""
    if not isinstance(prompt, str):
        return False
    template = str(tokenizer.chat_template)
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return any(len(token) > 2 and token in prompt and token in template for token in special)


def chat_note(prompts: Sequence[str | Sequence[Message]], tokenizer: Any, mode: str | bool = "auto") -> str | None:
    """Return the line that says whether the template is applied; None where there is nothing to say."""
    if tokenizer is None:
        how = "as messages, through its chat template" if uses_chat(prompts, None, mode) else "as text"
        return f"no tokenizer of this model here: prompts go to the server {how} (--chat on or off decides)"
    if not any(isinstance(prompt, str) for prompt in prompts) or not getattr(tokenizer, "chat_template", None):
        return None
    if uses_chat(prompts, tokenizer, mode):
        return "prompts go through the model's chat template (--chat off leaves them as they are)"
    return "prompts are given as they are, without the model's chat template (--chat on applies it)"


def as_messages(prompt: str | Sequence[Message]) -> list[dict[str, Any]]:
    """Return a prompt as messages: a text becomes one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]


def prompt_text(prompt: str | Sequence[Message], tokenizer: Any, chat: bool = False) -> str:
    """Return the text to continue: the prompt itself, or its messages through the chat template.

    Args:
        prompt: text or messages.
        tokenizer: the model's.
        chat: put a text through the template too, see `uses_chat`.
    """
    if isinstance(prompt, str) and not chat:
        return prompt
    uses_chat([prompt], tokenizer, "on")
    messages = as_messages(prompt)
    for message in messages:
        blocks = message.get("content")
        if isinstance(blocks, list) and any(block.get("type") not in (None, "text") for block in blocks):
            raise UserError("a prompt holds an image, and text models are sampled here: leave it out, or use `train`")
        if isinstance(blocks, list):
            message["content"] = content_text(message)
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # the template is a program of the model's author, and may refuse in its own way
        raise UserError(f"the chat template refuses a prompt: {str(error).strip() or type(error).__name__}") from error


def prompt_texts(prompts: Sequence[str | Sequence[Message]], tokenizer: Any, mode: str | bool = "auto") -> list[Any]:
    """Return the texts to continue of all prompts; without a tokenizer, messages for a server. See `uses_chat`."""
    chat = uses_chat(prompts, tokenizer, mode)
    if tokenizer is None:
        return [as_messages(prompt) if chat or not isinstance(prompt, str) else prompt for prompt in prompts]
    return [prompt_text(prompt, tokenizer, chat) for prompt in prompts]
