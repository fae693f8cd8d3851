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
from autotelic.trl.arguments import RunArguments

Evaluate = Callable[[Any], dict[str, float]]


def build_control(run: RunArguments, training_args: Any) -> Any:
    """Return the `EntropyControl` of a run, or None; the baselines are settings of TRL's own and are written there."""
    from autotelic.controls.engine_settings import EngineControl
    from autotelic.controls.table import entropy_control, read_control

    name, settings = run.entropy_control, run.control_settings()
    if name == "none":
        if settings:
            raise UserError(f"{', '.join(settings)} set without --entropy_control: name one, for example clip_cov")
        return entropy_control("observe") if run.entropy_change_rows else None
    control = read_control({"name": name} | settings)
    if isinstance(control, EngineControl):
        control.apply(training_args)
        return entropy_control("observe") if run.entropy_change_rows else None
    return control


def build_trainer(
    method: str,
    run: RunArguments,
    training_args: Any,
    *,
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, str]],
    reward: Any,
    evaluate: Evaluate | None = None,
    probe: Any = None,
    follow: Any = None,
    peft_config: Any = None,
) -> Any:
    """Return a TRL trainer with our mixins and callbacks, ready to train."""
    from trl import GRPOTrainer

    from autotelic.runs.callbacks import MetricsFile, Progress, StopCleanly, Validation
    from autotelic.tasks import to_dataset
    from autotelic.trl.control_part import Control
    from autotelic.trl.empty_responses import NotEmpty
    from autotelic.trl.entropy_term import EntropyMinimization, EntropyTerm
    from autotelic.trl.fast_passes import FastPasses
    from autotelic.trl.label_free import LabelFree, SurplusVotes
    from autotelic.trl.rollout_log import RolloutLog
    from autotelic.trl.run_folder import with_run_folder
    from autotelic.trl.seam import updates_per_rollout, with_parts

    folder = Path(training_args.output_dir)
    check_sharding(run)
    control = build_control(run, training_args)
    minimization = (
        EntropyMinimization(
            coef=run.em_coef,
            reduction=run.em_reduction,
            floor=run.em_floor,
            positions=run.em_positions,
            position_fraction=run.em_position_fraction,
            compat=run.em_compat,
        )
        if method == "one_shot_em"
        else None
    )
    parts: list[Any] = [NotEmpty(), LabelFree(), FastPasses(run.fused_head, run.shared_prefix)]
    if control is not None:
        parts.append(Control(control, run.entropy_change_rows))
    if minimization is not None:
        parts.append(EntropyTerm(minimization))
    if run.log_rollouts:
        parts.append(RolloutLog(folder / "rollouts.jsonl", run.log_rollouts, run.log_rollouts_steps))
    if run.train_generations is not None:
        parts.append(SurplusVotes(run.train_generations))
    metrics_file = MetricsFile(folder / "metrics.jsonl")
    callbacks: list[Any] = [metrics_file, Progress(f"{method} {folder.name}", quiet=run.quiet)]
    if evaluate is not None and run.validation_steps:
        callbacks.append(Validation(evaluate, run.validation_steps, metrics_file))
    if run.law or run.law_stop_below is not None:
        from autotelic.controls.table import intervention
        from autotelic.runs.law_callback import EntropyLawCallback

        callbacks.append(
            EntropyLawCallback(
                metrics_file,
                stop_when_remaining_below=run.law_stop_below,
                intervention=intervention(method, run.entropy_control),
            )
        )
    if follow is not None:
        from autotelic.runs.followed import FollowedPrompts

        callbacks.append(FollowedPrompts(follow, folder / "followed.jsonl", run.log_rollouts_steps))
    if probe is not None:
        callbacks.append(build_stop_rules(run, probe, folder, metrics_file))
    trainer_class: Any = with_run_folder(with_parts(GRPOTrainer))
    trainer = trainer_class(
        model=model,
        reward_funcs=reward,
        args=training_args,
        train_dataset=to_dataset(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=callbacks,
        parts=parts,
    )
    # TRL's own printing callback would repeat on stdout what Progress shows.
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    per_rollout = max(int(updates_per_rollout(trainer.args)), 1)
    if trainer.args.save_steps >= 1:  # below 1 it is a share of all steps, which TRL resolves
        trainer.args.save_steps = -(-int(trainer.args.save_steps) // per_rollout) * per_rollout
    trainer.add_callback(StopCleanly(per_rollout))
    return trainer


def check_sharding(run: RunArguments) -> None:
    """Refuse forward passes beside training where DeepSpeed ZeRO-3 would fail on them in the middle of a run."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    asked = {
        "stop_rule": run.stop_rule not in (None, "", "none"),
        "validation_steps": run.validation_steps > 0,
        "follow_prompts": run.follow_prompts > 0,
        "log_rollouts": run.log_rollouts > 0,
    }
    names = [name for name, value in asked.items() if value]
    if names and is_deepspeed_zero3_enabled():
        raise UserError(
            f"{', '.join(names)} cannot be used under DeepSpeed ZeRO-3, which cannot split a parameter that it is "
            "prefetching: leave it out, or use recipes/accelerate/fsdp2.yaml"
        )


def build_stop_rules(run: RunArguments, probe: Any, folder: Path, metrics_file: Any) -> Any:
    """Return the callback that ends a run by rules without labels."""
    from autotelic.diagnostics.stop_callback import StopRules
    from autotelic.diagnostics.stopping import parse_rules

    if run.stop_action not in ("stop", "rollback"):
        raise UserError(f"unknown stop_action {run.stop_action!r}: use stop or rollback")
    if run.probe_steps < 1:
        raise UserError(f"probe_steps must be at least 1, got {run.probe_steps}")
    rollback = run.stop_action == "rollback"
    return StopRules(probe, parse_rules(run.stop_rule), run.probe_steps, folder, metrics_file.append, rollback)


RUN_FILES = ("metrics.jsonl", "rollouts.jsonl", "followed.jsonl", "evaluation.json", "probes.jsonl", "run.json")


def prepare_folder(folder: Path, run: RunArguments) -> str | None:
    """Check that the folder can be written and holds no other run; return the checkpoint to resume from, if asked.

    The main process looks, and all of them get its answer. Half-written checkpoints are deleted on resuming, a run's
    files and checkpoints on overwriting.
    """
    from autotelic.runs.processes import on_main_process

    return on_main_process(lambda: _prepare_folder(folder, run))


def _prepare_folder(folder: Path, run: RunArguments) -> str | None:
    from autotelic.runs.checkpoints import checkpoints, discard, last_complete

    check_writable(folder / "metrics.jsonl", "choose another --output_dir or free the space")
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


def write_run_file(folder: Path, method: str, run: RunArguments, training_args: Any) -> None:
    """Write run.json: what was asked for, and with which versions. Only the main process writes."""
    import torch
    import transformers
    import trl

    from autotelic import __version__

    if training_args.process_index:
        return

    record = {
        "method": method if run.entropy_control in ("none", "observe") else f"{method}+{run.entropy_control}",
        "seed": training_args.seed,
        "config": {"run": asdict(run), "training": training_args.to_dict()},
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
