"""The driver of the experiments: own problem sets, differences paired by seed, peaks, where a stop rule would act."""

import importlib
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def evidence():
    """Import the driver as running it from its folder does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("evidence")


def test_problem_sets_differ_between_seeds_and_share_nothing(evidence, tmp_path):
    sets = {"train": {"split": "train", "count": 8, "per_seed": True}, "test": {"split": "ood", "skip": 5, "count": 3}}
    for seed in (0, 1):
        evidence.write_problems(sets, tmp_path, seed)

    def prompts(name):
        return {json.loads(line)["prompt"] for line in (tmp_path / "problems" / name).read_text().splitlines()}

    first, second = prompts("train-seed0.jsonl"), prompts("train-seed1.jsonl")
    assert len(first) == len(second) == 8 and not first & second
    assert prompts("test-seed0.jsonl") == prompts("test-seed1.jsonl") and len(prompts("test-seed0.jsonl")) == 3
    assert evidence.located("problems/train", tmp_path, 1) == str(tmp_path / "problems/train-seed1.jsonl")
    assert evidence.located("models/w64", tmp_path, 1) == str(tmp_path / "models/w64")
    assert evidence.located("chain_sums:test", tmp_path, 1) == "chain_sums:test"


def write_result(output, name, seed, value, curve=(), probes=()):
    folder = output / f"{name}-seed{seed}"
    (folder / "run").mkdir(parents=True)
    result = {"name": name, "seed": seed, "evaluation": {"mean@8": {"value": value}}}
    (folder / "result.json").write_text(json.dumps(result))
    rows = [{"step": 10 * i, "eval/mean_at_k": point} for i, point in enumerate(curve)]
    (folder / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run/probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in probes))


def probe(step, diversity):
    names = ("parse_rate", "majority_share", "unanimous_share", "semantic_entropy", "modal_answer_share")
    values = dict.fromkeys((*names, "mean_length", "repetition"), 0.1)
    return {"step": step, "majority": ["1"], "diversity": diversity} | values


@pytest.fixture
def output(tmp_path):
    (tmp_path / "experiment.json").write_text(json.dumps({"runs": {"grpo": {}, "kl_cov": {}}}))
    probes = [probe(0, 0.8), probe(10, 0.6), probe(20, 0.3), probe(30, 0.2)]
    for seed, (plain, held) in enumerate([(0.2, 0.3), (0.3, 0.4), (0.1, 0.2)]):
        write_result(tmp_path, "grpo", seed, plain, (0.2, 0.5, 0.4, 0.1), probes)
        write_result(tmp_path, "kl_cov", seed, held)
    return tmp_path


def test_differences_are_paired_by_seed(evidence, output):
    """The arms differ by .1 at every seed, so the paired interval is empty though the seeds differ."""
    assert "| kl_cov | 3 | +0.100 ± 0.000 |" in evidence.paired(output, ["mean@8"], "grpo")


def test_collected_curves_take_the_place_of_the_details(evidence, output):
    for path in output.glob("*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"details": {"correct": [1] * 1000}}))
    evidence.collect(output, output / "all.json", ["eval/"])
    run = json.loads((output / "all.json").read_text())["runs"][0]
    assert run["name"] == "grpo" and "details" not in run
    assert run["curve"][1] == {"step": 10, "eval/mean_at_k": 0.5}


def test_the_peak_and_what_was_lost_since(evidence, output):
    assert "| grpo | 3 | 0.500 ± 0.000 | 10 | 0.100 ± 0.000 | 0.400 ± 0.000 |" in evidence.best(output)


def test_a_stop_rule_is_judged_by_the_weights_of_the_probe_before(evidence, output):
    """Diversity halves at update 20: the weights of update 10 are kept, which are the peak, .4 above the end."""
    assert "| grpo | diversity | 3 of 3 | 20 | 0.000 ± 0.000 | +0.400 ± 0.000 |" in evidence.stops(output)


def test_a_run_that_was_stopped_is_no_result(evidence, tmp_path, monkeypatch):
    monkeypatch.setattr("autotelic.cli.train.train", lambda method, options: {"finished": False})
    recipe = {"common": {"model_name_or_path": "any_pair"}, "evaluation": {"problems": 1, "k": 1}, "runs": {"grpo": {}}}
    with pytest.raises(SystemExit, match="goes on"):
        evidence.run_one(recipe, "grpo", 0, tmp_path)
    assert not (tmp_path / "grpo-seed0" / "result.json").exists()


@pytest.mark.slow
def test_a_run_starts_from_another_runs_model_which_is_kept_until_then(evidence, tmp_path, monkeypatch):
    """GRPO, then EM from its weights; the model is written once, read by both evaluations, and gone at the end."""
    small = {"num_generations": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    small |= {"max_completion_length": 4, "max_steps": 1, "save_strategy": "no", "learning_rate": 1e-3}
    runs = {"grpo": {"method": "grpo"}, "colder": {"method": "base", "evaluation_temperature": 0.5, "evaluation_k": 3}}
    runs["colder"]["model_name_or_path"] = "runs/grpo"
    runs["em"] = {"method": "one_shot_em", "model_name_or_path": "runs/grpo", "dataset_limit": 1, "num_generations": 4}
    recipe = {"seeds": 1, "first_seed": 1, "runs": runs, "evaluation": {"problems": 2, "k": 1, "max_new_tokens": 4}}
    recipe["common"] = {"model_name_or_path": "any_pair", "dataset": "chain_sums:train", "dataset_limit": 4} | small
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    from autotelic.cli import train

    begun, trained = [], train.train
    monkeypatch.setattr(
        train, "train", lambda method, options: begun.append((method, options)) or trained(method, options)
    )
    output, weights = tmp_path / "out", tmp_path / "out/grpo-seed1/run/model.safetensors"

    evidence.run(tmp_path / "recipe.yaml", output, ["colder"], None)
    assert [method for method, _ in begun] == ["grpo"] and weights.exists()
    evidence.run(tmp_path / "recipe.yaml", output, [], None)
    assert [method for method, _ in begun] == ["grpo", "one_shot_em"]
    assert str(begun[1][1]).count("grpo-seed1/run") == 1
    assert not list(output.glob("*/run/*.safetensors"))
    found = evidence.records(output)
    assert "mean@3" in found["colder"][0]["evaluation"] and "mean@1" in found["em"][0]["evaluation"]
    assert found["grpo"][0]["training_cpu_seconds"] > 0
