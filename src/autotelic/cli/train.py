"""Train a model on TRL's GRPOTrainer, or on pairs on its DPOTrainer (ppl).

    autotelic train grpo | empo | one_shot_em | ppl [--config RECIPE.yaml] [--OPTION VALUE ...]

Options are those of TRL's GRPOConfig (ppl: DPOConfig) and ModelConfig under their own names, and ours.
Values on the command line override the recipe, the recipe overrides the method's defaults (the paper's values).
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from autotelic.cli.options import as_json
from autotelic.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The method comes first; everything after it is read by `autotelic.cli.config`."""
    from autotelic.cli.train_help import overview
    from autotelic.runs.training_methods import METHODS

    parser.add_argument("method", nargs="?", help=" | ".join(METHODS))
    parser.add_argument("options", nargs=argparse.REMAINDER, help="--config RECIPE.yaml and/or --OPTION VALUE")
    parser.epilog = f"{overview(METHODS)}\n\n`autotelic train METHOD --help` shows a method's options."


def run(args: argparse.Namespace) -> int:
    """Train, and print a summary."""
    from autotelic.cli.options import bias_said_once
    from autotelic.cli.train_help import asked, help_text
    from autotelic.runs.training_methods import METHODS, method_named

    if args.method is None:
        raise UserError(f"which method? one of: {', '.join(METHODS)}")
    wanted = asked(args.options)
    if wanted:
        print(help_text(method_named(args.method), wanted == "help_all"), end="")
        return 0
    import warnings

    # TRL asks transformers for a property by its former name: nothing that a user could change
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    if sys.stderr.isatty() and not any(word.lstrip("-").startswith("quiet") for word in args.options):
        say("loading TRL")
    with bias_said_once(say):
        summary = train(args.method, args.options)
    return 0 if summary["finished"] else 130


def parse(method: str, options: Sequence[str], over: Mapping[str, Any] | None = None) -> tuple[Any, Any, Any]:
    """Return (RunArguments, GRPOConfig or DPOConfig, ModelConfig): defaults, under recipe, command line and `over`."""
    from autotelic.cli.config import read
    from autotelic.runs.training_methods import method_named
    from autotelic.trl.arguments import RunArguments, former, of_other_methods

    defaults = method_named(method).defaults  # before TRL is imported: a misspelt method is answered at once
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import DPOConfig, GRPOConfig, ModelConfig

    run_class, engine_class = RunArguments, GRPOConfig
    if method == "ppl":
        from autotelic.preferences.run import PreferenceArguments

        run_class, engine_class, former = PreferenceArguments, DPOConfig, of_other_methods
    defaults = machine_defaults(engine_class) | defaults | {"output_dir": f"runs/{method}"}
    try:
        classes = (run_class, engine_class, ModelConfig)
        run_args, training_args, model_args = read(classes, options, defaults, former, over)
    except ImportError as error:  # --deepspeed is looked for by TRL's class itself
        name = "deepspeed" if "deepspeed" in str(error) else str(error.name)
        raise UserError(f"a package is missing: {name}; pip install {name}") from error
    check_numbers(training_args)
    return run_args, training_args, model_args


BOUNDS = {
    "temperature": ("above 0", lambda x: x > 0),
    "top_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "min_p": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "repetition_penalty": ("above 0", lambda x: x > 0),
    "max_completion_length": ("at least 1", lambda x: x >= 1),
    "learning_rate": ("at least 0", lambda x: x >= 0),
    "max_steps": ("at least 1, or -1 for num_train_epochs", lambda x: x >= 1 or x == -1),
    "num_train_epochs": ("above 0", lambda x: x > 0),
    "weight_decay": ("at least 0", lambda x: x >= 0),
    "seed": ("from 0 to 4294967295", lambda x: 0 <= x < 2**32),
}
"""What generation and the optimizer refuse in the middle of a run, or would read as something else."""


def check_numbers(training_args: Any) -> None:
    """Refuse an output folder without a name, and numbers that the engine would stop at later."""
    if not training_args.output_dir:
        raise UserError("--output_dir is empty: name the folder of the run")
    for name, (bounds, fits) in BOUNDS.items():
        value = getattr(training_args, name, None)
        if value is not None and not fits(value):
            raise UserError(f"--{name} must be {bounds}, got {value}")


TRACKERS = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow"}


def check_packages(training_args: Any) -> None:
    """Refuse options whose packages are missing before anything is loaded."""
    for tracker in training_args.report_to:
        if tracker in TRACKERS:
            require(TRACKERS[tracker], f"--report_to {tracker}")
    if getattr(training_args, "use_vllm", False) and training_args.vllm_mode == "colocate":
        require("vllm", "--use_vllm", "'trl[vllm]'")


def machine_defaults(config_class: Any) -> dict[str, Any]:
    """Return what depends on the machine: bf16 where a GPU has it, recomputed activations where there is a GPU."""
    import torch

    gpu = torch.cuda.is_available()
    names = ("gradient_checkpointing", "activation_checkpointing")  # transformers renamed it in 5.23
    recompute = {name: gpu for name in names if name in config_class.__dataclass_fields__}
    return {"bf16": gpu and torch.cuda.is_bf16_supported(), "use_cpu": not gpu} | recompute


def train(method: str, options: Sequence[str], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run one training job as the command line does; return its summary (keys `finished`, `step`, `metrics`).

    Args:
        method: a name of `METHODS`.
        options: words of the command line.
        over: values by name that replace those of the options.
    """
    run_args, training_args, model_args = parse(method, options, over)
    check_packages(training_args)
    from autotelic.trl.arguments import name_of
    from autotelic.trl.build import prepare_folder

    folder = Path(training_args.output_dir)
    if name_of(getattr(run_args, "objective", None)) == "auto":
        return train_and_choose(method, options, run_args, folder)
    checkpoint = prepare_folder(folder, run_args)
    from autotelic.trl.build import fit, num_parameters, passes_of, write_run_file

    try:
        trainer = (build_preferences if method == "ppl" else build)(method, run_args, training_args, model_args)
    except (ValueError, ImportError) as error:  # TRL asks for some packages only where a setting needs them
        raise UserError(str(error)) from error
    except OSError as error:
        if not training_args.push_to_hub:
            raise
        raise UserError(f"--push_to_hub cannot reach the hub: {error}; connect, or leave --push_to_hub out") from error
    name = method if method != "ppl" else name_of(run_args.objective)
    passes = passes_of(trainer)
    if passes and not run_args.quiet and trainer.is_world_process_zero():
        say("; ".join(f"{part}: {how}" for part, how in passes.items()))
    write_run_file(folder, name, run_args, training_args, passes, num_parameters(trainer.model))
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
    """Return the trainer of a GRPO method; the model, which may be large, is loaded when all else is known to fit."""
    from autotelic.trl.build import build_trainer, control_of

    check_model(model_args)
    control_of(run_args)
    reward = build_reward(run_args, training_args)
    tokenizer = load_tokenizer(model_args, training_args)
    rows = load_rows(run_args, reward, tokenizer, run_args.prompt)
    evaluate = build_evaluation(run_args, tokenizer, training_args)
    check_law(run_args, reward, evaluate)
    stop_rules = build_stop_rules(run_args, tokenizer, training_args)
    follow = build_follower(run_args, tokenizer, training_args, rows)
    if not run_args.quiet:
        say(f"loading {model_args.model_name_or_path}")
    model = load_model(model_args, training_args)
    return build_trainer(
        method,
        run_args,
        training_args,
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        reward=reward,
        evaluate=evaluate,
        stop_rules=stop_rules,
        follow=follow,
        peft_config=peft_config_of(model_args, model),
    )


def build_preferences(method: str, run_args: Any, training_args: Any, model_args: Any) -> Any:
    """Return the trainer of policy-labelled preferences."""
    from dataclasses import replace

    from autotelic.preferences.run import build_preference_trainer, check_settings

    check_model(model_args)
    check_settings(run_args)
    online = run_args.online_settings()
    reward = build_reward(run_args, training_args) if online else None
    tokenizer = load_tokenizer(model_args, training_args)
    prompts = load_rows(run_args, reward, tokenizer) if online else []
    evaluate = build_evaluation(run_args, tokenizer, training_args)
    stop_rules = build_stop_rules(run_args, tokenizer, training_args)
    if not run_args.quiet:
        say(f"loading {model_args.model_name_or_path}")
    model = load_model(model_args, training_args)

    def load(name: str | None) -> Any:
        chosen = model_args if name is None else replace(model_args, model_name_or_path=name)
        return load_model(chosen, training_args).to(training_args.device)

    return build_preference_trainer(
        run_args,
        training_args,
        model=model,
        tokenizer=tokenizer,
        load_model=load,
        say=None if run_args.quiet else say,
        prompts=prompts,
        reward=reward,
        evaluate=evaluate,
        stop_rules=stop_rules,
        peft_config=peft_config_of(model_args, model),
    )


def train_and_choose(method: str, options: Sequence[str], run_args: Any, folder: Path) -> dict[str, Any]:
    """Train with the look-ahead and without it, all else equal, and keep the lower held-out preference loss."""
    from autotelic.preferences.run import candidates
    from autotelic.runs.files import write_atomically

    summaries = {}
    for name, objective in candidates(run_args.objective).items():
        settings = {"objective": objective, "output_dir": str(folder / name), "json": False}
        summaries[name] = train(method, options, settings)
        if not summaries[name]["finished"]:
            return summaries[name]
    losses = {name: summary["metrics"].get("preference/heldout_nll") for name, summary in summaries.items()}
    if None in losses.values():
        raise UserError("--objective auto compares held-out losses: give heldout_dataset, or heldout_fraction above 0")
    best = min(losses, key=lambda name: losses[name])
    write_atomically(folder / "choice.json", json.dumps({"chosen": best, "heldout_nll": losses}, indent=2) + "\n")
    if run_args.json:
        print(as_json(summaries[best]))
    elif not run_args.quiet:
        print(f"auto: {best}, held-out preference loss {losses[best]:.4f}  ->  {folder / best}")
    return summaries[best]


def load_rows(run_args: Any, reward: Any, tokenizer: Any, prompt: str | None = None) -> list[dict[str, Any]]:
    """Return what training sees: prompts, or this one, and labels only where the reward asks for them by name."""
    from autotelic.trl.training_rows import training_rows

    return training_rows(
        run_args.dataset,
        reward if isinstance(reward, list) else [reward],
        tokenizer,
        prompt=prompt,
        limit=run_args.dataset_limit,
        prompt_column=run_args.prompt_column,
        answer_column=run_args.answer_column,
        config=run_args.dataset_config,
        chat=run_args.chat,
        say=None if run_args.quiet else say,
    )


def say(text: str) -> None:
    """Print a remark to stderr."""
    print(f"autotelic: {text}", file=sys.stderr, flush=True)


def load_model(model_args: Any, training_args: Any) -> Any:
    """Return the model as the options ask for it; with LoRA, an adapter folder goes on being trained."""
    import torch
    from trl import get_quantization_config

    from autotelic.lm.load import load_weights

    check_model(model_args)
    name = model_args.model_name_or_path
    torch.manual_seed(training_args.seed)
    wanted = {
        "dtype": model_args.dtype,
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "quantization": get_quantization_config(model_args) if quantized(model_args) else None,
        "trust_remote_code": training_args.trust_remote_code,
    }
    model = load_weights(name, merge=not model_args.use_peft, **(wanted | dict(training_args.model_init_kwargs or {})))
    if not training_args.beta or model_args.use_peft:
        training_args.model_init_kwargs = None  # used; a reference model would be loaded with them too
    return model


def load_tokenizer(model_args: Any, training_args: Any) -> Any:
    """Return the tokenizer of a run's model; it is read first, and what does not fit is refused before the model."""
    from autotelic.lm.load import load_tokenizer

    code = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
    return load_tokenizer(model_args.model_name_or_path, **code)


def check_model(model_args: Any) -> None:
    """Refuse what ModelConfig holds and this run would not use."""
    from autotelic.runs.training_methods import COMMON_DEFAULTS
    from autotelic.tasks import model_names

    if model_args.model_name_or_path is None:
        carried = ", ".join(model_names())
        raise UserError(f"which model? give --model_name_or_path: a folder, a hub name, or one of {carried}")
    default = {field.name: COMMON_DEFAULTS.get(field.name, field.default) for field in fields(model_args)}
    changed = [name for name in default if getattr(model_args, name) != default[name]]
    lora = [name for name in changed if name.startswith(("lora_", "use_rslora", "use_dora"))]
    if lora and not model_args.use_peft:
        raise UserError(f"{', '.join(lora)} sets LoRA, and this run has none: give --use_peft too, or leave it out")
    bits = [name for name in changed if "bnb" in name]
    if bits and not model_args.load_in_4bit:
        raise UserError(f"{', '.join(bits)} belongs to --load_in_4bit: give that too, or leave it out")
    if model_args.lora_task_type != "CAUSAL_LM":
        raise UserError(f"lora_task_type {model_args.lora_task_type}: a language model is trained here, CAUSAL_LM")
    if quantized(model_args):
        if not model_args.use_peft:
            raise UserError("quantised weights cannot be trained: give --use_peft (LoRA) beside --load_in_4bit or 8bit")
        require("bitsandbytes", "--load_in_4bit and --load_in_8bit")


def quantized(model_args: Any) -> bool:
    """Tell whether the base model is loaded in 4 or 8 bits."""
    return model_args.load_in_4bit or model_args.load_in_8bit


def require(package: str, what: str, install: str | None = None) -> None:
    """Refuse an option whose package is missing, with the line that installs it."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UserError(f"{what} needs {package}: pip install {install or package}")


def peft_config_of(model_args: Any, model: Any) -> Any:
    """Return the LoRA configuration to put on a model; None where it carries its adapter already."""
    from trl import get_peft_config

    return None if hasattr(model, "peft_config") else get_peft_config(model_args)


def build_reward(run_args: Any, training_args: Any) -> Any:
    """Return the reward that a run names, or a list of several; TRL adds those up with its `reward_weights`."""
    from autotelic.answers import equivalence, warm_up
    from autotelic.rewards.reward_table import read_reward

    sampling = run_args.sampling(training_args)
    same = equivalence(sampling.equivalence)
    warm_up(same)
    specs = run_args.reward if isinstance(run_args.reward, list) else [run_args.reward]
    settings = {"seed": training_args.seed, "num_generations": sampling.generations, "equivalence": same}
    rewards = [read_reward(spec, **settings) for spec in specs]
    return rewards if len(rewards) > 1 else rewards[0]


def check_law(run_args: Any, reward: Any, evaluate: Any) -> None:
    """Refuse the entropy law where nothing but rewards without labels is logged: it is a law of accuracy."""
    from autotelic.rewards import LabelFreeReward
    from autotelic.trl.arguments import law_of

    rewards = reward if isinstance(reward, list) else [reward]
    if law_of(run_args.law) and evaluate is None and all(isinstance(r, LabelFreeReward) for r in rewards):
        raise UserError(
            "--law needs accuracy, and this run's reward has no labels: add --validation_dataset SOURCE and "
            "--validation_steps N"
        )


def build_evaluation(run_args: Any, tokenizer: Any, training_args: Any) -> Any:
    """Return a function from model to metrics; the labels stay inside it."""
    if run_args.validation_steps is None:
        names = ("validation_dataset", "validation_limit", "validation_k")
        defaults = {field.name: field.default for field in fields(run_args)}
        if given := [f"--{name}" for name in names if getattr(run_args, name) != defaults[name]]:
            raise UserError(f"{', '.join(given)} would not be read: say how often to validate, --validation_steps N")
    if not run_args.validation_steps:
        return None
    for name in ("validation_steps", "validation_k"):
        if getattr(run_args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(run_args, name)}")
    if run_args.validation_dataset is None:
        raise UserError("--validation_steps needs --validation_dataset, a source with answers")
    from autotelic.answers import equivalence
    from autotelic.evaluation import evaluate_model
    from autotelic.tasks import load_problems

    source, limit = run_args.validation_dataset, run_args.validation_limit
    problems = load_problems(source, limit=limit, require_answer=True, config=config_of(run_args, source))
    sampling = run_args.sampling(training_args)
    same = equivalence(sampling.equivalence)

    def evaluate(model: Any) -> dict[str, float]:
        result = evaluate_model(
            model,
            tokenizer,
            problems,
            k=run_args.validation_k,
            max_new_tokens=sampling.max_new_tokens,
            seed=0,
            chat=run_args.chat,
            equivalence=same,
        )
        k = run_args.validation_k
        names = {"mean_at_k": f"mean@{k}", "pass_at_k": f"pass@{k}", "maj_at_k": f"maj@{k}"}
        names |= {"greedy": "greedy", "entropy": "entropy"}
        return {f"eval/{ours}": result[theirs].value for ours, theirs in names.items()}

    return evaluate


def config_of(run_args: Any, source: str) -> str | None:
    """Return `dataset_config` for a source that is the run's own hub data set, perhaps in another split."""
    own = (run_args.dataset or "").partition(":")[0]
    return run_args.dataset_config if source.partition(":")[0] == own else None


def build_stop_rules(run_args: Any, tokenizer: Any, training_args: Any) -> Any:
    """Return a function from the metrics file to the callback that ends a run by rules without labels, or None."""
    from autotelic.diagnostics.probing import make_probe
    from autotelic.diagnostics.stop_callback import StopRules
    from autotelic.diagnostics.stopping import read_rules
    from autotelic.lm.chat import prompt_texts
    from autotelic.tasks import load_problems
    from autotelic.trl.arguments import Probe, unnamed

    rules, settings = read_rules(run_args.stop_rule), unnamed("probe", run_args.probe, Probe)
    if not rules:
        if run_args.probe:
            raise UserError("probe says what stop rules measure: name a --stop_rule too")
        return None
    if settings.steps < 1:
        raise UserError(f"probe: steps must be at least 1, got {settings.steps}")
    sampling = run_args.sampling(training_args)
    prompts: list[Any] = [sampling.prompt]
    if settings.dataset or sampling.prompt is None:
        columns = {"prompt": "prompt" if settings.dataset else run_args.prompt_column}
        source = settings.dataset or run_args.dataset
        config = config_of(run_args, source)
        problems = load_problems(source, limit=settings.limit, columns=columns, config=config)
        prompts = [row["prompt"] for row in problems]
    probe = make_probe(
        tokenizer,
        prompt_texts(prompts, tokenizer, run_args.chat),
        k=settings.k,
        max_new_tokens=sampling.max_new_tokens,
    )
    folder, rollback = Path(training_args.output_dir), settings.action == "rollback"
    return lambda file: StopRules(probe, rules, settings.steps, folder, file.append, rollback)


def build_follower(run_args: Any, tokenizer: Any, training_args: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """Return a function from model to rollouts of the first training prompts, or None."""
    from autotelic.diagnostics.probing import make_follower
    from autotelic.trl.arguments import follow_of

    followed = follow_of(run_args)
    if not followed.count:
        return None
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompts.setdefault(str(row["prompt"]), {"prompt": row["prompt"], "id": row["id"]})
    return make_follower(
        tokenizer,
        list(prompts.values())[: followed.count],
        k=followed.k,
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
        print(as_json(summary))
    elif not run_args.quiet:
        print(f"{method}: {trainer.state.global_step} updates -> {folder}\n{summary_table(rows)}".rstrip())
        if finished:
            commands = ["report", "eval", *(["forecast"] if method in ("grpo", "empo") else [])]
            say("next: " + "   ".join(f"autotelic {command} {folder}" for command in commands))
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
