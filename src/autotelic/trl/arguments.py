"""What a training run is told beside TRL's own GRPOConfig (DPOConfig) and ModelConfig.

A control, a reward, a stop rule and their settings are one option each: `clip_cov,fraction=2e-4` on the command line,
`{name: clip_cov, fraction: 2.0e-4}` in YAML (`autotelic.runs.method_settings`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from autotelic.errors import UserError
from autotelic.runs.method_settings import Spec, make, setting

GROUPS = {
    "data": "what is trained on",
    "reward": "what is rewarded",
    "control": "what acts on entropy, and how a step is computed",
    "guards": "what is watched, and what ends a run",
    "output": "what is written and shown",
}


def option(default: Any, group: str, help: str) -> Any:
    """Return a dataclass field for an option: its default, its group in `--help`, and what it means."""
    return field(default=default, metadata={"group": group, "help": help})


@dataclass(frozen=True)
class Sampling:
    """How a run samples responses and compares their answers, wherever its engine keeps these settings.

    Args:
        generations: responses to a prompt.
        max_new_tokens: longest response.
        equivalence: when answers are the same.
        prompt: the one prompt that is trained on, if it is one.
    """

    generations: int
    max_new_tokens: int
    equivalence: Spec = "math"
    prompt: str | None = None


@dataclass
class CommonArguments:
    """What every method is told."""

    dataset: str | None = option(
        None, "data", "chain_sums:SPLIT, reasoning_gym:NAME, FILE.jsonl, FILE.parquet, or a hub data set"
    )
    dataset_config: str | None = option(None, "data", "configuration of a hub data set that has several, such as main")
    dataset_limit: int | None = option(None, "data", "use at most this many problems")
    prompt_column: str = option("prompt", "data", "column with the prompts")
    answer_column: str = option("answer", "data", "column with the labels; only the verifier reads it")
    chat: str = option(
        "auto", "data", "auto | on | off: plain questions go through the model's chat template; off for base models"
    )
    reward: Spec | list[Spec] | None = option(
        None,
        "reward",
        "NAME,key=value of `autotelic list rewards`, or package.module.function; several: --reward_weights",
    )
    fused_head: str = option("auto", "control", "auto | on | off: log-probabilities and entropies without logits")
    shared_prefix: str = option("auto", "control", "auto | on | off: the prompt of a group is computed once")
    validation_dataset: str | None = option(None, "guards", "problems with answers, for metrics only")
    validation_limit: int = option(100, "guards", "number of validation problems")
    validation_steps: int | None = option(None, "guards", "validate every so many updates; 0 is never")
    validation_k: int = option(8, "guards", "responses per validation problem")
    stop_rule: str | list[Spec] = option(
        "none", "guards", "rules without labels, such as diversity,threshold=0.4,collapse; `autotelic list guards`"
    )
    probe: Spec = option("", "guards", "what stop rules measure: dataset=SOURCE,limit=16,steps=1,k=8,action=rollback")
    resume: bool = option(False, "output", "continue the run in output_dir from its last checkpoint")
    overwrite: bool = option(False, "output", "start anew in an output_dir that holds a run")
    quiet: bool = option(False, "output", "no progress")
    json: bool = option(False, "output", "print the summary as JSON")

    def sampling(self, training_args: Any) -> Sampling:
        """Return how this run samples."""
        raise NotImplementedError  # abstract


@dataclass
class RunArguments(CommonArguments):
    """What a method that samples responses is told."""

    prompt: str | None = option(None, "data", "train on this one prompt, in place of a data set")
    tools: str | list[str] = option(
        "", "data", "functions that the model may call: package.module.function,...; needs a model with a chat template"
    )
    equivalence: Spec = option(
        "math", "reward", "when answers are the same: math | nli | judge,url=U,model=M | embedding | package.function"
    )
    rollout: Spec = option(
        "", "reward", "what is trained on: train_generations=32 of num_generations votes, max_generation_batches=10"
    )
    advantage: str = option(
        "grpo", "control", "grpo | rloo | max_rl | reinforce_pp | reinforce_pp_baseline: how advantages are estimated"
    )
    entropy_control: Spec = option("none", "control", "NAME,key=value of `autotelic list controls`")
    entropy_change_rows: int = option(
        0, "control", "responses on which each update's change of entropy is predicted and measured; 0: none"
    )
    em: Spec = option("", "control", "one_shot_em: coef=1,reduction=token_mean,floor=0,positions=all,...")
    law: Spec = option(
        "off", "guards", "on: fit the entropy law and log law/*; stop_below=0.01: stop where less is left"
    )
    log_rollouts: str = option("0", "output", "prompts per logged rollout, with token statistics; 4,steps=10; 0: none")
    follow_prompts: str = option(
        "0",
        "output",
        "prompts sampled again and again, for the report; 4,k=16,steps=10; 0: none",
    )

    def sampling(self, training_args: Any) -> Sampling:
        """Return what GRPOConfig and these options say."""
        lengths = (training_args.num_generations, training_args.max_completion_length)
        return Sampling(*lengths, equivalence=self.equivalence, prompt=self.prompt)


@dataclass(frozen=True)
class TrainedRows:
    """Which responses of a rollout are trained on."""

    train_generations: int | None = setting(None, "vote on num_generations responses, train on so many of them")
    max_generation_batches: int = setting(
        1, "dynamic sampling: prompts are drawn up to so many times until every group has signal", unit="rollouts"
    )


@dataclass(frozen=True)
class Follow:
    """The prompts that come back at every look."""

    count: int = setting(0, "prompts", unit="prompts")
    k: int = setting(8, "responses of each", unit="responses")
    steps: int = setting(20, "updates between two looks", unit="updates")


@dataclass(frozen=True)
class LoggedRollouts:
    """The rollouts that are written down."""

    count: int = setting(0, "prompts of each", unit="prompts")
    steps: int = setting(20, "updates between two", unit="updates")


@dataclass(frozen=True)
class Law:
    """The entropy law during a run."""

    stop_below: float | None = setting(None, "stop when the law leaves less than this to gain")


@dataclass(frozen=True)
class Probe:
    """What stop rules measure, and what they do."""

    dataset: str | None = setting(None, "prompts; the run's own by default")
    limit: int = setting(16, "prompts", unit="prompts")
    steps: int = setting(1, "updates between probes", unit="updates")
    k: int = setting(8, "responses per prompt", unit="responses")
    action: Literal["stop", "rollback"] = setting("stop", "rollback ends with the last probe that passed")


def unnamed(kind: str, spec: Spec, cls: Any) -> Any:
    """Return a settings class from `key=value,...` or a mapping, where no name has to be given."""
    if isinstance(spec, Mapping):
        return make(kind, {**spec, "name": kind}, {kind: cls})
    return make(kind, f"{kind},{spec}" if spec else kind, {kind: cls})


CountedT = TypeVar("CountedT", Follow, LoggedRollouts)


def counted(name: str, spec: Any, cls: type[CountedT]) -> CountedT:
    """Return settings whose first word is a number of prompts: `4`, `4,steps=10`."""
    count, _, rest = str(spec).partition(",")
    if not count.strip().isdigit():
        raise UserError(f"{name} is {spec!r}: give a number of prompts, as in 4 or 4,steps=10")
    found = unnamed(name, f"count={count}" + (f",{rest}" if rest else ""), cls)
    if found.steps < 1:
        raise UserError(f"{name}: steps must be at least 1, got {found.steps}")
    return found


def follow_of(run: Any) -> Follow:
    """Return which prompts a run follows."""
    return counted("follow_prompts", run.follow_prompts, Follow)


def logged_of(run: Any) -> LoggedRollouts:
    """Return which rollouts a run writes down."""
    return counted("log_rollouts", run.log_rollouts, LoggedRollouts)


def law_of(spec: Spec) -> Law | None:
    """Return what a run asks of the entropy law; None where it asks for nothing."""
    word = str(spec).lower()
    if word in ("off", "false", "none"):
        return None
    return unnamed("law", "" if word in ("on", "true") else spec, Law)


def name_of(spec: Spec | None) -> str:
    """Return the name in `name,key=value` or `{name: ...}`; "none" where there is none."""
    if isinstance(spec, Mapping):
        return str(spec.get("name", "" if spec else "none"))
    return (spec or "none").partition(",")[0].strip()


MOVED = {
    "entropy_control": "fraction low high coef scope refresh on_policy target threshold mu min_weight adapt "
    "kl_form:form",
    "reward": "threshold_low:low threshold_high:high threshold_units:units prompt_fraction",
    "rollout": "train_generations max_generation_batches",
    "em": "em_coef:coef em_reduction:reduction em_floor:floor em_positions:positions "
    "em_position_fraction:position_fraction em_compat:compat",
    "law": "law_stop_below:stop_below",
    "log_rollouts": "log_rollouts_steps:steps",
    "follow_prompts": "follow_k:k",
    "probe": "probe_dataset:dataset probe_limit:limit probe_steps:steps probe_k:k stop_action:action",
}
"""Options that became a setting of another, as `former` or `former:setting`."""


def of_other_methods(name: str) -> str | None:
    """Return why an option is unknown to a method that learns from pairs."""
    if name in {each.name for each in fields(RunArguments)}:
        return f"{name} belongs to the GRPO methods: autotelic train ppl learns from pairs. Leave it out."
    return former(name)


def former(name: str) -> str | None:
    """Return how an option that exists no more is written now."""
    for option_name, words in MOVED.items():
        for word in words.split():
            old, _, new = word.partition(":")
            if name == old:
                first = {"entropy_control": "NAME,", "reward": "NAME,", "follow_prompts": "N,"}.get(option_name, "")
                return f"{name} is a setting of {option_name}: write --{option_name} {first}{new or old}=VALUE"
    return None
