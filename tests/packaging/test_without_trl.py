"""What runs without TRL: verl users have none, or an old one."""

import subprocess
import sys

import pytest

BLOCKED = "import sys; sys.modules.update({name: None for name in ('trl', 'accelerate', 'peft', 'verl')}); "
MODULES = [
    "autotelic.functional",
    "autotelic.kernels",
    "autotelic.answers",
    "autotelic.rewards",
    "autotelic.controls.table",
    "autotelic.evaluation",
    "autotelic.report",
    "autotelic.verl.loss_methods",
    "autotelic.verl.estimators",
    "autotelic.cli.main, autotelic.cli.score, autotelic.cli.forecast, autotelic.cli.eval, autotelic.cli.report",
]


def test_imports_without_trl():
    """In one process after another's imports: what is blocked stays blocked."""
    code = BLOCKED + "; ".join(f"import {names}" for names in MODULES)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-1500:]


@pytest.mark.slow
@pytest.mark.parametrize("names", MODULES)
def test_each_imports_without_trl_by_itself(names):
    found = subprocess.run([sys.executable, "-c", f"{BLOCKED}import {names}"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-1500:]
