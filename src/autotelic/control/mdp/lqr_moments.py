"""Rollouts of linear behaviours, and what a segment's score needs of them: second moments of z = (x, a).

For linear-Gaussian policies every score of CPL and PPL is linear in one 7 x 7 matrix per segment:

    S(zeta; mu) = <Z, log pi> + constant,   Z = sum_t z_t z_t' + sum_{t, l>=1} gamma^l E[z_{t+l} z_{t+l}']

since log N(a; G x, C) is quadratic in z, and -KL(mu || pi) = H(mu) + E_mu log pi. The estimators of the look-ahead
differ in the second term alone: the expectation given (x_t, a_t), a regression of it, fresh rollouts, or the recorded
future.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from autotelic.control.mdp.lqr import LinearControl, LinearPolicy

Number = float | int


@dataclass(frozen=True)
class Rollouts:
    """N rollouts of R steps; the first `length` steps of each are its segment.

    Attributes:
        states: one more than there are actions.
        actions: taken.
        policy: index of the behaviour.
        length: steps of a segment.
    """

    states: Float[ndarray, "N R1 X"]
    actions: Float[ndarray, "N R A"]
    policy: Int[ndarray, " N"]
    length: int

    @property
    def segment(self) -> tuple[ndarray, ndarray]:
        """States and actions of the segments, (N, length, .)."""
        return self.states[:, : self.length], self.actions[:, : self.length]


@dataclass(frozen=True)
class Future:
    """Discounted second moments of what follows a segment, summed over its steps.

    Attributes:
        moments: sum of weights times z z'.
        weight: sum of the weights.
        entropy: weight times H(mu), where the divergence is KL; 0 for a deterministic label.
    """

    moments: Float[ndarray, "N Z Z"]
    weight: Float[ndarray, " N"]
    entropy: Float[ndarray, " N"]


def roll_out(
    problem: LinearControl,
    policies: Sequence[LinearPolicy],
    policy: Int[ndarray, " N"],
    states: Float[ndarray, "N X"],
    steps: int,
    generator: np.random.Generator,
) -> tuple[Float[ndarray, "N R1 X"], Float[ndarray, "N R A"]]:
    """Run every row under its behaviour; returns states and actions."""
    gains = np.stack([p.gain for p in policies])[policy]
    roots = np.stack([np.linalg.cholesky(p.covariance) for p in policies])[policy]
    width = problem.b.shape[1]
    seen, done = [states], []
    for _ in range(steps):
        noise = generator.standard_normal((2, len(states), width))
        action = np.einsum("nax,nx->na", gains, states) + np.einsum("nab,nb->na", roots, noise[0])
        states = problem.following(states, action) + problem.slip * noise[1] @ problem.b.T
        seen.append(states)
        done.append(action)
    return np.stack(seen, 1), np.stack(done, 1)


def outer(rows: Float[ndarray, "*N Z"], weights: Float[ndarray, " S"]) -> Float[ndarray, "..."]:
    """Weighted sum over the last but one axis of z z'."""
    return np.einsum("s,...si,...sj->...ij", weights, rows, rows, optimize=True)


def observed_moments(states: ndarray, actions: ndarray, weights: Float[ndarray, " S"]) -> Float[ndarray, "N Z Z"]:
    """Sum of weights times z z' over recorded steps."""
    return outer(np.concatenate([states, actions], -1), weights)


def with_label(
    moments: Float[ndarray, "N X X"], weight: Float[ndarray, " N"], policies: Sequence[LinearPolicy], policy: ndarray
) -> Future:
    """Let each row's label choose the action: E[z z'] from E[x x'], and the entropy that makes it a KL."""
    gain = np.stack([p.gain for p in policies])[policy]
    covariance = np.stack([p.covariance for p in policies])[policy]
    cross = moments @ gain.transpose(0, 2, 1)
    actions = gain @ cross + weight[:, None, None] * covariance
    full = np.block([[moments, cross], [cross.transpose(0, 2, 1), actions]])
    entropy = np.array([p.entropy for p in policies])[policy] * weight
    return Future(full, weight, entropy)


def expected_moments(
    problem: LinearControl,
    policies: Sequence[LinearPolicy],
    policy: ndarray,
    start: Float[ndarray, "N X X"],
    mass: ndarray,
) -> Float[ndarray, "N X X"]:
    """Expected discounted sum over l >= 0 of x_l x_l', where x_0 x_0' sums to `start` over `mass` rollouts.

    M = start + gamma F M F' + mass gamma / (1 - gamma) N: linear, so that one solve serves a sum of steps.
    """
    gamma, size = problem.gamma, problem.a.shape[0]
    result = np.empty_like(start)
    for index, label in enumerate(policies):
        rows = policy == index
        loop = problem.closed_loop(label)
        spread = problem.noise + problem.b @ label.covariance @ problem.b.T
        right = start[rows] + gamma / (1 - gamma) * mass[rows, None, None] * spread
        system = np.eye(size * size) - gamma * np.kron(loop, loop)
        solved = np.linalg.solve(system, right.reshape(-1, size * size).T)
        result[rows] = solved.T.reshape(-1, size, size)
    return result


def expected_after(
    problem: LinearControl, policies: Sequence[LinearPolicy], policy: ndarray, states: ndarray, actions: ndarray
) -> Float[ndarray, "N X X"]:
    """Sum over the steps of a segment of E sum_{l>=1} gamma^l x_{t+l} x_{t+l}' given (x_t, a_t)."""
    steps = states.shape[1]
    start = outer(problem.following(states, actions), np.ones(steps)) + steps * problem.noise
    mass = np.full(len(states), float(steps))
    return problem.gamma * expected_moments(problem, policies, policy, start, mass)


def monomials(states: Float[ndarray, "*N X"], actions: Float[ndarray, "*N A"] | None = None) -> Float[ndarray, "*N M"]:
    """All products of two entries of (x, a); x holds a 1, so lower powers are among them."""
    rows = states if actions is None else np.concatenate([states, actions], -1)
    first, second = np.triu_indices(rows.shape[-1])
    return rows[..., first] * rows[..., second]


def unfold(values: Float[ndarray, "*N M"], size: int) -> Float[ndarray, "*N X X"]:
    """Symmetric matrices from their upper triangles."""
    result = np.zeros((*values.shape[:-1], size, size))
    first, second = np.triu_indices(size)
    result[..., first, second] = values
    result[..., second, first] = values
    return result


def discounted_after(values: Float[ndarray, "N R1 M"], gamma: Number, first: int) -> Float[ndarray, "N R1 M"]:
    """Sum over l >= first of gamma^l f_{t+l}, to the end of the recording."""
    total = np.empty_like(values)
    total[:, -1] = values[:, -1]
    for step in reversed(range(values.shape[1] - 1)):
        total[:, step] = values[:, step] + gamma * total[:, step + 1]
    if first == 0:
        return total
    shifted = np.zeros_like(total)
    shifted[:, :-1] = gamma * total[:, 1:]
    return shifted


def regressed(rollouts: Rollouts, gamma: Number, tail: bool) -> Float[ndarray, "N X X"]:
    """Regress, per behaviour, recorded discounted sums of x x' on the monomials, and predict them for the segments.

    `tail`: sums from x_n on, given x_n; else from t + 1 on, given (x_t, a_t), and summed over the segment.
    """
    length, size = rollouts.length, rollouts.states.shape[-1]
    sums = discounted_after(monomials(rollouts.states), gamma, first=0 if tail else 1)
    states, actions = rollouts.segment
    if tail:
        features, targets = monomials(rollouts.states[:, length])[:, None], sums[:, length][:, None]
    else:
        features, targets = monomials(states, actions), sums[:, :length]
    result = np.empty((len(states), size, size))
    for index in np.unique(rollouts.policy):
        rows = rollouts.policy == index
        flat = features[rows].reshape(-1, features.shape[-1])
        found = np.linalg.lstsq(flat, targets[rows].reshape(-1, targets.shape[-1]), rcond=None)[0]
        result[rows] = unfold(features[rows].sum(1) @ found, size)
    return result


def fresh(
    problem: LinearControl,
    policies: Sequence[LinearPolicy],
    rollouts: Rollouts,
    copies: int,
    steps: int,
    first: int,
    generator: np.random.Generator,
) -> Float[ndarray, "N X X"]:
    """Average discounted sum of x x' over `copies` new rollouts: from x_n on (`first` 0), or after every (x_t, a_t)."""
    states, actions = rollouts.segment
    size, gamma = states.shape[-1], problem.gamma
    result = np.zeros((len(states), size, size))
    discounts = gamma ** np.arange(float(first), steps + first)
    for index, label in enumerate(policies):
        rows = rollouts.policy == index
        begin = rollouts.states[rows, rollouts.length][:, None] if first == 0 else None
        begin = problem.following(states[rows], actions[rows]) if begin is None else begin
        loop, root = problem.closed_loop(label), problem.b @ np.linalg.cholesky(label.covariance)
        spread = np.hstack([root, problem.slip * problem.b])
        for _ in range(copies):
            x = begin
            if first:
                x = x + problem.slip * generator.standard_normal((*x.shape[:-1], problem.b.shape[1])) @ problem.b.T
            for weight in discounts:
                result[rows] += weight * np.swapaxes(x, 1, 2) @ x
                x = x @ loop.T + generator.standard_normal((*x.shape[:-1], spread.shape[1])) @ spread.T
    return result / copies
