"""CPL and PPL on linear-Gaussian control: which estimator of the look-ahead finds pi*, under which judge.

Each seed draws rollouts of two behaviours, pairs of segments, and a judge's answers; each arm fits the gains of a
linear policy by maximum likelihood. The figure is the excess cost of its mean action: 0 is optimal, 1 is the better
behaviour's.

    regret        sum_t Q^mu(x_t, a_t) - V*(x_t)                                the paper's sum
    regret_tail   sum_t gamma^t A*(x_t, a_t) + gamma^n (V^mu(x_n) - V*(x_n))    the future counts once: our departure
    advantage     sum_t A*(x_t, a_t),   A* = Q* - V* = alpha log pi*            CPL's labels
    return        sum_t r(x_t, a_t)

Under `regret_tail` every arm discounts the segment's steps; the look-ahead is gamma^n E sum_{l>=0} gamma^l KL(x_{n+l}).

References: arXiv:2505.06273 (PPL), arXiv:2310.13639 (CPL).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import entr, expit

from autotelic.control.mdp.lqr import (
    LinearControl,
    LinearPolicy,
    Quadratic,
    action_value,
    discounted,
    optimum,
    point_control,
    point_policy,
    value,
)
from autotelic.control.mdp.lqr_moments import (
    Future,
    Rollouts,
    expected_after,
    expected_moments,
    fresh,
    observed_moments,
    outer,
    regressed,
    roll_out,
    with_label,
)
from autotelic.errors import UserError, one_of
from autotelic.functional.lookahead import lookahead_weights

Number = float | int
JUDGES = ("regret", "regret_tail", "advantage", "return")
SETS = {  # position gain, damping, drift, standard deviation
    "same": ((2.2, 1.2, 0.2, 0.4), (2.0, 1.2, 0.25, 0.4)),
    "mono": ((2.2, 1.0, 0.2, 0.5), (0.8, 1.0, 0.6, 0.5)),
    "anti": ((6.0, -0.6, 0.0, 0.4), (0.7, 2.5, 0.0, 0.4)),
}
ARMS = (
    "cpl",
    "ppl",
    "ppl_regressed",
    "ppl_fresh_1",
    "ppl_fresh_8",
    "ppl_observed",
    "ppl_in_segment",
    "ppl_in_segment_mean",
    "ppl_d",
    "ppl_wrong",
)
TAIL = 100  # recorded steps after a segment: .95^100 = .006 of the future is left out
FRESH_UP_TO = 8  # longest segment for which fresh rollouts are made: one after each of its steps
WORST = 10.0  # excess cost of a policy that is unstable, or worse than this
STD = math.sqrt(0.5)  # of the fitted policy: CPL's -|a - mean|^2, as in the networks; pi* has .86, which nobody knows
START_SCALE = np.array([1.0, 1.0, 0.5, 0.5, 0.0])  # standard deviation of the first state: position, velocity


@dataclass(frozen=True)
class Recording:
    """One seed's rollouts under a set of behaviours; pair m compares the segments of rows m and M + m."""

    problem: LinearControl
    policies: tuple[LinearPolicy, ...]
    rollouts: Rollouts

    @property
    def discounts(self) -> Float[ndarray, " S"]:
        """gamma^t within the segment."""
        return self.problem.gamma ** np.arange(float(self.rollouts.length))

    def gaps(self, values: Float[ndarray, "N ..."]) -> Float[ndarray, "M ..."]:
        """Second segment minus first, for every pair."""
        half = len(values) // 2
        return values[half:] - values[:half]


def record(behaviors: str, segment_length: int, num_pairs: int, slip: Number, seed: int) -> Recording:
    """Roll out behaviours drawn at random from states drawn at random (`START_SCALE`)."""
    if behaviors not in SETS:
        raise UserError(f"unknown set of behaviours {behaviors!r}{one_of(behaviors, SETS)}")
    if min(segment_length, num_pairs) < 1:
        raise UserError(f"segments of {segment_length} steps, {num_pairs} pairs: both are counts from 1.")
    generator = np.random.default_rng([seed, segment_length])
    problem, policies = point_control(slip), tuple(point_policy(*numbers) for numbers in SETS[behaviors])
    policy = generator.integers(len(policies), size=2 * num_pairs)
    starts = generator.standard_normal((len(policy), 5)) * START_SCALE + np.eye(5)[4]
    states, actions = roll_out(problem, policies, policy, starts, segment_length + TAIL, generator)
    return Recording(problem, policies, Rollouts(states, actions, policy, segment_length))


def judge_scores(data: Recording, judge: str) -> Float[ndarray, " N"]:
    """What the judge thinks of each segment, in units of cost, by the formulas of the module's docstring."""
    problem, policies, rollouts = data.problem, data.policies, data.rollouts
    best, best_value = optimum(problem)
    states, actions = rollouts.segment
    if judge == "return":
        return problem.rewards(states, actions).sum(1)
    if judge == "regret":
        own = _own(rollouts, lambda k, rows: action_value(problem, policies[k], states[rows], actions[rows]))
        return (own - best_value.at(states)).sum(1)
    advantage = problem.alpha * best.logprobs(states, actions)
    if judge == "advantage":
        return advantage.sum(1)
    last = rollouts.states[:, rollouts.length]
    own = _own(rollouts, lambda k, rows: value(problem, policies[k]).at(last[rows]))
    return advantage @ data.discounts + problem.gamma**rollouts.length * (own - best_value.at(last))


def _own(rollouts: Rollouts, values: Callable[[int, ndarray], ndarray]) -> ndarray:
    """Values of every row under its own behaviour; `values(k, rows)` are those of behaviour k."""
    rows = [rollouts.policy == k for k in range(2)]
    parts = [values(k, mask) for k, mask in enumerate(rows)]
    result = np.empty((len(rollouts.policy), *parts[0].shape[1:]))
    for mask, part in zip(rows, parts, strict=True):
        result[mask] = part
    return result


def chances(data: Recording, judge: str, temperature: Number) -> Float[ndarray, " M"]:
    """P(second preferred) = sigma(difference / temperature), in units of cost; at 0 the judge never errs."""
    if judge not in JUDGES or temperature < 0:
        raise UserError(f"judge {judge!r} must be one of {', '.join(JUDGES)}, temperature {temperature} at least 0.")
    gap = data.gaps(judge_scores(data, judge))
    return expit(gap / temperature) if temperature else (gap > 0).astype(float)


def future(arm: str, data: Recording, tail: bool, generator: np.random.Generator) -> Future | None:
    """Return an arm's estimate of the look-ahead's moments; None is CPL. `tail`: what follows the segment, once."""
    problem, rollouts, policies, policy = data.problem, data.rollouts, data.policies, data.rollouts.policy
    if arm == "cpl" or (tail and arm.startswith("ppl_in_segment")):
        return None
    gamma, steps = problem.gamma, rollouts.length
    states, actions = rollouts.segment
    scale, first = (gamma**steps, 0) if tail else (1.0, 1)
    weight = np.full(len(policy), scale / (1 - gamma) if tail else steps * gamma / (1 - gamma))
    if arm in ("ppl", "ppl_wrong"):
        policy = policy if arm == "ppl" else (policy + 1) % len(policies)
        if tail:
            start = outer(rollouts.states[:, steps : steps + 1], np.ones(1))
            moments = scale * expected_moments(problem, policies, policy, start, np.ones(len(policy)))
        else:
            moments = expected_after(problem, policies, policy, states, actions)
        return with_label(moments, weight, policies, policy)
    if arm == "ppl_regressed":
        return with_label(scale * regressed(rollouts, gamma, tail), weight, policies, policy)
    if arm.startswith("ppl_fresh"):
        moments = scale * fresh(problem, policies, rollouts, int(arm.rsplit("_", 1)[1]), TAIL, first, generator)
        return with_label(moments, weight, policies, policy)
    weights = _recorded_weights(arm, rollouts, gamma, tail)
    seen, done = rollouts.states[:, : len(weights)], rollouts.actions
    total = np.full(len(policy), weights.sum())
    if arm == "ppl_d":
        return Future(observed_moments(seen, done, weights), total, np.zeros(len(policy)))
    return with_label(outer(seen, weights), total, policies, policy)


def _recorded_weights(arm: str, rollouts: Rollouts, gamma: Number, tail: bool) -> Float[ndarray, " R"]:
    """Weights of the recorded steps, within the segment for `ppl_in_segment` alone."""
    inside = torch.arange(rollouts.actions.shape[1])[None] < rollouts.length
    mask = inside if arm.startswith("ppl_in_segment") else torch.ones_like(inside)
    weights = "tail" if tail else "mean" if arm.endswith("_mean") else "regret"
    return lookahead_weights(mask, gamma, weights=weights, score_mask=inside, dtype=torch.float64)[0].numpy()


@dataclass(frozen=True)
class Margins:
    """S of the second segment minus S of the first = <moments, log pi> + weight log-normaliser + constant."""

    moments: Float[ndarray, "M Y"]
    weight: Float[ndarray, " M"]
    constant: Float[ndarray, " M"]


def margins(data: Recording, later: Future | None, tail: bool) -> Margins:
    """Add an estimate of the look-ahead to the segment's own log-probabilities, discounted under `regret_tail`."""
    discounts = data.discounts if tail else np.ones(data.rollouts.length)
    moments = observed_moments(*data.rollouts.segment, discounts)
    weight, constant = np.full(len(moments), discounts.sum()), np.zeros(len(moments))
    if later is not None:
        moments, weight, constant = moments + later.moments, weight + later.weight, later.entropy
    flat = moments.reshape(len(moments), -1)
    return Margins(data.gaps(flat), data.gaps(weight), data.gaps(constant))


def clone_gain(data: Recording) -> Float[ndarray, "A X"]:
    """Least squares of the segments' actions on their states: the clone of all data."""
    states, actions = (part.reshape(-1, part.shape[-1]) for part in data.rollouts.segment)
    return np.linalg.lstsq(states, actions, rcond=None)[0].T


def fit_gain(
    margin: Margins, second: Float[ndarray, " M"], scale: Number, starts: Sequence[Float[ndarray, "A X"]]
) -> Float[ndarray, "A X"]:
    """Minimise the logistic loss of scale x margin over the mean's gains, by L-BFGS; of several starts the lowest loss.

    Args:
        margin: of every pair.
        second: 1 where the second segment won, 0 where the first did, or the probability that it wins.
        scale: alpha over the judge's temperature.
        starts: gains to start from.
    """
    width, size = starts[0].shape
    precision = 1 / STD**2
    fixed = margin.weight * -0.5 * width * math.log(2 * math.pi * STD**2) + margin.constant

    def loss(theta: ndarray) -> tuple[float, ndarray]:
        rows = np.hstack([-theta.reshape(width, size), np.eye(width)])  # a - G x
        value = scale * (margin.moments @ (-0.5 * precision * rows.T @ rows).ravel() + fixed)
        pull = scale * (expit(value) - second) / len(value)
        matrix = (pull @ margin.moments).reshape(width + size, width + size)
        return float((np.logaddexp(0, value) - second * value).mean()), precision * (rows @ matrix)[:, :size].ravel()

    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8}
    found = [minimize(loss, g.ravel(), jac=True, method="L-BFGS-B", options=options) for g in starts]
    return min(found, key=lambda result: result.fun).x.reshape(width, size)


def mean_cost(problem: LinearControl, gain: Float[ndarray, "A X"]) -> float:
    """Expected discounted cost of acting without noise, from the starts of `record`; infinite where it is unstable."""
    policy = LinearPolicy(gain, np.zeros((len(gain), len(gain))))
    per_state = Quadratic(problem.cost + problem.action_cost * gain.T @ gain, 0.0)
    try:
        cost = discounted(problem, policy, per_state)
    except UserError:
        return float("inf")
    return float(np.trace(cost.matrix @ np.diag(START_SCALE**2 + np.eye(5)[4])) + cost.constant)


def excess_cost(data: Recording, gain: Float[ndarray, "A X"]) -> float:
    """0 is optimal, 1 as good as the better behaviour; at most `WORST`."""
    best = mean_cost(data.problem, optimum(data.problem)[0].gain)
    behavior = min(mean_cost(data.problem, policy.gain) for policy in data.policies)
    return min((mean_cost(data.problem, gain) - best) / (behavior - best), WORST)


def run_cell(
    behaviors: str,
    segment_length: int,
    judges: Sequence[str],
    num_pairs: int,
    temperature: Number | None,
    slip: Number,
    seed: int,
    arms: Sequence[str] = ARMS,
) -> dict[str, dict[str, float]]:
    """Excess cost per judge and arm on one seed's data, and `label_entropy`: nats of chance left in an answer.

    A temperature of None is alpha. The judges share rollouts and look-aheads; arms of one judge share the answers.
    """
    data = record(behaviors, segment_length, num_pairs, slip, seed)
    clone, alpha = clone_gain(data), data.problem.alpha
    temperature = alpha if temperature is None else temperature
    result: dict[str, dict[str, float]] = {}
    known: dict[bool, dict[str, Any]] = {}
    for judge in judges:
        tail = judge == "regret_tail"
        if tail not in known:
            names = [arm for arm in arms if segment_length <= FRESH_UP_TO or not arm.startswith("ppl_fresh")]
            generator = np.random.default_rng([seed, 9])
            known[tail] = {a: margins(data, future(a, data, tail, generator), tail) for a in ("cpl", *names)}
        chance = chances(data, judge, temperature)
        second = (np.random.default_rng([seed, 8]).random(num_pairs) < chance).astype(float)
        scale = alpha / temperature if temperature else 1.0
        cpl = fit_gain(known[tail]["cpl"], second, scale, [clone])
        fits = {arm: fit_gain(m, second, scale, [clone, cpl]) for arm, m in known[tail].items() if arm != "cpl"}
        row = {arm: excess_cost(data, gain) for arm, gain in {"cpl": cpl, **fits}.items()}
        result[judge] = row | {"label_entropy": float((entr(chance) + entr(1 - chance)).mean())}
    return result
