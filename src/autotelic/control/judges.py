"""Judges: what a preference follows, computed for segments of recorded episodes.

    regret      sum_t r_t + gamma V^mu(s_t+1) - V*(s_t)     how well the behaviour mu did, its future included
    advantage   sum_t r_t + gamma V*(s_t+1) - V*(s_t)       how good the moves were, whoever made them (CPL's labels)
    return      sum_t r_t                                   the outcome within the segment

V* is the value of the scripted expert, V^mu of the segment's behaviour, both of the steps that remain. A `learned`
critic regresses discounted rewards to go on the state and the share of time left: V^mu on the behaviour's own episodes,
V* on episodes in which the expert takes over at a random step. A `simulated` critic (point-reach) restarts the
environment in every state and averages real continuations: no approximation but sampling.

References: arXiv:2505.06273 (labels from a trained oracle); the advantage form is that of CPL's released labels.
Deviations: the expert's value stands for V*, without entropy: the regret is that of the identity for hard values.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch.nn.functional import mse_loss

from autotelic.control.environments import VectorEnvironment
from autotelic.control.episodes import Behavior, Episode, roll_out, to_environment
from autotelic.control.networks import Standardise, mlp
from autotelic.control.point_reach import PointReach
from autotelic.errors import UserError

Number = float | int
Judge = Literal["regret", "advantage", "return"]


@runtime_checkable
class Critic(Protocol):
    """Values of states under one policy."""

    def values(self, observations: ndarray, steps_left: ndarray) -> ndarray:
        """Expected discounted reward of the steps that are left, one per row."""
        ...


class LearnedCritic:
    """Rewards to go, regressed on the state and the share of the episode that is left."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        gamma: Number,
        seed: int,
        starts: Sequence[int] | None = None,
        updates: int = 1500,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        """Fit it; `starts` leaves out the steps before a given one in each episode."""
        generator = torch.Generator().manual_seed(seed)
        self.horizon = max(map(len, episodes))
        rows, targets = [], []
        for episode, start in zip(episodes, starts if starts is not None else [0] * len(episodes), strict=True):
            to_go = rewards_to_go(episode.rewards, gamma)
            rows.append(self._inputs(episode.observations[start:-1], len(episode) - np.arange(start, len(episode))))
            targets.append(to_go[start:])
        x = torch.cat(rows)
        y = torch.from_numpy(np.concatenate(targets))
        self.center, self.scale = float(y.mean()), max(float(y.std()), 1e-6)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.standardise = Standardise(x.shape[1])
            self.body = mlp(x.shape[1], hidden, 1)
        self.standardise.fit(x)
        optimizer = torch.optim.Adam(self.body.parameters(), lr=1e-3)
        target = (y - self.center) / self.scale
        for update in range(updates):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - 0.9 * update / updates)
            batch = torch.randint(len(x), (256,), generator=generator)
            loss = mse_loss(self.body(self.standardise(x[batch])).squeeze(-1), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _inputs(self, observations: ndarray, steps_left: ndarray) -> torch.Tensor:
        share = np.asarray(steps_left, dtype=np.float32)[:, None] / self.horizon
        return torch.from_numpy(np.concatenate([observations.astype(np.float32), share], 1))

    @torch.no_grad()
    def values(self, observations: Float[ndarray, "N O"], steps_left: ndarray) -> Float[ndarray, " N"]:
        """Return the regression's value; 0 where no step is left."""
        out = self.body(self.standardise(self._inputs(observations, steps_left))).squeeze(-1).numpy()
        return np.where(steps_left > 0, out * self.scale + self.center, 0.0).astype(np.float32)


class SimulatedCritic:
    """Average reward of real continuations from the very state; point-reach can be put into any state."""

    def __init__(
        self, behavior: Behavior, squash: bool, gamma: Number, seed: int, copies: int = 8, deterministic: bool = False
    ) -> None:
        """Remember who continues; `copies` continuations are averaged, one where the policy is deterministic."""
        self.behavior, self.squash, self.gamma, self.seed = behavior, squash, gamma, seed
        self.copies, self.deterministic = 1 if deterministic else copies, deterministic

    def values(self, observations: Float[ndarray, "N O"], steps_left: ndarray) -> Float[ndarray, " N"]:
        """Roll every state out for as many steps as are left."""
        left = np.repeat(steps_left, self.copies)
        environment = PointReach(len(left), max(1, int(left.max(initial=1))))
        observation = np.repeat(observations, self.copies, 0)
        environment.place(observation, self.seed)
        generator = np.random.default_rng([self.seed, 2])
        total = np.zeros(len(left))
        for step in range(int(left.max(initial=0))):
            mean, log_std = self.behavior.parameters_at(observation)
            noise = 0.0 if self.deterministic else np.exp(log_std) * generator.standard_normal(mean.shape)
            observation, reward, *_ = environment.step(to_environment(mean + noise, self.squash))
            total += self.gamma**step * reward * (step < left)
        return total.reshape(-1, self.copies).mean(1).astype(np.float32)


def rewards_to_go(rewards: Float[ndarray, " T"], gamma: Number) -> Float[ndarray, " T"]:
    """Discounted sum of the rewards from each step on."""
    total, result = 0.0, np.empty(len(rewards), dtype=np.float32)
    for step in reversed(range(len(rewards))):
        total = float(rewards[step]) + gamma * total
        result[step] = total
    return result


def expert_critic(
    environment: VectorEnvironment,
    behaviors: Sequence[Behavior],
    expert: Behavior,
    count: int,
    seed: int,
    squash: bool,
    gamma: Number,
) -> LearnedCritic:
    """Learn V*: behaviours act until a random step, the expert from there on; only its own steps count."""
    generator = np.random.default_rng([seed, 3])
    episodes: list[Episode] = []
    starts: list[int] = []
    for wave in range(-(-count // environment.num_envs)):
        begin = generator.integers(0, environment.horizon, size=environment.num_envs)
        begin[0] = 0
        behavior = behaviors[wave % len(behaviors)]
        episodes += roll_out(environment, behavior, 7_000_000 + 1000 * seed + wave, squash, switch=(begin, expert))
        starts += begin.tolist()
    return LearnedCritic(episodes, gamma, seed, starts)


def judge_segments(
    judge: str,
    episodes: Sequence[Episode],
    episode: Int[ndarray, " N"],
    start: Int[ndarray, " N"],
    length: Int[ndarray, " N"],
    gamma: Number,
    best: Float[ndarray, " L"] | None,
    own: Float[ndarray, " L"] | None,
) -> Float[ndarray, " N"]:
    """Score every segment.

    Args:
        judge: `regret`, `advantage` or `return`.
        episodes: the recorded ones.
        episode: of each segment.
        start: its first step.
        length: its number of steps.
        gamma: discount of the values.
        best: V* of every recorded state, episode after episode, T + 1 rows each; the return needs neither.
        own: V^mu of the same states, mu being each episode's behaviour.
    """
    sizes = np.array([len(e) for e in episodes])
    reward = np.concatenate([np.append(e.rewards, 0.0) for e in episodes])
    offset = np.concatenate([[0], np.cumsum(sizes + 1)[:-1]])[episode] + start
    row = np.repeat(np.arange(len(episode)), length)
    at = np.concatenate([np.arange(s, s + n) for s, n in zip(offset.tolist(), length.tolist(), strict=True)])
    gain = reward[at]
    if judge in ("regret", "advantage"):
        later = own if judge == "regret" else best
        if best is None or later is None:
            raise UserError(f"judge {judge!r} needs the critics' values: collect with critic_episodes above 0.")
        gain = gain + gamma * later[at + 1] - best[at]
    elif judge != "return":
        raise UserError(f"unknown judge {judge!r}: regret, advantage or return.")
    return np.bincount(row, gain, minlength=len(episode)).astype(np.float32)
