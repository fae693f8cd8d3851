"""`autotelic control train`: clone, train, evaluate, log, save; resumable, and a folder that `autotelic report` reads.

The run folder: `run.json`, `metrics.jsonl` (a row per evaluation, steps counted from the first update of cloning),
`policy.safetensors`, `state.pt` (to resume), `result.json` (final figures).

Reference: arXiv:2310.13639 (25 episodes every 5000 updates, success at any step). Deviations: sizes are arguments.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotelic.control.behavior_labels import PolicyLabels, policy_labels
from autotelic.control.collection import read_data
from autotelic.control.environments import VectorEnvironment, make
from autotelic.control.episodes import Behavior, Episode, clipped, roll_out
from autotelic.control.expected import fit_expected
from autotelic.control.intervals import share_interval
from autotelic.control.learners import IQLLearner, PreferenceLearner
from autotelic.control.networks import GaussianPolicy
from autotelic.control.objectives import PairData, all_scores, calibrated_nll, pair_data, segment_steps
from autotelic.control.segments import Preferences
from autotelic.control.settings import METHODS, TrainSettings
from autotelic.errors import UserError
from autotelic.runs.files import check_writable, write_atomically
from autotelic.runs.glossary import check_declared
from autotelic.runs.time_left import TimeLeft

Number = float | int
Progress = Callable[[str], None]
Row = dict[str, float | int]


@dataclass
class Prepared:
    """Data in memory, shared by the methods that train on it."""

    episodes: list[Episode]
    data: PairData
    held_out: torch.Tensor
    squash: bool
    env: str
    random_hand: bool
    settings: TrainSettings
    judge: str | None = None


def prepare(settings: TrainSettings, folder: Path) -> Prepared:
    """Read a data folder, attach policy labels where they are needed or recorded, and set pairs aside."""
    episodes, preferences, metadata = read_data(folder)
    env, squash = metadata.get("environment"), bool(metadata.get("squash", False))
    if env is None:
        raise UserError(f"{folder}: the data set does not name its environment (metadata key `environment`). Add it.")
    settings, kind = settings.on(env, squash), settings.labels
    episodes = [clipped(e) for e in episodes] if settings.output_act == "tanh" else episodes
    if settings.method != "ppl" and not all(e.mean is not None for e in episodes):
        kind = "deterministic"
    labels = policy_labels(kind, episodes, settings.seed, folder)
    data = labelled_pairs(settings, episodes, preferences, labels)
    count = len(preferences.label)
    held = max(1, round(settings.held_out_fraction * count))
    if count - held < 1:
        raise UserError(
            f"{folder / 'preferences.npz'} holds {count} pairs: training and the held-out NLL need 2 or more."
        )
    held_out = torch.zeros(count, dtype=torch.bool)
    held_out[torch.from_numpy(np.random.default_rng([settings.seed, 6]).permutation(count)[:held])] = True
    random_hand, judge = bool(metadata.get("random_hand", False)), preferences.settings.get("judge")
    return Prepared(episodes, data, held_out, squash, env, random_hand, settings, judge)


def weights_note(settings: TrainSettings, judge: str | None) -> str | None:
    """Return a warning where the score counts the future otherwise than the judge of the labels did."""
    fitting = {"regret": "regret", "regret_tail": "tail"}.get(judge or "")
    if settings.method not in ("ppl", "ppl_d") or fitting in (None, settings.weights):
        return None
    return (
        f"warning: the judge of these labels is {judge}, whose score has weights {fitting}, and this run has weights "
        f"{settings.weights}: its loss is no likelihood of them. Use weights {fitting}."
    )


def labelled_pairs(
    settings: TrainSettings, episodes: Sequence[Episode], preferences: Preferences, labels: PolicyLabels
) -> PairData:
    """Gather the segments with their policy labels, and regress futures where the look-ahead is `expected`.

    Warns (`BiasedLookaheadWarning`) where one recorded future stands for the expectation.
    """
    lookahead = settings.lookahead()
    lookahead.warn_if_biased(labels.stochastic)
    steps = segment_steps(preferences, episodes, settings.future == "observed")
    if settings.future != "expected":
        return pair_data(episodes, preferences, steps, labels.at((steps.episode, steps.step)))
    tail = settings.weights == "tail"
    data = pair_data(episodes, preferences, steps)
    expected = fit_expected(
        episodes, labels.home, labels.owner, labels.own, preferences, settings.gamma, tail, settings.seed
    )
    return replace(data, expected=expected)


def build_learner(settings: TrainSettings, prepared: Prepared, method: str | None = None) -> PreferenceLearner:
    """Return the method's learner on the training pairs."""
    train = prepared.data.take((~prepared.held_out).nonzero().squeeze(-1))
    if settings.method == "p_iql":
        return IQLLearner(settings, train, prepared.squash, prepared.episodes)
    return PreferenceLearner(settings, train, prepared.squash, method)


def evaluate(policy: Behavior, environment: VectorEnvironment, count: int, seed: int, squash: bool) -> Row:
    """Success rate (any step) with Wilson's interval, and mean return, of the deterministic policy."""
    episodes: list[Episode] = []
    wave = 0
    while len(episodes) < count:
        episodes += roll_out(environment, policy, 5_000_000 + 1000 * seed + wave, squash, deterministic=True)
        wave += 1
    episodes = episodes[:count]
    hits = sum(bool(e.success.any()) for e in episodes)
    rate, low, high = share_interval(hits, count)
    returns = float(np.mean([e.rewards.sum() for e in episodes]))
    return {"eval/success": rate, "eval/success_low": low, "eval/success_high": high, "eval/return": returns}


def preference_figures(learner: PreferenceLearner, prepared: Prepared) -> Row:
    """Held-out NLL of the present policy under CPL's score and under PPL's, and the accuracy of the method's own."""
    result: Row = {}
    data = replace(prepared.data, ref_logprobs=learner.data.ref_logprobs)
    for name in ("cpl", "ppl"):
        lookahead = learner.settings.lookahead(name)
        known = data.label_mean if data.expected is None else data.expected.label_mean
        if name == "ppl" and lookahead.divergence == "kl" and known is None:
            continue
        score = all_scores(learner.policy, data.with_lookahead(lookahead), lookahead, learner.constants)
        margin = score[data.second] - score[data.first]
        nll, accuracy = calibrated_nll(margin, data.label, prepared.held_out)
        result[f"preference/nll_{name}"] = nll
        if name == ("ppl" if learner.method in ("ppl", "ppl_d") else "cpl"):
            result["preference/accuracy"] = accuracy
    return result


class RunFolder:
    """Where a run writes: rows are appended, everything else is replaced whole."""

    def __init__(self, path: Path, method: str, settings: dict[str, Any], seed: int, resume: bool) -> None:
        """Open it; a folder with a run in it is only entered to resume the same settings."""
        self.path = path
        check_writable(path / "run.json", "choose another --output")
        asked = json.loads(json.dumps(settings))
        if (path / "run.json").is_file():
            known = json.loads((path / "run.json").read_text())
            if not resume:
                raise UserError(f"{path} holds a run: give --resume to continue it, or another --output.")
            other = [name for name, value in asked.items() if known["config"].get(name) != value]
            if other:
                raise UserError(f"{path} was run with another {', '.join(other)}: resume with the same settings.")
        else:
            versions = {name: version(name) for name in ("torch", "numpy", "autotelic")}
            started = datetime.now(UTC).isoformat(timespec="seconds")
            run = {"method": method, "seed": seed, "config": asked, "versions": versions, "started": started}
            write_atomically(path / "run.json", json.dumps(run, indent=1) + "\n")
        self.rows: list[Row] = []

    def restore(self, learner: PreferenceLearner) -> None:
        """Continue from `state.pt` where there is one; rows after it are dropped."""
        if not (self.path / "state.pt").is_file():
            return
        state = torch.load(self.path / "state.pt", weights_only=True)
        learner.load_state_dict(state)
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        self.rows = [row for line in lines if (row := json.loads(line))["step"] <= learner.updates]

    def log(self, row: Row, policy: GaussianPolicy, state: dict[str, Any]) -> None:
        """Write one row of declared metrics, the policy, and what else the learner remembers."""
        check_declared(name for name in row if name != "step")
        self.rows.append(row)
        temporary = self.path / "state.pt.tmp"
        torch.save(state, temporary)
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in self.rows))
        policy.save(self.path / "policy.safetensors")
        temporary.replace(self.path / "state.pt")


def train(
    settings: TrainSettings,
    folder: Path,
    output: Path,
    resume: bool = False,
    progress: Progress = lambda line: None,
    environment: VectorEnvironment | None = None,
) -> dict[str, Any]:
    """Run one method on one data folder; returns what `result.json` holds."""
    if settings.method not in METHODS:
        raise UserError(f"{settings.method} acts while it learns: give it to `autotelic control online`.")
    prepared = prepare(settings, folder)
    settings = prepared.settings
    if note := weights_note(settings, prepared.judge):
        progress(note)
    config = {**asdict(settings), "data": str(folder), "env": prepared.env}
    run = RunFolder(output, settings.method, config, settings.seed, resume)
    if (output / "result.json").is_file():
        progress(f"{output} is finished")
        return json.loads((output / "result.json").read_text())
    horizon = settings.horizon or max(map(len, prepared.episodes))
    environment = environment or make(prepared.env, settings.num_envs or None, horizon, prepared.random_hand)
    torch.manual_seed(settings.seed)
    choice = choose(settings, prepared, progress) if settings.label_model == "auto" else {}
    learner = build_learner(settings, prepared, choice.get("label_model"))
    run.restore(learner)
    seconds = _loop(settings, prepared, learner, run, environment, progress)
    last = run.rows[-1]
    result = {"method": settings.method, "seed": settings.seed, "seconds": round(seconds, 1), **choice, **last}
    result["best_success"] = max(row["eval/success"] for row in run.rows if "eval/success" in row)
    write_atomically(output / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def _loop(
    settings: TrainSettings,
    prepared: Prepared,
    learner: PreferenceLearner,
    run: RunFolder,
    environment: VectorEnvironment,
    progress: Progress,
) -> float:
    """Update until the end, with a row after the cloning, every `eval_every` updates, and at the end."""
    started, losses, spent, total = time.perf_counter(), [], 0.0, settings.bc_steps + settings.steps
    first, clock = learner.updates, TimeLeft(total - learner.updates)
    while True:
        done = learner.updates
        known = bool(run.rows) and run.rows[-1]["step"] == done
        after = done - settings.bc_steps
        if not known and (done == total or (after >= 0 and after % settings.eval_every == 0)):
            row: Row = {"step": done}
            if losses:
                row |= {"train/loss": float(np.mean(losses)), "train/step_time": spent / len(losses)}
            row |= preference_figures(learner, prepared)
            row |= evaluate(learner.policy, environment, settings.eval_episodes, settings.seed, prepared.squash)
            run.log(row, learner.policy, learner.state_dict())
            progress(describe(settings.method, row, total) + clock.after(done - first - clock.done))
            losses, spent = [], 0.0
        if done >= total:
            return time.perf_counter() - started
        before = time.perf_counter()
        loss = learner.update()
        spent += time.perf_counter() - before
        if not np.isfinite(loss):
            raise UserError(f"the loss is {loss} at update {done + 1}: lower lr or alpha, or raise std.")
        losses.append(loss)


def describe(method: str, row: Row, total: int) -> str:
    """One line of progress."""
    low, high = row["eval/success_low"], row["eval/success_high"]
    parts = [f"{method} {row['step']}/{total}: success {row['eval/success']:.0%} [{low:.0%}, {high:.0%}]"]
    parts += [f"return {row['eval/return']:.1f}"]
    parts += [f"NLL {n} {row[f'preference/nll_{n}']:.3f}" for n in ("cpl", "ppl") if f"preference/nll_{n}" in row]
    return ", ".join(parts)


def choose(settings: TrainSettings, prepared: Prepared, progress: Progress) -> dict[str, Any]:
    """Fit CPL and PPL to the training pairs and compare their held-out NLL: `label_model auto`."""
    nll = {}
    for name in ("cpl", "ppl"):
        learner = build_learner(settings, prepared, name)
        for _ in range(settings.bc_steps + settings.steps):
            learner.update()
        nll[name] = float(preference_figures(learner, prepared)[f"preference/nll_{name}"])
    chosen = min(nll, key=nll.__getitem__)
    progress(f"auto: held-out NLL CPL {nll['cpl']:.4f}, PPL {nll['ppl']:.4f}: {chosen}")
    return {"label_model": chosen, "held_out_nll": nll}
