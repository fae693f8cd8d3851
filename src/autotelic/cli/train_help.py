"""`autotelic train METHOD --help`: our options in groups, with the values that the method really has.

TRL is not imported for it, so it answers at once; `--help-all` adds TRL's own options.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from autotelic.runs.training_methods import Method
from autotelic.trl.arguments import GROUPS, RunArguments

TRL_OPTIONS = {
    "model_name_or_path": ("data", None, "model to train: smollm2, a carried model, a folder, FILE.gguf or OWNER/NAME"),
    "num_generations": ("reward", None, "responses to a prompt, G"),
    "temperature": ("reward", None, "sampling temperature; log-probabilities are computed at it too"),
    "max_completion_length": ("reward", 256, "longest response, in tokens"),
    "learning_rate": ("control", None, "learning rate of AdamW"),
    "max_steps": ("control", -1, "updates; -1: num_train_epochs"),
    "per_device_train_batch_size": ("control", 8, "responses (ppl: pairs) of one forward pass on a device"),
    "gradient_accumulation_steps": ("control", 1, "forward passes of one update"),
    "steps_per_generation": ("control", None, "forward passes of one rollout; by default those of one update"),
    "beta": ("control", 0.0, "factor of the KL to the model before training"),
    "use_peft": ("control", False, "train a LoRA adapter"),
    "use_vllm": ("control", False, "sample with vLLM"),
    "seed": ("control", 42, "seed of sampling, order of the data, and random rewards"),
    "output_dir": ("output", None, "the run's folder; also --output"),
    "save_steps": ("output", None, "updates between checkpoints"),
    "report_to": ("output", None, "none | wandb | trackio | tensorboard"),
}
"""The options of TRL that nearly every run sets: group, TRL's default, meaning."""
ROLLOUT_ONLY = ("num_generations", "steps_per_generation", "use_vllm", "temperature")


def ours(method: Method) -> type:
    """Return the class that holds a method's options."""
    if method.name != "ppl":
        return RunArguments
    from autotelic.preferences.preference_arguments import PreferenceArguments

    return PreferenceArguments


def help_text(method: Method, everything: bool = False) -> str:
    """Return the help of one method; with everything, TRL's options too."""
    parser = argparse.ArgumentParser(
        prog=f"autotelic train {method.name}",
        usage=f"autotelic train {method.name} [--config RECIPE.yaml] [--OPTION VALUE ...]",
        description=f"{method.purpose[0].upper()}{method.purpose[1:]}. Learns from {method.needs}. {method.paper}",
        epilog="A method and its settings: --reward empo,low=0.1 or, for one setting, --reward.low 0.1; "
        "`autotelic list` names them all. Hyphens and underscores are the same. --help-all adds TRL's options.",
        add_help=False,
    )
    names = [field.name for field in fields(ours(method))]
    for group, meaning in GROUPS.items():
        section = parser.add_argument_group(group, meaning)
        for name, (where, default, text) in TRL_OPTIONS.items():
            shown = name not in names and (method.name != "ppl" or name not in ROLLOUT_ONLY)
            if where == group and shown:
                add(section, name, method.defaults.get(name, default), text)
        for field in fields(ours(method)):
            if field.metadata["group"] == group:
                add(section, field.name, method.defaults.get(field.name, default_of(field)), field.metadata["help"])
        if group == "output":
            section.add_argument("--config", metavar="FILE", help="YAML file of these options, or a recipe's name")
    if everything:
        add_engine(parser, method)
    return parser.format_help()


def add(section: Any, name: str, default: Any, text: str) -> None:
    """Add one option: a switch takes no value."""
    if isinstance(default, bool):
        section.add_argument(f"--{name}", action="store_true", help=f"{text} ({'on' if default else 'off'})")
    else:
        shown = "" if default in (None, "") else f" ({default})"
        section.add_argument(f"--{name}", metavar="VALUE", help=f"{text}{shown}".replace("%", "%%"))


def default_of(field: Field) -> Any:
    """Return a field's default; None where it is made anew."""
    return None if field.default is MISSING else field.default


def add_engine(parser: argparse.ArgumentParser, method: Method) -> None:
    """Add every option of TRL's classes that the groups above do not show."""
    from trl import DPOConfig, GRPOConfig, ModelConfig

    taken = {*TRL_OPTIONS, *(field.name for field in fields(ours(method)))}
    for cls in (DPOConfig if method.name == "ppl" else GRPOConfig, ModelConfig):
        section = parser.add_argument_group(f"TRL's {cls.__name__}")
        for field in fields(cls):
            if field.init and field.name not in taken:
                taken.add(field.name)
                text = " ".join(str(field.metadata.get("help", "see TRL's documentation")).split())
                add(section, field.name, method.defaults.get(field.name, default_of(field)), text)


def option_names(method: Method) -> list[str]:
    """Return the options that the short help shows, for shell completion."""
    return sorted({"config", *TRL_OPTIONS, *(field.name for field in fields(ours(method)))})


def overview(methods: Mapping[str, Method]) -> str:
    """Return one line per method."""
    lines = [f"  {name:<12} {method.purpose}" for name, method in methods.items()]
    return "methods:\n" + "\n".join(lines)


def asked(options: Sequence[str]) -> str | None:
    """Return which help the options ask for: `help`, `help_all`, or None."""
    for option in options:
        if option in ("-h", "--help"):
            return "help"
        if option in ("--help-all", "--help_all"):
            return "help_all"
    return None
