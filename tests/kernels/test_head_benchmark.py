"""The head's benchmark on tiny sizes: every side computes the same, and the result can be read."""

import importlib
import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore")  # what peers raise on import


@pytest.fixture
def head(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    threads = torch.get_num_threads()
    yield importlib.import_module("head")
    torch.set_num_threads(threads)


def test_every_side_has_the_same_gradients(head):
    sides, missing = head.sides_of(head.problem(*head.SIZES["smoke"]))
    assert "TRL" not in missing
    expected = sides["materialised logits"]()
    for name, side in sides.items():
        if name not in (head.PRODUCTS, head.BARE_HALF, head.SKIPPED, head.TRL_SKIPPED):
            torch.testing.assert_close(side(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(sides[head.SKIPPED](), sides[head.TRL_SKIPPED](), rtol=1e-3, atol=1e-5)


def test_the_bare_products_are_the_four_products(head):
    data = head.problem(*head.SIZES["smoke"])
    hidden, weight = data["hidden"].detach(), data["weight"].detach()
    logits = hidden @ weight.T
    for name in (head.PRODUCTS, head.BARE_HALF):
        found = head.sides_of(data)[0][name]()
        torch.testing.assert_close(found, (logits @ weight, logits.T @ hidden), rtol=1e-4, atol=1e-3)


def test_the_result_names_cases_sides_and_errors(head, tmp_path):
    out = tmp_path / "head.json"
    head.main(["--smoke", "--repeats", "2", "--output", str(out)])
    result = json.loads(out.read_text())
    first = result["cases"][0]
    assert {"autotelic", "materialised logits", "TRL"} <= set(first["sides"])
    assert all(0 < x < 1e-5 for x in first["error"].values())
