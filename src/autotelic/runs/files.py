"""Files that are written whole or not at all, and the one line that a place which cannot be written gets."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotelic.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to a temporary file beside `path`, then put it in its place: a killed process leaves no torn file."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: Path, advice: str = "choose another place") -> None:
    """Make the folder of `path`, and raise UserError, before any long work, where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "it is a directory")
        with tempfile.TemporaryFile(dir=path.parent):
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
