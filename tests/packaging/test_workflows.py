"""The workflows are YAML, may only read, and call targets that the Makefile has."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def test_the_tests_and_the_site_have_a_workflow():
    commands = " ".join(path.read_text() for path in WORKFLOWS)
    assert "run: make test\n" in commands and "run: make docs\n" in commands


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_read_only_and_call_what_exists(path):
    found = yaml.safe_load(path.read_text())
    assert found["permissions"] == {"contents": "read"}
    for job in found["jobs"].values():
        assert job["timeout-minutes"] <= 360
        named = job.get("strategy", {}).get("matrix", {}).get("target", [])
        for step in job["steps"]:
            name = step.get("run", "").removeprefix("make ")
            assert "run" not in step or name in TARGETS or (name == "${{ matrix.target }}" and set(named) <= TARGETS)
