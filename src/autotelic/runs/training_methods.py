"""The one table of training methods: what each needs, what it is for, and the paper's defaults.

Defaults are written here and nowhere else. Recipes and the command line override them, under TRL's names and ours.
"""

from dataclasses import dataclass, field
from typing import Any

from autotelic.errors import UserError, one_of

COMMON_DEFAULTS: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
    "disable_tqdm": True,
    "lora_dropout": 0.0,  # TRL's 0.05 switches the shared prefix off: 2.8 times the time
}
ROLLOUT_DEFAULTS: dict[str, Any] = COMMON_DEFAULTS | {"beta": 0.0, "temperature": 1.0, "loss_type": "dapo"}


@dataclass(frozen=True)
class Method:
    """One method of `autotelic train`.

    Attributes:
        name: In configuration, documents and metric prefixes.
        label: As the page writes it.
        needs: Data it learns from.
        purpose: One line.
        paper: Where it comes from.
        defaults: Values of TRL's and our options, the paper's where it gives them.
    """

    name: str
    label: str
    needs: str
    purpose: str
    paper: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "grpo",
            "GRPO",
            "questions and answers, or questions and any reward",
            "GRPO with labels (a verifier), or with any reward",
            "Shao et al. 2024, arXiv:2402.03300",
            # arXiv:2505.22617, Section 4.1: 256 x 8, mini-batch 32 prompts (8 updates a rollout), lr 5e-7.
            ROLLOUT_DEFAULTS
            | {"reward": "verifier", "num_generations": 8, "learning_rate": 5e-7, "scale_rewards": "group"},
        ),
        Method(
            "empo",
            "EMPO",
            "questions",
            "EMPO: the reward is the share of responses that mean the same; no labels",
            "Zhang et al. 2025, arXiv:2504.05812",
            # NeurIPS version: G = 16, sequence-level clip 3e-4 / 4e-4, lr 5e-7; code: a mean over responses.
            ROLLOUT_DEFAULTS
            | {
                "reward": "empo",
                "num_generations": 16,
                "per_device_train_batch_size": 16,  # one question; TRL's 8 cannot hold its group
                "learning_rate": 5e-7,
                "scale_rewards": "group",
                "importance_sampling_level": "sequence",
                "epsilon": 3e-4,
                "epsilon_high": 4e-4,
                "loss_type": "grpo",
            },
        ),
        Method(
            "one_shot_em",
            "one-shot EM",
            "one question",
            "one-shot entropy minimisation: the entropy of the model's own samples is the loss; no labels",
            "Gao et al. 2025, arXiv:2505.20282",
            # One prompt, 64 rollouts a step, T = 0.5, lr 2e-5, AdamW (weight decay 0.01), 10 steps.
            ROLLOUT_DEFAULTS
            | {
                "reward": "constant",
                "num_generations": 64,
                "per_device_train_batch_size": 64,
                "learning_rate": 2e-5,
                "weight_decay": 0.01,
                "temperature": 0.5,
                "max_steps": 10,
            },
        ),
        Method(
            "ppl",
            "PPL",
            "pairs of responses, and which policy wrote each",
            "policy-labelled preference learning; also DPO, CPL, RePO, on DPOTrainer",
            "arXiv:2505.06273",
            # arXiv:2606.09124 (RePO's code): alpha .1, lr 5e-7. PPL's paper has no language model.
            COMMON_DEFAULTS | {"learning_rate": 5e-7, "beta": 0.1},
        ),
    )
}

ESTIMATORS: dict[str, tuple[str, str]] = {
    "rloo": ("RLOO: the reward less the mean of the group's other responses", "Ahmadian et al. 2024, arXiv:2402.14740"),
    "max_rl": ("MaxRL: the reward less the group's mean, over that mean; rewards of 0 or more", "arXiv:2602.02710"),
    "reinforce_pp": ("REINFORCE++: the reward, whitened over the tokens of the rollout", "arXiv:2501.03262"),
    "reinforce_pp_baseline": (
        "REINFORCE++ with baseline: the reward less the group's mean, whitened likewise",
        "arXiv:2501.03262",
    ),
}
"""Estimators of the advantages in place of TRL's own (`grpo`): what each is for, and its paper."""


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        UserError: an unknown name.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}{one_of(name, METHODS)}")
    return METHODS[name]
