"""What an interface of another package may break has an upper bound."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def test_engines_whose_interface_moves_have_an_upper_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bounded = {
        requirement.name
        for requirement in map(Requirement, lines)
        if any(part.operator in ("<", "<=", "==") for part in requirement.specifier)
    }
    assert {"transformers", "trl", "verl", "vllm", "mujoco"} <= bounded
