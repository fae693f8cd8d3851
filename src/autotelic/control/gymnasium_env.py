"""`autotelic/PointReach-v0`: one point of `point_reach` as a gymnasium environment; importing this module registers it.

import autotelic.control.gymnasium_env
env = gymnasium.make("autotelic/PointReach-v0", slip=0.1)
"""

from typing import Any

import gymnasium
import numpy as np
from numpy import ndarray

from autotelic.control.point_reach import PointReach

ID = "autotelic/PointReach-v0"


class PointReachEnv(gymnasium.Env):
    """One copy of `PointReach`, which knows its own length: episodes are truncated at `horizon` steps."""

    def __init__(self, horizon: int = 50, slip: float = 0.0) -> None:
        """Make the point; `slip` is the scale of the noise on actions."""
        self._points = PointReach(1, horizon, slip)
        bound = np.array([1, 1, np.inf, np.inf, 2, 2], dtype=np.float32)
        self.observation_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (PointReach.action_dim,), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ndarray, dict[str, Any]]:
        """Place the point and its goal."""
        super().reset(seed=seed)
        observation, info = self._points.reset(int(self.np_random.integers(2**31)))
        return observation[0].astype(np.float32), {"success": bool(info["success"][0])}

    def step(self, action: ndarray) -> tuple[ndarray, float, bool, bool, dict[str, Any]]:
        """Push the point."""
        observation, reward, ended, cut, info = self._points.step(np.asarray(action, dtype=np.float64)[None])
        return (
            observation[0].astype(np.float32),
            float(reward[0]),
            bool(ended[0]),
            bool(cut[0]),
            {"success": bool(info["success"][0])},
        )


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point=f"{__name__}:PointReachEnv")
