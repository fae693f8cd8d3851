"""Soft actor-critic on transitions whose rewards may be rewritten: twin critics, a tanh-Gaussian actor, a temperature.

    y     = r + gamma (min_j Q'_j(s', a') - alpha log pi(a'|s')),   a' ~ pi(.|s')        `soft_target`
    L_Q   = sum_j mean (Q_j(s, a) - y)^2,   Q'_j <- Q'_j + tau (Q_j - Q'_j)
    L_pi  = mean (alpha log pi(a|s) - min_j Q_j(s, a)),   a = tanh(mean + std eps)       `SAC.update`
    L_alpha = -alpha mean (log pi(a|s) + target entropy),   target entropy = -dim(a)

Episodes end by the clock alone, which is no state that ends: every target bootstraps.

Reference: arXiv:1812.05905v2, Eq. 5, 7, 18 and Appendix D (tau .005, gamma .99, target entropy -dim(a)).
Deviations: the temperature starts at .1 (PEBBLE's code); the actor's log std lies in (-3, 1), `networks.LOG_STD_RANGE`.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from autotelic.control.episodes import Episode, to_environment
from autotelic.control.networks import GaussianPolicy, Standardise, mlp

Number = float | int
TAU, FIRST_TEMPERATURE = 0.005, 0.1


@dataclass(frozen=True)
class Transitions:
    """What was seen: state, what the environment received, the state that followed, and the reward to learn from."""

    observations: Float[Tensor, "N O"]
    actions: Float[Tensor, "N A"]
    following: Float[Tensor, "N O"]
    rewards: Float[Tensor, " N"]

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.rewards)

    def take(self, rows: Tensor) -> "Transitions":
        """Return some rows."""
        return Transitions(self.observations[rows], self.actions[rows], self.following[rows], self.rewards[rows])

    def joined(self, other: "Transitions") -> "Transitions":
        """Return these and then those."""
        return Transitions(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def relabelled(self, rewards: Float[Tensor, " N"]) -> "Transitions":
        """Return the same transitions under other rewards."""
        return replace(self, rewards=rewards)


def transitions(episodes: Sequence[Episode]) -> Transitions:
    """Gather squashed episodes; rewards start at 0, since the environment's own are not the learner's to see."""
    observations = torch.from_numpy(np.concatenate([e.observations[:-1] for e in episodes]))
    following = torch.from_numpy(np.concatenate([e.observations[1:] for e in episodes]))
    actions = torch.from_numpy(to_environment(np.concatenate([e.actions for e in episodes]), squash=True))
    return Transitions(observations, actions, following, torch.zeros(len(actions)))


def soft_target(
    rewards: Float[Tensor, " N"],
    q1: Float[Tensor, " N"],
    q2: Float[Tensor, " N"],
    logprobs: Float[Tensor, " N"],
    temperature: Number | Float[Tensor, ""],
    gamma: Number,
) -> Float[Tensor, " N"]:
    """Bellman target y = r + gamma (min(q1, q2) - temperature log pi), of the next state and a fresh action there."""
    return rewards + gamma * (torch.minimum(q1, q2) - temperature * logprobs)


class Critic(nn.Module):
    """Two action values of (state, action in [-1, 1])."""

    def __init__(self, inputs: Standardise, action_dim: int, hidden: Sequence[int]) -> None:
        """Share the actor's standardisation, which is fixed."""
        super().__init__()
        self.inputs = inputs
        size = len(inputs.center) + action_dim
        self.first, self.second = mlp(size, hidden, 1), mlp(size, hidden, 1)

    def forward(
        self, observations: Float[Tensor, "N O"], actions: Float[Tensor, "N A"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Return both values."""
        pair = torch.cat([self.inputs(observations), actions], -1)
        return self.first(pair).squeeze(-1), self.second(pair).squeeze(-1)


class SAC:
    """The learner; `update(batch)` is one step each of critics, targets, actor and temperature."""

    def __init__(self, actor: GaussianPolicy, hidden: Sequence[int], lr: Number, gamma: Number, seed: int) -> None:
        """Take an actor whose inputs are standardised already; noise comes from a generator of this learner's own."""
        self.actor, self.gamma, self.lr, self.hidden = actor, gamma, lr, tuple(hidden)
        self.action_dim = int(actor.config["action_dim"])
        self.generator = torch.Generator().manual_seed(seed)
        self.log_temperature = torch.tensor(math.log(FIRST_TEMPERATURE), requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(actor.body.parameters(), lr=lr)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], lr=lr)
        self.restart_critics(seed)

    def restart_critics(self, seed: int) -> None:
        """Forget all values: rewards that come next have nothing to do with those before."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.critic = Critic(self.actor.inputs, self.action_dim, self.hidden)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.target.inputs = self.actor.inputs  # the very module, not a copy: it may be fitted later
        parameters = [*self.critic.first.parameters(), *self.critic.second.parameters()]
        self.critic_optimizer = torch.optim.Adam(parameters, lr=self.lr)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """Weight of the entropy, outside the graph."""
        return self.log_temperature.detach().exp()

    def sample(self, observations: Float[Tensor, "N O"]) -> tuple[Float[Tensor, "N A"], Float[Tensor, " N"]]:
        """Draw actions by reparametrisation; return tanh(u) and its log-density."""
        mean, log_std = self.actor(observations)
        base = mean + log_std.exp() * torch.randn(mean.shape, generator=self.generator)
        return base.tanh(), self.actor.logprob(base, mean, log_std)

    def critic_update(self, batch: Transitions) -> float:
        """One step of the critics and of their targets; returns the loss."""
        with torch.no_grad():
            action, logprobs = self.sample(batch.following)
            q1, q2 = self.target(batch.following, action)
            goal = soft_target(batch.rewards, q1, q2, logprobs, self.temperature, self.gamma)
        first, second = self.critic(batch.observations, batch.actions)
        loss = (first - goal).square().mean() + (second - goal).square().mean()
        _step(self.critic_optimizer, loss)
        with torch.no_grad():
            for new, old in zip(self.critic.parameters(), self.target.parameters(), strict=True):
                old.lerp_(new, TAU)
        return float(loss.detach())

    def update(self, batch: Transitions) -> float:
        """Critics, then actor and temperature; returns the critics' loss."""
        loss = self.critic_update(batch)
        action, logprobs = self.sample(batch.observations)
        value = torch.minimum(*self.critic(batch.observations, action))
        _step(self.actor_optimizer, (self.temperature * logprobs - value).mean())
        excess = self.action_dim - logprobs.detach().mean()  # entropy - target entropy, which is -dim(a)
        _step(self.temperature_optimizer, self.log_temperature.exp() * excess)
        return loss


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
