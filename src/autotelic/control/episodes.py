"""Recorded episodes with their behaviour: who acted, with which density; stored as a Minari data set.

A Minari data set (Farama's format, parquet files) holds what the environment saw. Beside it, in `infos`, each step t
has `behavior_action` (u, before clipping or tanh), `behavior_mean`, `behavior_log_std`, `behavior_logprob` and
`success`; the row after the last action is padding. The episode's metadata has `policy_id` and `seed`. Any other Minari
data set can be read too: where a field is missing, methods that need it refuse, and say which.

Reference: Minari 0.5 (Farama). Deviations: written through its storage classes (its own collector needs JAX).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.stats import norm

from autotelic.control.environments import VectorEnvironment
from autotelic.errors import UserError
from autotelic.functional.lookahead import gaussian_logprob, tanh_gaussian_logprob


@runtime_checkable
class Behavior(Protocol):
    """A policy of known density."""

    def parameters_at(self, observations: ndarray) -> tuple[ndarray, ndarray]:
        """Mean and log std of u, one row per observation."""
        ...


@dataclass(frozen=True)
class Episode:
    """One episode of T steps; the last observation has no action. `check_episode` compares lengths.

    Attributes:
        observations: one more than there are actions.
        actions: u, before clipping or tanh.
        rewards: per step.
        success: per step.
        policy: id of the behaviour.
        mean: of u under the behaviour, or None where it was not recorded.
        log_std: likewise.
        logprobs: log-density of the action under the behaviour, or None.
        seed: of the environment.
    """

    observations: Float[ndarray, "_ O"]
    actions: Float[ndarray, "_ A"]
    rewards: Float[ndarray, " _"]
    success: Bool[ndarray, " _"]
    policy: int
    mean: Float[ndarray, "_ A"] | None = None
    log_std: Float[ndarray, "_ A"] | None = None
    logprobs: Float[ndarray, " _"] | None = None
    seed: int = -1

    def __len__(self) -> int:
        """Number of actions."""
        return len(self.actions)


def to_environment(actions: Float[ndarray, "*batch A"], squash: bool) -> Float[ndarray, "*batch A"]:
    """What the environment receives for u."""
    return np.tanh(actions) if squash else np.clip(actions, -1, 1)


def clipped(episode: Episode, limit: float = 1 - 1e-5) -> Episode:
    """Return the episode as the environment received it: actions clip(u), and the behaviour's mean and spread of those.

    A policy's cross-entropy against clip(u) depends on these two moments alone, so that for a fixed spread KL(mu || pi)
    keeps its gradient. Reference: jhejna/cpl, FeedbackBuffer (`action_eps` 1e-5).
    """
    received = np.clip(episode.actions, -limit, limit)
    if episode.mean is None or episode.log_std is None:
        return replace(episode, actions=received)
    mean, std = episode.mean.astype(float), np.exp(episode.log_std.astype(float))
    low, high = (-limit - mean) / std, (limit - mean) / std
    inside, edge = norm.cdf(high) - norm.cdf(low), norm.pdf(low) - norm.pdf(high)
    first = limit * (norm.sf(high) - norm.cdf(low)) + mean * inside + std * edge
    second = limit**2 * (1 - inside) + (mean**2 + std**2) * inside + 2 * mean * std * edge
    second += std**2 * (low * norm.pdf(low) - high * norm.pdf(high))
    spread = np.sqrt(np.maximum(second - first**2, 1e-6))
    return replace(episode, actions=received, mean=first.astype(np.float32), log_std=np.log(spread).astype(np.float32))


def roll_out(
    environment: VectorEnvironment,
    behavior: Behavior,
    seed: int,
    squash: bool,
    policy: int = 0,
    deterministic: bool = False,
    switch: tuple[ndarray, Behavior] | None = None,
) -> list[Episode]:
    """Run one episode in every copy.

    Args:
        environment: the copies.
        behavior: who acts.
        seed: of starts and of the behaviour's noise; the same for all behaviours gives the same starts.
        squash: whether actions are tanh(u) or clip(u).
        policy: id to record.
        deterministic: act with the mean.
        switch: a step per copy, and who acts from that step on (for a critic's continuations).
    """
    generator = np.random.default_rng([seed, 1])
    observation, _ = environment.reset(seed)
    observations, rows = [observation], []
    for step in range(environment.horizon):
        mean, log_std = behavior.parameters_at(observation)
        if switch is not None:
            later = (step >= switch[0])[:, None]
            other_mean, other_log_std = switch[1].parameters_at(observation)
            mean, log_std = np.where(later, other_mean, mean), np.where(later, other_log_std, log_std)
        noise = generator.standard_normal(mean.shape)
        action = mean if deterministic else mean + np.exp(log_std) * noise
        observation, reward, _, _, info = environment.step(to_environment(action, squash))
        observations.append(observation)
        rows.append((action, mean, log_std, reward, info["success"]))
    seen = np.stack(observations, 1).astype(np.float32)
    action, mean, log_std, reward = (np.stack([r[i] for r in rows], 1).astype(np.float32) for i in range(4))
    success = np.stack([r[4] for r in rows], 1)
    density = tanh_gaussian_logprob if squash else gaussian_logprob
    logprobs = density(*map(torch.from_numpy, (action, mean, log_std))).numpy()
    return [
        Episode(seen[i], action[i], reward[i], success[i], policy, mean[i], log_std[i], logprobs[i], seed)
        for i in range(environment.num_envs)
    ]


def collect(
    environment: VectorEnvironment, behavior: Behavior, count: int, seed: int, squash: bool, policy: int = 0
) -> list[Episode]:
    """Return `count` episodes, in waves of `num_envs` with seeds of their own."""
    waves = -(-count // environment.num_envs)
    rows = [roll_out(environment, behavior, 1000 * seed + wave, squash, policy) for wave in range(waves)]
    return [episode for wave in rows for episode in wave][:count]


def success_rate(episodes: Sequence[Episode]) -> float:
    """Share of episodes with success at any step."""
    return float(np.mean([episode.success.any() for episode in episodes]))


def write_minari(path: Path, episodes: Sequence[Episode], squash: bool, description: dict[str, Any]) -> None:
    """Write a Minari data set to the folder `path` (which must not hold one)."""
    import gymnasium
    from minari.data_collector.episode_buffer import EpisodeBuffer

    storage_class = _storage_class()
    size, width = episodes[0].observations.shape[1], episodes[0].actions.shape[1]
    folder = (path / "data").resolve()  # Minari joins a relative path with itself when it measures its size
    folder.mkdir(parents=True, exist_ok=True)
    storage = storage_class.new(
        folder,
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (size,), dtype=np.float32),
        action_space=gymnasium.spaces.Box(-1.0, 1.0, (width,), dtype=np.float32),
        data_format="parquet",
    )

    def buffers():
        for episode in episodes:
            ended = np.zeros(len(episode), dtype=bool)
            yield EpisodeBuffer(
                seed=episode.seed,
                observations=list(episode.observations),
                actions=list(to_environment(episode.actions, squash)),
                rewards=list(episode.rewards),
                terminations=list(ended),
                truncations=[*ended[:-1], True],
                infos={name: _pad(value) for name, value in _infos(episode).items()},
            )

    storage.update_episodes(buffers())
    storage.update_episode_metadata([{"policy_id": e.policy} for e in episodes])
    identity = {"dataset_id": "autotelic/control-v0", "minari_version": version("minari")}
    storage.update_metadata({**identity, "squash": squash, **description})


def _infos(episode: Episode) -> dict[str, ndarray]:
    fields = {
        "behavior_action": episode.actions,
        "behavior_mean": episode.mean,
        "behavior_log_std": episode.log_std,
        "behavior_logprob": episode.logprobs,
        "success": episode.success,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _pad(value: ndarray) -> ndarray | list[Any]:
    """One row more; a list where rows are numbers, since Minari 0.5 cannot read back a one-axis array."""
    padded = np.concatenate([value, np.zeros_like(value[:1])])
    return padded if padded.ndim > 1 else padded.tolist()


def _storage_class() -> Any:
    try:
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise UserError(f"Minari data sets need the extra ({error}): pip install 'autotelic[control]'.") from None
    return MinariStorage


def read_minari(path: Path) -> tuple[list[Episode], dict[str, Any]]:
    """Read a Minari data set from a folder: the episodes, and the data set's own metadata.

    A data set that we did not write has no `behavior_action`: then u is the recorded action, policy ids are those of
    the metadata (`policy_id`) or 0, and densities are absent.
    """
    folder = path / "data" if (path / "data").is_dir() else path
    if not folder.is_dir():
        raise UserError(f"{path} is no Minari data set: there is no folder {folder}. Give a local data set's folder.")
    storage_class = _storage_class()
    try:
        storage = storage_class.read(folder)
        indices = range(int(storage.metadata["total_episodes"]))
        metadata = list(storage.get_episode_metadata(indices))
        raw = list(storage.get_episodes(indices))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"cannot read the Minari data set {folder}: {error}. Write it again, or repair it.") from None
    episodes = [_episode(folder, i, row, meta) for i, (row, meta) in enumerate(zip(raw, metadata, strict=True))]
    if not episodes:
        raise UserError(f"the Minari data set {folder} holds no episode: collect some first.")
    return episodes, dict(storage.metadata)


def _episode(folder: Path, index: int, row: dict[str, Any], metadata: dict[str, Any]) -> Episode:
    infos = row["infos"]
    observations, steps = row["observations"], len(row["rewards"])
    if not isinstance(observations, ndarray) or observations.ndim != 2 or np.asarray(row["actions"]).ndim != 2:
        raise UserError(f"{folder}, episode {index}: observations and actions must be vectors (Box). Flatten them.")

    def field(name: str) -> ndarray | None:
        return np.asarray(infos[name])[:steps].astype(np.float32) if name in infos else None

    given = field("behavior_action")
    success = field("success")
    episode = Episode(
        observations.astype(np.float32),
        np.asarray(row["actions"], dtype=np.float32) if given is None else given,
        np.asarray(row["rewards"], dtype=np.float32),
        np.zeros(steps, dtype=bool) if success is None else success.astype(bool),
        int(metadata.get("policy_id", 0)),
        field("behavior_mean"),
        field("behavior_log_std"),
        field("behavior_logprob"),
        int(-1 if metadata.get("seed") is None else metadata["seed"]),
    )
    check_episode(episode, folder, index)
    return episode


def check_episode(episode: Episode, source: Path | str, index: int) -> None:
    """Refuse values that are not finite, and lengths that differ: source, row, remedy."""
    steps = len(episode.actions)
    lengths = {"observations": len(episode.observations) - 1}
    for name in ("rewards", "success", "mean", "log_std", "logprobs"):
        value = getattr(episode, name)
        if value is not None:
            lengths[name] = len(value)
    for name, length in lengths.items():
        if length != steps:
            raise UserError(
                f"{source}, episode {index}: {name} has {length} steps, actions {steps}. Record one value per action "
                "(and one observation more), or leave the episode out."
            )
    for name in ("observations", "actions", "rewards", "mean", "log_std", "logprobs"):
        value = getattr(episode, name)
        if value is not None and not np.isfinite(value).all():
            step = int(np.argwhere(~np.isfinite(value))[0, 0])
            raise UserError(
                f"{source}, episode {index}: {name} at step {step} is not finite. Remove or repair that episode."
            )
