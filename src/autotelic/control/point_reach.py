"""A small, fast control task with known dynamics: a point with momentum must reach a goal. Vectorised NumPy.

    velocity' = 0.8 velocity + 0.2 (action + slip * noise),   position' = clip(position + 0.25 velocity', -1, 1)

with noise standard normal; reward = -distance to the goal; success = closer than 0.1. The interface is gymnasium's
(`reset(seed)`, `step(action)` with five results), over `num_envs` copies at once; `control.episodes` rolls it out.

Copies do not reset themselves; episodes are of equal length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from autotelic.errors import UserError

Number = float | int
OBSERVATION_DIM, ACTION_DIM, RADIUS = 6, 2, 0.1


class PointReach:
    """`num_envs` points in a box. Observation: (position, velocity, goal - position); actions lie in [-1, 1]^2."""

    observation_dim, action_dim = OBSERVATION_DIM, ACTION_DIM

    def __init__(self, num_envs: int = 1, horizon: int = 50, slip: Number = 0.0) -> None:
        """Make the copies; `reset` places them. `slip` is the scale of the noise on actions: 0 is deterministic."""
        if num_envs < 1 or horizon < 1 or slip < 0:
            raise UserError(f"num_envs {num_envs} and horizon {horizon} must be 1 or more, slip {slip} at least 0.")
        self.num_envs, self.horizon, self.slip = num_envs, horizon, slip
        self._generator: np.random.Generator | None = None

    def reset(self, seed: int) -> tuple[Float[ndarray, "N O"], dict[str, Any]]:
        """Place points and goals uniformly, at rest; the seed fixes the start and the noise."""
        self._generator = np.random.default_rng(seed)
        self._position, self._goal = self._generator.uniform(-1, 1, size=(2, self.num_envs, 2))
        self._velocity, self._step = np.zeros((self.num_envs, 2)), 0
        return self._observe(), {"success": self._distance() < RADIUS}

    def place(self, observation: Float[ndarray, "N O"], seed: int = 0) -> None:
        """Put the copies into the states of given observations, at step 0: what a simulated critic starts from."""
        if len(observation) != self.num_envs:
            raise UserError(f"{len(observation)} states for {self.num_envs} copies: give one state for each.")
        self._generator = np.random.default_rng(seed)
        self._position, self._velocity = observation[:, :2].astype(float), observation[:, 2:4].astype(float)
        self._goal, self._step = self._position + observation[:, 4:], 0

    def step(
        self, action: Float[ndarray, "N A"]
    ) -> tuple[Float[ndarray, "N O"], Float[ndarray, " N"], Bool[ndarray, " N"], Bool[ndarray, " N"], dict[str, Any]]:
        """Return observation, reward, terminated (never), truncated (at the horizon), info with `success`."""
        if self._generator is None:
            raise UserError("the environment was never placed: call reset(seed) before step(action).")
        if action.shape != (self.num_envs, ACTION_DIM) or not np.isfinite(action).all():
            raise UserError(f"actions must be finite, of shape ({self.num_envs}, {ACTION_DIM}); got {action.shape}.")
        noise = self.slip * self._generator.standard_normal(action.shape)
        self._velocity = 0.8 * self._velocity + 0.2 * (np.clip(action, -1, 1) + noise)
        self._position = np.clip(self._position + 0.25 * self._velocity, -1, 1)
        self._step += 1
        distance = self._distance()
        ended = np.full(self.num_envs, self._step >= self.horizon)
        return self._observe(), -distance, np.zeros_like(ended), ended, {"success": distance < RADIUS}

    def _observe(self) -> ndarray:
        return np.concatenate([self._position, self._velocity, self._goal - self._position], -1)

    def _distance(self) -> ndarray:
        return np.linalg.norm(self._goal - self._position, axis=-1)


@dataclass(frozen=True)
class LinearBehavior:
    """A linear policy of known density: u ~ N(gain (goal - position) - damping velocity + drift, std^2).

    Attributes:
        gain: pull towards the goal; negative flees it.
        damping: brake.
        drift: constant push along the first axis, which spoils the approach.
        std: of u, per dimension.
    """

    gain: Number = 6.0
    damping: Number = 2.0
    drift: Number = 0.0
    std: Number = 0.3

    def parameters_at(self, observations: Float[ndarray, "*batch O"]) -> tuple[ndarray, ndarray]:
        """Mean and log standard deviation of u, each of the action's shape."""
        mean = (
            self.gain * observations[..., 4:]
            - self.damping * observations[..., 2:4]
            + self.drift * np.array([1.0, 0.0])
        )
        return mean, np.full_like(mean, np.log(self.std))
