"""The law of each method on the page: one fit of all seeds, of accuracy only, flagged where it may not hold."""

import json

import numpy as np
import pytest
import synthetic_runs
from synthetic_runs import grouped, write_metrics

from autotelic.cli.forecast import intervention_of
from autotelic.functional.entropy_law import fit_entropy_law
from autotelic.report.law_panel import laws
from autotelic.report.page import build_payload
from autotelic.report.run_folders import load_run


def test_law_is_the_librarys_fit_of_all_seeds(tmp_path):
    folders = [synthetic_runs.write_run(tmp_path / str(s), "grpo", seed=s, steps=100) for s in (0, 1)]
    (entry,) = laws(grouped(*folders))
    assert entry["n"] == 2
    fit = fit_entropy_law(np.array(entry["h"]), np.array(entry["r"]))
    assert entry["fit"]["ceiling"] == pytest.approx(fit.ceiling, abs=1e-4)
    low, high = entry["fit"]["ceiling_interval"]
    assert low < entry["fit"]["ceiling"] < high
    assert entry["warnings"] == []


def test_law_is_flagged_under_an_intervention_and_silent_without_data(tmp_path):
    (entry,) = laws(grouped(synthetic_runs.write_run(tmp_path / "c", "clip_cov")))
    assert any("Clip-Cov acts on entropy" in w for w in entry["warnings"])
    both = synthetic_runs.write_run(tmp_path / "e", "empo")
    described = json.loads((both / "run.json").read_text())
    described |= {"method": "empo+kl_cov"}
    described["config"]["run"]["entropy_control"] = {"name": "kl_cov", "fraction": 0.2}
    (both / "run.json").write_text(json.dumps(described))
    (entry,) = laws(grouped(both))
    assert any("KL-Cov acts on entropy" in w for w in entry["warnings"])
    assert intervention_of(both) == "KL-Cov"
    assert laws(grouped(write_metrics(tmp_path / "d", [{"step": 1, "train/loss": 1.0}], method="grpo"))) == []


def test_agreement_is_never_fitted_as_accuracy(tmp_path):
    """EMPO without validation has no law, and the quiet line says why; with validation it has the validation's."""
    folder = synthetic_runs.write_run(tmp_path / "empo", "empo", steps=40)
    (entry,) = laws(grouped(folder))
    assert entry["reward_metric"] == "eval/mean_at_k"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    page = build_payload([load_run(folder)], None, "title")
    assert page["law"] == []
    (note,) = [note for note in page["absent"] if "entropy law" in note]
    assert note.startswith("no entropy law for EMPO: ") and "not accuracy" in note
    labelled = synthetic_runs.write_run(tmp_path / "grpo", "grpo", steps=40)
    assert not [note for note in build_payload([load_run(labelled)], None, "t")["absent"] if "entropy law" in note]
