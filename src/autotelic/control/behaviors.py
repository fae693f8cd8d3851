"""Behaviour policies of known density, from a line of text.

    clone:DEMOS:UPDATES    a network cloned from DEMOS scripted demonstrations, stopped after UPDATES updates
    success:RATE           the checkpoint of such a network whose success rate is nearest to RATE
    styled:SCALE:DRIFT:DEMOS:UPDATES   a clone, as above, of another demonstrator: the script's actions times SCALE,
                           plus DRIFT in each dimension; so behaviours can differ by what they were shown
    expert:STD             the script plus noise. A trap: its mean is the expert's, so that the policy label of a
                           segment tells the learner what to do in each state, whoever was preferred
    linear:GAIN:DRIFT:STD  point-reach only: a linear policy, spoilt by a drift

Every behaviour is u ~ N(mean(s), std^2), and the environment receives clip(u) or tanh(u).

Reference: arXiv:2505.06273 (behaviours of 20 % and 50 % success); arXiv:2310.13639 (noisy scripted policies there).
Deviations: checkpoints of behaviour cloning in place of checkpoints of SAC.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from autotelic.control.environments import Expert, VectorEnvironment
from autotelic.control.episodes import Behavior, Episode, collect, roll_out, success_rate
from autotelic.control.networks import GaussianPolicy, regress_mean
from autotelic.control.point_reach import LinearBehavior
from autotelic.errors import UserError

Number = float | int
Progress = Callable[[str], None]
LADDER = tuple(sorted({round(5 * 1.25**i) for i in range(25)}))  # updates: 5 .. 1059
KINDS = (
    "clone:DEMOS:UPDATES, success:RATE, styled:SCALE:DRIFT:DEMOS:UPDATES, expert:STD, "
    "or linear:GAIN:DRIFT:STD on point-reach"
)


@dataclass(frozen=True)
class ScriptedBehavior:
    """The scripted expert with Gaussian noise on u."""

    expert: Expert
    std: Number
    squash: bool

    def parameters_at(self, observations: Float[ndarray, "N O"]) -> tuple[ndarray, ndarray]:
        """Mean (the script's action, before the tanh where there is one) and log std of u."""
        mean = before_environment(self.expert(observations), self.squash)
        return mean, np.full_like(mean, np.log(self.std))


def before_environment(action: Float[ndarray, "*batch A"], squash: bool) -> Float[ndarray, "*batch A"]:
    """Return a u that the environment receives as `action`."""
    return np.arctanh(np.clip(action, -0.98, 0.98)) if squash else np.clip(action, -1, 1)


def read_specs(specs: Sequence[str], env: str) -> list[tuple[str, tuple[float, ...]]]:
    """Parse the lines of text; an error names the line and the forms that exist."""
    sizes = {"clone": 2, "success": 1, "styled": 4, "expert": 1, "linear": 3}
    parsed = []
    for spec in specs:
        kind, *rest = spec.split(":")
        try:
            numbers = tuple(float(text) for text in rest)
        except ValueError:
            numbers = ()
        if sizes.get(kind) != len(numbers) or (kind == "linear" and env != "point-reach"):
            raise UserError(f"cannot read the policy {spec!r} for {env}: give {KINDS}.")
        least, last = min(numbers, default=0), (numbers or (0.0,))[-1]
        if not {"clone": least >= 1, "success": 0 <= last <= 1, "styled": min(numbers[2:], default=0) >= 1}.get(
            kind, last > 0
        ):
            raise UserError(f"the policy {spec!r} has a number out of range: counts from 1, rates in [0, 1], std > 0.")
        parsed.append((kind, numbers))
    if not parsed:
        raise UserError(f"no behaviour policy is given: name one or more, as {KINDS}.")
    return parsed


def styled(expert: Expert, scale: Number, drift: Number) -> Expert:
    """Return a demonstrator who does the same with other strength: clip(scale * action + drift)."""
    return lambda observations: np.clip(scale * expert(observations) + drift, -1, 1)


def demonstrations(
    environment: VectorEnvironment, expert: Expert, count: int, seed: int, squash: bool
) -> list[Episode]:
    """Episodes of the script with a little noise in what is executed; the recorded action is the script's own."""
    script = ScriptedBehavior(expert, 0.2, squash)
    episodes: list[Episode] = []
    while len(episodes) < count:
        episodes += roll_out(environment, script, 9_000_000 + 1000 * seed + len(episodes), squash)
    return episodes[:count]


def clone(
    episodes: Sequence[Episode],
    updates: Sequence[int],
    seed: int,
    squash: bool,
    std: Number = 0.4,
    hidden: Sequence[int] = (128, 128),
) -> list[GaussianPolicy]:
    """Regress the behaviour's mean on the state; return a copy of the network after each number of updates."""
    observations = torch.from_numpy(np.concatenate([e.observations[:-1] for e in episodes]))
    targets = torch.from_numpy(np.concatenate([e.actions if e.mean is None else e.mean for e in episodes]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = GaussianPolicy(observations.shape[1], targets.shape[1], hidden, std, squash)
    fit = regress_mean(policy, observations, targets, max(updates), seed)
    return [copy.deepcopy(policy).eval() for update in fit if update in updates]


class Ladder:
    """Checkpoints of one cloned network, and a search among them for a success rate."""

    def __init__(
        self,
        environment: VectorEnvironment,
        expert: Expert,
        seed: int,
        squash: bool,
        std: Number,
        demos: int,
        trial_episodes: int,
    ) -> None:
        """Clone; nothing is tried yet."""
        self.environment, self.seed, self.squash, self.trial_episodes = environment, seed, squash, trial_episodes
        self.stages = clone(demonstrations(environment, expert, demos, seed, squash), LADDER, seed, squash, std)
        self.rates: dict[int, float] = {}

    def rate(self, index: int) -> float:
        """Success rate of a checkpoint, measured once."""
        if index not in self.rates:
            rows = collect(self.environment, self.stages[index], self.trial_episodes, 8000 + self.seed, self.squash)
            self.rates[index] = success_rate(rows)
        return self.rates[index]

    def nearest(self, target: Number) -> int:
        """Bisect as if success rose with updates, and return the best of what was tried."""
        low, high = 0, len(self.stages) - 1
        while low < high:
            middle = (low + high) // 2
            if self.rate(middle) < target:
                low = middle + 1
            else:
                high = middle
        self.rate(low)
        return min(self.rates, key=lambda index: (abs(self.rates[index] - target), index))


def build_behaviors(
    specs: Sequence[str],
    env: str,
    environment: VectorEnvironment,
    expert: Expert,
    seed: int,
    squash: bool,
    std: Number = 0.4,
    demos: int = 5,
    trial_episodes: int = 12,
    progress: Progress = lambda line: None,
) -> list[Behavior]:
    """Return one behaviour per line of text; `success:RATE` shares one ladder of checkpoints from `demos` episodes."""
    ladder: Ladder | None = None
    behaviors: list[Behavior] = []
    for (kind, numbers), spec in zip(read_specs(specs, env), specs, strict=True):
        if kind == "linear":
            behaviors.append(LinearBehavior(gain=numbers[0], drift=numbers[1], std=numbers[2]))
        elif kind == "expert":
            progress(f"{spec}: trap: this label's mean is the expert's action, and teaches it whoever is preferred")
            behaviors.append(ScriptedBehavior(expert, numbers[0], squash))
        elif kind in ("clone", "styled"):
            scale, drift = numbers[:2] if kind == "styled" else (1.0, 0.0)
            data = demonstrations(environment, styled(expert, scale, drift), int(numbers[-2]), seed, squash)
            behaviors += clone(data, [int(numbers[-1])], seed, squash, std)
        else:
            ladder = ladder or Ladder(environment, expert, seed, squash, std, demos, trial_episodes)
            found = ladder.nearest(numbers[0])
            progress(f"{spec}: {LADDER[found]} updates on {demos} demonstrations, {ladder.rates[found]:.0%} success")
            behaviors.append(ladder.stages[found])
    return behaviors
