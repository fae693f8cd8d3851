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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autotelic.errors import UserError
from autotelic.trl.arguments import CommonArguments

OBJECTIVE_FIELDS = {
    "divergence": "divergence",
    "kl_top_k": "kl_top_k",
    "lookahead_gamma": "gamma",
    "lookahead_horizon": "horizon",
    "lookahead_start": "start",
    "lookahead_average": "average",
    "lookahead_coef": "coef",
    "lookahead_future": "future",
    "label_entropy": "label_entropy",
    "normalize": "normalize",
    "bias": "bias",
    "ref_coef": "ref_coef",
    "sft_coef": "sft_coef",
}


@dataclass
class PreferenceArguments(CommonArguments):
    """What `autotelic train ppl` is told beside DPOConfig and ModelConfig."""

    objective: str = field(default="ppl", metadata={"help": "ppl | ppl_d | dpo | cpl | repo | repo_det | auto"})
    behavior_policies: str | None = field(
        default=None, metadata={"help": "YAML or JSON: policy id -> {model, temperature, top_k, top_p}"}
    )
    policy_labels: str = field(default="known", metadata={"help": "known | estimated | pooled | shuffled | wrong"})
    divergence: str | None = field(default=None, metadata={"help": "kl | single_sample | dirac | none"})
    kl_top_k: int | None = field(default=None, metadata={"help": "tokens of the label that the KL keeps apart"})
    lookahead_gamma: float | None = field(default=None, metadata={"help": "discount in (0, 1]"})
    lookahead_horizon: int | None = field(default=None, metadata={"help": "largest lag in tokens; 0 is DPO"})
    lookahead_start: int | None = field(default=None, metadata={"help": "first lag, 1 or 0"})
    lookahead_average: bool | None = field(default=None, metadata={"help": "divide by the number of terms"})
    lookahead_coef: float | None = field(default=None, metadata={"help": "factor of the look-ahead"})
    lookahead_future: str | None = field(default=None, metadata={"help": "observed | in_segment"})
    label_entropy: str | None = field(default=None, metadata={"help": "include | drop"})
    normalize: str | None = field(default=None, metadata={"help": "mean | sum over the judged tokens"})
    bias: float | None = field(default=None, metadata={"help": "lambda in (0, 1], on the rejected side"})
    ref_coef: float | None = field(default=None, metadata={"help": "factor of the reference; 0 is CPL"})
    sft_coef: float | None = field(default=None, metadata={"help": "factor of the chosen responses' likelihood"})
    heldout_dataset: str | None = field(default=None, metadata={"help": "held-out pairs, .jsonl or .parquet"})
    heldout_fraction: float = field(
        default=0.2, metadata={"help": "share of the prompts whose pairs are kept aside, without heldout_dataset"}
    )
    heldout_steps: int = field(default=20, metadata={"help": "updates between held-out measurements"})
    clone_steps: int = field(default=100, metadata={"help": "updates of behaviour cloning per estimated label"})
    clone_learning_rate: float = field(default=3e-4, metadata={"help": "of behaviour cloning"})
    max_completion_length: int = field(default=256, metadata={"help": "longest response in validation and online"})
    online: bool = field(
        default=False, metadata={"help": "pairs from the current policy, judged by reward; dataset holds prompts"}
    )
    online_generations: int = field(default=4, metadata={"help": "responses per prompt; best against worst"})
    online_every: int = field(default=1, metadata={"help": "updates per collected batch"})
    online_buffer: int = field(default=1, metadata={"help": "collected batches kept, each with its own policy label"})
    temperature: float = field(default=1.0, metadata={"help": "of the online sampling, and so of its labels"})
    top_k: int = field(default=0, metadata={"help": "of the online sampling; 0 keeps all tokens"})
    top_p: float = field(default=1.0, metadata={"help": "of the online sampling"})

    def ppl(self) -> Any:
        """Return the objective: a named one, with the settings that were given."""
        from autotelic.preferences.trainer import objective

        given = {ours: getattr(self, name) for name, ours in OBJECTIVE_FIELDS.items()}
        return objective(self.objective, **{name: value for name, value in given.items() if value is not None})


def check_settings(run: PreferenceArguments) -> None:
    """Refuse what this trainer does not have, in one line."""
    if not run.online and run.reward is not None:
        raise UserError("reward judges online pairs (--online true); these pairs are judged already. Leave it out.")
    if run.dataset is None:
        raise UserError("nothing to train on: give --dataset PAIRS.jsonl (or prompts, with --online true)")
    if not 0 <= run.heldout_fraction < 1:
        raise UserError(f"heldout_fraction must lie in [0, 1), got {run.heldout_fraction}")
    if run.heldout_steps < 1:
        raise UserError(f"heldout_steps must be at least 1, got {run.heldout_steps}")
    if run.online and (run.reward is None or run.policy_labels != "known"):
        raise UserError("--online true needs --reward (the judge) and known labels: the policy that sampled is at hand")


def split_pairs(rows: Sequence[dict[str, Any]], fraction: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Keep whole prompts aside, by a hash of the prompt: the same ones in every run on these rows."""
    import hashlib

    def aside(row: dict[str, Any]) -> bool:
        digest = hashlib.sha256(str(row["prompt"]).encode()).digest()
        return int.from_bytes(digest[:4], "big") < fraction * 2**32

    return [row for row in rows if not aside(row)], [row for row in rows if aside(row)]


def load_data(run: PreferenceArguments) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return training and held-out pairs."""
    from autotelic.preferences.labels import load_pairs

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


def build_preference_trainer(
    run: PreferenceArguments,
    training_args: Any,
    *,
    model: Any,
    tokenizer: Any,
    load_model: Callable[[str | None], Any],
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
        reward: judge of online pairs, a function of TRL's reward protocol.
        evaluate: model -> metrics, for validation.
        stop_rules: metrics file -> callback that ends a run.
        peft_config: LoRA and its kin, as DPOTrainer takes it.
    """
    import datasets
    from transformers import PrinterCallback
    from trl import DPOTrainer

    from autotelic.preferences.labels import PolicyLabels, read_policies
    from autotelic.preferences.trainer import with_policy_labels
    from autotelic.runs.callbacks import MetricsFile, Progress, StopCleanly, Validation
    from autotelic.trl.run_folder import with_run_folder

    check_settings(run)
    # TRL 1.16 asks transformers 5.23 under the old name whenever it scores the reference.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    ppl, folder = run.ppl(), Path(training_args.output_dir)
    metrics_file = MetricsFile(folder / "metrics.jsonl")
    callbacks: list[Any] = [metrics_file, Progress(f"{run.objective} {folder.name}", quiet=run.quiet), HeldOut()]
    if evaluate is not None and run.validation_steps:
        callbacks.append(Validation(evaluate, run.validation_steps, metrics_file))
    if stop_rules is not None:
        callbacks.append(stop_rules(metrics_file))
    trainer_class, extra = with_policy_labels(DPOTrainer), {}
    if run.online:
        from autotelic.preferences.online_pairs import OnlineSettings, load_prompts, with_online_pairs

        trainer_class = with_online_pairs(trainer_class)
        train, heldout = load_prompts(run), []
        extra = {"online": OnlineSettings.of(run), "reward": reward}
    else:
        train, heldout = load_data(run)
        extra["policy_labels"] = PolicyLabels(
            kind=run.policy_labels,
            policies=read_policies(Path(run.behavior_policies)) if run.behavior_policies else {},
            load_model=load_model,
            top_k=ppl.kl_top_k if ppl.divergence == "kl" else 0,
            needs_logprobs=ppl.needs_labels,
            source=str(run.dataset),
            seed=training_args.seed,
            clone_steps=run.clone_steps,
            clone_learning_rate=run.clone_learning_rate,
        )
    if heldout:
        training_args.eval_strategy, training_args.eval_steps = "steps", run.heldout_steps
        training_args.eval_on_start = not run.resume
    else:
        callbacks = [callback for callback in callbacks if not isinstance(callback, HeldOut)]
    with without_bars(run.quiet or not sys.stderr.isatty()):
        trainer = with_run_folder(trainer_class, own_card=False)(
            model=model,
            args=training_args,
            train_dataset=datasets.Dataset.from_list(train),
            eval_dataset=datasets.Dataset.from_list(heldout) if heldout else None,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=callbacks,
            ppl=ppl,
            fused_head=run.fused_head,
            shared_prefix=run.shared_prefix,
            **extra,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StopCleanly(1))
    return trainer
