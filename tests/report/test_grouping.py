"""Which runs are drawn, together with which, and along which axis."""

import json

import pytest
import synthetic_runs

from autotelic.errors import UserError
from autotelic.report import data
from autotelic.report.run_folders import load_run, matching


@pytest.fixture
def runs(tmp_path):
    for seed, temperature in ((0, 0.5), (1, 0.5), (0, 10.0), (0, 2.0)):
        synthetic_runs.write_run(
            tmp_path / f"{temperature}-{seed}", "grpo", seed=seed, steps=3, temperature=temperature
        )
    synthetic_runs.write_run(tmp_path / "kl", "kl_cov", steps=3)
    return [load_run(path) for path in sorted(tmp_path.iterdir())]


def test_runs_group_by_a_setting_in_the_order_of_its_values(runs):
    groups = data.group_runs(runs, "temperature")
    assert [(g.label, len(g.runs)) for g in groups] == [
        ("temperature = 0.5", 2), ("temperature = 1.0", 1), ("temperature = 2.0", 1), ("temperature = 10.0", 1)
    ]  # fmt: skip
    assert len({g.color for g in groups}) == 4
    assert [len(g.runs) for g in data.group_runs(runs, "method")] == [4, 1]
    assert [g.key for g in data.group_runs(runs, "run")] == [run.name for run in runs]
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        data.group_runs(runs, "temperatur")


def test_runs_are_filtered_by_setting_and_by_name(runs):
    def names(*only):
        return [run.name for run in matching(runs, only)]

    assert names() == [run.name for run in runs]
    assert names("temperature=0.5") == ["0.5-0", "0.5-1"]
    assert names("temperature=0.5", "seed=1") == ["0.5-1"]
    assert names("*-0") == ["0.5-0", "10.0-0", "2.0-0"]
    assert names("method=kl_cov") == ["kl"]
    with pytest.raises(UserError, match="no run is left"):
        names("nothing*")


def test_tokens_and_seconds_are_sums_up_to_a_step(tmp_path):
    """Times 2, 2 then a mean of 1 over three steps: 2, 4, 7; a second seed without tokens leaves the first's."""
    folder = synthetic_runs.write_run(tmp_path / "a", "grpo", steps=0)
    rows = [(1, 2.0, 100), (2, 2.0, 200), (5, 1.0, 500)]
    names = ("step", "train/step_time", "trl/num_tokens")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    )
    (group,) = data.group_runs([load_run(folder)])
    assert data.axes(group) == {
        "tokens": {"step": [1, 2, 5], "value": [100, 200, 500]},
        "seconds": {"step": [1, 2, 5], "value": [2, 4, 7]},
    }
    (bare,) = data.group_runs([load_run(synthetic_runs.write_run(tmp_path / "b", "grpo", steps=2))])
    assert data.axes(bare) == {}
