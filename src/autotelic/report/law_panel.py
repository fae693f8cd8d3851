"""The entropy law of every method, as the page draws it: points, fit, 95 % band, ceiling, and why it may not hold.

    R = -a exp(H) + b          ceiling, at H = 0:  b - a

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 1; the fit is `autotelic.functional.fit_entropy_law`.
Deviations: the points of all seeds of a method are fitted together; warnings are found seed by seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from autotelic.errors import UserError
from autotelic.report.data import Group, short, thin
from autotelic.report.method_styles import control_of, is_label_free, settings_of
from autotelic.report.run_folders import Run
from autotelic.runs.logs import Curve, Log, is_training_reward, pick_curve, to_columns


def laws(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return one entry per method that logs an entropy and a reward."""
    return [entry for group in groups if (entry := law_of(group))]


def curves_of(group: Group) -> list[Curve]:
    """Return entropy and accuracy of every seed that has both; the law is one of accuracy, so one-shot EM has none."""
    found = [] if group.method == "one_shot_em" else [curve_of(run) for run in group.runs]
    return [
        curve
        for run, curve in zip(group.runs, found, strict=False)
        if curve and not (is_label_free(run.description) and is_training_reward(curve.reward_column))
    ]


def curve_of(run: Run) -> Curve | None:
    """Return a run's entropy and reward, None where it logs no entropy or no reward."""
    try:
        return pick_curve(Log(run.path, to_columns(run.metrics)))
    except UserError:
        return None


def without_accuracy(groups: Sequence[Group]) -> list[str]:
    """Return a note on the methods that have no law because their only reward is not accuracy."""
    names = [g.label for g in groups if not curves_of(g) and any(is_label_free(r.description) for r in g.runs)]
    reason = "a reward without labels is not accuracy; validation would be (--validation_dataset, --validation_steps)"
    return [f"no entropy law for {', '.join(names)}: {reason}"] if names else []


def law_of(group: Group) -> dict[str, Any] | None:
    """Fit the law to the points of all seeds of one method."""
    from autotelic.controls.table import intervention
    from autotelic.functional.entropy_law import fit_entropy_law, regime_warnings

    curves = curves_of(group)
    if not curves:
        return None
    kept = [{int(s) for s in thin(curve.step.tolist())} for curve in curves]
    inside = [np.isin(curve.step, sorted(steps)) for curve, steps in zip(curves, kept, strict=True)]
    entry: dict[str, Any] = {
        "method": group.key,
        "n": len(curves),
        "entropy_metric": curves[0].entropy_column,
        "reward_metric": curves[0].reward_column,
        "h": short(np.concatenate([c.entropy[i] for c, i in zip(curves, inside, strict=True)])),
        "r": short(np.concatenate([c.reward[i] for c, i in zip(curves, inside, strict=True)])),
        "step": np.concatenate([c.step[i] for c, i in zip(curves, inside, strict=True)]).tolist(),
        "fit": None,
        "warnings": [],
    }
    acts = intervention(group.method, control_of(settings_of(group.runs[0].description)))
    found: dict[str, None] = {}
    for curve in curves:
        found |= dict.fromkeys(regime_warnings(curve.entropy, curve.reward, intervention=acts))
        found |= dict.fromkeys(curve.notes)
    entry["warnings"] = list(found)
    entropy = np.concatenate([curve.entropy for curve in curves])
    try:
        fit = fit_entropy_law(entropy, np.concatenate([curve.reward for curve in curves]))
    except UserError as error:
        entry["warnings"].append(f"no fit: {error}")
        return entry
    grid = np.linspace(0.0, float(entropy.max()) * 1.02, 60)
    bands = [fit.predict_interval(float(h)) for h in grid]
    entry["fit"] = fit.as_dict() | {
        "h": short(grid),
        "r": short(fit.predict(grid)),
        "low": short([low for low, _ in bands]),
        "high": short([high for _, high in bands]),
    }
    if len(curves) > 1:
        entry["fit"]["share_taken"] = None  # the first and the last point belong to different seeds
    return entry
