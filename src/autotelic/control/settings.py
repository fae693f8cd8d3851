"""Settings of `autotelic control train` and `online`; every default is written here, and every bad value refused."""

from dataclasses import dataclass
from typing import cast, get_args

from autotelic.control.behavior_labels import LabelKind
from autotelic.control.networks import CPL_STD
from autotelic.errors import UserError, check_choices
from autotelic.functional.lookahead import Future, LabelEntropy, Lookahead, Weights

Number = float | int
METHODS = ("sft", "cpl", "ppl", "ppl_d", "dpo", "p_iql")
ONLINE_METHODS = ("cpl", "ppl", "ppl_d", "pebble")
LABEL_MODELS = ("method", "auto")
FUTURES = ("expected", "observed", "in_segment")


@dataclass(frozen=True)
class TrainSettings:
    """How to train; sizes are those of a small machine, the paper's are in `recipes/control_paper.yaml`.

    Attributes:
        method: `sft`, `cpl`, `ppl`, `ppl_d`, `dpo` (log-ratios to the frozen clone), `p_iql`, or online `pebble`.
        labels: policy labels, as in `labels`; `ppl` only.
        label_model: `method` takes the method's own; `auto` fits CPL and PPL, and keeps the lower held-out NLL.
        steps: updates after behaviour cloning.
        bc_steps: updates of behaviour cloning before.
        batch_pairs: comparisons per update.
        lr: of Adam; it starts anew after behaviour cloning.
        alpha: scale of the margin.
        bias: lambda, on the segment that lost; 1 is a likelihood, as `expected` needs; CPL's code has .5.
        reference: score log pi - log of the frozen clone, as `dpo` always does (CPL-KL; the KL-to-reference identity).
        bc_coef: weight of behaviour cloning on all segments of the batch (1 in CPL-BC).
        hidden: widths of the policy's layers.
        dropout: after each of them.
        std: of the policy's u; 0 learns it. The default makes log pi CPL's -|u - mean|^2.
        gamma: discount of the look-ahead.
        future: whose future the look-ahead reads: `expected`, a regression of recorded futures per behaviour (unbiased,
            `control.expected`); `observed`, the one rollout from the segment on, to the episode's end; `in_segment`.
            The last two are biased where dynamics or behaviours are random.
        lookahead_horizon: longest lag in steps; 0 is no limit, as `expected` needs.
        lookahead_coef: multiplier of the look-ahead; 0 is CPL.
        weights: how often a later step counts: `regret`, sum_{t<l} gamma^(l-t); `mean`, that divided by its number of
            terms; `tail`, once, after the segment, whose own steps are discounted (labels of the judge regret_tail).
        constants: `drop` (as in CPL's code) or `keep` what a score has that no policy changes; they shift the margin
            where lambda != 1. With a learned std, or relative to a reference, nothing is dropped.
        label_entropy: `include` (KL) or `drop` (cross-entropy).
        held_out_fraction: share of pairs kept for the preference NLL.
        eval_every: updates between evaluations.
        eval_episodes: per evaluation.
        horizon: steps of an evaluation episode; 0 is that of the data.
        num_envs: copies; 0 is the environment's own.
        seed: of initialisation, batches and evaluation starts.
        expectile: of IQL's value.
        advantage_scale: of IQL's weights exp(scale x advantage).
    """

    method: str = "ppl"
    labels: str = "known"
    label_model: str = "method"
    steps: int = 1000
    bc_steps: int = 1000
    batch_pairs: int = 32
    lr: Number = 3e-4
    alpha: Number = 0.1
    bias: Number = 1.0
    reference: bool = False
    bc_coef: Number = 0.0
    hidden: tuple[int, ...] = (128, 128)
    dropout: Number = 0.25
    std: Number = CPL_STD
    gamma: Number = 0.99
    future: str = "expected"
    lookahead_horizon: int = 0
    lookahead_coef: Number = 1.0
    weights: str = "regret"
    constants: str = "drop"
    label_entropy: str = "include"
    held_out_fraction: Number = 0.1
    eval_every: int = 500
    eval_episodes: int = 24
    horizon: int = 0
    num_envs: int = 0
    seed: int = 0
    expectile: Number = 0.7
    advantage_scale: Number = 3.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        choices = {
            "method": (*METHODS, "pebble"),
            "labels": get_args(LabelKind),
            "label_model": LABEL_MODELS,
            "label_entropy": ("include", "drop"),
            "constants": ("drop", "keep"),
            "future": FUTURES,
            "weights": get_args(Weights),
        }
        check_choices(self, choices)
        for name in ("steps", "bc_steps", "lookahead_horizon", "seed", "horizon", "num_envs", "bc_coef", "std"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it cannot be negative.")
        for name in ("batch_pairs", "eval_every", "eval_episodes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give 1 or more.")
        if min(self.hidden, default=1) < 1 or self.lr <= 0 or self.alpha <= 0:
            raise UserError("hidden widths are counts, and lr and alpha lie above 0.")
        if not (0 < self.bias <= 1 and 0 <= self.dropout < 1 and 0 < self.held_out_fraction < 1):
            raise UserError("bias lies in (0, 1], dropout in [0, 1), held_out_fraction in (0, 1).")
        if not 0.5 <= self.expectile < 1 or self.advantage_scale < 0:
            raise UserError("expectile lies in [0.5, 1), advantage_scale is 0 or more.")
        if self.labels != "known" and self.method not in ("ppl",):
            raise UserError(f"labels {self.labels!r} change nothing for {self.method}: they are read by ppl only.")
        if self.future == "expected" and self.lookahead_horizon and self.lookahead_coef:
            raise UserError("future expected has no horizon: give lookahead_horizon 0, or future observed.")
        if self.label_model == "auto" and self.method != "ppl":
            raise UserError("label_model auto decides between ppl and cpl: give it with the method ppl.")
        self.lookahead()

    def lookahead(self, method: str | None = None) -> Lookahead:
        """Return the look-ahead of a method (this one's by default)."""
        method = method or self.method
        return Lookahead(
            future=cast(Future, self.future if method in ("ppl", "ppl_d") else "none"),
            divergence="dirac" if method == "ppl_d" or self.labels == "deterministic" else "kl",
            gamma=self.gamma,
            horizon=self.lookahead_horizon or None,
            weights=cast(Weights, self.weights),
            coef=self.lookahead_coef,
            label_entropy=cast(LabelEntropy, self.label_entropy),
        )
