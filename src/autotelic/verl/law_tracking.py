"""The entropy law while verl trains: ``law/*`` beside verl's own metrics, in every tracker that it logs to.

    R = -a exp(H) + b          remaining gain: a (exp(H) - 1)

H is ``actor/entropy``, R the mean of ``val-core/*/mean@*`` where the run validates, else ``critic/score/mean``. It is
fitted again with every new point, on runs whose loss or advantage estimator is ours; ``autotelic_observe`` is PPO with
nothing but the diagnostics.

Reference: Cui et al. 2025, arXiv:2505.22617, Eq. 1.
Deviations: points are those of this process; a resumed run begins anew. `autotelic forecast` reads the whole log.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from autotelic.errors import UserError
from autotelic.verl import PREFIX
from autotelic.verl.plugin import check_parameters, wrap_once

ENTROPY = "actor/entropy"
TRAINING_REWARD = "critic/score/mean"


class LiveLaw:
    """Collects points from verl's metrics, and fits the law to them.

    Args:
        intervention: what acts on entropy in this run; None for plain training.
    """

    def __init__(self, intervention: str | None = None):
        self.intervention = intervention
        self.validated: list[tuple[float, float]] = []
        self.trained: list[tuple[float, float]] = []

    def update(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return ``law/*`` if these metrics bring a new point and there are enough; else nothing."""
        entropy, validation = number(metrics.get(ENTROPY)), validation_reward(metrics)
        training = number(metrics.get(TRAINING_REWARD))
        if entropy is None:
            return {}
        if validation is not None:
            self.validated.append((entropy, validation))
        if training is not None:
            self.trained.append((entropy, training))
        if self.validated and validation is None:
            return {}
        return self.fit(self.validated or self.trained)

    def fit(self, points: list[tuple[float, float]]) -> dict[str, float]:
        """Return the fit as declared metrics; nothing below `MIN_POINTS`, or while the entropy has not moved."""
        from autotelic.functional.entropy_law import MIN_POINTS, fit_entropy_law

        if len(points) < MIN_POINTS:
            return {}
        entropy, reward = zip(*points, strict=True)
        try:
            law = fit_entropy_law(entropy, reward, intervention=self.intervention)
        except UserError:
            return {}
        return law.metrics(entropy[-1])


def validation_reward(metrics: Mapping[str, Any]) -> float | None:
    """Return the mean of verl's main validation metrics (one per data set) in this row, if there are any."""
    values = [number(value) for name, value in metrics.items() if name.startswith("val-core/") and "/mean@" in name]
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    try:
        x = float(value)
    except (TypeError, ValueError):
        return None
    return x if math.isfinite(x) else None


def live_law(config: Mapping[str, Any] | None) -> LiveLaw | None:
    """Return a law for runs that use one of our methods, with what acts on their entropy."""
    if config is None or "actor_rollout_ref" not in config or "algorithm" not in config:
        return None
    actor = config["actor_rollout_ref"]["actor"]
    mode, estimator = str(actor["policy_loss"]["loss_mode"]), str(config["algorithm"]["adv_estimator"])
    if not (mode.startswith(PREFIX) or estimator.startswith(PREFIX)):
        return None
    control = mode.removeprefix(PREFIX) if mode not in (f"{PREFIX}observe", "vanilla") else None
    return LiveLaw(control or ("an entropy bonus" if actor.get("entropy_coeff") else None))


def install(tracking: ModuleType) -> None:
    """Let ``Tracking`` log the law with verl's metrics; a second call changes nothing."""
    tracker = tracking.Tracking
    check_parameters(tracker.__init__, "self", "project_name", "experiment_name", "default_backend", "config")
    check_parameters(tracker.log, "self", "data", "step")
    wrap_once(tracker, "__init__", starting_with_law)
    wrap_once(tracker, "log", logging_law)


def starting_with_law(start: Callable[..., None]) -> Callable[..., None]:
    """Return ``Tracking.__init__`` that also makes the law of its run, where there is one."""

    @functools.wraps(start)
    def start_with_law(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        self.autotelic_law = live_law(kwargs.get("config", args[3] if len(args) > 3 else None))

    return start_with_law


def logging_law(log: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Tracking.log`` that adds ``law/*``."""

    @functools.wraps(log)
    def log_with_law(self: Any, data: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        law = getattr(self, "autotelic_law", None)
        if law is not None:
            data = {**data, **law.update(data)}
        return log(self, data, step, *args, **kwargs)

    return log_with_law
