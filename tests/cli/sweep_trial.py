"""Trial functions for the sweep's tests; workers import them by name."""

import os
import time


def quadratic(settings, folder):
    """Best at x = 2; a seed adds its own noise. Leaves a line for every execution."""
    with open(settings["log"], "a") as log:  # noqa: PTH123
        log.write(f"{settings['x']} {settings['seed']} {os.getpid()}\n")
    time.sleep(settings.get("sleep", 0))
    if settings.get("fails") == settings["seed"]:
        raise RuntimeError("this seed fails")
    return {"score": -((settings["x"] - 2.0) ** 2) + 0.01 * settings["seed"]}
