"""Puts a run together: data without labels, reward, control, TRL's trainer, callbacks, and the run folder.

output_dir/run.json       method, seed, configuration, versions
output_dir/metrics.jsonl  one row per update
output_dir/rollouts.jsonl sampled responses with token statistics, where asked for
output_dir/followed.jsonl the same prompts at every look, where asked for
output_dir/checkpoint-*   TRL's; output_dir itself holds the final model
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotelic.errors import UserError
from autotelic.runs.files import check_writable, write_atomically
from autotelic.runs.method_settings import make, settings_of
from autotelic.trl.arguments import (
    CommonArguments,
    RunArguments,
    TrainedRows,
    follow_of,
    law_of,
    logged_of,
    name_of,
    unnamed,
)

Evaluate = Callable[[Any], dict[str, float]]


def build_trainer(
    method: str,
    run: RunArguments,
    training_args: Any,
    *,
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    reward: Any,
    evaluate: Evaluate | None = None,
    follow: Any = None,
    stop_rules: Callable[[Any], Any] | None = None,
    peft_config: Any = None,
) -> Any:
    """Return a TRL trainer with our parts and callbacks, ready to train.

    Args:
        method: name in `autotelic.runs.training_methods`.
        run: our options.
        training_args: a GRPOConfig.
        model: the policy.
        tokenizer: its tokenizer.
        rows: prompts, and labels where the reward is the verifier.
        reward: a function of TRL's reward protocol, or a list of them.
        evaluate: model -> metrics, for validation.
        follow: model -> rollouts of followed prompts.
        stop_rules: metrics file -> callback that ends a run.
        peft_config: LoRA and its kin, as TRL takes it.
    """
    from trl import GRPOTrainer

    from autotelic.runs.callbacks import MetricsFile, Progress
    from autotelic.tasks import to_dataset
    from autotelic.trl.phases import Phases
    from autotelic.trl.run_folder import with_run_folder
    from autotelic.trl.seam import updates_per_rollout, with_parts
    from autotelic.trl.tool_functions import read_tools

    check_sharding(run)
    tools = read_tools(run.tools, rows)
    check_rollout(len(rows), training_args)
    metrics_file = MetricsFile(Path(training_args.output_dir) / "metrics.jsonl")
    progress = Progress(f"{method} {Path(training_args.output_dir).name}", quiet=run.quiet, begins_with="sampling")
    callbacks = build_callbacks(method, run, training_args, metrics_file, progress, evaluate, follow)
    if stop_rules is not None:
        callbacks.append(stop_rules(metrics_file))
    trainer_class: Any = with_run_folder(with_parts(GRPOTrainer))
    trainer = trainer_class(
        model=model,
        reward_funcs=reward,
        args=training_args,
        train_dataset=to_dataset(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
        tools=tools or None,
        callbacks=callbacks,
        parts=[*build_parts(method, run, training_args), Phases(progress.phase)],
    )
    settle(trainer, max(int(updates_per_rollout(trainer.args)), 1))
    return trainer


def build_parts(method: str, run: RunArguments, training_args: Any) -> list[Any]:
    """Return the parts of a step, in their order."""
    from autotelic.trl.advantage_part import advantage_parts
    from autotelic.trl.control_part import Control
    from autotelic.trl.dynamic_sampling import dynamic_parts
    from autotelic.trl.empty_responses import NotEmpty
    from autotelic.trl.entropy_term import EntropyMinimization, EntropyTerm
    from autotelic.trl.fast_passes import FastPasses
    from autotelic.trl.label_free import LabelFree, surplus_parts
    from autotelic.trl.rollout_log import RolloutLog
    from autotelic.trl.sampler_mismatch import SamplerMismatch

    parts: list[Any] = [NotEmpty(), LabelFree(), SamplerMismatch(), FastPasses(run.fused_head, run.shared_prefix)]
    trained = unnamed("rollout", run.rollout, TrainedRows)
    parts += [*advantage_parts(run.advantage), *dynamic_parts(trained.max_generation_batches)]
    control = build_control(run, training_args)
    if control is not None:
        parts.append(Control(control, run.entropy_change_rows))
    if method == "one_shot_em":
        parts.append(EntropyTerm(unnamed("em", run.em, EntropyMinimization)))
    elif run.em:
        raise UserError(f"em sets one_shot_em, and this is {method}: leave it out")
    logged = logged_of(run)
    if logged.count:
        rollouts = Path(training_args.output_dir) / "rollouts.jsonl"
        parts.append(RolloutLog(rollouts, logged.count, logged.steps))
    return [*parts, *surplus_parts(trained.train_generations)]


def control_of(run: RunArguments) -> Any:
    """Return what --entropy_control names, with its settings; None for "none"."""
    from autotelic.controls.table import read_control

    return None if name_of(run.entropy_control) == "none" else read_control(run.entropy_control)


def build_control(run: RunArguments, training_args: Any) -> Any:
    """Return the `EntropyControl` of a run, or None; a control that is a setting of TRL's is written there."""
    from autotelic.controls.entropy_control import EntropyControl
    from autotelic.controls.table import entropy_control

    control = control_of(run)
    if control is not None and not isinstance(control, EntropyControl):
        control.apply(training_args)
        control = None
    return control or (entropy_control("observe") if run.entropy_change_rows else None)


def build_callbacks(
    method: str,
    run: RunArguments,
    training_args: Any,
    metrics_file: Any,
    progress: Any,
    evaluate: Evaluate | None,
    follow: Any,
) -> list[Any]:
    """Return what watches a run: its metrics file, progress, validation, the entropy law, followed prompts."""
    from autotelic.controls.table import intervention
    from autotelic.runs.callbacks import Validation
    from autotelic.runs.followed import FollowedPrompts
    from autotelic.runs.law_callback import EntropyLawCallback

    folder = Path(training_args.output_dir)
    callbacks: list[Any] = [metrics_file, progress]
    if evaluate is not None and run.validation_steps:
        callbacks.append(Validation(evaluate, run.validation_steps, metrics_file, progress.phase))
    law = law_of(run.law)
    if law is not None:
        acts = intervention(method, name_of(run.entropy_control))
        callbacks.append(EntropyLawCallback(metrics_file, stop_when_remaining_below=law.stop_below, intervention=acts))
    if follow is not None:
        callbacks.append(FollowedPrompts(follow, folder / "followed.jsonl", follow_of(run).steps))
    return callbacks


def settle(trainer: Any, per_rollout: int) -> None:
    """Stop and save where a rollout ends, and leave printing to our own progress."""
    from transformers import PrinterCallback

    from autotelic.runs.callbacks import StopCleanly

    trainer.remove_callback(PrinterCallback)
    if trainer.args.save_steps >= 1:  # below 1 it is a share of all steps, which TRL resolves
        trainer.args.save_steps = -(-int(trainer.args.save_steps) // per_rollout) * per_rollout
    trainer.add_callback(StopCleanly(per_rollout))


def check_rollout(num_prompts: int, training_args: Any) -> None:
    """Refuse a data set that is smaller than one rollout: TRL's sampler would drop it, and train on nothing."""
    world = training_args.world_size
    rows = training_args.generation_batch_size or (
        training_args.per_device_train_batch_size * world * training_args.steps_per_generation
    )
    needed = rows // training_args.num_generations
    if num_prompts < needed:
        raise UserError(
            f"{num_prompts} prompts; one rollout needs {needed} (num_generations={training_args.num_generations} x "
            f"{needed} = {rows} responses): give more prompts, or lower steps_per_generation or "
            "per_device_train_batch_size"
        )


def check_sharding(run: RunArguments) -> None:
    """Refuse forward passes beside training where DeepSpeed ZeRO-3 would fail on them in the middle of a run."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    asked = {
        "stop_rule": run.stop_rule not in ("", "none", []),
        "validation_steps": bool(run.validation_steps),
        "follow_prompts": follow_of(run).count > 0,
        "log_rollouts": logged_of(run).count > 0,
    }
    names = [name for name, value in asked.items() if value]
    if names and is_deepspeed_zero3_enabled():
        raise UserError(
            f"{', '.join(names)} cannot be used under DeepSpeed ZeRO-3, which cannot split a parameter that it is "
            "prefetching: leave it out, or use recipes/accelerate/fsdp2.yaml"
        )


RUN_FILES = ("metrics.jsonl", "rollouts.jsonl", "followed.jsonl", "evaluation.json", "probes.jsonl", "run.json")


def prepare_folder(folder: Path, run: CommonArguments) -> str | None:
    """Check that the folder can be written and holds no other run; return the checkpoint to resume from, if asked.

    The main process looks, and all of them get its answer. Half-written checkpoints are deleted on resuming, a run's
    files and checkpoints on overwriting.
    """
    from autotelic.runs.processes import on_main_process

    return on_main_process(lambda: _prepare_folder(folder, run))


def _prepare_folder(folder: Path, run: CommonArguments) -> str | None:
    from autotelic.runs.checkpoints import checkpoints, discard, last_complete

    check_writable(folder / "metrics.jsonl", "choose another --output_dir or free the space")
    if run.resume and run.overwrite:
        raise UserError("--resume continues a run and --overwrite deletes it: give one of them")
    if run.resume:
        whole = last_complete(folder)
        if whole is None:
            raise UserError(f"nothing to resume: {folder} has no whole checkpoint; start anew, with --overwrite")
        every = checkpoints(folder)
        for later in every[every.index(whole) + 1 :]:  # half-written, or they would be the last
            discard(later)
        return str(whole)
    if ((folder / "metrics.jsonl").exists() or checkpoints(folder)) and not run.overwrite:
        raise UserError(
            f"{folder} already holds a run: --resume continues it, --overwrite starts anew, or choose another "
            "--output_dir"
        )
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for old in checkpoints(folder):
        discard(old)
    return None


def write_run_file(
    folder: Path, method: str, run: Any, training_args: Any, passes: dict[str, str], parameters: int
) -> None:
    """Write run.json: what was asked for, the model's size, how it is passed, versions. The main process writes it."""
    import torch
    import transformers
    import trl

    from autotelic import __version__

    if training_args.process_index:
        return
    control = name_of(getattr(run, "entropy_control", "none"))
    record = {
        "method": method if control in ("none", "observe") else f"{method}+{control}",
        "seed": training_args.seed,
        "parameters": parameters,
        "config": {"run": run_settings(run), "training": training_args.to_dict()},
        "passes": passes,
        "versions": {
            "autotelic": __version__,
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=2, default=str) + "\n")


def num_parameters(model: Any) -> int:
    """Return how many numbers a model has, adapters included, however ZeRO-3 has shared them out."""
    return sum(getattr(parameter, "ds_numel", None) or parameter.numel() for parameter in model.parameters())


def passes_of(trainer: Any) -> dict[str, str]:
    """Return which head runs, and where the prompt of a group is computed once; a refusal gives its reason."""
    holders = (trainer, *getattr(trainer, "parts", ()))
    installed = next((holder.installed for holder in holders if hasattr(holder, "installed")), None)
    if installed is None:
        return {}
    return {
        "head": str(installed.head),
        "prompt in training": f"repeated ({installed.prefix_refusal})" if installed.prefix_refusal else "shared",
        "prompt in generation": f"repeated ({installed.prefill_refusal})" if installed.prefill_refusal else "shared",
    }


def run_settings(run: Any) -> dict[str, Any]:
    """Return a run's options; reward and control as mappings with every setting, those left at their default too."""
    from autotelic.controls.table import methods as controls
    from autotelic.rewards.reward_table import methods as rewards

    values = asdict(run)
    for key, table in (("entropy_control", controls()), ("reward", rewards())):
        if isinstance(values.get(key), list):
            values[key] = [_described(key, spec, table) for spec in values[key]]
        elif key in values:
            values[key] = _described(key, values[key], table)
    return values


def _described(key: str, spec: Any, table: Any) -> Any:
    """Return a method as a mapping with every setting, or the name of one that is not ours."""
    name = name_of(spec)
    if name not in table:
        return name
    made = make(key, spec, table)
    settings = {each.name: getattr(made, each.name) for each in settings_of(table[name])}
    return {"name": name} | {n: v for n, v in settings.items() if v is not None and n != "seed"}


def fit(trainer: Any, checkpoint: str | None) -> bool:
    """Train, save the final model, and return whether the run came to its end: its last step, or the law's stop."""
    from autotelic.runs.checkpoints import save_final_model

    trainer.train(resume_from_checkpoint=checkpoint)
    callbacks = trainer.callback_handler.callbacks
    finished = trainer.state.global_step >= trainer.state.max_steps or any(
        getattr(callback, "stopped", False) for callback in callbacks
    )
    if finished:
        save_final_model(trainer)
    return finished
