"""The benchmarks run on tiny sizes and compute the same thing on every side; time is never judged here."""

import argparse
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a benchmark by name, as running it from its folder does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture
def smoke(load, tmp_path):
    """Run a benchmark on tiny sizes; return what it wrote."""

    def run(name, repeats=1):
        out = tmp_path / f"{name}.json"
        load(name).main(["--smoke", "--repeats", str(repeats), "--output", str(out)])
        return json.loads(out.read_text())

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        *("head", "covariance", "answers", "ppl_update", "prefix", "startup"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("em_step", "grpo_step")),
    ],
)
def test_a_benchmark_runs_and_its_section_is_written(name, smoke, load):
    result = smoke(name)
    assert result["benchmark"] == name and result["cases"] and result["versions"]["torch"]
    for case in result["cases"]:
        for side, values in case.get("sides", {}).items():
            assert values["median"] > 0 and (side == "autotelic" or case["against"][side]["ratio"] > 0)
    section = load("page").section(result)
    assert result["command"] in section and result["date"] in section
    assert all(case["name"] in section for case in result["cases"])


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_to_its_end_on_a_cpu(tmp_path, load):
    """Every section, our kernels in Triton's interpreter; all sides that a CPU has."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(FOLDER / "gpu.py"), "--smoke", "--repeats", "2", "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(out.read_text())
    names = " ".join(case["name"] for case in result["cases"])
    assert all(word in names for word in ("float64", "under .05", "every row", "20 %", "GRPO", "EM", "prompt"))
    correct = next(case for case in result["cases"] if "errors" in case)
    assert len(correct["errors"]) == 24 and not correct["missed"]
    assert {"autotelic", "TRL", "materialised logits"} <= set(result["cases"][2]["sides"])
    assert [row["width"] for row in result["timed"]] == [16, 24] and set(result["missing"]) <= {"Liger", "verl"}
    assert "share of the rate" in load("page").section(result)


@pytest.mark.slow
def test_a_section_of_the_script_for_a_gpu_runs_by_itself(tmp_path):
    """The head's share is one of the measured rate, which is therefore always measured."""
    out = tmp_path / "gpu.json"
    options = ["--smoke", "--repeats", "2", "--only", "head", "--output", str(out)]
    done = subprocess.run([sys.executable, str(FOLDER / "gpu.py"), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cases = json.loads(out.read_text())["cases"]
    assert cases and all("every row" in case["name"] and case["rate_share"]["autotelic"] > 0 for case in cases)


def test_scaling_fits_an_exponent_for_every_sweep(smoke, load):
    result = smoke("scaling")
    assert all(math.isfinite(case["exponent"]) for case in result["cases"])
    assert "exponent [95 %]" in load("page").section(result)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "em"])
def test_both_sides_of_the_memory_benchmark_measure_something(method, load):
    memory = load("memory")
    for side in ("autotelic", "TRL"):
        found = memory.measure(side, method, 1, 8, smoke=True)
        assert found["seconds"] > 0 and math.isfinite(found["memory_mib"])


def test_covariance_sides_agree_where_they_must(load):
    """KL-Cov's choice does not depend on the split when there is one micro-batch: all sides give one gradient."""
    module = load("covariance")
    batch = module.make_batch(module.MICRO, 512)
    torch.testing.assert_close(module.ours("kl_cov", batch), module.equations("kl_cov", batch), rtol=1e-4, atol=1e-7)


def test_sides_take_turns_and_the_first_one_changes(load):
    order = []
    sides = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = load("common").interleave(sides, 3, warm_up=1)
    assert "".join(order) == "cababcbcacab"
    assert {name: len(turns) for name, turns in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratio_and_exponent_by_hand(load):
    """Twice as slow in every turn is 2 without spread; seconds = 3 n^1.5 has the exponent 1.5."""
    common = load("common")
    twice = common.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert twice["ratio"] == pytest.approx(2) and twice["low"] == pytest.approx(2) == twice["high"]
    assert common.ratio([3.0], [1.0]) == {"ratio": pytest.approx(3), "low": None, "high": None}
    spread = common.ratio([1.0, 4.0], [1.0, 1.0])  # logs 0 and ln 4: mean ln 2, standard error ln 2, t = 12.706
    assert spread["high"] == pytest.approx(2 * 2**12.7062, rel=1e-3)
    fit = common.exponent([1, 4, 16], [3 * n**1.5 for n in (1, 4, 16)])
    assert fit["exponent"] == pytest.approx(1.5)


def test_no_path_and_no_host_name_in_a_result(load, tmp_path):
    common = load("common")
    args = argparse.Namespace(smoke=False, repeats=1, output=tmp_path / "x.json")
    common.write("x", args, [], work={})
    text = args.output.read_text()
    assert str(Path.home()) not in text and "/work" not in text and str(tmp_path) not in text


CASE = {"name": "work", "sides": {"autotelic": {"median": 1.0}, "peer": {"median": 2.0}}}


@pytest.mark.parametrize(
    ("against", "heading"),
    [
        ({"ratio": 0.8, "low": 0.7, "high": 0.9}, "Where we are behind"),
        ({"ratio": 1.1, "low": 0.9, "high": 1.3}, "No difference shown"),
    ],
)
def test_the_page_lists_what_is_behind_first(against, heading, load):
    page = load("page")
    result = {"benchmark": "head", "cases": [CASE | {"against": {"peer": against}}], "missing": {"liger": "no GPU"}}
    text = "\n".join(page.verdicts([result]))
    part = text.split(f"## {heading}")[1].split("##")[0]
    assert f"head: work, peer: {against['ratio']:.2f} x" in part and "liger" in text


def test_the_page_lists_missed_targets(load):
    page = load("page")
    ahead = {"peer": {"ratio": 1.2, "low": 1.1, "high": 1.3}}
    cases = [
        CASE | {"against": ahead, "target": 1.5},
        {"name": "start", "seconds": {"median": 3.0}, "at_most": 1.0},
        {"name": "share", "shares": {"kl_cov": 0.02}, "at_most": 0.01},
        {"name": "n", "exponent": 1.3, "low": 1.2, "high": 1.4, "expected": 1.0},
        {"name": "rate", "floor": {"answers per second": 3.0, "at least": 50}},
    ]
    text = "\n".join(page.verdicts([{"benchmark": "head", "cases": cases, "missing": {}}]))
    part = text.split("## Targets missed")[1].split("##")[0]
    assert [line.split(":")[1].split()[0] for line in part.splitlines() if line.startswith("- ")] == [
        "work",
        "start",
        "share",
        "n",
        "rate",
    ]


def test_the_committed_page_is_what_the_committed_results_give(load):
    page = load("page").page(FOLDER / "results")
    assert (FOLDER.parent / "docs" / "performance.md").read_text() == page, "run: python benchmarks/page.py"
