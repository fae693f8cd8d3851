"""A page with everything, for the tests in a browser."""

import json

import pytest
import synthetic_runs

from autotelic.report import write_report


@pytest.fixture(scope="session")
def full_runs(tmp_path_factory):
    """Runs with everything: three seeds of one method, followed prompts, evaluations, logits, preferences, probes."""
    folder = tmp_path_factory.mktemp("runs")
    synthetic_runs.write_run(folder / "grpo-0", "grpo", seed=0, steps=30, text=synthetic_runs.HOSTILE)
    for seed in (1, 2):
        synthetic_runs.write_run(folder / f"grpo-{seed}", "grpo", seed=seed, steps=30)
    for name in ("clip_cov", "kl_cov"):
        synthetic_runs.write_run(folder / f"{name}-0", name, steps=30, followed=2, rollout_every=10, timed=True)
    for temperature in (0.5, 1.0):
        name = f"one_shot_em-{temperature}"
        synthetic_runs.write_run(folder / name, "one_shot_em", steps=30, temperature=temperature, evaluated=True)
    synthetic_runs.write_preference_run(folder / "ppl-0")
    synthetic_runs.write_online_run(folder / "online_ppl-0")
    synthetic_runs.write_online_run(folder / "online_pebble-0", "online_pebble", updates=2000)
    (folder / "base").mkdir()
    (folder / "base" / "evaluation.json").write_text(json.dumps(synthetic_runs.evaluation(1.0)))
    (folder / "logits.json").write_text(json.dumps(synthetic_runs.logits(("any_pair", str(folder / "grpo-0")))))
    return folder


@pytest.fixture(scope="session")
def full_page(full_runs):
    """The page of these runs, with results and labels."""
    labels = [{"prompt": "0+0=", "answer": "14"}, {"prompt": "12+7-5=", "answer": "14"}]
    output = full_runs / "out" / "page.html"
    return write_report([full_runs], output, results=synthetic_runs.results(), title="A <b>title</b>", labels=labels)
