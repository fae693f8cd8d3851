"""The base models that the package carries, one folder each; `docs/world.md` says which question each answers."""

from pathlib import Path

from autotelic.errors import UserError, closest

DEFAULT_MODEL = "any_pair"


def model_names() -> list[str]:
    """Return the names of the carried models."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.json"))


def model_path(name: str = DEFAULT_MODEL) -> Path:
    """Return the folder of a carried model, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`."""
    if name not in model_names():
        valid = ", ".join(model_names()) or "none"
        raise UserError(f"no carried model {name!r}{closest(name, model_names())} Carried: {valid}.")
    return Path(__file__).parent / name
