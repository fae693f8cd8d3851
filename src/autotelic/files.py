"""Files that are written whole or not at all."""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write text to a temporary file beside `path`, then put it in its place: a killed process leaves no torn file."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
