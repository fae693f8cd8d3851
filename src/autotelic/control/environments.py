"""Environments by name, several copies at once: `point-reach` and six MetaWorld tasks, with a scripted expert each.

Every copy runs an episode of the same, fixed length: `reset(seed)` places all copies, `step(action)` moves them, and
the info of both holds `success`. An episode counts as a success if any step was one, as in CPL's evaluation.

Reference: the six tasks of arXiv:2505.06273; MetaWorld 3 (Farama), extra `control`.
Deviations: 39 observations with the goal (35 in CPL's code); the hand's start is random only if asked for.
"""

import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.errors import UserError, one_of

TASKS = ("bin-picking", "button-press", "door-open", "drawer-open", "plate-slide", "sweep-into")
NAMES = ("point-reach", *(f"metaworld/{task}" for task in TASKS))
HAND_BOX = np.array([0.25, 0.15, 0.2])  # half-widths of the hand's random start, in metres: CPL's code
Expert = Callable[[Float[ndarray, "N O"]], Float[ndarray, "N A"]]


@runtime_checkable
class VectorEnvironment(Protocol):
    """What `PointReach` and `MetaWorld` have in common."""

    num_envs: int
    horizon: int
    observation_dim: int
    action_dim: int

    def reset(self, seed: int) -> tuple[ndarray, dict[str, Any]]:
        """Place every copy; the seed fixes where."""
        ...

    def step(self, action: ndarray) -> tuple[ndarray, ndarray, ndarray, ndarray, dict[str, Any]]:
        """Return observation, reward, terminated, truncated, info, one row per copy."""
        ...


def make(
    name: str, num_envs: int | None = None, horizon: int | None = None, random_hand: bool = False
) -> VectorEnvironment:
    """Return `num_envs` copies (16 points, 4 robots); `horizon` is 50 steps for points, 250 (as CPL) for robots."""
    if name == "point-reach":
        return PointReach(num_envs or 16, horizon or 50)
    if name in NAMES:
        return MetaWorld(name.removeprefix("metaworld/"), num_envs or 4, horizon or 250, random_hand)
    raise UserError(f"unknown environment {name!r}{one_of(name, NAMES)}")


def expert(name: str) -> Expert:
    """Return the scripted policy of an environment: observations to actions in [-1, 1]."""
    if name == "point-reach":
        linear = LinearBehavior()
        return lambda observation: np.tanh(linear.parameters_at(observation)[0])
    if name not in NAMES:
        raise UserError(f"unknown environment {name!r}{one_of(name, NAMES)}")
    _import_metaworld()
    from metaworld.policies import ENV_POLICY_MAP

    scripted = ENV_POLICY_MAP[f"{name.removeprefix('metaworld/')}-v3"]()

    def act(observation: ndarray) -> ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the scripts ask for more than the actuators give; they are clipped
            rows = [scripted.get_action(row.astype(np.float64)) for row in observation]
        return np.clip(np.stack(rows), -1, 1)

    return act


def _import_metaworld() -> Any:
    try:
        import metaworld
    except ImportError as error:
        raise UserError(
            f"this environment needs MetaWorld ({error}): pip install 'autotelic[control]', or use point-reach."
        ) from None
    return metaworld


class MetaWorld:
    """Copies of one MetaWorld task in one process, with the goal observed and a new start per episode."""

    observation_dim, action_dim = 39, 4

    def __init__(
        self, task: str, num_envs: int = 4, horizon: int = 250, random_hand: bool = False, render: bool = False
    ) -> None:
        """Load the simulator `num_envs` times (about a second each)."""
        if num_envs < 1 or not 1 <= horizon <= 500:
            raise UserError(f"num_envs {num_envs} must be 1 or more, and horizon {horizon} lie in 1 .. 500.")
        metaworld = _import_metaworld()
        kind = metaworld.MT1(f"{task}-v3", seed=0).train_classes[f"{task}-v3"]
        self.task, self.num_envs, self.horizon, self.random_hand = task, num_envs, horizon, random_hand
        self._copies = [self._open(kind, render) for _ in range(num_envs)]
        self._step = -1

    @staticmethod
    def _open(kind: Any, render: bool) -> Any:
        copy = kind(render_mode="rgb_array", camera_name="corner2") if render else kind()
        copy._partially_observable = False  # as in MetaWorld's own goal-observable classes
        copy._freeze_rand_vec, copy.seeded_rand_vec, copy._set_task_called = False, True, True
        return copy

    def reset(self, seed: int) -> tuple[Float[ndarray, "N O"], dict[str, Any]]:
        """Place object, goal and, if asked to, the hand at random; the seed fixes where, for every copy on its own."""
        rows = []
        for index, copy in enumerate(self._copies):
            copy.seed(int(np.random.SeedSequence([seed, index]).generate_state(1)[0]))
            observation = copy.reset()[0]
            rows.append(self._move_hand(copy, [seed, index, 1]) if self.random_hand else observation)
        self._step = 0
        return np.stack(rows).astype(np.float32), {"success": np.zeros(self.num_envs, dtype=bool)}

    @staticmethod
    def _move_hand(copy: Any, seed: list[int]) -> Float[ndarray, " O"]:
        """Hold the hand at a random place until it is there; both observed frames are then the same."""
        place = copy.hand_init_pos + np.random.default_rng(seed).uniform(-HAND_BOX, HAND_BOX)
        mocap = copy.model.body_mocapid[copy.data.body("mocap").id]
        for _ in range(50):
            copy.data.mocap_pos[mocap] = np.clip(place, copy.mocap_low, copy.mocap_high)
            copy.data.mocap_quat[mocap] = (1, 0, 1, 0)
            copy.do_simulation([-1, 1], copy.frame_skip)
        copy._get_obs()  # the second call sees the same frame as the one before
        return copy._get_obs()

    def step(
        self, action: Float[ndarray, "N A"]
    ) -> tuple[Float[ndarray, "N O"], Float[ndarray, " N"], Bool[ndarray, " N"], Bool[ndarray, " N"], dict[str, Any]]:
        """Clip the action to [-1, 1] and apply it; reward in 0 .. 10 a step."""
        if self._step < 0:
            raise UserError("the environment was never placed: call reset(seed) before step(action).")
        results = [copy.step(row) for copy, row in zip(self._copies, np.clip(action, -1, 1), strict=True)]
        self._step += 1
        observation = np.stack([r[0] for r in results]).astype(np.float32)
        success = np.array([bool(r[4]["success"]) for r in results])
        ended = np.full(self.num_envs, self._step >= self.horizon)
        rewards = np.array([float(r[1]) for r in results], dtype=np.float32)
        return observation, rewards, np.zeros_like(ended), ended, {"success": success}

    def render(self) -> ndarray:
        """Return the first copy's picture, (height, width, 3); needs `render=True` and offscreen OpenGL."""
        return np.flipud(self._copies[0].render())

    def close(self) -> None:
        """Free the simulators."""
        for copy in self._copies:
            copy.close()
