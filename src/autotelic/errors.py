"""The one error a user may cause.

Everything that bad input can do ends here: the command line prints its message as one line and exits with code 2.
"""

import difflib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Input that cannot be used. The message says what is wrong, why, and what to do, in one line."""


def closest(name: str, valid: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean 'learning_rate'?``, or an empty string when nothing is near.

    A name that is the beginning of a valid one means that one; else a misspelling is looked for.
    """
    names = list(valid)
    longer = [each for each in names if len(name) > 2 and each.startswith(name)]
    matches = longer or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def one_of(name: str, valid: Iterable[str]) -> str:
    """Return the hint of `closest`, and all valid names."""
    names = list(valid)
    hint = closest(name, names)
    return f"{hint} One of: {', '.join(names)}" if hint else f"; one of: {', '.join(names)}"


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller's that led here: the first one outside this package, and not a generated one."""
    package, frame, level = str(Path(__file__).parent), sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith((package, "<")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def check_choices(settings: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Refuse a field of the settings that has none of its valid values."""
    for name, valid in choices.items():
        value = getattr(settings, name)
        if value not in valid:
            raise UserError(f"{name} is {value!r}{one_of(value, valid)}")
