"""Judges: what a preference follows, computed for segments of recorded episodes.

    regret       sum_t r_t + gamma V^mu(s_t+1) - V*(s_t)                  how well mu did, its future at every step
    regret_tail  sum_t gamma^t r_t + gamma^n V^mu(s_n) - V*(s_0)          the same, its future counted once, at the end
    advantage    sum_t r_t + gamma V*(s_t+1) - V*(s_t)                    how good the moves were, whoever made them
    return       sum_t r_t                                                the outcome within the segment

over a segment of n steps from s_0. `regret` is the paper's sum. `regret_tail` is ours: over 64 steps the sum counts the
future 64 times, and hardly depends on the actions. Its score is `weights="tail"`. `advantage` is that of CPL's labels.

Values are of a task without end: no critic sees the clock, and an episode that the clock ends goes on. A `learned`
critic regresses rewards to go, continued by its own value of the last state: V^mu on the behaviour's own episodes, the
expert's value on episodes in which the script takes over at a random step. A `simulated` critic (point-reach) restarts
the environment in every state and averages real continuations.

V* stands for one of two things: the value of the scripted expert, without entropy (it need not be optimal, and V^mu may
exceed it: `data_report` says where), or the soft optimum of `soft_optimum`, with entropy; V^mu then counts it as well.

References: arXiv:2505.06273 (labels from a trained oracle); arXiv:2310.13639 and its code (advantage; bootstrapping at
the time limit). Deviations: `regret_tail`; the expert's value for V*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from autotelic.control.environments import VectorEnvironment
from autotelic.control.episodes import Behavior, Episode, roll_out, to_environment
from autotelic.control.networks import Standardise, mlp
from autotelic.control.point_reach import PointReach
from autotelic.errors import UserError

Number = float | int
Judge = Literal["regret", "regret_tail", "advantage", "return"]
JUDGES: tuple[str, ...] = get_args(Judge)
HIDDEN, UPDATES, REFRESH = (128, 128), 1500, 50  # of a learned critic; updates between values of the last states
CONTINUED = 100  # simulated steps after a state; what the last one gives then goes on forever


@runtime_checkable
class Critic(Protocol):
    """Values of states under one policy."""

    def values(self, observations: Float[ndarray, "N O"]) -> Float[ndarray, " N"]:
        """Expected discounted reward from each state on."""
        ...


class LearnedCritic:
    """Rewards to go regressed on the state; past an episode's last state the network's own value goes on."""

    def __init__(
        self, episodes: Sequence[Episode], gamma: Number, seed: int, starts: Sequence[int] = (), bonus: Number = 0.0
    ) -> None:
        """Fit it.

        Args:
            episodes: of one policy.
            gamma: discount.
            seed: of the network and its batches.
            starts: first step that counts in each episode (all of them by default).
            bonus: of entropy, in units of reward a nat: -bonus log mu joins each reward.
        """
        begin = starts or [0] * len(episodes)
        gains = [e.rewards[s:] - bonus * _logprobs(e, bonus)[s:] for e, s in zip(episodes, begin, strict=True)]
        states = [torch.from_numpy(e.observations[s:]) for e, s in zip(episodes, begin, strict=True)]
        x, last = torch.cat([s[:-1] for s in states]), torch.stack([s[-1] for s in states])
        left = torch.cat([torch.arange(len(g), 0, -1) for g in gains])
        to_go = torch.from_numpy(np.concatenate([rewards_to_go(g, gamma) for g in gains]))
        after = torch.tensor([float(g[-10:].mean()) for g in gains]) / (1 - gamma)  # a first guess of V there
        row = torch.repeat_interleave(torch.arange(len(gains)), torch.tensor([len(g) for g in gains]))
        fade = gamma**left
        self.center = float((to_go + fade * after[row]).mean())
        self.scale = max(float((to_go + fade * after[row]).std()), 1e-6)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.standardise, self.body = Standardise(x.shape[1]), mlp(x.shape[1], HIDDEN, 1)
        self.standardise.fit(x)
        optimizer, generator = torch.optim.Adam(self.body.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
        for update in range(UPDATES):
            if update and update % REFRESH == 0:
                after = self._value(last).detach()
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - 0.9 * update / UPDATES)
            batch = torch.randint(len(x), (256,), generator=generator)
            target = to_go[batch] + fade[batch] * after[row[batch]]
            loss = ((self._value(x[batch]) - target) / self.scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _value(self, rows: Float[Tensor, "N O"]) -> Float[Tensor, " N"]:
        return self.body(self.standardise(rows)).squeeze(-1) * self.scale + self.center

    @torch.no_grad()
    def values(self, observations: Float[ndarray, "N O"]) -> Float[ndarray, " N"]:
        """Return the regression's value."""
        return self._value(torch.from_numpy(observations.astype(np.float32))).numpy()


def _logprobs(episode: Episode, bonus: Number) -> Float[ndarray, " _"]:
    if bonus and episode.logprobs is None:
        raise UserError("a bonus of entropy needs episodes with log-densities: record them, or use optimum expert.")
    return np.zeros_like(episode.rewards) if episode.logprobs is None else episode.logprobs


class SimulatedCritic:
    """Average reward of real continuations from the very state; point-reach can be put into any state."""

    def __init__(
        self, behavior: Behavior, squash: bool, gamma: Number, seed: int, copies: int = 8, deterministic: bool = False
    ) -> None:
        """Remember who continues; `copies` continuations are averaged, one where the policy is deterministic."""
        self.behavior, self.squash, self.gamma, self.seed = behavior, squash, gamma, seed
        self.copies, self.deterministic = 1 if deterministic else copies, deterministic

    def values(self, observations: Float[ndarray, "N O"]) -> Float[ndarray, " N"]:
        """Continue every state for `CONTINUED` steps, then let the last reward go on."""
        environment = PointReach(len(observations) * self.copies, CONTINUED)
        observation = np.repeat(observations, self.copies, 0)
        environment.place(observation, self.seed)
        generator = np.random.default_rng([self.seed, 2])
        total, reward = np.zeros(len(observation)), np.zeros(len(observation))
        for step in range(CONTINUED):
            mean, log_std = self.behavior.parameters_at(observation)
            noise = 0.0 if self.deterministic else np.exp(log_std) * generator.standard_normal(mean.shape)
            observation, reward, *_ = environment.step(to_environment(mean + noise, self.squash))
            total += self.gamma**step * reward
        total += self.gamma**CONTINUED / (1 - self.gamma) * reward
        return total.reshape(-1, self.copies).mean(1).astype(np.float32)


def rewards_to_go(rewards: Float[ndarray, " T"], gamma: Number) -> Float[ndarray, " T"]:
    """Discounted sum of the rewards from each step on."""
    total, result = 0.0, np.empty(len(rewards), dtype=np.float32)
    for step in reversed(range(len(rewards))):
        total = float(rewards[step]) + gamma * total
        result[step] = total
    return result


def expert_episodes(
    environment: VectorEnvironment,
    behaviors: Sequence[Behavior],
    expert: Behavior,
    count: int,
    seed: int,
    squash: bool,
) -> tuple[list[Episode], list[int]]:
    """Behaviours act until a random step, the expert from there on; returns episodes, and where the expert begins."""
    generator = np.random.default_rng([seed, 3])
    episodes: list[Episode] = []
    starts: list[int] = []
    for wave in range(-(-count // environment.num_envs)):
        begin = generator.integers(0, environment.horizon, size=environment.num_envs)
        begin[0] = 0
        behavior = behaviors[wave % len(behaviors)]
        episodes += roll_out(environment, behavior, 7_000_000 + 1000 * seed + wave, squash, switch=(begin, expert))
        starts += begin.tolist()
    return episodes, starts


@dataclass(frozen=True)
class JudgedSegments:
    """Segments of recorded episodes with what a judge needs to score them, by the formulas of the module's docstring.

    Args:
        episodes: the recorded ones.
        episode: of each segment.
        start: its first step.
        length: its number of steps.
        gamma: discount of the values.
        best: V* of every recorded state, episode after episode, T + 1 rows each; the return needs neither.
        own: V^mu of the same states, mu being each episode's behaviour.
    """

    episodes: Sequence[Episode]
    episode: Int[ndarray, " N"]
    start: Int[ndarray, " N"]
    length: Int[ndarray, " N"]
    gamma: Number
    best: Float[ndarray, " L"] | None = None
    own: Float[ndarray, " L"] | None = None

    def scores(self, judge: str) -> Float[ndarray, " N"]:
        """Score every segment; the judge is one of `JUDGES`."""
        if judge == "return":
            return self._sums(None, None)
        own, best = self._values(judge)
        return self._sums(own, best, tail=judge == "regret_tail")

    def action_part(self, judge: str) -> Float[ndarray, " N"] | None:
        """Return what a segment's actions add to its score, against the behaviour's own expectation: its advantages.

        `regret` sum_t A^mu(s_t, a_t), `regret_tail` sum_t gamma^t A^mu(s_t, a_t), with A^mu = r + gamma V^mu(s') -
        V^mu(s); the whole score for `advantage`; None for `return`, which has no such baseline.
        """
        if judge == "return":
            return None
        own, _ = self._values(judge)
        return self._sums(own, own, tail=judge == "regret_tail")

    def _values(self, judge: str) -> tuple[Float[ndarray, " L"], Float[ndarray, " L"]]:
        """Return the value that goes on after a step, V^mu (V* for `advantage`), and V*."""
        if judge not in JUDGES:
            raise UserError(f"unknown judge {judge!r}: one of {', '.join(JUDGES)}.")
        own = self.best if judge == "advantage" else self.own
        if self.best is None or own is None:
            raise UserError(f"judge {judge!r} needs the critics' values: collect with critic_episodes above 0.")
        return own, self.best

    def _sums(self, later: ndarray | None, now: ndarray | None, tail: bool = False) -> Float[ndarray, " N"]:
        """Sum r_t + gamma later(s_t+1) - now(s_t) over each segment; `tail`: `later` counts at its end, `now` first."""
        gamma, length = self.gamma, self.length
        reward = np.concatenate([np.append(e.rewards, 0.0) for e in self.episodes])
        begin = np.concatenate([[0], np.cumsum([len(e) + 1 for e in self.episodes])[:-1]])
        offset = begin[self.episode] + self.start
        row, step = np.repeat(np.arange(len(length)), length), np.concatenate([np.arange(n) for n in length.tolist()])
        at = offset[row] + step
        gain = reward[at] * gamma**step if tail else reward[at]
        if later is not None and now is not None and not tail:
            gain = gain + gamma * later[at + 1] - now[at]
        total = np.bincount(row, gain, minlength=len(length))
        if later is not None and now is not None and tail:
            total = total + gamma**length * later[offset + length] - now[offset]
        return total.astype(np.float32)
