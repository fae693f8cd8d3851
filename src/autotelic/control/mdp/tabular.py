"""Soft (maximum-entropy) control on finite MDPs, exactly: evaluation, optimisation, regret, and the identities of PPL.

    Q^pi = r + gamma E V^pi,   V^pi = E_pi[Q^pi - alpha log(pi / pi_ref)],   pi* = pi_ref exp((Q* - V*) / alpha)

without a reference policy, pi_ref = 1. Regret of an action under a behaviour: Reg = V*(s) - Q^pi(s, a), and

    -Reg            = alpha (log pi*(a|s) / pi_ref - Dbar(pi || pi*; s, a))               (soft; KL to a reference)
    Q_hard^pi - V*  = alpha E_pi sum_{l>=0} gamma^l log pi*(a_l|s_l) / pi_ref              (entropy-free judge)

with Dbar = E_pi sum_{l>=1} gamma^l KL(pi || pi*), and Q_hard the value without the entropy bonus.

Reference: arXiv:2505.06273, Fig. 1 (the score); the identities are derived, and tested here on random MDPs.
Deviations: states may end the episode (rows of the transition matrix may sum to less than one).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from autotelic.errors import UserError

Number = float | int


@dataclass(frozen=True)
class FiniteMDP:
    """A finite MDP. X is the number of states, A of actions.

    Attributes:
        transitions: P(s' | s, a), shape (X, A, X); what a row lacks to one ends the episode.
        rewards: r(s, a).
        gamma: discount in (0, 1]; 1 only where every policy's episodes end.
        alpha: temperature, in units of reward.
        reference: pi_ref(a | s), or None for the entropy bonus.
    """

    transitions: Float[ndarray, "X A X"]
    rewards: Float[ndarray, "X A"]
    gamma: Number
    alpha: Number
    reference: Float[ndarray, "X A"] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no MDP."""
        if not 0 < self.gamma <= 1 or self.alpha <= 0:
            raise UserError(f"gamma is {self.gamma} and alpha {self.alpha}: need 0 < gamma <= 1 and alpha > 0.")
        mass = self.transitions.sum(-1)
        if (self.transitions < 0).any() or (mass > 1 + 1e-9).any():
            raise UserError("transitions hold a negative entry or a row above 1: normalise P(s' | s, a) over s'.")
        if self.reference is not None and (self.reference <= 0).any():
            raise UserError("the reference policy gives an action probability 0: its log-ratio is infinite. Smooth it.")

    @property
    def stochastic(self) -> bool:
        """Whether some action may lead to more than one outcome."""
        return bool(((self.transitions > 1e-12) & (self.transitions < 1 - 1e-12)).any())

    @property
    def log_reference(self) -> Float[ndarray, "X A"]:
        """Log pi_ref, or zeros."""
        return np.zeros_like(self.rewards) if self.reference is None else np.log(self.reference)


def log_softmax(logits: Float[ndarray, "*batch A"]) -> Float[ndarray, "*batch A"]:
    """Stable log-softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def resolvent(mdp: FiniteMDP, policy: Float[ndarray, "X A"]) -> Float[ndarray, "X X"]:
    """(I - gamma P_pi)^-1: expected discounted visits to s' from s, the first one included."""
    under_policy = np.einsum("xa,xay->xy", policy, mdp.transitions)
    return np.linalg.inv(np.eye(len(policy)) - mdp.gamma * under_policy)


def evaluate(
    mdp: FiniteMDP, policy: Float[ndarray, "X A"], bonus: bool = True
) -> tuple[Float[ndarray, "X A"], Float[ndarray, " X"]]:
    """Q^pi and V^pi by a linear solve; `bonus=False` leaves out the entropy (or KL) term: the hard values."""
    log_ratio = np.log(np.where(policy > 0, policy, 1.0)) - np.where(policy > 0, mdp.log_reference, 0.0)
    step = (policy * (mdp.rewards - (mdp.alpha * log_ratio if bonus else 0.0))).sum(-1)
    value = resolvent(mdp, policy) @ step
    return mdp.rewards + mdp.gamma * mdp.transitions @ value, value


def optimise(
    mdp: FiniteMDP, tolerance: Number = 1e-13, max_iterations: int = 1000
) -> tuple[Float[ndarray, "X A"], Float[ndarray, "X A"], Float[ndarray, " X"]]:
    """Return pi*, Q*, V* by soft policy iteration: Newton's method on V = alpha log sum pi_ref exp(Q / alpha)."""
    policy = np.full_like(mdp.rewards, 1 / mdp.rewards.shape[1])
    before = None
    for _ in range(max_iterations):
        q, value = evaluate(mdp, policy)
        if before is not None and np.abs(value - before).max() <= tolerance * max(1.0, np.abs(value).max()):
            return policy, q, value
        before, policy = value, np.exp(log_softmax(q / mdp.alpha + mdp.log_reference))
    raise UserError(
        f"soft policy iteration did not settle in {max_iterations} rounds: is gamma {mdp.gamma} too near 1?"
    )


def negative_regret(mdp: FiniteMDP, policy: Float[ndarray, "X A"]) -> Float[ndarray, "X A"]:
    """Return -Reg(s, a) = Q^pi(s, a) - V*(s), in units of reward."""
    return evaluate(mdp, policy)[0] - optimise(mdp)[2][:, None]


def state_kl(policy: Float[ndarray, "X A"], log_target: Float[ndarray, "X A"]) -> Float[ndarray, " X"]:
    """KL(pi(.|s) || target(.|s)) for every state, in nats."""
    log_policy = np.log(np.where(policy > 0, policy, 1.0))
    return np.where(policy > 0, policy * (log_policy - log_target), 0.0).sum(-1)


def lookahead(mdp: FiniteMDP, policy: Float[ndarray, "X A"], per_state: Float[ndarray, " X"]) -> Float[ndarray, "X A"]:
    """E_pi sum_{l>=1} gamma^l f(s_l) after each state and action, exactly."""
    return mdp.gamma * mdp.transitions @ (resolvent(mdp, policy) @ per_state)


def identity_errors(mdp: FiniteMDP, policy: Float[ndarray, "X A"]) -> dict[str, float]:
    """Largest deviation from each identity, and from two wrong versions of the first.

    Returns:
        `soft`: -Reg = alpha (log pi*/pi_ref - Dbar); `value`: V* - V^pi = alpha E sum_{l>=0} gamma^l KL;
        `entropy_free`: Q_hard - V* = alpha E sum_{l>=0} gamma^l log pi*/pi_ref; `wrong_sign`: `soft` with + Dbar;
        `no_bonus`: `soft` with Q_hard for Q. All in units of reward; the last two should be far from 0.
    """
    _, q_best, v_best = optimise(mdp)
    log_best = log_softmax(q_best / mdp.alpha + mdp.log_reference)
    log_ratio = log_best - mdp.log_reference
    q, value = evaluate(mdp, policy)
    q_hard, _ = evaluate(mdp, policy, bonus=False)
    kl = state_kl(policy, log_best)
    ahead = lookahead(mdp, policy, kl)
    score = mdp.alpha * (log_ratio - ahead)
    hard_score = mdp.alpha * (log_ratio + lookahead(mdp, policy, (policy * log_ratio).sum(-1)))
    regret = q - v_best[:, None]
    gaps = {
        "soft": regret - score,
        "value": v_best - value - mdp.alpha * resolvent(mdp, policy) @ kl,
        "entropy_free": q_hard - v_best[:, None] - hard_score,
        "wrong_sign": regret - mdp.alpha * (log_ratio + ahead),
        "no_bonus": q_hard - v_best[:, None] - score,
    }
    return {name: float(np.abs(gap).max()) for name, gap in gaps.items()}


def random_policy(
    generator: np.random.Generator, shape: tuple[int, int], spread: Number = 1.0
) -> Float[ndarray, "X A"]:
    """A softmax policy with normal logits of the given spread."""
    return np.exp(log_softmax(spread * generator.standard_normal(shape)))


def random_mdp(
    generator: np.random.Generator,
    num_states: int = 8,
    num_actions: int = 3,
    gamma: Number = 0.9,
    alpha: Number = 0.5,
    branching: int = 3,
    with_reference: bool = False,
) -> FiniteMDP:
    """An MDP whose actions lead to `branching` random states with Dirichlet(1) weights, and rewards N(0, 1).

    `branching=1` makes the dynamics deterministic.
    """
    transitions = np.zeros((num_states, num_actions, num_states))
    for state in range(num_states):
        for action in range(num_actions):
            reached = generator.choice(num_states, size=branching, replace=False)
            transitions[state, action, reached] = generator.dirichlet(np.ones(branching))
    rewards = generator.standard_normal((num_states, num_actions))
    reference = random_policy(generator, (num_states, num_actions)) if with_reference else None
    return FiniteMDP(transitions, rewards, gamma, alpha, reference)
