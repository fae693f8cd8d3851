import gc
import os
import sys
from importlib.metadata import PackageNotFoundError, version

# Before any heavy import: no hub, one thread, no progress bars in test output.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of the code: no example has a deadline, and slow drawing is no failure.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

pytest_plugins = ["tiny_trainer"]


# A worker takes a file at a time: the longest come first, so that both workers end together (`--no-loadscope-reorder`).
LONGEST = {
    *("test_report_page", "test_docs", "test_controls_in_trl", "test_training", "test_shared_prefill", "test_data"),
    *("test_pebble", "test_learning", "test_trainer", "test_linear_logprob_entropy", "test_objectives", "test_run"),
    *("test_control_part", "test_gpu", "test_shared_prefix", "test_faults", "test_entropy_term", "test_groups"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    try:
        found = version("trl")
    except PackageNotFoundError:
        return
    if tuple(map(int, found.split(".")[:2])) < (1, 16):
        for item in items:
            if item.get_closest_marker("trl_1_16"):
                item.add_marker(pytest.mark.skip(reason=f"TRL {found} is older than 1.16"))


# Every `Trainer.train` collects garbage, which takes a third of a second where all of torch and TRL is looked through,
# more than the updates of a tiny model. So what is imported is frozen: the collector passes it by.
FROZEN_AT = [0]


def pytest_configure() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    if len(sys.modules) > FROZEN_AT[0] + 100:  # much was imported late
        freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def freeze() -> None:
    FROZEN_AT[0] = len(sys.modules)
    gc.freeze()
