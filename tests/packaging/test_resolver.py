"""pip finds a solution for every extra that is not older than what its user needs. Asks the package registry: slow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
LEAST = {"verl": (0, 9, 1), "hydra-core": (1, 3), "omegaconf": (2, 3), "trl": (1, 10), "vllm": (0, 22), "ray": (2, 40)}
SETS = {
    "core": [".", TORCH],
    "trl": [".[trl]", TORCH],
    "verl": [".[verl]", TORCH],
    # What verl[fsdp] pins, but for flash-attn: a source archive, which cannot tell what it needs before torch is there.
    "verl with FSDP": [".[verl]", "verl==0.9.1", "torch==2.11.0", "trl==0.27.0", "liger-kernel>=0.8.2"],
    "vllm": [".[vllm]"],
    "trl and vllm": [".[trl,vllm]"],
    "sweep": [".[sweep]", TORCH],
    "control": [".[control]", TORCH],
    "text": [".[text]", TORCH],
    "tasks": [".[tasks]", TORCH],
}


@pytest.fixture(scope="module")
def empty_python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resolver")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SETS)
def test_pip_finds_a_solution_that_its_user_can_run(name, empty_python, tmp_path):
    """No solution is a failure; so is one in which pip fell back to a version that is too old to start."""
    report = tmp_path / "report.json"
    command = [empty_python, "-m", "pip", "install", "-q", "--dry-run", "--report", str(report), *SETS[name]]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    versions = {
        entry["metadata"]["name"].lower(): Version(entry["metadata"]["version"]).release
        for entry in json.loads(report.read_text())["install"]
    }
    pinned = {requirement.partition("==")[0] for requirement in SETS[name]}  # by verl[fsdp]: not pip's choice
    too_old = {
        package: versions[package]
        for package in LEAST.keys() - pinned
        if package in versions and versions[package] < LEAST[package]
    }
    assert not too_old
