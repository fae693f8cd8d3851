"""Settings of `autotelic control data`, `train`, `online`: every default is written here, every bad value refused."""

from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from jaxtyping import Float, Int
from numpy import ndarray

from autotelic.control.behavior_labels import LabelKind
from autotelic.control.behaviors import read_specs
from autotelic.control.environments import NAMES
from autotelic.control.judges import JUDGES
from autotelic.control.networks import CPL_STD
from autotelic.control.segments import Comparisons
from autotelic.errors import UserError, check_choices
from autotelic.functional.lookahead import Future, LabelEntropy, Lookahead, Weights

Number = float | int
METHODS = ("sft", "cpl", "ppl", "ppl_d", "dpo", "p_iql")
ONLINE_METHODS = ("cpl", "ppl", "ppl_d", "pebble")
LABEL_MODELS = ("method", "auto")
FUTURES = ("expected", "observed", "in_segment")


def at_least(settings: Any, least: int, names: str) -> None:
    """Refuse a field of the settings, one of `names` (separated by spaces), that is below `least`."""
    for name in names.split():
        if getattr(settings, name) < least:
            raise UserError(f"{name} is {getattr(settings, name)}: give {least} or more.")


@dataclass(frozen=True)
class JudgeSettings:
    """Where episodes come from and who compares their segments: what a data set and online rounds share.

    Attributes:
        env: `point-reach` or `metaworld/TASK`.
        actions: `clip` sends clip(u), `tanh` sends tanh(u).
        random_hand: MetaWorld only: the hand starts anywhere in a box around its place, as in CPL's code.
        segment_length: steps of a segment.
        judge: `regret`, `regret_tail`, `advantage` or `return`, as in `judges`.
        critic: of V^mu: `learned`, or `simulated` on point-reach.
        optimum: whose value stands for V*: `expert`, the script's, without entropy; or `sac`, the soft optimum that
            soft actor-critic finds on the environment's reward (actions tanh).
        sac_episodes: that it takes.
        critic_episodes: for the expert's value; 0 only where the judge will always be `return`.
        critic_gamma: discount of the critics.
        temperature: of the judge, in units of its score: P(second) = sigma(difference / temperature); 0 never errs.
        temperature_unit: `score`, or `spread`: the temperature is in standard deviations of the differences, so that
            the judge errs the more, the more the data differ.
    """

    env: str = "point-reach"
    actions: str = "clip"
    random_hand: bool = False
    segment_length: int = 64
    judge: str = "regret"
    critic: str = "learned"
    optimum: str = "expert"
    sac_episodes: int = 1000
    critic_episodes: int = 96
    critic_gamma: Number = 0.99
    temperature: Number = 0.0
    temperature_unit: str = "score"

    def __post_init__(self) -> None:
        """Refuse what cannot be judged."""
        choices = {
            "env": NAMES,
            "actions": ("clip", "tanh"),
            "judge": JUDGES,
            "critic": ("learned", "simulated"),
            "optimum": ("expert", "sac"),
            "temperature_unit": ("score", "spread"),
        }
        check_choices(self, choices)
        if self.critic == "simulated" and self.env != "point-reach":
            raise UserError("a simulated critic restarts the environment in any state: point-reach only. Use learned.")
        if self.optimum == "sac" and (self.actions != "tanh" or self.critic == "simulated"):
            raise UserError("optimum sac counts the entropy of tanh actions: use actions tanh and critic learned.")
        if self.random_hand and self.env == "point-reach":
            raise UserError("random_hand is about MetaWorld's robot: a point has no hand. Leave it out.")
        at_least(self, 1, "segment_length sac_episodes")
        at_least(self, 0, "critic_episodes temperature")
        if not 0 < self.critic_gamma < 1:
            raise UserError("critic_gamma lies between 0 and 1: episodes end by the clock alone, values are of no end.")

    @property
    def caution(self) -> str | None:
        """A line of warning about the judge, or None."""
        if self.temperature_unit == "score" or not self.temperature:
            return None
        return (
            "warning: temperature_unit spread scales the judge's noise by the data: the more the segments differ, the "
            "more often it errs, so that data sets cannot be compared. Use temperature_unit score."
        )

    def noise(self, score: Float[ndarray, " N"], first: Int[ndarray, " M"], second: Int[ndarray, " M"]) -> float:
        """Return the temperature in units of the score."""
        return float(
            self.temperature * (1 if self.temperature_unit == "score" else (score[second] - score[first]).std())
        )


@dataclass(frozen=True)
class DataSettings(JudgeSettings):
    """What to collect, and how to label it.

    Attributes:
        policies: behaviours, as in `behaviors`; one is homogeneous data, several heterogeneous.
        episodes: per behaviour.
        horizon: steps of an episode; 0 is the environment's own.
        num_envs: copies; 0 is the environment's own.
        behavior_std: of the clones' u.
        demos: demonstrations behind `success:RATE`.
        segments: how many are cut.
        pairs: at most this many comparisons; 0 is no limit.
        comparisons: `sparse` (each segment once) or `dense` (all pairs).
        flip_fraction: share of answers that are turned round.
        seed: of everything but the labels.
        label_seed: of segments, pairs and answers; -1 takes `seed`.
    """

    policies: tuple[str, ...] = ("success:0.2", "success:0.5")
    episodes: int = 100
    horizon: int = 0
    num_envs: int = 0
    behavior_std: Number = 0.4
    demos: int = 5
    segments: int = 2500
    pairs: int = 0
    comparisons: str = "sparse"
    flip_fraction: Number = 0.0
    seed: int = 0
    label_seed: int = -1

    def __post_init__(self) -> None:
        """Refuse what cannot be collected."""
        super().__post_init__()
        read_specs(self.policies, self.env)
        check_choices(self, {"comparisons": get_args(Comparisons)})
        at_least(self, 2, "segments")
        at_least(self, 1, "episodes demos")
        at_least(self, 0, "seed pairs horizon num_envs")
        if self.behavior_std <= 0:
            raise UserError("behavior_std lies above 0.")


@dataclass(frozen=True)
class OnlineSettings(JudgeSettings):
    """What a round collects and asks; the rest is `TrainSettings` (its `steps` are the updates of one round).

    Attributes:
        start: the behaviour of the first round, as in `behaviors`; it is cloned before the first update.
        rounds: how often to collect, compare and update.
        round_episodes: episodes a round.
        round_answers: comparisons a round.
    """

    actions: str = "tanh"
    segment_length: int = 16
    critic: str = "simulated"
    start: str = "clone:1:10"
    rounds: int = 5
    round_episodes: int = 16
    round_answers: int = 50

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        at_least(self, 1, "rounds round_episodes round_answers")
        read_specs([self.start], self.env)


@dataclass(frozen=True)
class PebbleSettings:
    """What PEBBLE has beside the training settings, whose `steps` are SAC's updates of one round.

    Attributes:
        from_clone: start from the clone of the start behaviour, as the other methods do; else from nothing.
        explore_episodes: episodes of exploration for state entropy before the first comparison; from nothing only.
        interact_episodes: episodes that the actor collects for itself in a round, between blocks of updates.
        critic_updates: of the critics alone, when they are new.
        sac_batch: transitions per update.
        members: reward networks.
        reward_updates: of the reward, in a round.
        reward_batch: comparisons per update of each network.
        queries: `uniform`, or `disagreement`: the comparisons on which the networks differ most.
        candidates: comparisons drawn for each that is asked, with `disagreement`.
        neighbors: k of the state entropy.
    """

    from_clone: bool = False
    explore_episodes: int = 0
    interact_episodes: int = 320
    critic_updates: int = 0
    sac_batch: int = 256
    members: int = 3
    reward_updates: int = 200
    reward_batch: int = 128
    queries: str = "uniform"
    candidates: int = 10
    neighbors: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        check_choices(self, {"queries": ("uniform", "disagreement")})
        at_least(self, 0, "explore_episodes critic_updates")
        at_least(self, 1, "interact_episodes sac_batch members reward_updates reward_batch candidates neighbors")
        if self.queries == "disagreement" and self.members < 2:
            raise UserError("one reward network cannot disagree with itself: give members 2 or more, or ask uniformly.")
        if self.from_clone and self.explore_episodes:
            raise UserError("a clone does not explore first: give explore_episodes 0, or from_clone false.")


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
        warmup: updates after cloning over which lr rises from 0.
        decay: lr falls to 0 from the end of cloning to the last update.
        alpha: scale of the margin.
        bias: lambda, on the segment that lost; 1 is a likelihood; CPL's code has .5, which keeps nearer to the data.
        reference: score log pi - log of the frozen clone, as `dpo` always does (CPL-KL; the KL-to-reference identity).
        bc_coef: weight of behaviour cloning on all segments of the batch (1 in CPL-BC).
        hidden: widths of the policy's layers.
        dropout: after each of them.
        output_act: of the mean: `linear`, or `tanh` as in CPL's released network: it stays in (-1, 1), and actions are
            read as the environment received them, clipped; `auto` is tanh on MetaWorld's clipped actions, else linear.
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
    warmup: int = 0
    decay: bool = False
    alpha: Number = 0.1
    bias: Number = 1.0
    reference: bool = False
    bc_coef: Number = 0.0
    hidden: tuple[int, ...] = (128, 128)
    dropout: Number = 0.25
    output_act: str = "auto"
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
            "output_act": ("auto", "linear", "tanh"),
            "future": FUTURES,
            "weights": get_args(Weights),
        }
        check_choices(self, choices)
        at_least(self, 0, "steps bc_steps warmup lookahead_horizon seed horizon num_envs bc_coef std")
        at_least(self, 1, "batch_pairs eval_every eval_episodes")
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

    def on(self, env: str, squash: bool) -> "TrainSettings":
        """Return the settings with `output_act` decided for an environment and its actions."""
        if self.output_act == "tanh" and squash:
            raise UserError(
                "output_act tanh is for clipped actions: where actions are tanh(u), the mean of u has no bound."
            )
        tanh = env.startswith("metaworld/") and not squash
        return replace(self, output_act="tanh" if tanh else "linear") if self.output_act == "auto" else self

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
