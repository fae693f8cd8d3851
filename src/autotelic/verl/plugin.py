"""What verl loads: it waits for verl's own modules, and adds to each of them what belongs there.

verl imports this module at the end of ``import verl``, in every process, and says so at DEBUG only if it fails. At that
moment the modules that have the registries are not imported yet, and importing them would cost every process seconds.
So each part is installed right after verl has imported the module that it belongs to, and `status` tells what happened.
"""

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PARTS = {
    "verl.trainer.ppo.core_algos": "autotelic.verl.registration",
    "verl.workers.engine.base": "autotelic.verl.engine",
    "verl.workers.engine_workers": "autotelic.verl.workers",
    "verl.trainer.ppo.v1.trainer_base": "autotelic.verl.trainers",
    "verl.experimental.reward_loop.reward_manager": "autotelic.verl.reward_manager",
    "verl.utils.tracking": "autotelic.verl.law_tracking",
}
"""verl's module, and ours, whose ``install`` is called with it."""

STATUS: dict[str, str] = {}
"""verl's module -> ``installed``, or what went wrong."""


def status() -> dict[str, str]:
    """Return what became of each part: ``installed``, ``waiting`` for verl to import its module, or an error."""
    return {name: STATUS.get(name, "waiting") for name in PARTS}


def check_parameters(function: Callable[..., Any], *names: str) -> None:
    """Refuse a function of verl whose first parameters have other names than those that we rely on.

    Raises:
        TypeError: this verl has changed it; `install_part` reports that.
    """
    found = list(inspect.signature(function).parameters)
    if found[: len(names)] != list(names):
        raise TypeError(f"{function.__qualname__} takes ({', '.join(found)}), not ({', '.join(names)})")


def wrap_once(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Put ours around a method of verl's, decorated or not; a second call changes nothing.

    `functools.wraps` in `wrap` keeps what verl's own decorators leave on it.
    """
    method = getattr(owner, name)
    if not getattr(method, "autotelic", False):
        wrapped = wrap(method)
        wrapped.autotelic = True
        setattr(owner, name, wrapped)


def install_part(name: str, module: ModuleType) -> None:
    """Install what belongs to one of verl's modules; a verl that does not fit is reported, and goes on without it."""
    try:
        importlib.import_module(PARTS[name]).install(module)
        STATUS[name] = "installed"
    except (ImportError, AttributeError, TypeError) as error:
        STATUS[name] = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"autotelic: {name} of this verl is not as expected ({STATUS[name]}); run `autotelic doctor`", stacklevel=2
        )


class PartFinder(MetaPathFinder):
    """Lets Python find verl's modules as usual, and calls `install_part` after it has run them."""

    def __init__(self) -> None:
        self._searching: set[str] = set()

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the usual spec of a module of `PARTS`, with a second step in its execution."""
        if fullname not in PARTS or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.discard(fullname)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        loader.exec_module = then_install(loader.exec_module, fullname)
        return spec


def then_install(execute: Callable[[ModuleType], None], name: str) -> Callable[[ModuleType], None]:
    """Return the loader's step followed by ours."""

    def execute_and_install(module: ModuleType) -> None:
        execute(module)
        install_part(name, module)

    return execute_and_install


def install() -> None:
    """Install what can be installed now, and wait for the rest; calling it again changes nothing."""
    if not any(isinstance(finder, PartFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PartFinder())
    for name in PARTS:
        if name in sys.modules and name not in STATUS:
            install_part(name, sys.modules[name])


install()
