"""Random MDPs: does the fitted policy approach pi*, by which judge, with how many pairs, under which label model?

Each seed draws one MDP, behaviours of different quality, rollouts from them, and pairs of segments labelled by one
judge: sum over the segment of Q^mu - V* (`regret`), of alpha log pi* (`advantage`), or of rewards (`return`). The
figure is KL(pi* || fit), in nats, averaged over states.

The experiment tests arXiv:2505.06273 against arXiv:2310.13639 where both can be computed exactly.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import expit

from autotelic.control.mdp.fit import CPL, Pairs, Segments, choose_label_model, fit_policy, score_features
from autotelic.control.mdp.label_models import LabelKind, label_policies
from autotelic.control.mdp.tabular import (
    FiniteMDP,
    log_softmax,
    negative_regret,
    optimise,
    random_mdp,
    random_policy,
    state_kl,
)
from autotelic.errors import UserError
from autotelic.functional.lookahead import Lookahead

Number = float | int
Judge = Literal["regret", "advantage", "return"]


@dataclass(frozen=True)
class Setup:
    """Size and noise of the experiment.

    Attributes:
        num_states: X.
        num_actions: A.
        num_policies: behaviours: pi* sharpened, flattened, or reversed at random, and mixed with noise.
        segment_length: scored steps.
        rollout_length: recorded steps, for the observed look-ahead.
        gamma: discount.
        alpha: temperature of pi*.
        temperature: of the judge, in units of reward.
        branching: next states per action; 1 is deterministic dynamics.
        l2: of the fits, on logits.
    """

    num_states: int = 6
    num_actions: int = 3
    num_policies: int = 4
    segment_length: int = 3
    rollout_length: int = 30
    gamma: Number = 0.8
    alpha: Number = 0.5
    temperature: Number = 0.5
    branching: int = 3
    l2: Number = 1e-4

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be drawn; `FiniteMDP` checks gamma and alpha."""
        if min(self.num_states, self.num_actions, self.num_policies, self.segment_length) < 1:
            raise UserError("num_states, num_actions, num_policies and segment_length are counts: give 1 or more.")
        if self.rollout_length < self.segment_length or not 1 <= self.branching <= self.num_states:
            raise UserError(
                f"rollout_length {self.rollout_length} must reach segment_length {self.segment_length}, and branching "
                f"{self.branching} lie in 1 .. num_states {self.num_states}."
            )
        if self.temperature <= 0 or self.l2 < 0 or self.gamma >= 1:
            raise UserError(
                f"temperature {self.temperature} must be above 0, l2 {self.l2} at least 0, gamma {self.gamma} below 1: "
                "these episodes never end."
            )


DEFAULT = Setup()


def methods(gamma: Number) -> dict[str, tuple[Lookahead, LabelKind]]:
    """Return every label model under test: its look-ahead and its policy labels."""

    def ahead(**settings) -> Lookahead:
        return Lookahead(gamma=gamma, **settings)

    exact = ahead(future="exact")
    return {
        "cpl": (CPL, "known"),
        "ppl": (exact, "known"),
        "ppl_estimated": (exact, "estimated"),
        "ppl_pooled": (exact, "pooled"),
        "ppl_shuffled": (exact, "shuffled"),
        "ppl_wrong": (exact, "wrong"),
        "ppl_in_segment": (ahead(future="in_segment"), "known"),
        "ppl_in_segment_mean": (ahead(future="in_segment", weights="mean"), "known"),
        "ppl_observed": (ahead(future="observed"), "known"),
        "ppl_observed_mean": (ahead(future="observed", weights="mean"), "known"),
        "ppl_single_sample": (ahead(future="observed", divergence="single_sample"), "known"),
        "ppl_d": (ahead(future="in_segment", divergence="dirac"), "deterministic"),
    }


def behaviors(mdp: FiniteMDP, num_policies: int, generator: np.random.Generator) -> Float[ndarray, "K X A"]:
    """Behaviours from good to bad: softmax of w log pi* + noise, w from 1 down to -0.5."""
    log_best = np.log(optimise(mdp)[0])
    shape = (log_best.shape[0], log_best.shape[1])
    noise = [np.log(random_policy(generator, shape, 0.7)) for _ in range(num_policies)]
    shares = np.linspace(1.0, -0.5, num_policies)
    return np.exp(log_softmax(np.stack([w * log_best + n for w, n in zip(shares, noise, strict=True)])))


def roll_out(
    mdp: FiniteMDP, policies: Float[ndarray, "K X A"], count: int, setup: Setup, generator: np.random.Generator
) -> Segments:
    """Roll out behaviours chosen uniformly, from uniform starts; the first `segment_length` steps are the segment."""
    policy = generator.integers(len(policies), size=count)
    states = np.empty((count, setup.rollout_length), dtype=np.int64)
    actions = np.empty_like(states)
    state = generator.integers(mdp.rewards.shape[0], size=count)
    for step in range(setup.rollout_length):
        action = _draw(policies[policy, state], generator)
        states[:, step], actions[:, step] = state, action
        state = _draw(mdp.transitions[state, action], generator)
    valid = np.ones(states.shape, dtype=bool)
    scored = valid & (np.arange(setup.rollout_length) < setup.segment_length)
    return Segments(states, actions, valid, scored, policy)


def _draw(probs: ndarray, generator: np.random.Generator) -> ndarray:
    return (probs.cumsum(-1) < generator.random((len(probs), 1)) * probs.sum(-1, keepdims=True)).sum(-1)


def judge_scores(
    mdp: FiniteMDP, policies: Float[ndarray, "K X A"], segments: Segments, judge: Judge
) -> Float[ndarray, " N"]:
    """Sum over each segment of what the judge looks at, in units of reward."""
    if judge == "regret":
        table = np.stack([negative_regret(mdp, policy) for policy in policies])
        step = table[segments.policy[:, None], segments.states, segments.actions]
    else:
        table = mdp.alpha * np.log(optimise(mdp)[0]) if judge == "advantage" else mdp.rewards
        step = table[segments.states, segments.actions]
    return (step * (segments.scored & segments.valid)).sum(-1)


@dataclass(frozen=True)
class Draw:
    """One seed's MDP, behaviours, segments and labelled pairs."""

    mdp: FiniteMDP
    policies: Float[ndarray, "K X A"]
    segments: Segments
    pairs: Pairs


def draw(num_pairs: int, judge: Judge, seed: int, setup: Setup = DEFAULT) -> Draw:
    """Return the data of one seed; the MDP, the behaviours and the rollouts do not depend on the judge."""
    generator = np.random.default_rng(seed)
    mdp = random_mdp(
        generator, setup.num_states, setup.num_actions, setup.gamma, setup.alpha, branching=setup.branching
    )
    policies = behaviors(mdp, setup.num_policies, generator)
    segments = roll_out(mdp, policies, 2 * num_pairs, setup, generator)
    score = judge_scores(mdp, policies, segments, judge)
    first, second = np.arange(num_pairs), np.arange(num_pairs, 2 * num_pairs)
    label = (generator.random(num_pairs) < expit((score[second] - score[first]) / setup.temperature)).astype(float)
    return Draw(mdp, policies, segments, Pairs(first, second, label, np.full(num_pairs, 1 / num_pairs)))


def distance(mdp: FiniteMDP, log_policy: Float[ndarray, "X A"]) -> float:
    """KL(pi* || fit), in nats, averaged over states."""
    return float(state_kl(optimise(mdp)[0], log_policy).mean())


def run_seed(
    num_pairs: int, judge: Judge, seed: int, names: list[str] | None = None, setup: Setup = DEFAULT
) -> dict[str, float]:
    """KL(pi* || fit) of every method on one seed's data, and of `auto`; `auto_is_ppl` is 1 where it picked PPL."""
    data, table = draw(num_pairs, judge, seed, setup), methods(setup.gamma)
    names = [*table, "auto"] if names is None else names
    alpha, generator = setup.alpha / setup.temperature, np.random.default_rng([seed, 1])
    features, result = {}, {}
    for name in dict.fromkeys([n for n in names if n != "auto"] + (["cpl", "ppl"] if "auto" in names else [])):
        lookahead, kind = table[name]
        segments, policies = label_policies(kind, data.segments, data.policies, generator)
        features[name] = score_features(data.mdp, segments, policies, lookahead)
    for name in names:
        if name == "auto":
            both = {n: features[n] for n in ("cpl", "ppl")}
            choice = choose_label_model(both, data.pairs, generator, alpha=alpha, l2=setup.l2)
            result["auto"] = distance(data.mdp, choice.log_policy)
            result["auto_is_ppl"] = float(choice.name == "ppl")
        else:
            fitted = fit_policy(features[name], data.pairs, alpha, l2=setup.l2)
            result[name] = distance(data.mdp, fitted)
    return result
