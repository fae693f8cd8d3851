"""Online preference learning: collect with the present policy, ask for comparisons, update; answers on the x axis.

Each round's policy is a behaviour of its own: its density is known exactly, and it is its segments' policy label. The
judge compares segments of all rounds so far. V* is simulated (point-reach) or learned once from the expert's
continuations; V^mu is learned per round from its own episodes, or simulated.

Who learns is a `Student`: CPL, PPL and PPL-d (`PreferenceStudent`), or PEBBLE (`pebble`), which also acts between the
rounds. So each row counts answers and the learner's own steps in the environment; those of the critics do not count.

Reference: arXiv:2505.06273, the online experiment. Deviations: sizes are arguments.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from autotelic.control.behavior_labels import policy_labels
from autotelic.control.behaviors import build_behaviors
from autotelic.control.collection import best_critics, own_critic
from autotelic.control.environments import VectorEnvironment, expert, make
from autotelic.control.episodes import Behavior, Episode, clipped, collect
from autotelic.control.judges import JudgedSegments
from autotelic.control.learners import PreferenceLearner
from autotelic.control.networks import GaussianPolicy
from autotelic.control.pebble import Pebble
from autotelic.control.segments import Preferences, answer, cut_segments, merge_preferences
from autotelic.control.settings import ONLINE_METHODS, OnlineSettings, PebbleSettings, TrainSettings
from autotelic.control.training import Row, RunFolder, evaluate, labelled_pairs, weights_note
from autotelic.errors import UserError, closest
from autotelic.runs.time_left import TimeLeft

Number = float | int
Progress = Callable[[str], None]


@runtime_checkable
class Student(Protocol):
    """Who learns: `actor` acts in the next round (None: the start does), `policy` is evaluated.

    `first` is the policy before any answer; it and the policy need not exist before the first `learn`.
    """

    first: GaussianPolicy | None
    actor: Behavior | None
    updates: int

    @property
    def policy(self) -> GaussianPolicy | None:
        """The present policy."""
        ...

    @property
    def env_steps(self) -> int:
        """Steps that it took for itself, beside the rounds' own episodes."""
        ...

    @property
    def candidates(self) -> int:
        """Comparisons to draw for each that is asked."""
        ...

    def choose(self, episodes: Sequence[Episode], drawn: Preferences, count: int) -> np.ndarray:
        """Return the rows of the pairs to ask about."""
        ...

    def learn(
        self, episodes: Sequence[Episode], fresh: Sequence[Episode], asked: Sequence[Preferences]
    ) -> dict[str, float]:
        """Update on every answer so far, those of the last part being new; returns what else belongs into the row."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved beside the policy."""
        ...


class PreferenceStudent:
    """CPL, PPL, PPL-d: clone the first round, then update on all answers in each; weights stay, Adam starts anew."""

    env_steps, candidates = 0, 1

    def __init__(self, training: TrainSettings, squash: bool) -> None:
        """Wait for the first answers: networks are built for them."""
        self.training, self.squash = training, squash
        self.first: GaussianPolicy | None = None
        self.policy: GaussianPolicy | None = None
        self.actor: Behavior | None = None
        self.updates = 0
        self.learner: PreferenceLearner | None = None

    def choose(self, episodes: Sequence[Episode], drawn: Preferences, count: int) -> np.ndarray:
        """Return the first pairs: it has no opinion."""
        return np.arange(count)

    def learn(
        self, episodes: Sequence[Episode], fresh: Sequence[Episode], asked: Sequence[Preferences]
    ) -> dict[str, float]:
        """Clone the first round's data, then make the round's updates on every answer so far."""
        training, before = self.training, self.learner
        episodes = [clipped(e) for e in episodes] if training.output_act == "tanh" else episodes
        preferences = merge_preferences(asked)
        kind = training.labels if training.method == "ppl" else "deterministic"
        data = labelled_pairs(training, episodes, preferences, policy_labels(kind, episodes, training.seed))
        settings = training if before is None else replace(training, bc_steps=0)
        self.learner = learner = PreferenceLearner(settings, data, self.squash)
        if before is not None:
            learner.policy.load_state_dict(before.policy.state_dict())
            learner.generator.set_state(before.generator.get_state())
        learner.policy.train()
        for _ in range(settings.bc_steps):
            learner.update()
        self.first = self.first or copy.deepcopy(learner.policy)
        for _ in range(settings.steps):
            learner.update()
        self.updates += learner.updates
        self.actor = self.policy = learner.policy.eval()
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and generator."""
        return self.learner.state_dict() if self.learner else {}


def run_online(
    online: OnlineSettings,
    training: TrainSettings,
    output: Path,
    progress: Progress = lambda line: None,
    pebble: PebbleSettings | None = None,
) -> list[Row]:
    """Return one row per round, after its updates; the first row is the policy before any answer."""
    pebble, training = pebble or PebbleSettings(), training.on(online.env, online.actions == "tanh")
    for note in filter(None, (online.caution, weights_note(training, online.judge))):
        progress(note)
    parts = {"online": online} | ({"pebble": pebble} if training.method == "pebble" else {})
    config = {f"{name}_{k}": v for name, part in parts.items() for k, v in asdict(part).items()}
    run = RunFolder(output, f"online_{training.method}", asdict(training) | config, training.seed, resume=False)
    torch.manual_seed(training.seed)
    environment = make(online.env, training.num_envs or None, training.horizon or None, online.random_hand)
    student = build_student(online, training, pebble, environment)
    rounds = _Rounds(online, training.seed, environment, student, progress)

    def log(policy: GaussianPolicy, budget: Row, **more: float) -> Row:
        figures = evaluate(policy, environment, training.eval_episodes, training.seed, rounds.squash)
        row = budget | more | figures
        run.log(row, policy, student.state_dict())
        return row

    rows: list[Row] = []
    clock = TimeLeft(online.rounds)
    for number in range(online.rounds):
        fresh = rounds.collect_and_ask(number)
        before: Row = {"step": 0, "feedback/labels": 0, "feedback/env_steps": rounds.env_steps}
        more = student.learn(rounds.episodes, fresh, rounds.asked)
        assert student.first is not None and student.policy is not None, "a student that has learned has both"
        if number == 0:
            rows.append(log(student.first, before))
        answers = sum(len(part.first) for part in rounds.asked)
        budget: Row = {"step": student.updates, "feedback/labels": answers, "feedback/env_steps": rounds.env_steps}
        rows.append(log(student.policy, budget, **more))
        shown = {name: round(value, 3) for name, value in rows[-1].items()}
        progress(f"round {number + 1}/{online.rounds}: {json.dumps(shown)}{clock.after()}")
    return rows


def build_student(
    online: OnlineSettings, training: TrainSettings, pebble: PebbleSettings, environment: VectorEnvironment
) -> Student:
    """Return who learns by the method's name."""
    if training.method not in ONLINE_METHODS:
        choice = closest(training.method, ONLINE_METHODS)
        raise UserError(f"{training.method!r} does not learn online{choice}: one of {', '.join(ONLINE_METHODS)}.")
    if training.method != "pebble":
        return PreferenceStudent(training, online.actions == "tanh")
    if online.actions != "tanh":
        raise UserError("pebble needs actions tanh: soft actor-critic has the density of tanh(u), not of a clipped u.")
    return Pebble(pebble, training, environment)


class _Rounds:
    """Episodes, the judge's values of their states, and the answers, round after round."""

    def __init__(
        self, online: OnlineSettings, seed: int, environment: VectorEnvironment, student: Student, progress: Progress
    ) -> None:
        """Build the start's behaviour and V*, which are the same for every student."""
        self.online, self.seed, self.environment, self.student = online, seed, environment, student
        self.squash = online.actions == "tanh"
        self.generator = np.random.default_rng([seed, 7])
        script = expert(online.env)
        start = build_behaviors([online.start], online.env, environment, script, seed, self.squash, progress=progress)
        self.start, self.best = start[0], None
        if online.critic_episodes or online.critic == "simulated" or online.optimum == "sac":
            self.best = best_critics(online, environment, start, seed)[0]
        self.episodes: list[Episode] = []
        self.values: list[dict[str, np.ndarray]] = []
        self.asked: list[Preferences] = []
        self.waves = 0

    @property
    def env_steps(self) -> int:
        """Steps of the rounds' episodes and of the student's own."""
        return self.waves * self.environment.num_envs * self.environment.horizon + self.student.env_steps

    def collect_and_ask(self, number: int) -> list[Episode]:
        """Let the student act and the judge answer; returns the new episodes."""
        actor, count = self.student.actor or self.start, self.online.round_episodes
        fresh = collect(self.environment, actor, count, 100 * self.seed + number + 50, self.squash, number)
        self.waves += -(-count // self.environment.num_envs)
        if self.best is not None:
            own = own_critic(self.online, actor, fresh, self.seed + number, self.best)
            self.values += [
                {"best": self.best.values(e.observations), "own": own.values(e.observations)} for e in fresh
            ]
        self.episodes += fresh
        self.asked.append(self._ask(len(self.episodes) - count))
        return fresh

    def _ask(self, latest: int) -> Preferences:
        """Compare a new segment (of the latest round) with one of any round."""
        online, episodes, generator = self.online, self.episodes, self.generator
        count, length = online.round_answers * self.student.candidates, online.segment_length
        new, new_start = cut_segments(episodes[latest:], count, length, generator)
        old, old_start = cut_segments(episodes, count, length, generator)
        episode, start = np.concatenate([new + latest, old]), np.concatenate([new_start, old_start])
        size = np.full(2 * count, length)
        order = np.arange(count)
        swap = generator.random(count) < 0.5
        first, second = np.where(swap, order + count, order), np.where(swap, order, order + count)
        drawn = Preferences(episode, start, size, first, second, np.full(count, 0.5, dtype=np.float32))
        rows = self.student.choose(episodes, drawn, online.round_answers)
        first, second = first[rows], second[rows]
        stored = {name: np.concatenate([v[name] for v in self.values]) for name in (self.values or [{}])[0]}
        critics = (stored.get("best"), stored.get("own"))
        score = JudgedSegments(episodes, episode, start, size, online.critic_gamma, *critics).scores(online.judge)
        labels = answer(score, first, second, generator, online.noise(score, first, second))
        return Preferences(episode, start, size, first, second, labels, score)
