"""What a control recipe's labels are worth, and how far PPL's loss is from CPL's: why one may not beat the other.

    python benchmarks/critic_quality.py recipes/control_metaworld.yaml --seeds 0 1 2

Per task and seed, with the recipe's own data:
- V^mu and V* against Monte Carlo returns of episodes that no critic has seen (correlation over states);
- critics from four times the episodes: the share of pairs whose winner changes, without the judge's noise;
- the share of pairs whose winner changes from regret to advantage, and to return;
- how far apart the behaviours are: mean |difference of means| / std over recorded states and dimensions;
- correlation of CPL's and PPL's margins, and cosine of their losses' gradients, at the clone; the same for PPL under
  wrong labels: what is left there for a label to change.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from autotelic.cli.control_learning import build_settings
from autotelic.control.behaviors import ScriptedBehavior, build_behaviors
from autotelic.control.collection import DataSettings, best_critic, build_data, own_critic, read_data
from autotelic.control.environments import expert, make
from autotelic.control.episodes import Episode, collect, roll_out
from autotelic.control.judges import Critic, judge_segments, rewards_to_go
from autotelic.control.objectives import all_scores
from autotelic.control.settings import TrainSettings
from autotelic.control.training import build_learner, prepare

Number = float | int
HELD_OUT = 24  # episodes a behaviour, and of the expert


def correlation(critic: Critic, episodes: list[Episode], gamma: Number, starts: list[int]) -> float:
    """Of the critic's values and the returns that followed, over the steps from each episode's start on."""
    values, returns = [], []
    for episode, start in zip(episodes, starts, strict=True):
        left = np.arange(len(episode) - start, 0, -1)
        values.append(critic.values(episode.observations[start:-1], left))
        returns.append(rewards_to_go(episode.rewards, gamma)[start:])
    return float(np.corrcoef(np.concatenate(values), np.concatenate(returns))[0, 1])


class Labels:
    """The recipe's data, built again, with critics of two sizes."""

    def __init__(self, settings: DataSettings, folder: Path) -> None:
        """Collect; behaviours come from the same seed as the data."""
        build_data(settings, folder)
        self.settings, self.gamma = settings, settings.critic_gamma
        self.episodes, self.preferences, _ = read_data(folder)
        self.environment = make(settings.env, settings.num_envs or None, settings.horizon or None)
        self.squash, script = settings.actions == "tanh", expert(settings.env)
        shared = (settings.env, self.environment, script, settings.seed, self.squash)
        self.behaviors = build_behaviors(settings.policies, *shared, settings.behavior_std, settings.demos)
        self.teacher = ScriptedBehavior(script, 0.05, self.squash)

    def critics(self, times: int) -> tuple[Critic, list[Critic]]:
        """V* and V^mu from `times` as many episodes as the recipe's."""
        settings = replace(self.settings, critic_episodes=times * self.settings.critic_episodes)
        best = best_critic(settings, self.environment, self.behaviors, self.teacher, settings.seed)
        assert best is not None, "the recipe spends no episode on V*"
        own = []
        for number, behavior in enumerate(self.behaviors):
            rows = [e for e in self.episodes if e.policy == number]
            if times > 1:
                seed = 77_000 + 10 * settings.seed + number
                rows += collect(self.environment, behavior, (times - 1) * len(rows), seed, self.squash, number)
            own.append(own_critic(settings, behavior, rows, settings.seed + number))
        return best, own

    def held_out(self, best: Critic, own: list[Critic]) -> dict[str, float]:
        """Correlations with the returns of new episodes."""
        found = []
        for number, behavior in enumerate(self.behaviors):
            rows = collect(self.environment, behavior, HELD_OUT, 88_000 + 10 * self.settings.seed + number, self.squash)
            found.append(correlation(own[number], rows, self.gamma, [0] * len(rows)))
        generator, rows, starts = np.random.default_rng([self.settings.seed, 31]), [], []
        for wave in range(HELD_OUT // self.environment.num_envs):
            begin = generator.integers(0, self.environment.horizon - 10, size=self.environment.num_envs)
            behavior = self.behaviors[wave % len(self.behaviors)]
            seed = 88_500_000 + 1000 * self.settings.seed + wave
            rows += roll_out(self.environment, behavior, seed, self.squash, switch=(begin, self.teacher))
            starts += begin.tolist()
        return {"corr_own": float(np.mean(found)), "corr_best": correlation(best, rows, self.gamma, starts)}

    def scores(self, judge: str, best: Critic, own: list[Critic]) -> np.ndarray:
        """The judge's score of every segment."""
        value = [(e.policy, e.observations, np.arange(len(e), -1, -1)) for e in self.episodes]
        p, stars = self.preferences, np.concatenate([best.values(o, left) for _, o, left in value])
        mine = np.concatenate([own[policy].values(o, left) for policy, o, left in value])
        return judge_segments(judge, self.episodes, p.episode, p.start, p.length, self.gamma, stars, mine)

    def changed(self, one: np.ndarray, two: np.ndarray) -> float:
        """Share of pairs with another winner."""
        p = self.preferences
        return float(np.mean((one[p.second] > one[p.first]) != (two[p.second] > two[p.first])))

    def figures(self) -> dict[str, float]:
        """Everything about the labels."""
        small, large = self.critics(1), self.critics(4)
        regret = self.scores("regret", *small)
        result = self.held_out(*small) | {f"{k}_x4": v for k, v in self.held_out(*large).items()}
        result["changed_by_x4"] = self.changed(regret, self.scores("regret", *large))
        result["changed_by_advantage"] = self.changed(regret, self.scores("advantage", *small))
        result["changed_by_return"] = self.changed(regret, self.scores("return", *small))
        answers = self.preferences.label > 0.5
        winner = regret[self.preferences.second] > regret[self.preferences.first]
        result["changed_by_noise"] = float(np.mean(answers != winner))
        states = np.concatenate([e.observations[:-1] for e in self.episodes])
        (one, log_std), (two, _) = (
            behavior.parameters_at(states) for behavior in (self.behaviors[0], self.behaviors[-1])
        )
        return result | {"behaviors_apart": float(np.mean(np.abs(one - two) / np.exp(log_std)))}


def losses(training: TrainSettings, folder: Path) -> dict[str, float]:
    """Margins and gradients of CPL and PPL at their common clone, and of PPL with known and with wrong labels."""
    margins, gradients = {}, {}
    arms = {"cpl": ("cpl", "known"), "ppl": ("ppl", "known"), "wrong": ("ppl", "wrong"), "ppl_d": ("ppl_d", "known")}
    weights: Any = None
    for name, (method, labels) in arms.items():
        settings = replace(training, method=method, labels=labels)
        learner = build_learner(settings, prepare(settings, folder))
        if weights is None:
            for _ in range(settings.bc_steps):
                learner.update()
            weights = learner.policy.state_dict()
        learner.policy.load_state_dict(weights)
        score = all_scores(learner.policy, learner.data, learner.lookahead, learner.constants)
        margins[name] = (score[learner.data.second] - score[learner.data.first]).numpy()
        parameters = list(learner.policy.body.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        for _ in range(40):
            found = torch.autograd.grad(learner.objective(), parameters)
            total = [t + g for t, g in zip(total, found, strict=True)]
        gradients[name] = torch.cat([t.flatten() for t in total])
    result = {}
    for one, two in (("ppl", "cpl"), ("ppl_d", "cpl"), ("wrong", "ppl")):
        result[f"margins_{one}_{two}"] = float(np.corrcoef(margins[one], margins[two])[0, 1])
        cosine = torch.nn.functional.cosine_similarity(gradients[one], gradients[two], dim=0)
        result[f"gradients_{one}_{two}"] = float(cosine)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe, rows = yaml.safe_load(args.recipe.read_text()), []
    for task in args.tasks or recipe["tasks"]:
        for seed in args.seeds:
            section = recipe.get("data", {}) | recipe["tasks"][task]
            with tempfile.TemporaryDirectory() as folder:
                labels = Labels(build_settings(DataSettings, section, {"seed": seed}), Path(folder) / "data")
                training = build_settings(TrainSettings, recipe["train"] | {"bias": 0.5}, {"seed": seed})
                rows.append({"task": task, "seed": seed} | labels.figures() | losses(training, Path(folder) / "data"))
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}
            print(time.strftime("%H:%M:%S"), json.dumps(shown), file=sys.stderr, flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    names = [name for name in rows[0] if name not in ("task", "seed")]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    print("| | " + " | ".join(tasks) + " |\n| --- " + "| --- " * len(tasks) + "|")
    for name in names:
        cells = [[row[name] for row in rows if row["task"] == task] for task in tasks]
        print(f"| {name} | " + " | ".join(f"{np.mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in cells) + " |")


if __name__ == "__main__":
    main()
