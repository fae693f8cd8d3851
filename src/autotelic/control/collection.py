"""`autotelic control data`: episodes of several behaviours, segments, and a judge's preferences, from one seed.

The folder: `episodes/` (Minari), `values.npz` (V* and V^mu of every state), `preferences.npz` (`segments`), `data.json`
(settings, success rate per behaviour, seconds, and the report of `data_report`). Episodes are collected once: asking
again with another judge relabels what is there.

Reference: arXiv:2505.06273, the data sets of its MetaWorld experiments. Deviations: sizes are arguments.
"""

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotelic.control.behaviors import ScriptedBehavior, build_behaviors
from autotelic.control.data_report import Values, behaviors_apart, data_report, describe
from autotelic.control.environments import VectorEnvironment, expert, make
from autotelic.control.episodes import Behavior, Episode, collect, read_minari, success_rate, write_minari
from autotelic.control.judges import Critic, JudgedSegments, LearnedCritic, SimulatedCritic, expert_episodes
from autotelic.control.segments import Preferences, answer, cut_segments, pair_up, read_preferences, write_preferences
from autotelic.control.settings import DataSettings, JudgeSettings
from autotelic.control.soft_optimum import SoftOptimum, train_soft_optimum
from autotelic.errors import UserError
from autotelic.runs.files import write_atomically
from autotelic.runs.time_left import TimeLeft

Progress = Callable[[str], None]
RELABEL = (
    "segment_length", "segments", "pairs", "comparisons", "judge", "temperature", "temperature_unit", "flip_fraction",
    "label_seed",
)  # fmt: skip


def build_data(settings: DataSettings, output: Path, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Collect (or read again), judge, label, report and write; returns the contents of `data.json`."""
    started = time.perf_counter()
    if settings.caution:
        progress(settings.caution)
    output.mkdir(parents=True, exist_ok=True)
    description = _previous(settings, output)
    if description is None:
        if (output / "episodes").exists():
            raise UserError(f"{output} holds episodes of an interrupted run: remove the folder, or choose another.")
        description = _collect(settings, output, progress)
    episodes, _ = read_minari(output / "episodes")
    values = _read_values(output, settings)
    preferences = label(settings, episodes, values)
    write_preferences(output / "preferences.npz", preferences)
    report = data_report(settings.judge, settings.critic_gamma, episodes, preferences, values)
    report["behaviors_apart"] = description.get("report", {}).get("behaviors_apart", description.pop("apart", None))
    description |= {"settings": asdict(settings), "pairs": len(preferences.first), "report": report}
    description["seconds"] = round(description.get("seconds", 0.0) + time.perf_counter() - started, 1)
    write_atomically(output / "data.json", json.dumps(description, indent=1) + "\n")
    for line in describe(report):
        progress(line)
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
    environment = make(settings.env, settings.num_envs or None, settings.horizon or None, settings.random_hand)
    behaviors = build_behaviors(
        settings.policies,
        settings.env,
        environment,
        expert(settings.env),
        settings.seed,
        squash,
        settings.behavior_std,
        settings.demos,
        progress=progress,
    )
    episodes: list[Episode] = []
    rates, clock = [], TimeLeft(len(behaviors))
    for number, behavior in enumerate(behaviors):
        rows = collect(environment, behavior, settings.episodes, 10 * settings.seed + number, squash, number)
        rates.append(success_rate(rows))
        share = f"{len(rows)} episodes, {rates[-1]:.0%} success"
        progress(f"policy {number} ({settings.policies[number]}): {share}{clock.after()}")
        episodes += rows
    meta = {"environment": settings.env, "seed": settings.seed, "random_hand": settings.random_hand}
    write_minari(output / "episodes", episodes, squash, meta)
    if settings.critic_episodes or settings.critic == "simulated" or settings.optimum == "sac":
        best = best_critics(settings, environment, behaviors, settings.seed)
        _write_values(output / "values.npz", settings, episodes, behaviors, best)
        progress("critics done")
    apart = behaviors_apart(behaviors, episodes)
    return {
        "success": rates, "squash": squash, "num_episodes": len(episodes), "horizon": environment.horizon,
        "apart": apart,
    }  # fmt: skip


def best_critics(
    settings: JudgeSettings, environment: VectorEnvironment, behaviors: Sequence[Behavior], seed: int
) -> tuple[Critic, Critic]:
    """Return V*, and V* fitted again to episodes drawn with replacement (the same one where it is not learned so)."""
    gamma, squash = settings.critic_gamma, settings.actions == "tanh"
    if settings.optimum == "sac":
        best = train_soft_optimum(environment, settings.sac_episodes, gamma, seed)
        return best, best
    teacher = ScriptedBehavior(expert(settings.env), 0.05, squash)
    if settings.critic == "simulated":
        best = SimulatedCritic(teacher, squash, gamma, seed, deterministic=True)
        return best, best
    rows, starts = expert_episodes(environment, behaviors, teacher, settings.critic_episodes, seed, squash)
    drawn = _drawn_again(len(rows), seed)
    again = LearnedCritic([rows[i] for i in drawn], gamma, seed + 1, [starts[i] for i in drawn])
    return LearnedCritic(rows, gamma, seed, starts), again


def own_critic(
    settings: JudgeSettings, behavior: Behavior, episodes: Sequence[Episode], seed: int, best: Critic | None
) -> Critic:
    """Return V^mu of a behaviour, from its own episodes where it is learned; with entropy where V* has it."""
    if settings.critic == "simulated":
        return SimulatedCritic(behavior, settings.actions == "tanh", settings.critic_gamma, seed)
    bonus = best.alpha if isinstance(best, SoftOptimum) else 0.0
    return LearnedCritic(episodes, settings.critic_gamma, seed, bonus=bonus)


def _drawn_again(count: int, seed: int) -> list[int]:
    return np.random.default_rng([seed, 10]).integers(count, size=count).tolist()


def _write_values(
    path: Path,
    settings: DataSettings,
    episodes: Sequence[Episode],
    behaviors: Sequence[Behavior],
    best: tuple[Critic, Critic],
) -> None:
    """Store V* and V^mu of every recorded state (episodes in order, T + 1 rows each): labels need no critic later."""
    states = np.concatenate([e.observations for e in episodes])
    policy = np.repeat([e.policy for e in episodes], [len(e) + 1 for e in episodes])
    values = {"best": best[0].values(states), "best_again": best[1].values(states)}
    values |= {name: np.zeros(len(states), dtype=np.float32) for name in ("own", "own_again")}
    for number, behavior in enumerate(behaviors):
        rows, seed = [e for e in episodes if e.policy == number], settings.seed + number
        drawn = [rows[i] for i in _drawn_again(len(rows), seed)]
        for name, some, one in (("own", rows, seed), ("own_again", drawn, seed + 1000)):
            critic = own_critic(settings, behavior, some, one, best[0])
            values[name][policy == number] = critic.values(states[policy == number])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **values)
    write_atomically(path, buffer.getvalue())


def _read_values(output: Path, settings: DataSettings) -> Values:
    """Return the stored values; none where the data were collected without critics, which only returns allow."""
    if (output / "values.npz").is_file():
        with np.load(output / "values.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if settings.judge != "return":
        raise UserError(f"{output} was collected without critics (critic_episodes 0): only judge return is possible.")
    return {}


def label(settings: DataSettings, episodes: list[Episode], values: Values) -> Preferences:
    """Cut segments, let the judge score them, pair them up, and draw its answers."""
    seed = settings.seed if settings.label_seed < 0 else settings.label_seed
    generator = np.random.default_rng([seed, 4])
    episode, start = cut_segments(episodes, settings.segments, settings.segment_length, generator)
    length = np.full(len(start), settings.segment_length)
    first, second = pair_up(len(start), settings.comparisons, generator, settings.pairs or None)
    where = (episode, start, length)
    judged = JudgedSegments(episodes, *where, settings.critic_gamma, values.get("best"), values.get("own"))
    score = judged.scores(settings.judge)
    noise = settings.noise(score, first, second)
    labels = answer(score, first, second, generator, noise, settings.flip_fraction)
    return Preferences(*where, first, second, labels, score, asdict(settings))


def read_data(folder: Path) -> tuple[list[Episode], Preferences, dict[str, Any]]:
    """Read a folder that `autotelic control data` wrote, or a Minari data set with `preferences.npz` beside it."""
    inside = folder / "episodes"
    episodes, metadata = read_minari(inside if inside.is_dir() else folder)
    preferences = read_preferences(folder / "preferences.npz", episodes)
    return episodes, preferences, metadata
