"""Frames of a rollout: `python -m autotelic.control.render RUN` writes `rollout.png` and `rollout.gif` into the folder.

Drawn in a process of its own, since an OpenGL driver may take its process down; where MuJoCo cannot render offscreen,
one line says so. Points are drawn with NumPy.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from autotelic.control.environments import MetaWorld, make
from autotelic.control.episodes import to_environment
from autotelic.control.networks import load_policy

SIZE, FRAMES, SEED = 128, 40, 5_000_000


def try_frames(run: Path, timeout: int = 180) -> str:
    """Draw a rollout of a finished run; returns one line: where it is, or why there is none."""
    environment = {**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    command = [sys.executable, "-m", "autotelic.control.render", str(run)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"no frames: drawing took more than {timeout} s"
    if (run / "rollout.gif").is_file() and "frames written" in done.stdout:
        return f"frames: {run / 'rollout.png'}, {run / 'rollout.gif'}"
    reason = (done.stderr.strip().splitlines() or ["unknown reason"])[-1]
    return f"no frames: this machine cannot render offscreen ({reason})"


def frames(env: str, policy_path: Path, horizon: int, squash: bool) -> list[UInt8[ndarray, "H W 3"]]:
    """Pictures of one episode of the deterministic policy, evenly spaced."""
    policy = load_policy(policy_path)
    task = env.removeprefix("metaworld/")
    environment = make(env, 1, horizon) if env == "point-reach" else MetaWorld(task, 1, horizon, render=True)
    observation, _ = environment.reset(SEED)
    every, pictures = max(1, horizon // FRAMES), []
    for step in range(horizon):
        if step % every == 0:
            robot = isinstance(environment, MetaWorld)
            pictures.append(shrink(environment.render()) if robot else draw_point(observation[0]))
        observation, *_ = environment.step(to_environment(policy.parameters_at(observation)[0], squash))
    return pictures


def shrink(picture: ndarray) -> UInt8[ndarray, "H W 3"]:
    """Every n-th pixel, down to at most 2 x SIZE."""
    stride = -(-min(picture.shape[:2]) // (2 * SIZE))
    return np.ascontiguousarray(picture[::stride, ::stride]).astype(np.uint8)


def draw_point(observation: ndarray) -> UInt8[ndarray, "H W 3"]:
    """The point (blue) and its goal (orange) in the box."""
    picture = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    axis = np.linspace(-1.1, 1.1, SIZE)
    x, y = np.meshgrid(axis, -axis)
    position, goal = observation[:2], observation[:2] + observation[4:]
    for center, radius, color in ((goal, 0.1, (230, 159, 0)), (position, 0.05, (0, 114, 178))):
        picture[(x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2] = color
    return picture


def write_frames(run: Path) -> None:
    """Write the pictures of a run folder's policy: eight side by side, and a moving one."""
    import imageio.v3 as iio

    config = json.loads((run / "run.json").read_text())["config"]
    policy = run / "policy.safetensors"
    pictures = frames(config["env"], policy, config["horizon"] or 100, load_policy(policy).squash)
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, 8).round().astype(int)]
    for name, content in (("rollout.png", np.concatenate(chosen, 1)), ("rollout.gif", np.stack(pictures))):
        temporary = run / f"tmp_{name}"
        iio.imwrite(temporary, content)
        temporary.replace(run / name)
    print("frames written", flush=True)


if __name__ == "__main__":
    write_frames(Path(sys.argv[1]))
    os._exit(0)  # the drivers' own teardown raises after everything is written
