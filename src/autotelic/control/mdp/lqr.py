"""Linear-Gaussian control with entropy: a continuous problem in which every quantity of PPL is a closed form.

    x' = A x + B a + slip B n,   n ~ N(0, I),   r(x, a) = -(x' Q x + R |a|^2),   policies a ~ N(G x, C)

V of a linear policy is quadratic (a discrete Lyapunov equation), V* too (the Riccati equation), and pi* = exp((Q* - V*)
/ alpha) is itself a linear policy. So are KL(mu || pi) and its expected discounted sum, and the identity

    Q^mu(x, a) - V*(x) = alpha (log pi*(a|x) - Dbar(mu || pi*; x, a)),   Dbar = E_mu sum_{l>=1} gamma^l KL(x_l)

holds to rounding. The state ends with a constant 1, so that policies may have an offset.

Reference: arXiv:2505.06273, Fig. 1 (the score); the closed forms are derived, and tested here.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.linalg import solve_discrete_are, solve_discrete_lyapunov

from autotelic.errors import UserError

Number = float | int


@dataclass(frozen=True)
class LinearPolicy:
    """a ~ N(gain x, covariance)."""

    gain: Float[ndarray, "A X"]
    covariance: Float[ndarray, "A A"]

    @property
    def entropy(self) -> float:
        """In nats; the same in every state."""
        return float(0.5 * np.linalg.slogdet(2 * np.pi * np.e * self.covariance)[1])

    def logprobs(self, states: Float[ndarray, "*N X"], actions: Float[ndarray, "*N A"]) -> Float[ndarray, "*N"]:
        """Log-density of the actions."""
        gap = actions - states @ self.gain.T
        square = np.einsum("...i,ij,...j->...", gap, np.linalg.inv(self.covariance), gap)
        return -0.5 * (square + np.linalg.slogdet(2 * np.pi * self.covariance)[1])


@dataclass(frozen=True)
class Quadratic:
    """f(x) = x' matrix x + constant."""

    matrix: Float[ndarray, "X X"]
    constant: float

    def at(self, states: Float[ndarray, "*N X"]) -> Float[ndarray, "*N"]:
        """Values at the states."""
        return np.einsum("...i,ij,...j->...", states, self.matrix, states) + self.constant


@dataclass(frozen=True)
class LinearControl:
    """The problem of the module's docstring; X states (the last one is 1), A actions.

    Attributes:
        a: dynamics.
        b: effect of an action.
        cost: Q, symmetric.
        action_cost: R.
        slip: standard deviation of the noise on actions; 0 is deterministic.
        gamma: discount in (0, 1).
        alpha: temperature, in units of cost.
    """

    a: Float[ndarray, "X X"]
    b: Float[ndarray, "X A"]
    cost: Float[ndarray, "X X"]
    action_cost: Number
    slip: Number
    gamma: Number
    alpha: Number

    def __post_init__(self) -> None:
        """Refuse what has no finite solution."""
        if not 0 < self.gamma < 1 or self.alpha <= 0 or self.action_cost <= 0 or self.slip < 0:
            raise UserError(
                f"gamma is {self.gamma}, alpha {self.alpha}, the action cost {self.action_cost}, slip {self.slip}: "
                "give a gamma between 0 and 1, alpha and cost above 0, and slip not below 0."
            )

    @property
    def noise(self) -> Float[ndarray, "X X"]:
        """Covariance of x' given (x, a)."""
        return self.slip**2 * self.b @ self.b.T

    def rewards(self, states: Float[ndarray, "*N X"], actions: Float[ndarray, "*N A"]) -> Float[ndarray, "*N"]:
        """r(x, a)."""
        return -(Quadratic(self.cost, 0.0).at(states) + self.action_cost * (actions**2).sum(-1))

    def following(self, states: Float[ndarray, "*N X"], actions: Float[ndarray, "*N A"]) -> Float[ndarray, "*N X"]:
        """Mean of x'."""
        return states @ self.a.T + actions @ self.b.T

    def closed_loop(self, policy: LinearPolicy) -> Float[ndarray, "X X"]:
        """A + B G; refuses a policy whose discounted cost is infinite."""
        loop = self.a + self.b @ policy.gain
        radius = float(np.abs(np.linalg.eigvals(loop)).max())
        if self.gamma * radius**2 >= 1:
            raise UserError(f"the policy is unstable (spectral radius {radius:.3f}): its discounted cost is infinite.")
        return loop


def point_control(slip: Number = 0.0, gamma: Number = 0.95, alpha: Number = 0.12) -> LinearControl:
    """A point with momentum in the plane, as `PointReach` without walls: x = (error, velocity, 1).

    v' = .8 v + .2 (a + slip n), e' = e - .25 v'; cost |e|^2 + .05 |a|^2.
    """
    eye, zero = np.eye(2), np.zeros((2, 2))
    a, b = np.zeros((5, 5)), np.zeros((5, 2))
    a[:4, :4] = np.block([[eye, -0.25 * 0.8 * eye], [zero, 0.8 * eye]])
    a[4, 4] = 1.0
    b[:4] = np.vstack([-0.25 * 0.2 * eye, 0.2 * eye])
    return LinearControl(a, b, np.diag([1.0, 1.0, 0.0, 0.0, 0.0]), 0.05, slip, gamma, alpha)


def point_policy(gain: Number, damping: Number, drift: Number, std: Number) -> LinearPolicy:
    """Return a ~ N(gain e - damping v + (drift, 0), std^2)."""
    eye = np.eye(2)
    return LinearPolicy(np.hstack([gain * eye, -damping * eye, [[drift], [0.0]]]), std**2 * eye)


def discounted(problem: LinearControl, policy: LinearPolicy, per_state: Quadratic) -> Quadratic:
    """E_mu sum_{l>=0} gamma^l f(x_l) from x_0 = x: a discrete Lyapunov equation."""
    loop = problem.closed_loop(policy)
    matrix = np.asarray(solve_discrete_lyapunov(np.sqrt(problem.gamma) * loop.T, per_state.matrix, method="direct"))
    spread = problem.noise + problem.b @ policy.covariance @ problem.b.T
    constant = (per_state.constant + problem.gamma * np.trace(matrix @ spread)) / (1 - problem.gamma)
    return Quadratic((matrix + matrix.T) / 2, float(constant))


def ahead(
    problem: LinearControl, later: Quadratic, states: Float[ndarray, "*N X"], actions: Float[ndarray, "*N A"]
) -> Float[ndarray, "*N"]:
    """Return gamma E f(x') given (x, a)."""
    return problem.gamma * (
        later.at(problem.following(states, actions)) + float(np.trace(later.matrix @ problem.noise))
    )


def value(problem: LinearControl, policy: LinearPolicy, bonus: bool = True) -> Quadratic:
    """V^mu with the entropy bonus alpha H, or without it."""
    gain, covariance = policy.gain, policy.covariance
    step = -problem.cost - problem.action_cost * gain.T @ gain
    constant = -problem.action_cost * np.trace(covariance) + (problem.alpha * policy.entropy if bonus else 0.0)
    return discounted(problem, policy, Quadratic(step, float(constant)))


def optimum(problem: LinearControl) -> tuple[LinearPolicy, Quadratic]:
    """Return pi* and V*: the Riccati solution, then policy iteration until rounding."""
    root = np.sqrt(problem.gamma)
    action_cost = problem.action_cost * np.eye(problem.b.shape[1])
    matrix = np.asarray(solve_discrete_are(root * problem.a, root * problem.b, problem.cost, action_cost))
    policy = _greedy(problem, matrix)
    for _ in range(3):
        policy = _greedy(problem, -value(problem, policy).matrix)
    return policy, value(problem, policy)


def _greedy(problem: LinearControl, matrix: ndarray) -> LinearPolicy:
    """Return exp((Q - V) / alpha) where V(x) = -x' matrix x + constant."""
    curvature = problem.action_cost * np.eye(problem.b.shape[1]) + problem.gamma * problem.b.T @ matrix @ problem.b
    gain = -np.linalg.solve(curvature, problem.gamma * problem.b.T @ matrix @ problem.a)
    return LinearPolicy(gain, problem.alpha / 2 * np.linalg.inv(curvature))


def action_value(
    problem: LinearControl, policy: LinearPolicy, states: Float[ndarray, "*N X"], actions: Float[ndarray, "*N A"]
) -> Float[ndarray, "*N"]:
    """Q^mu(x, a) = r + gamma E V^mu(x')."""
    return problem.rewards(states, actions) + ahead(problem, value(problem, policy), states, actions)


def state_kl(policy: LinearPolicy, target: LinearPolicy) -> Quadratic:
    """KL(mu || pi) as a function of the state, in nats."""
    precision, gap = np.linalg.inv(target.covariance), policy.gain - target.gain
    ratio = precision @ policy.covariance
    constant = 0.5 * (np.trace(ratio) - len(gap) - np.linalg.slogdet(ratio)[1])
    return Quadratic(0.5 * gap.T @ precision @ gap, float(constant))


def identity_errors(
    problem: LinearControl, policy: LinearPolicy, states: Float[ndarray, "N X"], actions: Float[ndarray, "N A"]
) -> dict[str, float]:
    """Largest deviation over the rows from each identity, relative to the largest regret.

    Returns:
        `regret`: Q^mu - V* = alpha (log pi* - Dbar); `advantage`: Q* - V* = alpha log pi*; `value`: V* - V^mu = alpha
        E sum_{l>=0} gamma^l KL; `wrong_sign`: `regret` with + Dbar, which should be far from 0.
    """
    best, best_value = optimum(problem)
    kl = discounted(problem, policy, state_kl(policy, best))
    regret = action_value(problem, policy, states, actions) - best_value.at(states)
    advantage = action_value(problem, best, states, actions) - best_value.at(states)
    logprobs, later = best.logprobs(states, actions), ahead(problem, kl, states, actions)
    gaps = {
        "regret": regret - problem.alpha * (logprobs - later),
        "advantage": advantage - problem.alpha * logprobs,
        "value": best_value.at(states) - value(problem, policy).at(states) - problem.alpha * kl.at(states),
        "wrong_sign": regret - problem.alpha * (logprobs + later),
    }
    return {name: float(np.abs(gap).max() / np.abs(regret).max()) for name, gap in gaps.items()}
