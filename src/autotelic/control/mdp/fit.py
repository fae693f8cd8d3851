"""Tabular preference fits: every score of CPL and PPL is linear in the table log pi, so one logistic fit serves all.

    S(zeta; mu) = sum_{s,a} counts(s, a) log pi(a|s) + constant

CPL counts the segment's steps. A look-ahead adds, for each future state s of weight w, w mu(a|s) to the counts and
w H(mu(.|s)) to the constant, since -KL(mu || pi) = H(mu) + sum_a mu log pi. The maximum-likelihood policy is found by
L-BFGS over softmax logits with an exact gradient.

References: arXiv:2310.13639 (CPL), arXiv:2505.06273 (PPL).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import entr, expit

from autotelic.control.mdp.tabular import FiniteMDP, log_softmax, resolvent
from autotelic.errors import UserError
from autotelic.functional.lookahead import Lookahead, lookahead_weights

Number = float | int
CPL = Lookahead(future="none")


@dataclass(frozen=True)
class Segments:
    """Steps of N segments and of the rollouts that go on beyond them, padded to R steps.

    Attributes:
        states: state index per step.
        actions: action index per step.
        valid: true on real steps (a rollout stops at an episode's end).
        scored: true on the steps of the segment itself.
        policy: index of the behaviour policy of each segment.
    """

    states: Int[ndarray, "N R"]
    actions: Int[ndarray, "N R"]
    valid: Bool[ndarray, "N R"]
    scored: Bool[ndarray, "N R"]
    policy: Int[ndarray, " N"]

    def take(self, rows: Int[ndarray, " M"]) -> "Segments":
        """Return some of the segments."""
        return Segments(self.states[rows], self.actions[rows], self.valid[rows], self.scored[rows], self.policy[rows])


@dataclass(frozen=True)
class ScoreFeatures:
    """S = (counts * log pi).sum() + constant, for each of N segments."""

    counts: Float[ndarray, "N X A"]
    constant: Float[ndarray, " N"]

    def take(self, rows: Int[ndarray, " M"]) -> "ScoreFeatures":
        """Return some of the segments."""
        return ScoreFeatures(self.counts[rows], self.constant[rows])

    def scores(self, log_policy: Float[ndarray, "X A"]) -> Float[ndarray, " N"]:
        """Return S under a policy."""
        return np.tensordot(self.counts, log_policy, axes=2) + self.constant


@dataclass(frozen=True)
class Pairs:
    """N comparisons of two rows of a table of segments.

    Attributes:
        first: row of segment 1.
        second: row of segment 2.
        label: probability that segment 2 is preferred; 0 or 1 for a sampled comparison.
        weight: share of each pair; sums to one.
    """

    first: Int[ndarray, " N"]
    second: Int[ndarray, " N"]
    label: Float[ndarray, " N"]
    weight: Float[ndarray, " N"]

    def take(self, rows: Int[ndarray, " M"]) -> "Pairs":
        """Return some of the pairs, their weights summing to one again."""
        weight = self.weight[rows]
        return Pairs(self.first[rows], self.second[rows], self.label[rows], weight / weight.sum())


def score_features(
    mdp: FiniteMDP, segments: Segments, policies: Float[ndarray, "K X A"], lookahead: Lookahead
) -> ScoreFeatures:
    """Write each segment's score as a linear function of log pi; its policy label is `policies[segments.policy]`.

    Warns (`BiasedLookaheadWarning`) where one observed future stands for an expectation: dynamics are stochastic, or
    the rollouts go beyond the next state and the label chooses at random.
    """
    random_label = bool(((policies > 1e-12) & (policies < 1 - 1e-12)).any()) and segments.valid.shape[1] > 2
    lookahead.warn_if_biased(mdp.stochastic or random_label)
    counts = np.zeros((len(segments.policy), *mdp.rewards.shape))
    rows, steps = np.nonzero(segments.scored & segments.valid)
    states, actions = segments.states[rows, steps], segments.actions[rows, steps]
    np.add.at(counts, (rows, states, actions), 1.0)
    constant = -(counts * mdp.log_reference).sum((1, 2))
    if lookahead.future == "none" or lookahead.coef == 0 or lookahead.horizon == 0:
        return ScoreFeatures(counts, constant)
    if lookahead.future == "exact":
        future = _expected_visits(mdp, policies, lookahead)[segments.policy[rows], states, actions]
        visits = np.zeros((len(constant), mdp.rewards.shape[0]))
        np.add.at(visits, rows, lookahead.coef * future)
        return _add_kl(ScoreFeatures(counts, constant), visits, policies[segments.policy], lookahead)
    return _observed(ScoreFeatures(counts, constant), segments, policies, lookahead)


def _expected_visits(mdp: FiniteMDP, policies: ndarray, lookahead: Lookahead) -> Float[ndarray, "K X A X"]:
    """Discounted visits after (s, a) under each label: gamma P (I - gamma P_mu)^-1, or its first L terms."""
    if lookahead.gamma != mdp.gamma:
        raise UserError(
            f"the look-ahead's gamma is {lookahead.gamma}, the MDP's {mdp.gamma}: the exact one needs the same."
        )
    if lookahead.horizon is None:
        return np.stack([mdp.gamma * mdp.transitions @ resolvent(mdp, policy) for policy in policies])
    result = []
    for policy in policies:
        step = mdp.gamma * np.einsum("xa,xay->xy", policy, mdp.transitions)
        total, power = np.zeros_like(step), np.eye(len(step))
        for _ in range(lookahead.horizon):
            total, power = total + power, power @ step
        result.append(mdp.gamma * mdp.transitions @ total)
    return np.stack(result)


def _add_kl(base: ScoreFeatures, visits: ndarray, labels: ndarray, lookahead: Lookahead) -> ScoreFeatures:
    """Subtract visits * KL(label || pi) from the score; visits (N, X), labels (N, X, A)."""
    entropy = (visits * entr(labels).sum(-1)).sum(-1) if lookahead.label_entropy == "include" else 0.0
    return ScoreFeatures(base.counts + visits[:, :, None] * labels, base.constant + entropy)


def _observed(base: ScoreFeatures, segments: Segments, policies: ndarray, lookahead: Lookahead) -> ScoreFeatures:
    scored = segments.scored & segments.valid
    mask = scored if lookahead.future == "in_segment" else segments.valid
    weights = (
        lookahead.coef
        * lookahead_weights(
            torch.from_numpy(mask),
            lookahead.gamma,
            lookahead.horizon,
            lookahead.start,
            lookahead.weights,
            score_mask=torch.from_numpy(scored),
            dtype=torch.float64,
        ).numpy()
    )
    if lookahead.divergence == "kl":
        visits = np.zeros(base.counts.shape[:2])
        np.add.at(visits, (np.arange(len(weights))[:, None], segments.states), weights)
        return _add_kl(base, visits, policies[segments.policy], lookahead)
    counts, constant = base.counts.copy(), base.constant
    np.add.at(counts, (np.arange(len(weights))[:, None], segments.states, segments.actions), weights)
    if lookahead.divergence == "single_sample" and lookahead.label_entropy == "include":
        taken = policies[segments.policy[:, None], segments.states, segments.actions]
        constant = constant - (weights * np.log(np.where(weights > 0, taken, 1.0))).sum(-1)
    return ScoreFeatures(counts, constant)


def fit_policy(
    features: ScoreFeatures,
    pairs: Pairs,
    alpha: Number = 1.0,
    bias: Number = 1.0,
    l2: Number = 0.0,
    max_iterations: int = 500,
) -> Float[ndarray, "X A"]:
    """Return log pi of the policy that minimises the weighted CPL / PPL loss over pairs.

    Args:
        features: scores as linear functions of log pi.
        pairs: comparisons; soft labels and weights give the population loss.
        alpha: scale of the margin; the judge's temperature is its counterpart.
        bias: lambda.
        l2: weight of |logits|^2 / 2, for states that few segments visit.
        max_iterations: of L-BFGS.
    """
    shape = features.counts.shape[1:]
    flat, constant = alpha * features.counts.reshape(len(features.constant), -1), alpha * features.constant
    margins = [
        (flat[win] - bias * flat[lose], constant[win] - bias * constant[lose], share * pairs.weight)
        for win, lose, share in (
            (pairs.second, pairs.first, pairs.label),
            (pairs.first, pairs.second, 1 - pairs.label),
        )
    ]
    if bias == 1:  # one margin and its negative: -log sigma(-m) = m - log sigma(m)
        margins = [(margins[0][0], margins[0][1], pairs.weight)]
    linear = (pairs.weight * (1 - pairs.label)) if bias == 1 else None

    def loss(logits: ndarray) -> tuple[float, ndarray]:
        log_policy = log_softmax(logits.reshape(shape))
        total, slope = 0.5 * l2 * (logits**2).sum(), np.zeros(flat.shape[1])
        for design, offset, share in margins:
            margin = design @ log_policy.ravel() + offset
            pull = -share * expit(-margin)
            total += (share * np.logaddexp(0, -margin)).sum()
            if linear is not None:
                total, pull = total + (linear * margin).sum(), pull + linear
            slope += design.T @ pull
        slope = slope.reshape(shape)
        slope = slope - np.exp(log_policy) * slope.sum(-1, keepdims=True)
        return total, slope.ravel() + l2 * logits

    options = {"maxiter": max_iterations, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(loss, np.zeros(flat.shape[1]), jac=True, method="L-BFGS-B", options=options)
    return log_softmax(found.x.reshape(shape))


def preference_nll(
    features: ScoreFeatures, pairs: Pairs, log_policy: Float[ndarray, "X A"], alpha: Number = 1.0
) -> float:
    """Weighted negative log-likelihood of the labels, nats per pair (bias 1: a proper likelihood)."""
    scores = alpha * features.scores(log_policy)
    margin = scores[pairs.second] - scores[pairs.first]
    nll = pairs.label * np.logaddexp(0, -margin) + (1 - pairs.label) * np.logaddexp(0, margin)
    return float((pairs.weight * nll).sum())


@dataclass(frozen=True)
class LabelModelChoice:
    """What `auto` decided, and why.

    Attributes:
        name: the label model with the lowest held-out preference NLL.
        held_out_nll: of every candidate, nats per pair.
        log_policy: the chosen model's fit to all pairs.
    """

    name: str
    held_out_nll: dict[str, float]
    log_policy: Float[ndarray, "X A"]


def choose_label_model(
    candidates: dict[str, ScoreFeatures],
    pairs: Pairs,
    generator: np.random.Generator,
    held_out_fraction: Number = 0.2,
    alpha: Number = 1.0,
    bias: Number = 1.0,
    l2: Number = 0.0,
) -> LabelModelChoice:
    """Pick CPL or PPL by held-out preference NLL, then fit the winner to all pairs: the `auto` label model.

    Preferences by advantage are CPL's model, preferences by behaviour regret are PPL's; which of them a judge follows
    is a fact about the data, and the wrong one is biased either way.
    """
    count = len(pairs.label)
    held = max(1, round(held_out_fraction * count))
    if count - held < 1:
        raise UserError(f"{count} pairs cannot be split for the held-out preference NLL: give 2 or more.")
    order = generator.permutation(count)
    test, train = pairs.take(order[:held]), pairs.take(order[held:])
    nll = {n: preference_nll(f, test, fit_policy(f, train, alpha, bias, l2), alpha) for n, f in candidates.items()}
    best = min(nll, key=nll.__getitem__)
    return LabelModelChoice(best, nll, fit_policy(candidates[best], pairs, alpha, bias, l2))
