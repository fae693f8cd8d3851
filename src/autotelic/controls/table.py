"""Entropy controls by the name that configuration files and the command line use: one table."""

from typing import Any

from autotelic.controls.base import ClipCov, EntropyControl, KLCov
from autotelic.controls.baselines import CONTROLS, ENGINE_CONTROLS
from autotelic.errors import UserError, closest

METHODS: dict[str, type[EntropyControl]] = {control.name: control for control in (ClipCov, KLCov, *CONTROLS)}


def entropy_control(name: str, **settings: Any) -> EntropyControl:
    """Return a control by its name in configuration files, with settings that differ from the defaults.

    Raises:
        UserError: an unknown name or setting.
    """
    if name in ENGINE_CONTROLS:
        raise UserError(
            f"{name} is a setting of TRL's GRPOConfig, not a control: {ENGINE_CONTROLS[name].__doc__} "
            "Set it there, or let `autotelic train --entropy_control` do so."
        )
    if name not in METHODS:
        raise UserError(f"unknown entropy control {name!r}{closest(name, METHODS)}; there are {', '.join(METHODS)}")
    known = METHODS[name].__dataclass_fields__
    for key in settings:
        if key not in known:
            raise UserError(f"{name} has no setting {key!r}{closest(key, known)}; it has {', '.join(known)}")
    return METHODS[name](**settings)
