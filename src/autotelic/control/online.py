"""Online preference learning: collect with the present policy, ask for comparisons, update; answers on the x axis.

Each round's policy is a behaviour of its own: its density is known exactly, and it is its segments' policy label. The
judge compares segments of all rounds so far. V* is simulated (point-reach) or learned once from the expert's
continuations; V^mu is learned per round from its own episodes, or simulated.

Reference: arXiv:2505.06273, the online experiment. Deviations: PEBBLE, the baseline there, is not implemented; the
comparison here is with CPL and PPL-d under the same answers.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotelic.control.behaviors import ScriptedBehavior, build_behaviors, read_specs
from autotelic.control.collection import DataSettings, critics
from autotelic.control.environments import expert, make
from autotelic.control.episodes import Behavior, Episode, collect
from autotelic.control.judges import Critic, LearnedCritic, SimulatedCritic, judge_segments
from autotelic.control.labels import label_parameters
from autotelic.control.learners import PreferenceLearner
from autotelic.control.networks import GaussianPolicy
from autotelic.control.objectives import pair_data, segment_steps
from autotelic.control.segments import Preferences, answer, cut_segments
from autotelic.control.settings import TrainSettings
from autotelic.control.training import Row, RunFolder, evaluate
from autotelic.errors import UserError

Number = float | int
Progress = Callable[[str], None]


@dataclass(frozen=True)
class OnlineSettings:
    """What a round collects and asks; the rest is `TrainSettings` (its `steps` are the updates of one round).

    Attributes:
        env: `point-reach` or `metaworld/TASK`.
        start: the behaviour of the first round, as in `behaviors`; it is cloned before the first update.
        rounds: how often to collect, compare and update.
        round_episodes: episodes a round.
        round_answers: comparisons a round.
        segment_length: steps of a segment.
        actions: `clip` or `tanh`.
        judge: `regret`, `advantage` or `return`.
        critic: `learned`, or `simulated` on point-reach.
        critic_episodes: for V*.
        critic_gamma: discount of the critics.
        temperature: of the judge, in standard deviations of the differences.
    """

    env: str = "point-reach"
    start: str = "clone:1:10"
    rounds: int = 5
    round_episodes: int = 16
    round_answers: int = 50
    segment_length: int = 16
    actions: str = "tanh"
    judge: str = "regret"
    critic: str = "simulated"
    critic_episodes: int = 96
    critic_gamma: Number = 0.99
    temperature: Number = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be run; `DataSettings` checks what it shares."""
        if min(self.rounds, self.round_episodes, self.round_answers) < 1:
            raise UserError("rounds, round_episodes and round_answers are counts: give 1 or more.")
        read_specs([self.start], self.env)
        self.data(0)

    def data(self, seed: int) -> DataSettings:
        """Return the settings of data and critics that the rounds share."""
        return DataSettings(
            env=self.env,
            policies=(self.start,),
            actions=self.actions,
            segment_length=self.segment_length,
            judge=self.judge,
            critic=self.critic,
            critic_episodes=self.critic_episodes,
            critic_gamma=self.critic_gamma,
            temperature=self.temperature,
            seed=seed,
        )


def run_online(
    online: OnlineSettings, training: TrainSettings, output: Path, progress: Progress = lambda line: None
) -> list[Row]:
    """Return one row per round, after its updates; the first row is the clone of the start, before any answer."""
    data = online.data(training.seed)
    config = {**asdict(training), **{f"online_{k}": v for k, v in asdict(online).items()}}
    run = RunFolder(output, f"online_{training.method}", config, training.seed, resume=False)
    squash, generator = online.actions == "tanh", np.random.default_rng([training.seed, 7])
    torch.manual_seed(training.seed)
    environment = make(online.env, training.num_envs or None, training.horizon or None)
    script = expert(online.env)
    start = build_behaviors([online.start], online.env, environment, script, training.seed, squash, progress=progress)
    actor: Behavior = start[0]
    teacher = ScriptedBehavior(script, 0.05, squash)
    best = critics(data, environment, [actor], teacher, collect(environment, actor, 16, 99, squash))[0]
    episodes: list[Episode] = []
    values: list[dict[str, np.ndarray]] = []
    asked: list[Preferences] = []
    learner: PreferenceLearner | None = None
    rows: list[Row] = []
    for number in range(online.rounds):
        fresh = collect(environment, actor, online.round_episodes, 100 * training.seed + number + 50, squash, number)
        own = _own_critic(data, actor, fresh, squash, training.seed + number)
        values += [_values(e, best, own) for e in fresh]
        episodes += fresh
        asked.append(_ask(online, episodes, values, generator))
        learner = _learn(training, episodes, _merge(asked), squash, learner)
        if number == 0:
            first = _row(0, 0, learner.clone, environment, training, squash)
            run.log(first, learner)
            rows.append(first)
        actor = learner.policy.eval()
        answers = sum(len(p.first) for p in asked)
        row = _row(learner.total, answers, learner.policy, environment, training, squash)
        run.log(row, learner)
        rows.append(row)
        progress(f"round {number + 1}/{online.rounds}: {json.dumps({k: round(v, 3) for k, v in row.items()})}")
    return rows


class OnlineLearner(PreferenceLearner):
    """A learner that keeps its weights from round to round, while its data grow."""

    total = 0
    clone: GaussianPolicy


def _learn(
    training: TrainSettings, episodes: list[Episode], preferences: Preferences, squash: bool, before: Any
) -> OnlineLearner:
    """Clone the first round's data, then make the round's updates on every answer so far."""
    steps = segment_steps(preferences, episodes, training.future == "observed")
    where = (steps.episode, steps.step)
    label = label_parameters(training.labels, episodes, where, training.seed) if training.method == "ppl" else None
    first = before is None
    settings = training if first else replace(training, bc_steps=0)
    learner = OnlineLearner(settings, pair_data(episodes, preferences, steps, label), squash)
    if not first:
        learner.policy.load_state_dict(before.policy.state_dict())
        learner.generator.set_state(before.generator.get_state())
        learner.total, learner.clone = before.total, before.clone
    learner.policy.train()
    for update in range(settings.bc_steps + settings.steps):
        learner.update()
        if first and update == settings.bc_steps - 1:
            learner.clone = GaussianPolicy(**learner.policy.config)
            learner.clone.load_state_dict(learner.policy.state_dict())
    learner.total += settings.bc_steps + settings.steps
    return learner


def _own_critic(data: DataSettings, actor: Behavior, fresh: list[Episode], squash: bool, seed: int) -> Critic:
    if data.critic == "simulated":
        return SimulatedCritic(actor, squash, data.critic_gamma, seed)
    return LearnedCritic(fresh, data.critic_gamma, seed, updates=800)


def _values(episode: Episode, best: Critic | None, own: Critic) -> dict[str, np.ndarray]:
    left = np.arange(len(episode), -1, -1)
    if best is None:
        return {}
    return {"best": best.values(episode.observations, left), "own": own.values(episode.observations, left)}


def _ask(
    online: OnlineSettings, episodes: list[Episode], values: list[dict[str, np.ndarray]], generator: np.random.Generator
) -> Preferences:
    """Compare a new segment (of the latest round) with one of any round."""
    latest = len(episodes) - online.round_episodes
    count, length = online.round_answers, online.segment_length
    new, new_start = cut_segments(episodes[latest:], count, length, generator)
    old, old_start = cut_segments(episodes, count, length, generator)
    episode, start = np.concatenate([new + latest, old]), np.concatenate([new_start, old_start])
    size = np.full(2 * count, length)
    stored = {name: np.concatenate([v[name] for v in values]) for name in values[0]}
    best, own = stored.get("best"), stored.get("own")
    score = judge_segments(online.judge, episodes, episode, start, size, online.critic_gamma, best, own)
    order = np.arange(count)
    swap = generator.random(count) < 0.5
    first, second = np.where(swap, order + count, order), np.where(swap, order, order + count)
    labels = answer(score, first, second, generator, online.temperature)
    return Preferences(episode, start, size, first, second, labels, score)


def _merge(parts: list[Preferences]) -> Preferences:
    offset = np.concatenate([[0], np.cumsum([len(p.episode) for p in parts])[:-1]])

    def join(name: str, shift: bool = False) -> np.ndarray:
        return np.concatenate([getattr(part, name) + by for part, by in zip(parts, offset * shift, strict=True)])

    where = (join("episode"), join("start"), join("length"))
    label = np.concatenate([part.label for part in parts])
    return Preferences(*where, first=join("first", shift=True), second=join("second", shift=True), label=label)


def _row(step: int, answers: int, policy: Behavior, environment: Any, training: TrainSettings, squash: bool) -> Row:
    figures = evaluate(policy, environment, training.eval_episodes, training.seed, squash)
    return {"step": step, "feedback/labels": answers, **figures}
