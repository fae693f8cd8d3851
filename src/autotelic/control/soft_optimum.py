"""V* as the soft optimum: soft actor-critic trained on the environment's own reward, before anybody is judged.

    V*(s) = E_{a ~ pi*(.|s)} [ min_j Q_j(s, a) - alpha log pi*(a|s) ]

alpha is SAC's temperature at the end, in units of reward a nat; V^mu must then carry the bonus -alpha log mu as well
(`judges.LearnedCritic`). Nothing of it reaches the learner but the judge's answers.

Reference: arXiv:1812.05905v2 (`sac`); arXiv:2310.13639 (labels from an oracle trained by SAC).
"""

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from autotelic.control.environments import VectorEnvironment
from autotelic.control.episodes import Episode, roll_out
from autotelic.control.networks import GaussianPolicy
from autotelic.control.sac import SAC, Transitions, transitions

Number = float | int
HIDDEN, LR, BATCH = (128, 128), 1e-3, 256
STEPS_PER_UPDATE = 2
DRAWS = 16  # actions per state behind V*


class SoftOptimum:
    """A trained SAC as a critic."""

    def __init__(self, sac: SAC) -> None:
        """Take its temperature as alpha."""
        self.sac, self.alpha = sac, float(sac.temperature)

    @torch.no_grad()
    def values(self, observations: Float[ndarray, "N O"]) -> Float[ndarray, " N"]:
        """V* of each state, averaged over `DRAWS` actions."""
        return torch.cat([self._mean(r) for r in torch.from_numpy(observations.astype(np.float32)).split(4096)]).numpy()

    def _mean(self, rows: Float[torch.Tensor, "N O"]) -> Float[torch.Tensor, " N"]:
        total = torch.zeros(len(rows))
        for _ in range(DRAWS):
            action, logprobs = self.sac.sample(rows)
            total += torch.minimum(*self.sac.critic(rows, action)) - self.alpha * logprobs
        return total / DRAWS


def train_soft_optimum(environment: VectorEnvironment, episodes: int, gamma: Number, seed: int) -> SoftOptimum:
    """Train SAC from nothing for `episodes` episodes, one update per `STEPS_PER_UPDATE` steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        actor = GaussianPolicy(environment.observation_dim, environment.action_dim, HIDDEN, std=None, squash=True)
    sac, generator = SAC(actor, HIDDEN, LR, gamma, seed), torch.Generator().manual_seed(seed)
    seen: Transitions | None = None
    for wave in range(-(-episodes // environment.num_envs)):
        rows = roll_out(environment, actor, 6_000_000 + 10_000 * seed + wave, squash=True)
        seen = rewarded(rows) if seen is None else seen.joined(rewarded(rows))
        if wave == 0:
            actor.inputs.fit(seen.observations)
        for _ in range(environment.num_envs * environment.horizon // STEPS_PER_UPDATE):
            sac.update(seen.take(torch.randint(len(seen), (BATCH,), generator=generator)))
    return SoftOptimum(sac)


def rewarded(episodes: list[Episode]) -> Transitions:
    """Transitions under the environment's reward."""
    return transitions(episodes).relabelled(torch.from_numpy(np.concatenate([e.rewards for e in episodes])))
