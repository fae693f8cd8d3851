"""What a data set's labels are worth, and whether they can test PPL at all: what `autotelic control data` reports.

    actions_decide   share of winners that change when the actions' own part is left out of the scores
    noise_flips      share of answers that are not the winner's: the judge's temperature, and answers turned round
    critic_flips     share of winners that change when the critics are fitted again, to episodes drawn with replacement
    table_accuracy   of a table of (start step, policy id), fitted to half of the pairs and tried on the other half
    above_optimum    share of recorded states in which V^mu > V*, which no optimum allows
    behaviors_apart  distance of the behaviours' means, in standard deviations, over recorded states and dimensions

PPL explains what a policy label adds to an action. Where fewer winners hang on the actions than noise turns round, no
method can learn the difference, and the set is no test of PPL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from autotelic.control.episodes import Behavior, Episode
from autotelic.control.judges import JudgedSegments
from autotelic.control.segments import Preferences

Values = Mapping[str, Float[ndarray, " L"]]
BINS = 10  # of start steps in the table
TEXTS = {
    "actions_decide": "winners decided by the actions",
    "noise_flips": "answers flipped by noise",
    "critic_flips": "winners that critics fitted again would change",
    "table_accuracy": "accuracy of a (start step, policy id) table",
    "above_optimum": "states in which V^mu exceeds V*, which no optimum allows (a critic errs, or V* is no optimum)",
}


def data_report(
    judge: str, gamma: float, episodes: Sequence[Episode], preferences: Preferences, values: Values
) -> dict[str, float | bool | None]:
    """Return the figures of the module's docstring but the last, and `ppl_test`; None where a figure has no meaning.

    Args:
        judge: who compared.
        gamma: discount of the values.
        episodes: recorded ones.
        preferences: with the judge's scores.
        values: `best`, `own` of every recorded state and the same fitted again, `best_again`, `own_again`; or empty.
    """
    p, score = preferences, preferences.score
    assert score is not None, "the judge's scores are there when the labels are made"
    report: dict[str, float | bool | None] = dict.fromkeys(TEXTS)
    won = winner(p, score)
    report["noise_flips"] = float(np.mean((p.label > 0.5) != won))
    report["table_accuracy"] = table_accuracy(episodes, p)
    if values:
        judged = JudgedSegments(episodes, p.episode, p.start, p.length, gamma, values["best"], values["own"])
        report["above_optimum"] = float(np.mean(values["own"] > values["best"]))
        part = judged.action_part(judge)
        if part is not None:
            rest = score - part
            tied = np.isclose(rest[p.second], rest[p.first], rtol=0, atol=1e-6 * float(np.abs(score).max() + 1))
            report["actions_decide"] = float(np.mean((winner(p, rest) != won) | tied))
            again = replace(judged, best=values["best_again"], own=values["own_again"])
            report["critic_flips"] = float(np.mean(winner(p, again.scores(judge)) != won))
    actions, flips = report["actions_decide"], report["noise_flips"] + (report["critic_flips"] or 0.0)
    report["ppl_test"] = None if actions is None else bool(actions >= flips)
    return report


def winner(preferences: Preferences, score: Float[ndarray, " N"]) -> Bool[ndarray, " M"]:
    """Whether the second segment of each pair has the higher score."""
    return score[preferences.second] > score[preferences.first]


def table_accuracy(episodes: Sequence[Episode], preferences: Preferences) -> float:
    """Predict each half of the pairs from the share of comparisons that (start step, policy id) won in the other."""
    p, longest = preferences, max(map(len, episodes))
    policy = np.array([e.policy for e in episodes])[p.episode]
    cell = np.unique(policy, return_inverse=True)[1] * BINS + p.start * BINS // longest
    half, hits = np.arange(len(p.first)) % 2 == 0, np.zeros(len(p.first))
    for train in (half, ~half):
        cells = np.concatenate([cell[p.second[train]], cell[p.first[train]]])
        wins = np.concatenate([p.label[train], 1 - p.label[train]])
        size = int(cell.max()) + 1
        rate = (np.bincount(cells, wins, size) + 1) / (np.bincount(cells, minlength=size) + 2)
        gap = rate[cell[p.second[~train]]] - rate[cell[p.first[~train]]]
        hits[~train] = np.where(gap == 0, 0.5, (gap > 0) == (p.label[~train] > 0.5))
    return float(hits.mean())


def behaviors_apart(behaviors: Sequence[Behavior], episodes: Sequence[Episode]) -> float | None:
    """Mean over pairs of behaviours, states and dimensions of |difference of means| / std; None for one behaviour."""
    states = np.concatenate([e.observations[:-1] for e in episodes])
    found = [behavior.parameters_at(states) for behavior in behaviors]
    gaps = [np.mean(np.abs(m - n) / np.exp((s + t) / 2)) for i, (m, s) in enumerate(found) for n, t in found[i + 1 :]]
    return float(np.mean(gaps)) if gaps else None


def describe(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines of text; the last one refuses a set that tests nothing."""
    lines = [f"{text}: {report[name]:.1%}" for name, text in TEXTS.items() if report.get(name) is not None]
    if report.get("behaviors_apart") is not None:
        lines.append(f"behaviours apart: {report['behaviors_apart']:.2f} standard deviations")
    if report["ppl_test"] is False:
        lines.append(
            "warning: this is no test of PPL: fewer winners hang on the actions than noise turns round. The data are "
            "written; use judge regret_tail, longer segments with it, more episodes for critics, or behaviours that "
            "are further apart."
        )
    return lines
