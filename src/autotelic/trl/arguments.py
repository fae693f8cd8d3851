"""What a training run is told beside TRL's own GRPOConfig and ModelConfig, and each method's defaults.

Defaults are the paper's values, written once, here. Recipes and the command line override them, under TRL's names.
"""

from dataclasses import dataclass, field
from typing import Any

from autotelic.errors import UserError, closest

METHODS = {
    "grpo": "GRPO with labels (a verifier), or with any reward",
    "empo": "EMPO: the reward is the share of responses that mean the same; no labels",
    "one_shot_em": "one-shot entropy minimisation: the entropy of the model's own samples is the loss; no labels",
    "ppl": "policy-labelled preference learning: pairs, and who produced each side; also DPO, CPL, RePO, on DPOTrainer",
}

COMMON_DEFAULTS: dict[str, Any] = {
    "beta": 0.0,
    "temperature": 1.0,
    "loss_type": "dapo",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
    "disable_tqdm": True,
}

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    # arXiv:2505.22617, Section 4.1: 256 x 8, mini-batch 32 prompts (8 updates a rollout), lr 5e-7, std-normalised.
    "grpo": {"reward": "verifier", "num_generations": 8, "learning_rate": 5e-7, "scale_rewards": "group"},
    # arXiv:2504.05812, NeurIPS version: G = 16, sequence-level clip 3e-4 / 4e-4, lr 5e-7; code: a mean over responses.
    "empo": {
        "reward": "empo",
        "num_generations": 16,
        "learning_rate": 5e-7,
        "scale_rewards": "group",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "loss_type": "grpo",
    },
    # arXiv:2505.20282: one prompt, 64 rollouts a step, T = 0.5, lr 2e-5, AdamW (weight decay 0.01), 10 steps.
    "one_shot_em": {
        "reward": "constant",
        "num_generations": 64,
        "per_device_train_batch_size": 64,
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "temperature": 0.5,
        "max_steps": 10,
    },
    # arXiv:2606.09124 (RePO's code): alpha .1, lr 5e-7. The paper, arXiv:2505.06273, has no language model.
    "ppl": {"learning_rate": 5e-7, "beta": 0.1},
}

ROLLOUT_DEFAULTS = ("beta", "temperature", "loss_type")
"""Common defaults that belong to GRPO's rollouts and loss; pairs have none."""

CONTROL_NAMES = (
    "none",
    "observe",
    "clip_cov",
    "kl_cov",
    "high_entropy",
    "repo",
    "steer",
    "entropic",
    "clip_b",
    "clip_v",
    "stare",
    # TRL's own settings, by name.
    "clip_higher",
    "clip_lower",
    "entropy_bonus",
    "adaptive_entropy",
    "cispo",
    "gspo",
)
CONTROL_SETTINGS = (
    "fraction",
    "low",
    "high",
    "coef",
    "kl_form",
    "scope",
    "refresh",
    "on_policy",
    "target",
    "threshold",
    "mu",
    "min_weight",
    "adapt",
)


@dataclass
class RunArguments:
    """What to train on, what to reward, what to control, what to measure."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "chain_sums:SPLIT, reasoning_gym:NAME, FILE.jsonl, FILE.parquet, or a hub data set"},
    )
    prompt: str | None = field(default=None, metadata={"help": "train on this one prompt, in place of a data set"})
    dataset_limit: int | None = field(default=None, metadata={"help": "use at most this many problems"})
    answer_column: str = field(default="answer", metadata={"help": "column with the labels; read by the verifier only"})
    prompt_column: str = field(default="prompt", metadata={"help": "column with the prompts"})
    reward: str | None = field(
        default=None,
        metadata={"help": "a reward of autotelic.rewards, by name, or package.module.function; set by the method"},
    )
    entropy_control: str = field(default="none", metadata={"help": " | ".join(CONTROL_NAMES)})
    fraction: float | None = field(
        default=None,
        metadata={"help": "share of tokens (clip_cov, kl_cov, clip_v, stare: touched; high_entropy: kept)"},
    )
    low: float | None = field(default=None, metadata={"help": "clip_cov: lower end of the covariance band"})
    high: float | None = field(default=None, metadata={"help": "clip_cov: upper end of the covariance band"})
    coef: float | None = field(
        default=None, metadata={"help": "kl_cov, repo: the term's factor; entropy_bonus: TRL's entropy_coef"}
    )
    kl_form: str | None = field(default=None, metadata={"help": "kl_cov: abs | k1 | k2 | k3"})
    scope: str | None = field(default=None, metadata={"help": "update (exact) | micro (the reference code's)"})
    refresh: bool | None = field(default=None, metadata={"help": "select on log-probabilities recomputed per update"})
    on_policy: str | None = field(default=None, metadata={"help": "kl_cov with one update per rollout: entropy_term"})
    target: float | None = field(
        default=None, metadata={"help": "entropy to hold, in nats (entropic, stare, repo with adapt, adaptive_entropy)"}
    )
    threshold: float | None = field(default=None, metadata={"help": "entropic: probability above which tokens count"})
    mu: float | None = field(default=None, metadata={"help": "clip_b, clip_v: threshold in standard deviations"})
    min_weight: float | None = field(default=None, metadata={"help": "steer: weight of the largest estimated change"})
    adapt: bool | None = field(default=None, metadata={"help": "repo: double or halve coef by the entropy's target"})
    entropy_change_rows: int = field(
        default=0, metadata={"help": "responses per update whose entropy change is predicted and measured; 0: none"}
    )
    fused_head: str = field(
        default="auto",
        metadata={"help": "auto | on | off: log-probabilities and entropies without logits, where that pays"},
    )
    shared_prefix: str = field(
        default="auto",
        metadata={"help": "auto | on | off: the prompt of a group computed once, where that pays"},
    )
    law: bool = field(default=False, metadata={"help": "fit the entropy law during the run and log law/*"})
    law_stop_below: float | None = field(
        default=None, metadata={"help": "stop when the law leaves less than this to gain; turns law on"}
    )
    threshold_low: float | None = field(default=None, metadata={"help": "EMPO's delta_low"})
    threshold_high: float | None = field(default=None, metadata={"help": "EMPO's delta_high"})
    threshold_units: str = field(default="nats", metadata={"help": "nats | fraction_of_log_G | p_max"})
    prompt_fraction: float = field(
        default=1.0,
        metadata={"help": "label-free rewards: train on this share of each batch's prompts, most agreed first"},
    )
    train_generations: int | None = field(
        default=None, metadata={"help": "vote on num_generations responses, train on so many of them"}
    )
    em_coef: float = field(default=1.0, metadata={"help": "one_shot_em: multiplies the entropy; negative maximises it"})
    em_reduction: str = field(default="token_mean", metadata={"help": "token_mean | sequence_mean | token_sum"})
    em_floor: float = field(default=0.0, metadata={"help": "one_shot_em: nats below which a token is left alone"})
    em_positions: str = field(default="all", metadata={"help": "one_shot_em: all | last | top_entropy"})
    em_position_fraction: float = field(default=1.0, metadata={"help": "share of each response's tokens"})
    em_compat: str = field(default="none", metadata={"help": "none | official (the script's positions, for parity)"})
    validation_dataset: str | None = field(default=None, metadata={"help": "problems with answers, for metrics only"})
    validation_limit: int = field(default=100, metadata={"help": "number of validation problems"})
    validation_steps: int = field(default=0, metadata={"help": "validate every so many updates; 0 is never"})
    validation_k: int = field(default=8, metadata={"help": "responses per validation problem"})
    stop_rule: str = field(
        default="none",
        metadata={"help": "none, or rules without labels after commas: diversity, entropy_floor=0.3, collapse, ..."},
    )
    stop_action: str = field(default="stop", metadata={"help": "stop | rollback (end with the last probe that passed)"})
    probe_dataset: str | None = field(default=None, metadata={"help": "prompts of the rules; the data set by default"})
    probe_limit: int = field(default=16, metadata={"help": "number of probe prompts"})
    probe_steps: int = field(default=1, metadata={"help": "updates between probes"})
    probe_k: int = field(default=8, metadata={"help": "responses per probe prompt"})
    log_rollouts: int = field(
        default=0, metadata={"help": "prompts per logged rollout, with token statistics; 0: none"}
    )
    log_rollouts_steps: int = field(default=20, metadata={"help": "updates between logged rollouts"})
    follow_prompts: int = field(
        default=0,
        metadata={"help": "prompts sampled again every log_rollouts_steps updates, for the report's slider; 0: none"},
    )
    follow_k: int = field(default=8, metadata={"help": "responses of each followed prompt"})
    resume: bool = field(default=False, metadata={"help": "continue the run in output_dir from its last checkpoint"})
    overwrite: bool = field(default=False, metadata={"help": "start anew in an output_dir that holds a run"})
    quiet: bool = field(default=False, metadata={"help": "no progress"})
    json: bool = field(default=False, metadata={"help": "print the summary as JSON"})

    def control_settings(self) -> dict[str, Any]:
        """Return the settings of the entropy control that were given."""
        given = {name: getattr(self, name) for name in CONTROL_SETTINGS if getattr(self, name) is not None}
        if "kl_form" in given:
            given["form"] = given.pop("kl_form")
        return given


def method_defaults(method: str) -> dict[str, Any]:
    """Return a method's defaults under TRL's and our names.

    Raises:
        UserError: an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}{closest(method, METHODS)}; there are {', '.join(METHODS)}")
    left_out = ROLLOUT_DEFAULTS if method == "ppl" else ()
    common = {name: value for name, value in COMMON_DEFAULTS.items() if name not in left_out}
    return common | METHOD_DEFAULTS[method]
