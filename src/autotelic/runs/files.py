"""Files that are written whole or not at all, and the one line that a place which cannot be written gets."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotelic.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to a temporary file beside `path`, then put it in its place: a killed process leaves no torn file.

    A link is followed; a device or a pipe, such as /dev/null, is written to and stays what it is. Half of a surrogate
    pair, which no file of text can hold, is written as JSON writes it.
    """
    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    if is_stream(path):
        with path.open("ab") as file:
            file.write(data)
        return
    path = path.resolve()
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_stream(path: Path) -> bool:
    """Tell whether a path is a device or a pipe: there is no file to put in its place."""
    return path.exists() and not path.is_dir() and (not path.is_file() or path.parent == Path("/dev"))


def check_writable(path: Path, advice: str = "choose another place") -> None:
    """Make the folder of `path`, and raise UserError, before any long work, where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "it is a directory")
        if is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(13, "it cannot be written to")
            return
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


def write_output(path: Path, content: str | bytes, advice: str = "choose another place") -> None:
    """Write what a command was asked for: `write_atomically`, with one line where it fails."""
    check_writable(path, advice)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


@contextmanager
def replacing(path: Path, advice: str = "choose another --output") -> Iterator[io.StringIO]:
    """Check that `path` can be written, then give a buffer that takes its place only when everything went well."""
    check_writable(path, advice)
    buffer = io.StringIO()
    yield buffer
    write_output(path, buffer.getvalue(), advice)
