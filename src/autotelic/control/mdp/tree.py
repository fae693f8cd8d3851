"""The mismatch of CPL, exactly: a two-step tree in which bad company makes the good action look bad.

    s0 -up-> s1 -> reward 2 or 0        s0 -down-> s2 -> reward 1.5 or 1        (with probability `slip`, the other one)

Behaviours choose uniformly at s0; the good one then follows pi*, the bad one takes the worse action with probability
.95, so that what follows `up` is worse than what follows `down` although pi* prefers `up` (.8669 at alpha .25).
A segment is a prefix (s0, a0) or a suffix (s, a), half each; the two segments of a pair are drawn independently.
A judge who compares *behaviour* (regret) blames the prefix for what its policy does next; CPL reads that as a verdict
on `up`, PPL knows whose it is.

The example illustrates arXiv:2505.06273.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import expit

from autotelic.control.mdp.fit import CPL, Pairs, Segments, fit_policy, score_features
from autotelic.control.mdp.label_models import LabelKind, label_policies
from autotelic.control.mdp.tabular import FiniteMDP, evaluate, optimise
from autotelic.errors import UserError
from autotelic.functional.lookahead import Lookahead

Number = float | int
Judge = Literal["regret", "advantage", "return"]
UP, DOWN = 0, 1
EXACT = Lookahead(future="exact")
METHODS: dict[str, tuple[Lookahead, LabelKind]] = {
    "cpl": (CPL, "known"),
    "ppl": (EXACT, "known"),
    "ppl_observed": (Lookahead(future="observed"), "known"),
    "ppl_estimated": (EXACT, "estimated"),
    "ppl_d": (Lookahead(future="observed", divergence="dirac"), "known"),
    "ppl_wrong": (EXACT, "wrong"),
}


@dataclass(frozen=True)
class Tree:
    """The tree, its two behaviours, and every segment that they may produce.

    Attributes:
        mdp: the three decision states s0, s1, s2.
        policies: good and bad, shape (2, 3, 2).
        segments: all distinct segments with their continuation.
        probability: of each, under the mixture of behaviours.
        score: of each under the judge, in units of reward.
        temperature: of the judge: P(2 over 1) = sigma((score_2 - score_1) / temperature).
    """

    mdp: FiniteMDP
    policies: Float[ndarray, "K X A"]
    segments: Segments
    probability: Float[ndarray, " N"]
    score: Float[ndarray, " N"]
    temperature: Number

    @property
    def scale(self) -> float:
        """The margin's alpha that makes the right score a proper likelihood: scores are in units of alpha."""
        return float(self.mdp.alpha / self.temperature)

    @property
    def truth(self) -> float:
        """pi*(up)."""
        return float(optimise(self.mdp)[0][0, UP])


def build_tree(
    p_bad: Number, slip: Number = 0.0, judge: Judge = "regret", temperature: Number = 1.0, alpha: Number = 0.25
) -> Tree:
    """Return the tree with a share `p_bad` of bad behaviour, judged by regret, advantage or return."""
    if not 0 <= p_bad <= 1 or not 0 <= slip <= 1 or temperature <= 0:
        raise UserError(
            f"p_bad {p_bad} and slip {slip} are shares in [0, 1], and the temperature {temperature} is above 0."
        )
    transitions = np.zeros((3, 2, 3))
    transitions[0, UP, 1:] = 1 - slip, slip
    transitions[0, DOWN, 1:] = slip, 1 - slip
    mdp = FiniteMDP(transitions, np.array([[0.0, 0.0], [2.0, 0.0], [1.5, 1.0]]), 1.0, alpha)
    best = optimise(mdp)[0]
    uniform = np.array([[0.5, 0.5]])
    policies = np.stack([np.vstack([uniform, best[1:]]), np.vstack([uniform, [[0.05, 0.95]] * 2])])
    rows, probability = [], []
    for policy, share in ((0, 1 - p_bad), (1, p_bad)):
        mu = policies[policy]
        for a0, s1, a1 in product(range(2), (1, 2), range(2)):
            rows.append((0, a0, s1, a1, True, policy))
            probability.append(share * 0.5 * mu[0, a0] * transitions[0, a0, s1] * mu[s1, a1])
        for s, a in product((1, 2), range(2)):
            rows.append((s, a, 0, 0, False, policy))
            probability.append(share * 0.5 * 0.5 * mu[s, a])
    segments = _segments(np.array(rows), np.array(probability) > 0)
    score = _judge(mdp, policies, segments, judge)
    return Tree(mdp, policies, segments, np.array([p for p in probability if p > 0]), score, temperature)


def _segments(rows: ndarray, keep: ndarray) -> Segments:
    rows = rows[keep]
    longer = rows[:, 4].astype(bool)
    always, never = np.ones_like(longer), np.zeros_like(longer)
    return Segments(
        states=rows[:, [0, 2]],
        actions=rows[:, [1, 3]],
        valid=np.stack([always, longer], 1),
        scored=np.stack([always, never], 1),
        policy=rows[:, 5],
    )


def _judge(mdp: FiniteMDP, policies: ndarray, segments: Segments, judge: Judge) -> Float[ndarray, " N"]:
    state, action = segments.states[:, 0], segments.actions[:, 0]
    best, _, v_best = optimise(mdp)
    if judge == "regret":
        q = np.stack([evaluate(mdp, policy)[0] for policy in policies])
        return q[segments.policy, state, action] - v_best[state]
    if judge == "advantage":
        return mdp.alpha * np.log(best[state, action])
    return (mdp.rewards[segments.states, segments.actions] * segments.valid).sum(-1)


def population_pairs(tree: Tree) -> Pairs:
    """Every ordered pair of segments with its probability and the judge's exact preference."""
    first, second = (i.ravel() for i in np.indices((len(tree.score), len(tree.score))))
    label = expit((tree.score[second] - tree.score[first]) / tree.temperature)
    return Pairs(first, second, label, tree.probability[first] * tree.probability[second])


def population_fit(tree: Tree, method: str) -> float:
    """Return the fitted pi(up) for infinite data; `ppl_estimated` knows its labels there, so it equals `ppl`."""
    lookahead, labels = METHODS[method]
    labels = "known" if labels == "estimated" else labels
    segments, policies = label_policies(labels, tree.segments, tree.policies, np.random.default_rng(0))
    features = score_features(tree.mdp, segments, policies, lookahead)
    return float(np.exp(fit_policy(features, population_pairs(tree), tree.scale)[0, UP]))


def sample_pairs(tree: Tree, num_pairs: int, generator: np.random.Generator) -> Pairs:
    """Draw segments and the judge's answers; rows point into `tree.segments`."""
    first, second = generator.choice(len(tree.score), size=(2, num_pairs), p=tree.probability)
    chance = expit((tree.score[second] - tree.score[first]) / tree.temperature)
    label = (generator.random(num_pairs) < chance).astype(float)
    return Pairs(first, second, label, np.full(num_pairs, 1 / num_pairs))


def sample_fit(tree: Tree, method: str, num_pairs: int, seed: int) -> float:
    """Return pi(up) fitted to `num_pairs` sampled comparisons; the same seed draws the same data for every method."""
    generator = np.random.default_rng(seed)
    pairs = sample_pairs(tree, num_pairs, generator)
    drawn = np.concatenate([pairs.first, pairs.second])
    lookahead, labels = METHODS[method]
    data = tree.segments.take(drawn)
    segments, policies = label_policies(labels, data, tree.policies, generator)
    features = score_features(tree.mdp, segments, policies, lookahead)
    index = np.arange(num_pairs)
    drawn_pairs = Pairs(index, index + num_pairs, pairs.label, pairs.weight)
    return float(np.exp(fit_policy(features, drawn_pairs, tree.scale)[0, UP]))
