"""Small networks on linear-Gaussian control: does the look-ahead that networks can learn beat CPL there?

    python benchmarks/evidence_lqr.py tune --output runs/evidence/lqr      # settings, on seeds that are not reported
    python benchmarks/evidence_lqr.py run --output runs/evidence/lqr       # resumes
    python benchmarks/evidence_lqr.py table runs/evidence/lqr > benchmarks/results/evidence_lqr.md

Data and judge are those of `autotelic control lqr`; the policy is an MLP, trained as in `autotelic control train`. The
figure is the excess discounted cost of its mean action (0 is optimal, 1 the better behaviour's, at most 10), on starts
and noise that all policies share. A finished fit is a line of `fits.jsonl` and is not made again.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotelic.control.behavior_labels import PolicyLabels
from autotelic.control.episodes import Behavior, Episode
from autotelic.control.intervals import mean_interval
from autotelic.control.learners import PreferenceLearner
from autotelic.control.mdp.lqr import LinearPolicy, optimum
from autotelic.control.mdp.lqr_fits import START_SCALE, WORST, Recording, chances, record
from autotelic.control.objectives import PairData
from autotelic.control.segments import Preferences
from autotelic.control.settings import TrainSettings
from autotelic.control.training import labelled_pairs

SETS, LENGTHS, SLIPS, SEEDS = ("same", "anti"), (8, 1), (0.0, 1.0), range(10, 20)
TUNING, TUNING_SEEDS = (("same", 8, 0.0),), (101,)
GRID = tuple({"bias": 1.0, "alpha": alpha, "lr": 3e-3} for alpha in (1.0, 0.7))  # lambda, alpha, after cloning
WRONG_SEEDS = SEEDS[:5]  # of the control arm
CHANGES: dict[str, dict[str, int]] = {"1000 pairs": {"pairs": 1000}}
CHANGED_CELLS = (("same", 8, 0.0),)
PAIRS, STARTS, STEPS = 5000, 512, 150
BASE = TrainSettings(
    hidden=(32, 32), dropout=0.0, lr=1e-3, decay=True, gamma=0.95, bc_steps=300, steps=1200, batch_pairs=256,
    constants="keep",
)  # fmt: skip
PAIR = ("cpl", "ppl")
ARMS: dict[str, dict[str, Any]] = {
    "cpl": {"method": "cpl"},
    "ppl": {"method": "ppl"},
    "ppl_in_segment_mean": {"method": "ppl", "future": "in_segment", "weights": "mean"},
    "ppl_wrong": {"method": "ppl"},
}


def episodes_of(data: Recording) -> list[Episode]:
    """The rollouts as recorded episodes; observations leave out the constant 1."""
    rows = []
    for states, actions, index in zip(data.rollouts.states, data.rollouts.actions, data.rollouts.policy, strict=True):
        policy = data.policies[index]
        mean, log_std = states[:-1] @ policy.gain.T, 0.5 * np.log(np.diag(policy.covariance))
        none = np.zeros(len(actions), np.float32)
        spread = np.broadcast_to(log_std, mean.shape).astype(np.float32)
        seen, done = states[:, :-1].astype(np.float32), actions.astype(np.float32)
        rows.append(Episode(seen, done, none, none > 0, int(index), mean.astype(np.float32), spread))
    return rows


def labels_of(data: Recording, episodes: list[Episode], wrong: bool) -> PolicyLabels:
    """Known labels, or for every episode those of the other behaviour in its states."""
    home = np.array([e.policy for e in episodes])
    own = parameters(episodes)
    if not wrong:
        return PolicyLabels(home, home, own, own)
    swapped = replace(data, rollouts=replace(data.rollouts, policy=1 - data.rollouts.policy))
    return PolicyLabels(home, 1 - home, parameters(episodes_of(swapped)), own)


def parameters(episodes: list[Episode]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [np.asarray(e.mean) for e in episodes], [np.asarray(e.log_std) for e in episodes]


def answers(data: Recording, judge: str, seed: int) -> Preferences:
    """Pairs of segments, judged at temperature alpha."""
    count = len(data.rollouts.policy) // 2
    chance = chances(data, judge, data.problem.alpha)
    label = (np.random.default_rng([seed, 8]).random(count) < chance).astype(np.float32)
    start, length = np.zeros(2 * count, int), np.full(2 * count, data.rollouts.length)
    return Preferences(np.arange(2 * count), start, length, np.arange(count), np.arange(count, 2 * count), label)


class Linear:
    """A linear policy as a behaviour of observations without the constant."""

    def __init__(self, policy: LinearPolicy) -> None:
        self.gain = policy.gain

    def parameters_at(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = observations @ self.gain[:, :-1].T + self.gain[:, -1]
        return mean, np.zeros_like(mean)


def cost(data: Recording, policy: Behavior) -> float:
    """Mean discounted cost of the mean action over fixed starts and noise."""
    problem, generator = data.problem, np.random.default_rng(12345)
    states = generator.standard_normal((STARTS, 5)) * START_SCALE + np.eye(5)[4]
    total = 0.0
    for step in range(STEPS):
        action = policy.parameters_at(states[:, :-1])[0]
        total -= problem.gamma**step * float(problem.rewards(states, action).mean())
        noise = problem.slip * generator.standard_normal(action.shape)
        states = np.clip(problem.following(states, action) + noise @ problem.b.T, -1e6, 1e6)
    return total


def excess(data: Recording, policy: Behavior) -> float:
    best = cost(data, Linear(optimum(data.problem)[0]))
    behavior = min(cost(data, Linear(p)) for p in data.policies)
    return min((cost(data, policy) - best) / (behavior - best), WORST)


class Cell:
    """One seed's data, its clone, and the fits on it."""

    def __init__(self, cell: tuple[str, int, float], judge: str, seed: int, pairs: int) -> None:
        name, length, slip = cell
        self.data, self.seed = record(name, length, pairs, slip, seed), seed
        self.episodes = episodes_of(self.data)
        self.answers = answers(self.data, judge, seed)
        self.clone: PreferenceLearner | None = None
        self.pairs: dict[tuple[str, bool], PairData] = {}

    def learner(self, settings: TrainSettings, wrong: bool) -> PreferenceLearner:
        """A learner that has cloned; the clone is the same for every arm and made once, at the base's learning rate."""
        kind = settings.future, wrong
        if kind not in self.pairs:
            labels = labels_of(self.data, self.episodes, wrong)
            self.pairs = {kind: labelled_pairs(settings, self.episodes, self.answers, labels)}
        pairs = self.pairs[kind]
        learner = PreferenceLearner(settings, pairs, False)
        if self.clone is None:
            self.clone = PreferenceLearner(replace(settings, lr=BASE.lr), pairs, False)
            for _ in range(settings.bc_steps):
                self.clone.update()
        learner.policy.load_state_dict(self.clone.policy.state_dict())
        learner.generator.set_state(self.clone.generator.get_state())
        learner.updates = settings.bc_steps
        return learner

    def fit(self, arm: str, change: dict[str, float]) -> dict[str, float]:
        """Excess cost of the clone and of the arm's policy, and CPU seconds."""
        settings = replace(BASE, seed=self.seed, **ARMS[arm], **change)
        started, learner = time.process_time(), self.learner(settings, "wrong" in arm)
        for _ in range(settings.steps):
            learner.update()
        assert self.clone is not None
        found = {"clone": excess(self.data, self.clone.policy), "excess": excess(self.data, learner.policy)}
        return {name: round(value, 4) for name, value in found.items()} | {
            "seconds": round(time.process_time() - started, 1)
        }


def key(cell: tuple[str, int, float], judge: str, seed: int, arm: str, change: dict[str, float]) -> str:
    if arm == "ppl_in_segment_mean" and cell[1] == 1:
        arm = "cpl"  # a segment of one step holds no future
    return json.dumps([*cell, judge, seed, arm, sorted(change.items())])


class Fits:
    """The file of finished fits; the data of one cell are kept until another one is asked for."""

    def __init__(self, output: Path) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.path = output / "fits.jsonl"
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        self.found = {row["key"]: row for line in lines if (row := json.loads(line))}
        self.where: Any = None

    def get(self, cell: tuple[str, int, float], judge: str, seed: int, arm: str, change: dict) -> dict[str, Any]:
        """Return a fit, made now where it is not there yet."""
        name = key(cell, judge, seed, arm, change)
        if name not in self.found:
            where = (cell, judge, seed, int(change.get("pairs", PAIRS)))
            if self.where != where:
                self.where, self.cell = where, Cell(*where)
            change = {name: value for name, value in change.items() if name != "pairs"}
            self.found[name] = {"key": name, **self.cell.fit(arm, change)}
            with self.path.open("a") as file:
                file.write(json.dumps(self.found[name]) + "\n")
            print(time.strftime("%H:%M:%S"), json.dumps(self.found[name]), file=sys.stderr, flush=True)
        return self.found[name]


def tune(fits: Fits) -> dict[str, dict[str, float]]:
    """Lambda, alpha and learning rate of CPL and of PPL: the lowest mean excess cost over the tuning cells."""
    chosen: dict[str, dict[str, float]] = {}
    for arm in PAIR:
        mean = [
            np.mean([fits.get(cell, "regret", seed, arm, change)["excess"] for seed in TUNING_SEEDS for cell in TUNING])
            for change in GRID
        ]
        chosen[arm] = GRID[int(np.argmin(mean))]
        print(arm, np.round(mean, 3).tolist(), file=sys.stderr, flush=True)
    chosen |= {arm: chosen["cpl" if "in_segment" in arm else "ppl"] for arm in ARMS if arm not in chosen}
    (fits.path.parent / "chosen.json").write_text(json.dumps(chosen) + "\n")
    return chosen


def cells() -> Iterator[tuple[str, tuple[str, int, float], tuple[str, ...]]]:
    """What is reported: every cell under regret, and under advantage the longer segments without slip."""
    for cell in itertools.product(SETS, LENGTHS, SLIPS):
        yield "regret", cell, tuple(ARMS)
    for name in SETS:
        yield "advantage", (name, LENGTHS[0], 0.0), PAIR


def work(chosen: dict[str, dict[str, float]]) -> Iterator[tuple[Any, ...]]:
    """Every fit that is reported, as arguments of `Fits.get`: CPL and PPL under regret come first, cell after cell."""
    rows = sorted(cells(), key=lambda row: (row[0] != "regret", row[1][2]))
    for (judge, cell, _), seed, arm in itertools.product(rows, SEEDS, PAIR):
        yield cell, judge, seed, arm, chosen[arm]
    for (judge, cell, arms), seed, arm in itertools.product(rows, SEEDS, list(ARMS)[len(PAIR) :]):
        if arm in arms and not (arm == "ppl_wrong" and seed not in WRONG_SEEDS):
            yield cell, judge, seed, arm, chosen[arm]
    for cell, change, seed, arm in itertools.product(CHANGED_CELLS, CHANGES.values(), SEEDS, PAIR):
        yield cell, "regret", seed, arm, chosen[arm] | change


def figures(fits: Fits, chosen: dict[str, dict[str, float]]) -> dict[Any, dict[int, float]]:
    """Excess cost per judge, cell and arm, of the seeds that are there."""
    result: dict[Any, dict[int, float]] = {}
    for seed, (judge, cell, arms) in itertools.product(SEEDS, list(cells())):
        for arm in arms:
            found = fits.found.get(key(cell, judge, seed, arm, chosen[arm]))
            if found and not (arm == "ppl_wrong" and seed not in WRONG_SEEDS):
                result.setdefault((judge, cell, arm), {})[seed] = found["excess"]
                result.setdefault((judge, cell, "clone"), {})[seed] = found["clone"]
    return result


def table(fits: Fits, chosen: dict[str, dict[str, float]]) -> str:
    found = figures(fits, chosen)
    lines = [
        "# Small networks on linear-Gaussian control",
        "",
        "`python benchmarks/evidence_lqr.py run`. Excess cost of the trained network's mean action: 0 is optimal, 1 "
        f"the better behaviour's, at most {WORST:g}. {PAIRS} pairs, judge's temperature alpha, two layers of 32. In "
        "brackets the paired difference with CPL and the half-width of its 95 % interval over seeds; bold: below CPL, "
        "interval without zero.",
        "",
        f"Chosen on seeds {', '.join(map(str, TUNING_SEEDS))}, which are not reported: `{json.dumps(chosen)}`.",
    ]
    for judge in ("regret", "advantage"):
        arms = list(dict.fromkeys(arm for one, _, arms in cells() if one == judge for arm in ("clone", *arms)))
        lines += ["", f"## Judged by {judge}", "", "| set, segment, slip | seeds | " + " | ".join(arms) + " |"]
        lines += ["| --- " * (len(arms) + 2) + "|"]
        for one, cell, _ in cells():
            if one == judge and (judge, cell, "cpl") in found:
                base = found[judge, cell, "cpl"]
                shown = [shown_cell(found.get((judge, cell, arm), {}), base, arm) for arm in arms]
                lines.append(f"| {cell[0]}, {cell[1]}, {cell[2]:g} | {len(base)} | " + " | ".join(shown) + " |")
    lines += ["", "## Judged by regret, changed", "", "| set, segment, slip; change | seeds | cpl | ppl |"]
    lines += ["| --- " * 4 + "|"]
    for cell, (name, change) in itertools.product(CHANGED_CELLS, CHANGES.items()):
        made = {(a, i): fits.found.get(key(cell, "regret", i, a, chosen[a] | change)) for a in PAIR for i in SEEDS}
        one, two = ({i: row["excess"] for i in SEEDS if (row := made[arm, i])} for arm in PAIR)
        both = sorted(set(one) & set(two))
        if both:
            shown = f"{shown_cell(one, one, 'cpl')} | {shown_cell(two, one, 'ppl')}"
            lines.append(f"| {cell[0]}, {cell[1]}, {cell[2]:g}; {name} | {len(both)} | {shown} |")
    return "\n".join(lines)


def shown_cell(values: dict[int, float], base: dict[int, float], arm: str) -> str:
    both = sorted(set(values) & set(base))
    if not both:
        return ""
    mean = f"{np.mean([values[s] for s in both]):.2f}"
    if arm in ("cpl", "clone"):
        return mean
    gap = mean_interval(np.array([values[s] - base[s] for s in both]))
    text = f"{mean} ({gap.short(2, sign=True)})"
    return f"**{text}**" if gap.high is not None and gap.high < 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "run", "table"))
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--output", type=Path, default=Path("runs/evidence/lqr"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    fits = Fits(args.path or args.output)
    if args.what == "tune":
        print(json.dumps(tune(fits)))
        return
    chosen = json.loads((fits.path.parent / "chosen.json").read_text())
    if args.what == "run":
        for arguments in work(chosen):
            fits.get(*arguments)
    print(table(fits, chosen))


if __name__ == "__main__":
    main()
