"""`autotelic train ppl`: its settings, its trainer, and the held-out loss that every run reports.

Beside the run folder of `autotelic.trl.build`, nothing is written. Held-out pairs are measured before the first
update, on schedule and after the last: `preference/heldout_nll` is the loss of the objective's own score at lambda = 1,
`preference/heldout_nll_no_lookahead` that of the same policy's DPO (CPL) score.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autotelic.errors import UserError
from autotelic.lm.chat import chat_note
from autotelic.preferences.labels import PolicyLabels
from autotelic.preferences.online_pairs import OnlineSettings, with_online_pairs, without_pair
from autotelic.preferences.pairs import as_conversations, is_transcript, load_pairs
from autotelic.preferences.preference_arguments import PreferenceArguments
from autotelic.preferences.sampling_policies import read_policies
from autotelic.runs.method_settings import Spec, read
from autotelic.trl.arguments import name_of

COLUMN_NAMES = ("prompt_column", "answer_column")


def candidates(spec: Spec) -> dict[str, str]:
    """Return the objectives that `auto` compares: PPL with the given settings, and the same without its look-ahead."""
    settings = read(spec, "objective")[1]
    texts = [f"{key}={value}" for key, value in settings.items()]
    without = [f"{key}={value}" for key, value in settings.items() if key != "future"]
    return {"ppl": ",".join(["ppl", *texts]), "dpo": ",".join(["ppl", *without, "future=none"])}


def check_settings(run: PreferenceArguments) -> None:
    """Refuse what this trainer does not have, in one line."""
    online = run.online_settings()
    if not online and run.reward is not None:
        raise UserError("reward judges online pairs (--online on); these pairs are judged already. Leave it out.")
    if isinstance(run.reward, list) and len(run.reward) > 1:
        raise UserError(f"online pairs have one judge, and --reward names {len(run.reward)}: give one")
    if run.dataset is None:
        raise UserError("nothing to train on: give --dataset PAIRS.jsonl (or prompts, with --online on)")
    if not 0 <= run.heldout_fraction < 1:
        raise UserError(f"heldout_fraction must lie in [0, 1), got {run.heldout_fraction}")
    fields = PreferenceArguments.__dataclass_fields__
    unread = [name for name in ("dataset_config", *COLUMN_NAMES) if getattr(run, name) != fields[name].default]
    if unread and not online:
        raise UserError(
            f"{', '.join(unread)} is about prompts (--online on): pairs have the columns prompt, chosen and rejected. "
            "Leave it out."
        )
    if run.heldout_steps < 1:
        raise UserError(f"heldout_steps must be at least 1, got {run.heldout_steps}")
    if online and (run.reward is None or run.labels().kind != "known"):
        raise UserError("--online on needs --reward (the judge) and known labels: the policy that sampled is at hand")
    run.ppl()


def split_pairs(rows: Sequence[dict[str, Any]], fraction: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Keep whole prompts aside, by a hash of the prompt: the same ones in every run on these rows."""
    import hashlib

    def aside(row: dict[str, Any]) -> bool:
        digest = hashlib.sha256(str(row["prompt"]).encode()).digest()
        return int.from_bytes(digest[:4], "big") < fraction * 2**32

    return [row for row in rows if not aside(row)], [row for row in rows if aside(row)]


def load_data(run: PreferenceArguments) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return training and held-out pairs."""
    assert run.dataset is not None  # check_settings has looked
    rows = load_pairs(run.dataset, run.dataset_limit)
    if run.heldout_dataset is not None:
        return rows, load_pairs(run.heldout_dataset)
    train, heldout = split_pairs(rows, run.heldout_fraction)
    if not train:
        raise UserError(f"{run.dataset}: all {len(rows)} rows would be kept aside; lower heldout_fraction")
    return train, heldout


class HeldOut(TrainerCallback):
    """Measures the held-out pairs after the last update too: TRL's schedule covers the first and every so many."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Ask for an evaluation at the end."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


@contextmanager
def without_bars(quiet: bool) -> Iterator[None]:
    """Turn off the bars that TRL and `datasets` show while they tokenise and score the reference."""
    import datasets

    hidden, before = datasets.are_progress_bars_disabled(), os.environ.get("TQDM_DISABLE")
    if quiet:
        datasets.disable_progress_bars()
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if quiet and not hidden:
            datasets.enable_progress_bars()
        if quiet and before is None:
            del os.environ["TQDM_DISABLE"]


@dataclass(frozen=True)
class Data:
    """What a run trains on, and what its trainer class takes for it."""

    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    trainer_class: type
    arguments: dict[str, Any]


def offline_data(
    run: PreferenceArguments,
    load_model: Callable[[str | None], Any],
    seed: int,
    tokenizer: Any,
    say: Callable[[str], None] | None,
) -> Data:
    """Return pairs that exist, and their policy labels."""
    from trl import DPOTrainer

    from autotelic.preferences.trainer import with_policy_labels

    train, heldout = load_data(run)
    mode = "off" if run.chat == "auto" and any(is_transcript(row["prompt"]) for row in train) else run.chat
    note = chat_note([row["prompt"] for row in train], tokenizer, mode)
    if note and say is not None:
        say(note)
    train, heldout = (as_conversations(rows, tokenizer, mode) for rows in (train, heldout))
    labels = PolicyLabels(
        settings=run.labels(),
        policies=read_policies(Path(run.behavior_policies)) if run.behavior_policies else {},
        load_model=load_model,
        source=str(run.dataset),
        seed=seed,
        max_new_tokens=run.max_completion_length,
    )
    return Data(train, heldout, with_policy_labels(DPOTrainer), {"policy_labels": labels})


def online_data(prompts: Sequence[dict[str, Any]], online: OnlineSettings, reward: Any) -> Data:
    """Return prompts with the columns that the judge asks for, and how pairs are made of them."""
    from trl import DPOTrainer

    from autotelic.preferences.trainer import with_policy_labels

    trainer_class = with_online_pairs(with_policy_labels(DPOTrainer))
    return Data([without_pair(row) for row in prompts], [], trainer_class, {"online": online, "reward": reward})


def build_callbacks(
    run: PreferenceArguments,
    folder: Path,
    heldout: bool,
    evaluate: Callable[[Any], dict[str, float]] | None,
    stop_rules: Callable[[Any], Any] | None,
) -> list[Any]:
    """Return the callbacks of a run: its log, its progress, held-out pairs, validation, stop rules."""
    from autotelic.runs.callbacks import MetricsFile, Progress, Validation

    metrics_file = MetricsFile(folder / "metrics.jsonl")
    progress = Progress(f"{name_of(run.objective)} {folder.name}", quiet=run.quiet)
    callbacks: list[Any] = [metrics_file, progress]
    if heldout:
        callbacks.append(HeldOut())
    if evaluate is not None and run.validation_steps:
        callbacks.append(Validation(evaluate, run.validation_steps, metrics_file, progress.phase))
    if stop_rules is not None:
        callbacks.append(stop_rules(metrics_file))
    return callbacks


def build_preference_trainer(
    run: PreferenceArguments,
    training_args: Any,
    *,
    model: Any,
    tokenizer: Any,
    load_model: Callable[[str | None], Any],
    say: Callable[[str], None] | None = None,
    prompts: Sequence[dict[str, Any]] = (),
    reward: Any = None,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    stop_rules: Callable[[Any], Any] | None = None,
    peft_config: Any = None,
) -> Any:
    """Return a DPOTrainer with policy labels and our callbacks, ready to train.

    Args:
        run: our settings.
        training_args: a DPOConfig.
        model: the policy.
        tokenizer: its tokenizer.
        load_model: name or folder -> model; None -> the policy before training, for behaviour cloning.
        say: takes remarks: whether the chat template is applied.
        prompts: rows that online pairs are sampled for, with the columns that the judge asks for.
        reward: judge of online pairs, a function of TRL's reward protocol.
        evaluate: model -> metrics, for validation.
        stop_rules: metrics file -> callback that ends a run.
        peft_config: LoRA and its kin, as DPOTrainer takes it.
    """
    import datasets
    from transformers import PrinterCallback

    from autotelic.runs.callbacks import StopCleanly
    from autotelic.trl.run_folder import with_run_folder

    check_settings(run)
    # TRL 1.16 asks transformers 5.23 under the old name whenever it scores the reference.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    online = run.online_settings()
    seed = training_args.seed
    data = online_data(prompts, online, reward) if online else offline_data(run, load_model, seed, tokenizer, say)
    if data.heldout:
        training_args.eval_strategy, training_args.eval_steps = "steps", run.heldout_steps
        training_args.eval_on_start = not run.resume
    with without_bars(run.quiet or not sys.stderr.isatty()):
        trainer = with_run_folder(data.trainer_class, own_card=False)(
            model=model,
            args=training_args,
            train_dataset=datasets.Dataset.from_list(data.train),
            eval_dataset=datasets.Dataset.from_list(data.heldout) if data.heldout else None,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=build_callbacks(run, Path(training_args.output_dir), bool(data.heldout), evaluate, stop_rules),
            ppl=run.ppl(),
            fused_head=run.fused_head,
            shared_prefix=run.shared_prefix,
            **data.arguments,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StopCleanly(1))
    return trainer
