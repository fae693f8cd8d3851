"""From runs to what the page draws: groups of seeds, curves with bands, tables, laws, histograms, bounded rollouts.

Everything here returns plain lists and dictionaries that JSON can hold. What is left out for size is said in `notes`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from autotelic.report.correctness import FOLLOWED
from autotelic.report.method_styles import DASHES, PALETTE, Style, settings_of, style_of, styles
from autotelic.report.run_folders import Run, flat, setting_of
from autotelic.runs.logs import as_number

MAX_POINTS = 500
MAX_CONFIG_CHARACTERS = 6000
RUN_IDENTITY = frozenset(
    {
        "seed",
        "data_seed",
        "output_dir",
        "run_name",
        "logging_dir",
        "resume",
        "resume_from_checkpoint",
        "overwrite",
        "quiet",
        "json",
    }
)

CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("entropy", "Token entropy of the rollouts", ("policy/entropy",)),
    ("eval_entropy", "Token entropy, validation, temperature 1", ("eval/entropy",)),
    ("accuracy", "Accuracy, sampled (mean@k)", ("eval/mean_at_k",)),
    ("greedy", "Accuracy, greedy", ("eval/greedy",)),
    ("pass", "pass@k", ("eval/pass_at_k",)),
    ("reward", "Reward of the rollouts", ("reward/mean",)),
    ("length", "Response length", ("completions/mean_length",)),
    ("kl", "Drift from the rollout policy (k3)", ("policy/k3",)),
    ("reference_kl", "KL to the reference policy", ("policy/reference_kl",)),
    ("loss", "Training loss", ("train/loss",)),
    ("em_loss", "Entropy objective", ("train/em_loss",)),
    ("grad_norm", "Gradient norm", ("train/grad_norm",)),
    ("clip", "Share of tokens clipped by PPO", ("clip/share",)),
    ("selected", "Share of tokens selected by the control", ("selected/share",)),
    ("majority", "Share of the largest answer", ("semantic/majority_share",)),
    ("semantic_entropy", "Semantic entropy", ("semantic/entropy",)),
    ("undecided", "Pairs of answers that could not be decided", ("semantic/undecided",)),
    ("truncated", "Responses cut at the length limit", ("completions/truncated_share",)),
    ("ceiling", "Ceiling by the law, as the run saw it", ("law/ceiling",)),
)
FOLLOWED_RIGHT = ("followed_right", "Followed prompts: right responses", (FOLLOWED,))
"""Drawn where labels were given; otherwise nothing is missing."""
PROBES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("probe_majority", "Share of the largest answer", ("probe/majority_share",)),
    ("probe_diversity", "Different answers per response", ("probe/diversity",)),
    ("probe_entropy", "Token entropy", ("probe/token_entropy",)),
    ("probe_skewness", "Skewness of the logits", ("probe/logit_skewness",)),
    ("probe_length", "Response length", ("probe/mean_length",)),
    ("probe_repetition", "Repetition", ("probe/repetition",)),
)
BUDGET = "feedback/labels"
PREFERENCES = ("eval/success", "eval/return", "preference/", "feedback/")
"""How names of metrics of preference learning begin; every declared one that a run has logged is drawn, in order."""
ACCURACIES = {
    "covariance/accuracy_low": "less than 1/3 right",
    "covariance/accuracy_mid": "1/3 to 2/3 right",
    "covariance/accuracy_high": "more than 2/3 right",
}
TABLE_FROM_RUNS = (
    ("mean@k", "eval/mean_at_k"),
    ("greedy", "eval/greedy"),
    ("pass@k", "eval/pass_at_k"),
    ("maj@k", "eval/maj_at_k"),
    ("entropy", "eval/entropy"),
)


@dataclass
class Group:
    """Runs that are drawn together: by default those that differ in nothing but their seed."""

    key: str
    label: str
    color: str
    dash: str
    runs: list[Run]

    @property
    def method(self) -> str:
        """The method of its first run."""
        return self.runs[0].method

    def as_dict(self) -> dict[str, Any]:
        """Return what the page needs to name and draw it."""
        return {
            "key": self.key,
            "label": self.label,
            "color": self.color,
            "dash": self.dash,
            "n": len(self.runs),
            "runs": [run.name for run in self.runs],
            "steps": max((max(values) for run in self.runs for values in run.metrics.values() if values), default=0),
        }


def group_runs(runs: Sequence[Run], by: str | None = None) -> list[Group]:
    """Put runs together.

    Args:
        runs: all runs of the page.
        by: a setting whose values make the groups, or `run` for a group each; None: one method and one configuration
            make a group, and other settings of a method get a group of their own.
    """
    if by is not None:
        return group_by_setting(runs, by)
    by_method: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_method.setdefault(run.method, {}).setdefault(settings_key(run), []).append(run)
    order = {name: i for i, name in enumerate(styles())}
    groups: list[Group] = []
    for method in sorted(by_method, key=lambda m: (order.get(m, len(order)), m)):
        variants = list(by_method[method].values())
        for number, members in enumerate(variants):
            key, label = method, style_of(method, len(groups)).label
            if len(variants) > 1:
                key = method if number == 0 else f"{method} {number + 1}"
                label = f"{label} ({variant_label(members[0], variants)})"
            style = style_of(key, len(groups))
            groups.append(Group(key, label, style.color, style.dash, members))
    return groups


def group_by_setting(runs: Sequence[Run], name: str) -> list[Group]:
    """Put runs with the same value of one setting together, in the order of their values; `run`: each on its own."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        value = run.name if name == "run" else setting_of(run, name, runs)
        found.setdefault("not set" if value is None else value, []).append(run)
    values = list(found) if name == "run" else sorted(found, key=in_order)
    labels = [value if name == "run" else f"{name} = {value}" for value in values]
    looks = [Style(label, PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)]) for i, label in enumerate(labels)]
    return [
        Group(look.label, look.label, look.color, look.dash, found[v]) for look, v in zip(looks, values, strict=True)
    ]


def in_order(value: str) -> tuple[bool, float, str]:
    """Order numbers by size, before texts."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def axes(group: Group) -> dict[str, dict[str, list[Any]]]:
    """Return how many tokens a group has seen, and how many seconds its updates took, at some of its steps.

    Both are sums up to that step, means over seeds; a measure that no run has logged is left out. Seconds are those of
    updates: validation and logging between them do not count.
    """
    found = {}
    for name, curves in (
        ("tokens", [run.metrics.get("trl/num_tokens", {}) for run in group.runs]),
        ("seconds", [summed(run.metrics.get("train/step_time", {})) for run in group.runs]),
    ):
        one = band([replace(run, metrics={name: c}) for run, c in zip(group.runs, curves, strict=True)], name)
        if one:
            found[name] = {"step": one["x"], "value": one["y"]}
    return found


def summed(curve: Mapping[int, float]) -> dict[int, float]:
    """Return the sum up to each step of a value per step that is logged as the mean since the row before."""
    total, before, found = 0.0, 0, {}
    for step, value in curve.items():
        total += value * (step - before)
        before, found[step] = step, total
    return found


def settings_key(run: Run) -> str:
    """Return the configuration as text, without what names the single run."""
    settings: dict[str, Any] = {}
    for key, value in settings_of(run.description).items():
        if isinstance(value, Mapping) and "name" in value:  # a method with its settings
            settings |= {key if name == "name" else f"{key}.{name}": own for name, own in value.items()}
        elif key not in RUN_IDENTITY:
            settings[key] = value
    return json.dumps(settings, sort_keys=True, default=str)


def differences(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the settings whose values differ between groups, one row each: name, and the value of every group.

    A group without settings, as the base model or a run without run.json, differs in nothing.
    """
    configs = [flat(json.loads(settings_key(group.runs[0]))) for group in groups]
    names = sorted({name for config in configs for name in config})
    rows = [{"name": name, "values": [config.get(name) for config in configs]} for name in names]
    known = [bool(config) for config in configs]
    return [row for row in rows if len(set(compress(row["values"], known))) > 1]


def variant_label(run: Run, variants: Sequence[Sequence[Run]]) -> str:
    """Name a variant by at most two settings that differ between the variants, or by its folder."""
    configs = [json.loads(settings_key(members[0])) for members in variants]
    own = json.loads(settings_key(run))
    names = sorted({name for config in configs for name in config})
    differing = [n for n in names if len({json.dumps(c.get(n), sort_keys=True) for c in configs}) > 1]
    if not differing or len(differing) > 2:
        return run.name
    return ", ".join(f"{name} = {own.get(name)}" for name in differing)


def thin(steps: list[int]) -> list[int]:
    """Keep at most `MAX_POINTS` of the steps, evenly, with the first and the last."""
    if len(steps) <= MAX_POINTS:
        return steps
    index = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int))
    return [steps[i] for i in index]


def band(runs: Sequence[Run], metric: str) -> dict[str, Any] | None:
    """Return the mean over seeds at the steps that all of them have, with the smallest and the largest.

    Seeds that share no step with the others are drawn at the steps of the first. One seed has a band where its log has
    an interval, as METRIC_low and METRIC_high.
    """
    curves = [run.metrics[metric] for run in runs if run.metrics.get(metric)]
    if not curves:
        return None
    shared = sorted(set(curves[0]).intersection(*curves[1:]))
    if not shared:
        curves, shared = curves[:1], sorted(curves[0])
    steps = thin(shared)
    values = np.array([[curve[s] for s in steps] for curve in curves])
    result: dict[str, Any] = {"x": steps, "y": short(values.mean(axis=0)), "n": len(curves)}
    if len(curves) > 1:
        return result | {"low": short(values.min(axis=0)), "high": short(values.max(axis=0))}
    one = next(run for run in runs if run.metrics.get(metric))
    ends = {end: one.metrics.get(f"{metric}_{end}", {}) for end in ("low", "high")}
    if all(ends.values()):
        result |= {end: short([curve.get(s, math.nan) for s in steps]) for end, curve in ends.items()}
    return result


def short(values: Any, digits: int = 5) -> list[float | None]:
    """Round to significant digits: the page need not carry what no eye can see. None for what is not finite."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float).tolist()]


def preference_charts() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return the charts of preference learning, from the glossary: the title is the metric's own name in words."""
    from autotelic.runs.glossary import METRICS

    names = [name for start in PREFERENCES for name in METRICS if name.startswith(start)]
    names = [name for name in names if name.removesuffix("_low").removesuffix("_high") == name]
    return [(name.replace("/", "_"), in_words(name), (name,)) for name in names]


def preference_learning(groups: Sequence[Group]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the charts of runs with all their answers from the start, and of those that ask while they learn.

    The second have the answers so far on the x axis: that is their budget, while updates mean other things per method.
    """
    wanted = preference_charts()
    offline, online = (
        [
            replace(g, runs=found)
            for g in groups
            if (found := [r for r in g.runs if bool(r.metrics.get(BUDGET)) == asks])
        ]
        for asks in (False, True)
    )
    online = [replace(group, runs=[over_answers(run) for run in group.runs]) for group in online]
    return charts(offline, wanted)[0], charts(online, [chart for chart in wanted if BUDGET not in chart[2]])[0]


def over_answers(run: Run) -> Run:
    """Return the run with the number of answers in place of the update at which each value was measured."""
    answers = {step: int(count) for step, count in run.metrics[BUDGET].items()}
    return replace(
        run,
        metrics={
            name: {answers[step]: value for step, value in curve.items() if step in answers}
            for name, curve in run.metrics.items()
        },
    )


def in_words(name: str) -> str:
    """Return ``Held-out NLL`` for preference/heldout_nll."""
    words = name.partition("/")[2].replace("heldout", "held-out").replace("_", " ")
    words = " ".join(word.upper() if word in {"nll", "cpl", "ppl"} else word for word in words.split())
    return words[:1].upper() + words[1:]


def charts(
    groups: Sequence[Group], wanted: Sequence[tuple[str, str, tuple[str, ...]]] = CHARTS
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the curves over steps, and the titles of those for which no run has data."""
    from autotelic.runs.glossary import METRICS

    if wanted is CHARTS and any(FOLLOWED in run.metrics for group in groups for run in group.runs):
        wanted = (*CHARTS, FOLLOWED_RIGHT)
    drawn, missing = [], []
    for key, title, names in wanted:
        name = next((n for n in names if any(run.metrics.get(n) for g in groups for run in g.runs)), None)
        if name is None:
            missing.append(title)
            continue
        series = [{"method": g.key, **curve} for g in groups if (curve := band(g.runs, name))]
        metric = METRICS.get(name)
        drawn.append(
            {
                "key": key,
                "title": title,
                "metric": name,
                "unit": metric.unit if metric else "",
                "help": f"{metric.formula}: {metric.meaning}" if metric else "",
                "series": series,
                "absent": [g.label for g in groups if not any(run.metrics.get(name) for run in g.runs)],
            }
        )
    return drawn, missing


def table_from_results(results: Mapping[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    """Return the base -> after table of `results`: `{method: {metric: {value, interval}}}`."""
    columns: list[str] = []
    rows = []
    labels = {g.key: g.label for g in groups}
    for key, metrics in results.items():
        if not isinstance(metrics, Mapping):
            continue
        cells = {}
        for name, estimate in metrics.items():
            if isinstance(estimate, Mapping) and (value := as_number(estimate.get("value"))) is not None:
                low, high = bounds(estimate)
                cells[name] = {"value": value, "low": low, "high": high}
                if name not in columns:
                    columns.append(name)
        if cells:
            label = labels.get(key, style_of(key, len(rows)).label)
            rows.append({"method": key, "label": label, "n": None, "cells": cells})
    rows.sort(key=lambda row: row["method"] != "base")
    return {"columns": sorted(columns, key=column_order), "rows": rows, "interval": "95 % bootstrap over prompts"}


def bounds(estimate: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return an estimate's interval, (None, None) where it has none."""
    interval = estimate.get("interval")
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return None, None
    low, high = as_number(interval[0]), as_number(interval[1])
    return (None, None) if low is None or high is None else (low, high)


def column_order(name: str) -> tuple[int, int]:
    """Order columns as mean@k, greedy, maj@k, pass@1 ... pass@k, entropy, the rest."""
    kinds = ("mean", "greedy", "maj", "pass", "entropy")
    kind, _, k = name.partition("@")
    return (kinds.index(kind) if kind in kinds else len(kinds), int(k) if k.isdigit() else 0)


def table_from_runs(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return first and last validation of each method, the mean over its seeds with their range."""
    columns = [name for name, metric in TABLE_FROM_RUNS if any(r.metrics.get(metric) for g in groups for r in g.runs)]
    if not columns:
        return None
    rows = []
    for which, title in ((0, "first"), (-1, "last")):
        for group in groups:
            cells = {}
            for name, metric in TABLE_FROM_RUNS:
                values = [list(run.metrics[metric].values())[which] for run in group.runs if run.metrics.get(metric)]
                if values:
                    spread = (
                        {"low": min(values), "high": max(values)} if len(values) > 1 else {"low": None, "high": None}
                    )
                    cells[name] = {"value": float(np.mean(values)), **spread}
            if cells:
                label = f"{group.label}, {title}"
                rows.append({"method": group.key, "label": label, "n": len(group.runs), "cells": cells})
    return {"columns": columns, "rows": rows, "interval": "range over seeds"}


def pass_curves(results: Mapping[str, Any], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return pass@k over k of every method in `results` that has it at two values of k or more."""
    curves = []
    labels = {g.key: g.label for g in groups}
    for key, metrics in results.items():
        if not isinstance(metrics, Mapping):
            continue
        points = sorted(
            (int(name[5:]), estimate)
            for name, estimate in metrics.items()
            if name.startswith("pass@") and name[5:].isdigit() and isinstance(estimate, Mapping)
        )
        if len(points) > 1:
            intervals = [bounds(e) for _, e in points]
            style = style_of(key, len(curves))
            curves.append(
                {
                    "method": key,
                    "label": labels.get(key, style.label),
                    "color": style.color,
                    "dash": style.dash,
                    "k": [k for k, _ in points],
                    "y": [as_number(e.get("value")) for _, e in points],
                    "low": [low for low, _ in intervals],
                    "high": [high for _, high in intervals],
                }
            )
    return curves


def covariance(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return covariance by rank and by accuracy of the prompt, and the selected share by quadrant, where logged."""
    result = []
    for group in groups:
        logged = {name for run in group.runs for name in run.metrics}
        names = sorted(
            (n for n in logged if n.startswith("covariance/top_") or n == "covariance/mean"), key=covariance_order
        )
        quadrants = [f"selected/{s}_{p}" for s in ("positive", "negative") for p in ("likely", "unlikely")]
        ranks = told_apart([{"name": rank_label(n), **curve} for n in names if (curve := band(group.runs, n))])
        shares = [{"name": quadrant_label(n), **curve} for n in quadrants if (curve := band(group.runs, n))]
        accuracies = [{"name": s, **curve} for n, s in ACCURACIES.items() if (curve := band(group.runs, n))]
        if ranks or shares:
            result.append({"method": group.key, "ranks": ranks, "accuracies": accuracies, "quadrants": shares})
    return result


def told_apart(ranks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out a rank whose curve is that of the next: an update has too few tokens to tell the two apart."""
    following = [rank["y"] for rank in ranks[1:]]
    return [rank for i, rank in enumerate(ranks) if following[i : i + 1] != [rank["y"]]]


def covariance_order(name: str) -> float:
    """Order covariance/top_0_02 before top_0_2 ... before the mean of all."""
    rank = name.removeprefix("covariance/top_").replace("_", ".")
    try:
        return float(rank)
    except ValueError:
        return 100.0


def rank_label(name: str) -> str:
    """Return ``top 0.2 %`` for covariance/top_0_2, ``all tokens`` for the mean."""
    rank = name.removeprefix("covariance/")
    return f"top {rank[4:].replace('_', '.')} %" if rank.startswith("top_") else "all tokens"


def quadrant_label(name: str) -> str:
    """Return ``A > 0, likely`` for selected/positive_likely."""
    sign, level = name.removeprefix("selected/").split("_")
    return f"A {'>' if sign == 'positive' else '<'} 0, {level}"


def semantic(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the semantic entropies of the recorded prompts, early and late in training, and EMPO's thresholds."""
    result = []
    for group in groups:
        rows = [row for run in group.runs for row in run.rollouts or run.followed]
        steps = sorted({row.step for row in rows})
        if not any(c >= 0 for row in rows for c in row.clusters):
            continue
        fifth = max(1, len(steps) // 5)
        parts = [("early", steps[:fifth]), ("late", steps[-fifth:])] if len(steps) > 1 else [("all", steps)]
        windows = []
        for name, window in parts:
            values = [cluster_entropy(row.clusters) for row in rows if row.step in set(window)]
            windows.append({"name": name, "first": window[0], "last": window[-1], "values": short(values[:4000], 4)})
        groups_of = max(len(row.clusters) for row in rows)
        result.append(
            {
                "method": group.key,
                "windows": windows,
                "thresholds": thresholds(group.runs[0], groups_of),
                "max": math.log(groups_of),
            }
        )
    return result


def cluster_entropy(clusters: Sequence[int]) -> float:
    """Return one prompt's semantic entropy in nats, by the library's own definition."""
    import torch

    from autotelic.functional import semantic_entropy

    return float(semantic_entropy(torch.tensor([list(clusters)], dtype=torch.long))[0])


def thresholds(run: Run, group_size: int) -> list[float] | None:
    """Return EMPO's thresholds in nats, from the run's settings; None where they are not thresholds on the entropy."""
    reward = settings_of(run.description).get("reward")
    if not isinstance(reward, Mapping) or reward.get("units") not in ("nats", "fraction_of_log_G"):
        return None
    largest = math.log(group_size)
    scale = largest if reward["units"] == "fraction_of_log_G" else 1.0
    low, high = as_number(reward.get("low")), as_number(reward.get("high"))
    return None if low is None else [low * scale, largest if high is None else high * scale]
