"""PEBBLE: a reward learned from comparisons, soft actor-critic on it, and every past reward rewritten when it changes.

    P(second preferred) = sigma(sum_t r(s_t, a_t) [second] - sum_t r(s_t, a_t) [first]),   r in (-1, 1), an ensemble
    disagreement        = std over the ensemble of P                       which comparisons to ask for
    r_explore(s)        = log |s - its k-th neighbour|                     before the first comparison

Reference: Lee, Smith, Abbeel 2021, arXiv:2106.05091, Section 3 (the reward), Sections 4.1 to 4.3 (exploration,
questions, relabelling); its settings and those of B-Pref's code: 3 networks, k 5, 10 candidates a question, 128
comparisons an update. Haarnoja et al. 2018 (`sac`).
Deviations: the networks have the width and the learning rate that the training settings give, and ReLU; a fixed number
of reward updates, where the code stops at 97 % training accuracy; whole episodes are collected between blocks of SAC
updates, several at once; the first actions are tanh of normal noise, not uniform; the exploration reward is not divided
by its running spread; the judge is that of `online`, as noisy as for every other method. `from_clone`, a start from the
clone of a behaviour with critics fitted first, is not in the paper: it gives PEBBLE the start of the other methods.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from autotelic.control.environments import VectorEnvironment
from autotelic.control.episodes import Behavior, Episode, roll_out
from autotelic.control.networks import GaussianPolicy, Standardise, mlp
from autotelic.control.objectives import PairData, pair_data, segment_steps
from autotelic.control.sac import SAC, Transitions, transitions
from autotelic.control.segments import Preferences, merge_preferences
from autotelic.control.settings import PebbleSettings, TrainSettings
from autotelic.functional.preference import behavior_cloning_loss, cpl_loss, preference_accuracy


class RewardEnsemble(nn.Module):
    """Reward networks of (state, action in [-1, 1]), each with its own batches; the learner's reward is their mean."""

    def __init__(
        self, inputs: Standardise, action_dim: int, training: TrainSettings, members: int, generator: torch.Generator
    ) -> None:
        """Initialise every network differently."""
        super().__init__()
        self.inputs, self.generator = inputs, generator
        size = len(inputs.center) + action_dim
        self.members = nn.ModuleList([mlp(size, training.hidden, 1) for _ in range(members)])
        self.optimizer = torch.optim.Adam(self.members.parameters(), lr=training.lr)

    def reward(
        self, member: nn.Module, observations: Float[Tensor, "*batch O"], actions: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "*batch"]:
        """One network's reward, in (-1, 1)."""
        return torch.tanh(member(torch.cat([self.inputs(observations), actions], -1))).squeeze(-1)

    def returns(self, member: nn.Module, data: PairData) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """One network's sum of rewards over the first and over the second segment of every pair."""
        both = torch.cat([data.first, data.second])
        rewards = self.reward(member, data.observations[both], torch.tanh(data.actions[both]))
        first, second = (rewards * data.mask[both]).sum(-1).chunk(2)
        return first, second

    def fit(self, data: PairData, updates: int, batch: int) -> None:
        """Bradley-Terry on sums of rewards."""
        for _ in range(updates):
            losses = []
            for member in self.members:
                rows = torch.randint(len(data.label), (batch,), generator=self.generator)
                chosen = data.take(rows)
                losses.append(cpl_loss(*self.returns(member, chosen), chosen.label, bias=1.0).mean())
            self.optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            self.optimizer.step()

    @torch.no_grad()
    def probabilities(self, data: PairData) -> Float[Tensor, "M K"]:
        """Each network's P(second preferred)."""
        sums = [self.returns(member, data) for member in self.members]
        return torch.stack([torch.sigmoid(second - first) for first, second in sums])

    @torch.no_grad()
    def relabel(self, seen: Transitions) -> Transitions:
        """Return the transitions under the mean reward of the present networks."""
        rewards = [self.reward(member, seen.observations, seen.actions) for member in self.members]
        return seen.relabelled(torch.stack(rewards).mean(0))


def state_entropy(points: Float[Tensor, "N O"], among: Float[Tensor, "L O"], neighbors: int) -> Float[Tensor, " N"]:
    """Log distance of each point to its k-th neighbour in a set that holds the point itself."""
    nearest = torch.cdist(points, among).topk(min(neighbors + 1, len(among)), largest=False).values
    return nearest[:, -1].clamp(min=1e-6).log()


@dataclass(frozen=True)
class Noise:
    """Who acts before anything is known: u standard normal in every state."""

    action_dim: int

    def parameters_at(self, observations: Float[ndarray, "N O"]) -> tuple[ndarray, ndarray]:
        """Mean and log std of u."""
        zeros = np.zeros((len(observations), self.action_dim), dtype=np.float32)
        return zeros, zeros


class Pebble:
    """The student of `online` that learns a reward; it acts by itself from the first round on, unless it is cloned."""

    def __init__(self, settings: PebbleSettings, training: TrainSettings, environment: VectorEnvironment) -> None:
        """Initialise networks; explore, if asked to."""
        self.settings, self.training, self.environment = settings, training, environment
        self.updates = self.waves = 0
        self.generator = torch.Generator().manual_seed(training.seed)
        size, width = environment.observation_dim, environment.action_dim
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)
            self.policy = GaussianPolicy(size, width, training.hidden, std=None, squash=True)
            self.reward = RewardEnsemble(self.policy.inputs, width, training, settings.members, self.generator)
        self.sac = SAC(self.policy, training.hidden, training.lr, training.gamma, training.seed)
        self.seen: Transitions | None = None
        self.first: GaussianPolicy | None = None
        self.actor: Behavior | None = None if settings.from_clone else Noise(width)
        if settings.explore_episodes:
            self._explore()

    @property
    def env_steps(self) -> int:
        """Steps that it took for itself, beside the rounds' own episodes."""
        return self.waves * self.environment.num_envs * self.environment.horizon

    @property
    def candidates(self) -> int:
        """Comparisons to draw for each that is asked."""
        return self.settings.candidates if self.settings.queries == "disagreement" else 1

    def choose(self, episodes: Sequence[Episode], drawn: Preferences, count: int) -> Int[ndarray, " K"]:
        """Return the rows of the pairs on which the networks differ most."""
        return self.reward.probabilities(_pairs(episodes, drawn)).std(0).topk(count).indices.numpy()

    def learn(
        self, episodes: Sequence[Episode], fresh: Sequence[Episode], asked: Sequence[Preferences]
    ) -> dict[str, float]:
        """Reward, relabelling, then SAC while it acts; returns how well the old reward predicted the new answers."""
        self._add(fresh)
        begins = self.first is None
        if begins and self.settings.from_clone:
            self._clone(fresh)
        self.first = self.first or copy.deepcopy(self.policy).eval()
        new = _pairs(episodes, asked[-1])
        chance = self.reward.probabilities(new).mean(0)
        accuracy = float(preference_accuracy(1 - chance, chance, new.label))
        data = _pairs(episodes, merge_preferences(asked))
        self.reward.fit(data, self.settings.reward_updates, self.settings.reward_batch)
        self.seen = self.reward.relabel(self._seen())
        for _ in range(self.settings.critic_updates if begins else 0):
            self.sac.critic_update(self._batch())
        for _ in range(self._waves(self.settings.interact_episodes)):
            self._act()
            for _ in range(self._updates_per_wave):
                self.sac.update(self._batch())
        self.actor = self.policy
        return {"preference/accuracy": accuracy}

    def state_dict(self) -> dict[str, Any]:
        """Weights of everything that was learned."""
        modules = {"policy": self.policy, "critic": self.sac.critic, "reward": self.reward}
        return {name: module.state_dict() for name, module in modules.items()}

    def _explore(self) -> None:
        """SAC on the state entropy; its values are forgotten afterwards."""
        for _ in range(self._waves(self.settings.explore_episodes)):
            self._act()
            seen = self._seen()
            among = self.policy.inputs(seen.observations)
            for _ in range(self._updates_per_wave):
                batch = self._batch()
                points = self.policy.inputs(batch.observations)
                self.sac.update(batch.relabelled(state_entropy(points, among, self.settings.neighbors)))
            self.actor = self.policy
        self.sac.restart_critics(self.training.seed)

    def _waves(self, episodes: int) -> int:
        return -(-episodes // self.environment.num_envs)

    @property
    def _updates_per_wave(self) -> int:
        return -(-self.training.steps // self._waves(self.settings.interact_episodes))

    def _act(self) -> None:
        """Collect one episode in every copy, with the actor as it is."""
        seed = 3_000_000 + 10_000 * self.training.seed + self.waves
        self._add(roll_out(self.environment, self.actor or self.policy, seed, squash=True))
        self.waves += 1

    def _add(self, episodes: Sequence[Episode]) -> None:
        """Remember transitions, under the present reward; the first ones fix how observations are standardised."""
        new = transitions(episodes)
        if self.seen is None:
            self.policy.inputs.fit(new.observations)
        new = self.reward.relabel(new)
        self.seen = new if self.seen is None else self.seen.joined(new)

    def _seen(self) -> Transitions:
        if self.seen is None:
            raise ValueError("nothing was seen yet: learn from episodes first")
        return self.seen

    def _batch(self) -> Transitions:
        seen = self._seen()
        self.updates += 1
        return seen.take(torch.randint(len(seen), (self.settings.sac_batch,), generator=self.generator))

    def _clone(self, episodes: Sequence[Episode]) -> None:
        """Likelihood of the start's actions, std included."""
        observations = torch.from_numpy(np.concatenate([e.observations[:-1] for e in episodes]))
        actions = torch.from_numpy(np.concatenate([e.actions for e in episodes]))
        optimizer = torch.optim.Adam(self.policy.body.parameters(), lr=self.training.lr)
        for _ in range(self.training.bc_steps):
            rows = torch.randint(len(actions), (self.settings.sac_batch,), generator=self.generator)
            logprobs = self.policy.logprob(actions[rows], *self.policy(observations[rows]))
            optimizer.zero_grad()
            behavior_cloning_loss(logprobs[None]).backward()
            optimizer.step()
        self.updates += self.training.bc_steps


def _pairs(episodes: Sequence[Episode], preferences: Preferences) -> PairData:
    return pair_data(episodes, preferences, segment_steps(preferences, episodes))
