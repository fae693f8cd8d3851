"""`autotelic control data`: episodes of several behaviours, segments, and a judge's preferences, from one seed.

The folder: `episodes/` (Minari), `preferences.npz` (`segments`), `data.json` (settings, success rate per behaviour,
seconds). Episodes are collected once: asking again with another judge relabels what is there.

Reference: arXiv:2505.06273, the data sets of its MetaWorld experiments. Deviations: sizes are arguments.
"""

import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotelic.control.behaviors import ScriptedBehavior, build_behaviors, read_specs
from autotelic.control.environments import NAMES, expert, make
from autotelic.control.episodes import Behavior, Episode, collect, read_minari, success_rate, write_minari
from autotelic.control.judges import Critic, LearnedCritic, SimulatedCritic, expert_critic, judge_segments
from autotelic.control.segments import Preferences, answer, cut_segments, pair_up, read_preferences, write_preferences
from autotelic.errors import UserError, closest
from autotelic.files import write_atomically

Number = float | int
Progress = Callable[[str], None]
RELABEL = ("segment_length", "segments", "pairs", "comparisons", "judge", "temperature", "flip_fraction", "label_seed")


@dataclass(frozen=True)
class DataSettings:
    """What to collect, and how to label it; every default is written here.

    Attributes:
        env: `point-reach` or `metaworld/TASK`.
        policies: behaviours, as in `behaviors`; one is homogeneous data, several heterogeneous.
        episodes: per behaviour.
        horizon: steps of an episode; 0 is the environment's own.
        num_envs: copies; 0 is the environment's own.
        actions: `clip` sends clip(u), `tanh` sends tanh(u).
        behavior_std: of the clones' u.
        demos: demonstrations behind `success:RATE`.
        segment_length: steps of a segment.
        segments: how many are cut.
        pairs: at most this many comparisons; 0 is no limit.
        comparisons: `sparse` (each segment once) or `dense` (all pairs).
        judge: `regret`, `advantage` or `return`.
        critic: `learned`, or `simulated` on point-reach.
        critic_episodes: for V*; 0 only where neither regret nor advantage will ever be asked for.
        critic_gamma: discount of the critics.
        temperature: of the judge, in standard deviations of the differences; 0 is a judge without noise.
        flip_fraction: share of answers that are turned round.
        seed: of everything but the labels.
        label_seed: of segments, pairs and answers; -1 takes `seed`.
    """

    env: str = "point-reach"
    policies: tuple[str, ...] = ("success:0.2", "success:0.5")
    episodes: int = 100
    horizon: int = 0
    num_envs: int = 0
    actions: str = "clip"
    behavior_std: Number = 0.4
    demos: int = 5
    segment_length: int = 64
    segments: int = 2500
    pairs: int = 0
    comparisons: str = "sparse"
    judge: str = "regret"
    critic: str = "learned"
    critic_episodes: int = 96
    critic_gamma: Number = 0.99
    temperature: Number = 0.1
    flip_fraction: Number = 0.0
    seed: int = 0
    label_seed: int = -1

    def __post_init__(self) -> None:
        """Refuse what cannot be collected."""
        if self.env not in NAMES:
            raise UserError(f"unknown environment {self.env!r}{closest(self.env, NAMES)}: one of {', '.join(NAMES)}.")
        read_specs(self.policies, self.env)
        choices = {
            "actions": ("clip", "tanh"),
            "comparisons": ("sparse", "dense"),
            "judge": ("regret", "advantage", "return"),
            "critic": ("learned", "simulated"),
        }
        for name, valid in choices.items():
            value = getattr(self, name)
            if value not in valid:
                raise UserError(f"{name} is {value!r}{closest(value, valid)}: one of {', '.join(valid)}.")
        if self.critic == "simulated" and self.env != "point-reach":
            raise UserError("a simulated critic restarts the environment in any state: point-reach only. Use learned.")
        if min(self.episodes, self.segment_length, self.segments - 1) < 1 or min(self.seed, self.pairs) < 0:
            raise UserError(
                "episodes and segment_length must be 1 or more, segments 2 or more, seed and pairs not below 0."
            )
        if not 0 < self.critic_gamma <= 1 or self.behavior_std <= 0:
            raise UserError("critic_gamma lies in (0, 1], behavior_std above 0.")


def build_data(settings: DataSettings, output: Path, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Collect (or read again), judge, label and write; returns the contents of `data.json`."""
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    description = _previous(settings, output)
    if description is None:
        if (output / "episodes").exists():
            raise UserError(f"{output} holds episodes of an interrupted run: remove the folder, or choose another.")
        description = _collect(settings, output, progress)
    episodes, _ = read_minari(output / "episodes")
    preferences = label(settings, episodes, _read_scores(output, settings, episodes))
    write_preferences(output / "preferences.npz", preferences)
    description |= {"settings": asdict(settings), "pairs": len(preferences.first)}
    description["seconds"] = round(description.get("seconds", 0.0) + time.perf_counter() - started, 1)
    write_atomically(output / "data.json", json.dumps(description, indent=1) + "\n")
    return description


def _previous(settings: DataSettings, output: Path) -> dict[str, Any] | None:
    """Return what was collected here before, where only the labels differ; refuse other settings."""
    path = output / "data.json"
    if not path.is_file():
        return None
    description = json.loads(path.read_text())
    asked = json.loads(json.dumps(asdict(settings)))
    other = [n for n, v in asked.items() if n not in RELABEL and v != description["settings"].get(n)]
    if other:
        raise UserError(
            f"{output} holds episodes collected with another {', '.join(other)}: choose another folder, or keep those "
            f"settings; only {', '.join(RELABEL)} can change afterwards."
        )
    return description


def _collect(settings: DataSettings, output: Path, progress: Progress) -> dict[str, Any]:
    """Roll out every behaviour, fit the critics, and store episodes and the values of every state."""
    torch.manual_seed(settings.seed)
    squash = settings.actions == "tanh"
    environment = make(settings.env, settings.num_envs or None, settings.horizon or None)
    script = expert(settings.env)
    behaviors = build_behaviors(
        settings.policies,
        settings.env,
        environment,
        script,
        settings.seed,
        squash,
        settings.behavior_std,
        settings.demos,
        progress=progress,
    )
    episodes: list[Episode] = []
    rates = []
    for number, behavior in enumerate(behaviors):
        rows = collect(environment, behavior, settings.episodes, 10 * settings.seed + number, squash, number)
        rates.append(success_rate(rows))
        progress(f"policy {number} ({settings.policies[number]}): {len(rows)} episodes, {rates[-1]:.0%} success")
        episodes += rows
    best, own = critics(settings, environment, behaviors, ScriptedBehavior(script, 0.05, squash), episodes)
    meta = {"environment": settings.env, "seed": settings.seed}
    write_minari(output / "episodes", episodes, squash, meta)
    _write_values(output / "values.npz", episodes, best, own)
    progress("critics done")
    return {"success": rates, "squash": squash, "num_episodes": len(episodes), "horizon": environment.horizon}


def critics(
    settings: DataSettings, environment: Any, behaviors: list[Behavior], best: Behavior, episodes: list[Episode]
) -> tuple[Critic | None, Mapping[int, Critic]]:
    """Return V* (None where no episode may be spent on it) and V^mu per behaviour."""
    gamma, squash = settings.critic_gamma, settings.actions == "tanh"
    if settings.critic == "simulated":
        own: dict[int, Critic] = {i: SimulatedCritic(b, squash, gamma, settings.seed) for i, b in enumerate(behaviors)}
        return SimulatedCritic(best, squash, gamma, settings.seed, deterministic=True), own
    if not settings.critic_episodes:
        return None, {}
    own = {
        i: LearnedCritic([e for e in episodes if e.policy == i], gamma, settings.seed + i)
        for i in range(len(behaviors))
    }
    count = settings.critic_episodes
    return expert_critic(environment, behaviors, best, count, settings.seed, squash, gamma), own


def _write_values(path: Path, episodes: list[Episode], best: Critic | None, own: Mapping[int, Critic]) -> None:
    """Store V* and V^mu of every recorded state (episodes in order, T + 1 rows each): labels need no critic later."""
    if best is None:
        return
    sizes = np.array([len(e) + 1 for e in episodes])
    states = np.concatenate([e.observations for e in episodes])
    left = np.concatenate([np.arange(len(e), -1, -1) for e in episodes])
    policy = np.repeat([e.policy for e in episodes], sizes)
    mine = np.zeros(len(states), dtype=np.float32)
    for number, critic in own.items():
        mine[policy == number] = critic.values(states[policy == number], left[policy == number])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, best=best.values(states, left), own=mine)
    write_atomically(path, buffer.getvalue())


def _read_scores(output: Path, settings: DataSettings, episodes: list[Episode]) -> Any:
    """Return a function from segments to the judge's scores, on the stored values."""
    values: dict[str, Any] = {"best": None, "own": None}
    if (output / "values.npz").is_file():
        with np.load(output / "values.npz", allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
    elif settings.judge != "return":
        raise UserError(f"{output} was collected without critics (critic_episodes 0): only judge return is possible.")
    gamma, best, own = settings.critic_gamma, values["best"], values["own"]
    return lambda episode, start, length: judge_segments(
        settings.judge, episodes, episode, start, length, gamma, best, own
    )


def label(settings: DataSettings, episodes: list[Episode], judge: Any) -> Preferences:
    """Cut segments, let the judge score them, pair them up, and draw its answers."""
    seed = settings.seed if settings.label_seed < 0 else settings.label_seed
    generator = np.random.default_rng([seed, 4])
    episode, start = cut_segments(episodes, settings.segments, settings.segment_length, generator)
    length = np.full(len(start), settings.segment_length)
    first, second = pair_up(len(start), settings.comparisons, generator, settings.pairs or None)
    score = judge(episode, start, length)
    labels = answer(score, first, second, generator, settings.temperature, settings.flip_fraction)
    return Preferences(episode, start, length, first, second, labels, score, asdict(settings))


def read_data(folder: Path) -> tuple[list[Episode], Preferences, dict[str, Any]]:
    """Read a folder that `autotelic control data` wrote, or a Minari data set with `preferences.npz` beside it."""
    inside = folder / "episodes"
    episodes, metadata = read_minari(inside if inside.is_dir() else folder)
    preferences = read_preferences(folder / "preferences.npz", episodes)
    return episodes, preferences, metadata
