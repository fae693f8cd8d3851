"""`autotelic control data`: episodes of several behaviours, segments, and a judge's preferences, from one seed.

The folder: `episodes/` (Minari), `preferences.npz` (`segments`), `data.json` (settings, success rate per behaviour,
seconds). Episodes are collected once: asking again with another judge relabels what is there.

Reference: arXiv:2505.06273, the data sets of its MetaWorld experiments. Deviations: sizes are arguments.
"""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotelic.control.behaviors import ScriptedBehavior, build_behaviors, read_specs
from autotelic.control.environments import NAMES, VectorEnvironment, expert, make
from autotelic.control.episodes import Behavior, Episode, collect, read_minari, success_rate, write_minari
from autotelic.control.judges import Critic, LearnedCritic, SimulatedCritic, expert_critic, judge_segments
from autotelic.control.segments import Preferences, answer, cut_segments, pair_up, read_preferences, write_preferences
from autotelic.errors import UserError, check_choices
from autotelic.runs.files import write_atomically

Number = float | int
Progress = Callable[[str], None]
RELABEL = ("segment_length", "segments", "pairs", "comparisons", "judge", "temperature", "flip_fraction", "label_seed")


@dataclass(frozen=True)
class JudgeSettings:
    """Where episodes come from and who compares their segments: what a data set and online rounds share.

    Attributes:
        env: `point-reach` or `metaworld/TASK`.
        actions: `clip` sends clip(u), `tanh` sends tanh(u).
        segment_length: steps of a segment.
        judge: `regret`, `advantage` or `return`.
        critic: `learned`, or `simulated` on point-reach.
        critic_episodes: for V*; 0 only where neither regret nor advantage will ever be asked for.
        critic_gamma: discount of the critics.
        temperature: of the judge, in standard deviations of the differences; 0 is a judge without noise.
    """

    env: str = "point-reach"
    actions: str = "clip"
    segment_length: int = 64
    judge: str = "regret"
    critic: str = "learned"
    critic_episodes: int = 96
    critic_gamma: Number = 0.99
    temperature: Number = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be judged."""
        choices = {
            "env": NAMES,
            "actions": ("clip", "tanh"),
            "judge": ("regret", "advantage", "return"),
            "critic": ("learned", "simulated"),
        }
        check_choices(self, choices)
        if self.critic == "simulated" and self.env != "point-reach":
            raise UserError("a simulated critic restarts the environment in any state: point-reach only. Use learned.")
        if self.segment_length < 1 or not 0 < self.critic_gamma <= 1:
            raise UserError("segment_length must be 1 or more, and critic_gamma lies in (0, 1].")


@dataclass(frozen=True)
class DataSettings(JudgeSettings):
    """What to collect, and how to label it; every default is written here.

    Attributes:
        policies: behaviours, as in `behaviors`; one is homogeneous data, several heterogeneous.
        episodes: per behaviour.
        horizon: steps of an episode; 0 is the environment's own.
        num_envs: copies; 0 is the environment's own.
        behavior_std: of the clones' u.
        demos: demonstrations behind `success:RATE`.
        segments: how many are cut.
        pairs: at most this many comparisons; 0 is no limit.
        comparisons: `sparse` (each segment once) or `dense` (all pairs).
        flip_fraction: share of answers that are turned round.
        seed: of everything but the labels.
        label_seed: of segments, pairs and answers; -1 takes `seed`.
    """

    policies: tuple[str, ...] = ("success:0.2", "success:0.5")
    episodes: int = 100
    horizon: int = 0
    num_envs: int = 0
    behavior_std: Number = 0.4
    demos: int = 5
    segments: int = 2500
    pairs: int = 0
    comparisons: str = "sparse"
    flip_fraction: Number = 0.0
    seed: int = 0
    label_seed: int = -1

    def __post_init__(self) -> None:
        """Refuse what cannot be collected."""
        super().__post_init__()
        read_specs(self.policies, self.env)
        check_choices(self, {"comparisons": ("sparse", "dense")})
        if min(self.episodes, self.segments - 1) < 1 or min(self.seed, self.pairs) < 0:
            raise UserError("episodes must be 1 or more, segments 2 or more, seed and pairs not below 0.")
        if self.behavior_std <= 0:
            raise UserError("behavior_std lies above 0.")


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
    best = best_critic(settings, environment, behaviors, ScriptedBehavior(script, 0.05, squash), settings.seed)
    own: dict[int, Critic] = {}
    if best is not None:
        for number, behavior in enumerate(behaviors):
            rows = [e for e in episodes if e.policy == number]
            own[number] = own_critic(settings, behavior, rows, settings.seed + number)
    meta = {"environment": settings.env, "seed": settings.seed}
    write_minari(output / "episodes", episodes, squash, meta)
    _write_values(output / "values.npz", episodes, best, own)
    progress("critics done")
    return {"success": rates, "squash": squash, "num_episodes": len(episodes), "horizon": environment.horizon}


def best_critic(
    settings: JudgeSettings, environment: VectorEnvironment, behaviors: Sequence[Behavior], teacher: Behavior, seed: int
) -> Critic | None:
    """Return V*, or None where no episode may be spent on it."""
    gamma, squash = settings.critic_gamma, settings.actions == "tanh"
    if settings.critic == "simulated":
        return SimulatedCritic(teacher, squash, gamma, seed, deterministic=True)
    if not settings.critic_episodes:
        return None
    return expert_critic(environment, behaviors, teacher, settings.critic_episodes, seed, squash, gamma)


def own_critic(
    settings: JudgeSettings, behavior: Behavior, episodes: Sequence[Episode], seed: int, updates: int = 1500
) -> Critic:
    """Return V^mu of a behaviour, from its own episodes where it is learned."""
    if settings.critic == "simulated":
        return SimulatedCritic(behavior, settings.actions == "tanh", settings.critic_gamma, seed)
    return LearnedCritic(episodes, settings.critic_gamma, seed, updates=updates)


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
