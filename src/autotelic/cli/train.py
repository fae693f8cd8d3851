"""Train a model on TRL's GRPOTrainer, or on pairs on its DPOTrainer (ppl).

    autotelic train grpo | empo | one_shot_em | ppl [--config RECIPE.yaml] [--FIELD VALUE ...]

Fields are those of TRL's GRPOConfig (ppl: DPOConfig) and ModelConfig under their own names, and ours
(`autotelic train grpo --help`).
Values on the command line override the recipe, the recipe overrides the method's defaults (the paper's values).
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

from autotelic.errors import UserError, closest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The method comes first; everything after it belongs to TRL's parser."""
    parser.add_argument("method", help="grpo | empo | one_shot_em | ppl")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="--config RECIPE.yaml and/or --FIELD VALUE")


def run(args: argparse.Namespace) -> int:
    """Train, and print a summary."""
    import warnings

    # TRL asks transformers for a property by its former name: nothing that a user could change
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    summary = train(args.method, args.options)
    return 0 if summary["finished"] else 130


def parse(method: str, options: Sequence[str]) -> tuple[Any, Any, Any]:
    """Return (RunArguments, GRPOConfig or DPOConfig, ModelConfig) from defaults, recipe and command line."""
    from autotelic.trl.arguments import RunArguments, method_defaults

    defaults = method_defaults(method)  # before TRL is imported: a misspelt method is answered at once
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import DPOConfig, GRPOConfig, ModelConfig, TrlParser

    run_class, engine_class = RunArguments, GRPOConfig
    if method == "ppl":
        from autotelic.preferences.run import PreferenceArguments

        run_class, engine_class = PreferenceArguments, DPOConfig
    classes = (run_class, engine_class, ModelConfig)
    with unchanged_fields(*classes):
        parser = TrlParser(classes, prog=f"autotelic train {method}")  # pyright: ignore[reportArgumentType]
    known = {action.dest for action in parser._actions}
    parser.set_defaults_with_config(**{**machine_defaults(engine_class), **defaults, "output_dir": f"runs/{method}"})
    recipe, options = split_recipe(list(options))
    for key in recipe:
        if key not in known:
            raise UserError(f"the recipe has an unknown key {key!r}{closest(key, known)}")
    for option in options:
        name = option.removeprefix("--").split("=")[0].replace("-", "_")
        if option.startswith("--") and name not in known | {"help"} and name.removeprefix("no_") not in known:
            raise UserError(f"unknown option {option.split('=')[0]!r}{closest(name, known)}")
    parser.set_defaults_with_config(**recipe)
    parser.error = refuse  # type: ignore[method-assign]
    try:
        run_args, training_args, model_args = parser.parse_args_and_config(options)
    except (ValueError, TypeError) as error:
        raise UserError(f"this configuration cannot be used: {error}") from error
    return run_args, training_args, model_args


@contextmanager
def unchanged_fields(*classes: type) -> Iterator[None]:
    """Put back the types of data class fields, which transformers' parser rewrites and shares with their subclasses."""
    types = [(field, field.type) for cls in classes for field in dataclasses.fields(cls)]
    try:
        yield
    finally:
        for field, kind in types:
            field.type = kind


def machine_defaults(config_class: Any) -> dict[str, Any]:
    """Return what depends on the machine: bf16 where a GPU has it, recomputed activations where there is a GPU."""
    import torch

    gpu = torch.cuda.is_available()
    names = ("gradient_checkpointing", "activation_checkpointing")  # transformers renamed it in 5.23
    recompute = {name: gpu for name in names if name in config_class.__dataclass_fields__}
    return {"bf16": gpu and torch.cuda.is_bf16_supported(), "use_cpu": not gpu} | recompute


def split_recipe(options: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Take `--config FILE` out of the options and read it."""
    import yaml

    if "--config" not in options:
        return {}, options
    place = options.index("--config")
    if place + 1 == len(options):
        raise UserError("--config needs a file name")
    path = Path(options[place + 1])
    try:
        recipe = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the recipe {path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"the recipe {path} must be a mapping of names to values")
    return recipe, options[:place] + options[place + 2 :]


def refuse(message: str) -> None:
    """Turn argparse's own complaint into ours."""
    raise UserError(message)


def train(method: str, options: Sequence[str]) -> dict[str, Any]:
    """Run one training job as the command line does; return its summary (keys `finished`, `step`, `metrics`)."""
    run_args, training_args, model_args = parse(method, options)
    from autotelic.trl.build import prepare_folder

    folder = Path(training_args.output_dir)
    if getattr(run_args, "objective", None) == "auto":
        return train_and_choose(method, options, run_args, folder)
    checkpoint = prepare_folder(folder, run_args)
    from autotelic.trl.build import fit, write_run_file

    try:
        trainer = (build_preferences if method == "ppl" else build)(method, run_args, training_args, model_args)
    except ValueError as error:
        raise UserError(str(error)) from error
    write_run_file(folder, getattr(run_args, "objective", method), run_args, training_args)
    try:
        finished = fit(trainer, checkpoint)
    except FloatingPointError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(
            f"writing to {folder} failed: {error.strerror or error}; free the space, then --resume"
        ) from error
    return report(method, folder, trainer, finished, run_args)


def build(method: str, run_args: Any, training_args: Any, model_args: Any) -> Any:
    """Return the trainer of a GRPO method."""
    rows = load_rows(run_args)
    model, tokenizer = load_model(model_args, training_args)
    from trl import get_peft_config

    from autotelic.trl.build import build_trainer

    return build_trainer(
        method,
        run_args,
        training_args,
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        reward=build_reward(run_args, training_args),
        evaluate=build_evaluation(run_args, tokenizer, training_args),
        probe=build_probe(run_args, tokenizer, training_args),
        follow=build_follower(run_args, tokenizer, training_args, rows),
        peft_config=get_peft_config(model_args),
    )


def build_preferences(method: str, run_args: Any, training_args: Any, model_args: Any) -> Any:
    """Return the trainer of policy-labelled preferences."""
    from dataclasses import replace

    from trl import get_peft_config

    from autotelic.preferences.run import build_preference_trainer, check_settings

    check_settings(run_args)
    model, tokenizer = load_model(model_args, training_args)

    def load(name: str | None) -> Any:
        chosen = model_args if name is None else replace(model_args, model_name_or_path=name)
        return load_model(chosen, training_args)[0].to(training_args.device)

    return build_preference_trainer(
        run_args,
        training_args,
        model=model,
        tokenizer=tokenizer,
        load_model=load,
        reward=build_reward(run_args, training_args) if run_args.online else None,
        evaluate=build_evaluation(run_args, tokenizer, training_args),
        probe=build_probe(run_args, tokenizer, training_args),
        peft_config=get_peft_config(model_args),
    )


def train_and_choose(method: str, options: Sequence[str], run_args: Any, folder: Path) -> dict[str, Any]:
    """Train with the look-ahead and without it, all else equal, and keep the lower held-out preference loss."""
    from autotelic.runs.files import write_atomically

    candidates = {"ppl": ["--objective", "ppl"], "dpo": ["--objective", "ppl", "--divergence", "none"]}
    summaries = {}
    for name, settings in candidates.items():
        settings += ["--output_dir", str(folder / name), "--json", "false"]
        summaries[name] = train(method, [*options, *settings])
        if not summaries[name]["finished"]:
            return summaries[name]
    losses = {name: summary["metrics"].get("preference/heldout_nll") for name, summary in summaries.items()}
    if None in losses.values():
        raise UserError("--objective auto compares held-out losses: give heldout_dataset, or heldout_fraction above 0")
    best = min(losses, key=lambda name: losses[name])
    write_atomically(folder / "choice.json", json.dumps({"chosen": best, "heldout_nll": losses}, indent=2) + "\n")
    if run_args.json:
        print(json.dumps(summaries[best]))
    elif not run_args.quiet:
        print(f"auto: {best}, held-out preference loss {losses[best]:.4f}  ->  {folder / best}")
    return summaries[best]


def load_rows(run_args: Any) -> list[dict[str, str]]:
    """Return what training sees: prompt and id, and an answer only where the reward is the verifier."""
    from autotelic.tasks import load_problems

    if run_args.prompt is not None:
        return [{"prompt": run_args.prompt, "id": "prompt"}]
    if run_args.dataset is None:
        raise UserError("nothing to train on: give --dataset SOURCE or --prompt TEXT")
    labelled = run_args.reward == "verifier"
    columns = {"prompt": run_args.prompt_column} | ({"answer": run_args.answer_column} if labelled else {})
    rows = load_problems(run_args.dataset, limit=run_args.dataset_limit, columns=columns, require_answer=labelled)
    kept = ("prompt", "answer") if labelled else ("prompt",)
    return [{"id": row.get("id", str(i)), **{key: row[key] for key in kept}} for i, row in enumerate(rows)]


def load_model(model_args: Any, training_args: Any) -> tuple[Any, Any]:
    """Load a carried model by name, or any causal language model by path or hub name."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from autotelic.tasks import model_names, model_path

    transformers_logging.disable_progress_bar()
    torch.manual_seed(training_args.seed)
    name = model_args.model_name_or_path
    if name is None:
        raise UserError(
            f"which model? give --model_name_or_path: a folder, a hub name, or one of {', '.join(model_names())}"
        )
    path = str(model_path(name)) if name in model_names() else name
    dtype = model_args.dtype if model_args.dtype not in (None, "auto") else "auto"
    try:
        source = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            **source,
            use_safetensors=True,  # a pickle runs what its author wrote
            dtype="float32" if training_args.use_cpu else dtype,
            attn_implementation=model_args.attn_implementation,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load the model {name!r}: {first} Carried models: {', '.join(model_names())}."
        ) from error
    return model, tokenizer


def build_reward(run_args: Any, training_args: Any) -> Any:
    """Return the reward that a run names: one of `autotelic.rewards`, or `package.module.function`."""
    import importlib

    from autotelic import rewards

    name = run_args.reward
    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot import the reward {name!r}: {error}") from error
    known = [key for key in rewards.__all__ if callable(getattr(rewards, key)) and key.islower()]
    known = [key for key in known if not isinstance(getattr(rewards, key), type | FunctionType)]
    if name not in known:
        raise UserError(f"unknown reward {name!r}{closest(name, known)}; there are {', '.join(known)}")
    reward = getattr(rewards, name)
    if not isinstance(reward, rewards.LabelFreeReward):
        return reward
    fields = {field.name for field in dataclasses.fields(reward)}
    wanted = {"low": run_args.threshold_low, "high": run_args.threshold_high}
    given = {key: value for key, value in wanted.items() if value is not None}
    if given and "units" not in fields:
        raise UserError(f"the reward {name} has no entropy thresholds: leave out threshold_low and threshold_high")
    settings = given | ({"units": run_args.threshold_units} if given else {})
    group = getattr(training_args, "num_generations", None) or run_args.online_generations
    if "seed" in fields:
        settings["seed"] = training_args.seed
    if run_args.prompt_fraction != 1:
        settings["prompt_fraction"] = run_args.prompt_fraction
    return dataclasses.replace(reward, num_generations=group, **settings)


def response_length(run_args: Any, training_args: Any) -> int:
    """Return the longest response of validation and probes: GRPOConfig's, or ours where pairs are trained on."""
    return getattr(training_args, "max_completion_length", None) or run_args.max_completion_length


def build_evaluation(run_args: Any, tokenizer: Any, training_args: Any) -> Any:
    """Return a function from model to metrics; the labels stay inside it."""
    if not run_args.validation_steps:
        return None
    if run_args.validation_dataset is None:
        raise UserError("--validation_steps needs --validation_dataset, a source with answers")
    from autotelic.evaluation import evaluate_model
    from autotelic.tasks import load_problems

    problems = load_problems(run_args.validation_dataset, limit=run_args.validation_limit, require_answer=True)

    def evaluate(model: Any) -> dict[str, float]:
        result = evaluate_model(
            model,
            tokenizer,
            problems,
            k=run_args.validation_k,
            max_new_tokens=response_length(run_args, training_args),
            seed=0,
        )
        k = run_args.validation_k
        names = {"mean_at_k": f"mean@{k}", "pass_at_k": f"pass@{k}", "maj_at_k": f"maj@{k}"}
        names |= {"greedy": "greedy", "entropy": "entropy"}
        return {f"eval/{ours}": result[theirs].value for ours, theirs in names.items()}

    return evaluate


def build_probe(run_args: Any, tokenizer: Any, training_args: Any) -> Any:
    """Return a function from model to label-free statistics for the stop rules, or None."""
    from autotelic.diagnostics.stopping import parse_rules

    if not parse_rules(run_args.stop_rule):
        return None
    from autotelic.diagnostics.probing import make_probe
    from autotelic.lm.chat import prompt_text
    from autotelic.tasks import load_problems

    source = run_args.probe_dataset or run_args.dataset
    columns = {"prompt": "prompt" if run_args.probe_dataset else run_args.prompt_column}
    prompts: list[Any] = [run_args.prompt]
    if source is not None and (run_args.probe_dataset or run_args.prompt is None):
        prompts = [row["prompt"] for row in load_problems(source, limit=run_args.probe_limit, columns=columns)]
    return make_probe(
        tokenizer,
        [prompt_text(prompt, tokenizer) for prompt in prompts],
        k=run_args.probe_k,
        max_new_tokens=response_length(run_args, training_args),
    )


def build_follower(run_args: Any, tokenizer: Any, training_args: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """Return a function from model to rollouts of the first training prompts, or None."""
    from autotelic.diagnostics.probing import make_follower

    if not run_args.follow_prompts:
        return None
    if run_args.log_rollouts_steps < 1:
        raise UserError(f"log_rollouts_steps must be at least 1, got {run_args.log_rollouts_steps}")
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompts.setdefault(str(row["prompt"]), {"prompt": row["prompt"], "id": row["id"]})
    if run_args.follow_prompts < 0:
        raise UserError(f"follow_prompts must not be negative, got {run_args.follow_prompts}")
    return make_follower(
        tokenizer,
        list(prompts.values())[: run_args.follow_prompts],
        k=run_args.follow_k,
        temperature=training_args.temperature,
        max_new_tokens=training_args.max_completion_length,
    )


def report(method: str, folder: Path, trainer: Any, finished: bool, run_args: Any) -> dict[str, Any]:
    """Print how the run ended, and what to do next; only the main process speaks."""
    from autotelic.runs.callbacks import read_rows

    rows = read_rows(folder / "metrics.jsonl")
    last: dict[str, float] = {}
    for row in rows:
        last |= row
    summary = {"finished": finished, "step": trainer.state.global_step, "output_dir": str(folder), "metrics": last}
    if not trainer.is_world_process_zero():
        return summary
    if run_args.json:
        print(json.dumps(summary))
    elif not run_args.quiet:
        print(f"{method}: {trainer.state.global_step} updates -> {folder}\n{summary_table(rows)}".rstrip())
    if not finished:
        print(
            f"stopped at step {trainer.state.global_step} with a checkpoint; "
            "continue with the same command and --resume",
            file=sys.stderr,
        )
    return summary


SUMMARY = (
    "policy/entropy",
    "reward/",
    "completions/mean_length",
    "train/loss",
    "train/em_loss",
    "preference/heldout_nll",
    "preference/heldout_accuracy",
    "eval/",
)


def summary_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return first, last, lowest and highest value of the metrics in `SUMMARY`; `eval/` stands for all below it."""
    curves: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if any(name == wanted or (wanted.endswith("/") and name.startswith(wanted)) for wanted in SUMMARY):
                curves.setdefault(name, []).append(value)
    if not curves:
        return ""
    names = sorted(curves, key=lambda name: next(i for i, wanted in enumerate(SUMMARY) if name.startswith(wanted)))
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{title:>11}" for title in ("first", "last", "lowest", "highest"))]
    for name in names:
        values = curves[name]
        numbers = (values[0], values[-1], min(values), max(values))
        lines.append(f"{name:<{width}}" + "".join(f"{number:>11.4g}" for number in numbers))
    return "\n".join(lines)
