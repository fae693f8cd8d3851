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
    if group.method == "one_shot_em":
        return []
    curves = [(is_label_free(run.description), curve_of(run)) for run in group.runs]
    return [c for label_free, c in curves if c and not (label_free and is_training_reward(c.reward_column))]


def curve_of(run: Run) -> Curve | None:
    """Return a run's entropy and reward, None where it logs no entropy or no reward."""
    try:
        return pick_curve(Log(run.path, to_columns(run.metrics)))
    except UserError:
        return None


def without_accuracy(groups: Sequence[Group]) -> list[str]:
    """Return a note on the methods that have no law because their only reward is not accuracy."""
    names = [g.label for g in groups if any(is_label_free(r.description) for r in g.runs) and not curves_of(g)]
    reason = "a reward without labels is not accuracy; validation would be (--validation_dataset, --validation_steps)"
    return [f"no entropy law for {', '.join(names)}: {reason}"] if names else []


def law_of(group: Group) -> dict[str, Any] | None:
    """Fit the law to the points of all seeds of one method."""
    from autotelic.controls.table import intervention
    from autotelic.functional.entropy_law import regime_warnings

    curves = curves_of(group)
    if not curves:
        return None
    kept = [np.isin(curve.step, sorted({int(s) for s in thin(curve.step.tolist())})) for curve in curves]

    def shown(name: str) -> np.ndarray:
        return np.concatenate([getattr(c, name)[inside] for c, inside in zip(curves, kept, strict=True)])

    acts = intervention(group.method, control_of(settings_of(group.runs[0].description)))
    warnings: dict[str, None] = {}
    for curve in curves:
        warnings |= dict.fromkeys(regime_warnings(curve.entropy, curve.reward, intervention=acts))
        warnings |= dict.fromkeys(curve.notes)
    fit = None
    try:
        fit = drawn_fit(curves)
    except UserError as error:
        warnings[f"no fit: {error}"] = None
    return {
        "method": group.key,
        "n": len(curves),
        "entropy_metric": curves[0].entropy_column,
        "reward_metric": curves[0].reward_column,
        "h": short(shown("entropy")),
        "r": short(shown("reward")),
        "step": shown("step").tolist(),
        "fit": fit,
        "warnings": list(warnings),
    }


def drawn_fit(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return the fit to the points of all seeds, with its line and band."""
    from autotelic.functional.entropy_law import fit_entropy_law

    entropy = np.concatenate([curve.entropy for curve in curves])
    fit = fit_entropy_law(entropy, np.concatenate([curve.reward for curve in curves]))
    grid = np.linspace(0.0, float(entropy.max()) * 1.02, 60)
    low, high = np.array([fit.predict_interval(float(h)) for h in grid]).T
    lines = {"h": short(grid), "r": short(fit.predict(grid)), "low": short(low), "high": short(high)}
    one = len(curves) == 1  # else the first and the last point belong to different seeds
    return fit.as_dict() | lines | ({} if one else {"share_taken": None})
