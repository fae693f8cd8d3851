"""The Python functions that a model may call: `--tools package.module.function,...`, as TRL's `tools=` takes them."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotelic.errors import UserError
from autotelic.tasks.conversations import is_conversation


def read_tools(names: str | Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Callable[..., Any]]:
    """Return the functions.

    Args:
        names: `package.module.function`, several separated by commas or as a list.
        rows: what is trained on; a tool call needs prompts that are lists of messages.

    Raises:
        UserError: a function cannot be imported, or its name, types and docstring do not describe it to a model; or the
            prompts are plain texts.
    """
    split = names.split(",") if isinstance(names, str) else names
    tools = [read_tool(name.strip()) for name in split if name.strip()]
    if tools and not all(is_conversation(row["prompt"]) for row in rows):
        raise UserError(
            "--tools needs prompts that are lists of messages: a data set of messages, or a model with a chat template "
            "(--chat on)"
        )
    return tools


def read_tool(name: str) -> Callable[..., Any]:
    """Return one function, if a model can be told how to call it."""
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import the tool {name!r}: {error}; write package.module.function") from error
    try:
        get_json_schema(found)
    except (DocstringParsingException, TypeHintParsingException, TypeError, AttributeError) as error:
        raise UserError(
            f"the tool {name} cannot be described to a model: {error} It needs type hints, and a docstring with a line "
            "for each argument under `Args:`"
        ) from error
    return found
