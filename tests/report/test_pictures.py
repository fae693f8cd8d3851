"""Heat maps, histograms, single seeds, accuracy against the EM loss: by hand, and what happens without data."""

import base64
import json

import numpy as np
import pytest
import synthetic_runs

from autotelic.errors import UserError
from autotelic.report import data, pictures
from autotelic.report.page import build_payload
from autotelic.report.run_folders import find_json, find_runs, load_run


def write_run(folder, *, temperature, seed=0, rows=(), evaluation=None, method="one_shot_em"):
    folder.mkdir(parents=True)
    config = {"run": {}, "training": {"temperature": temperature, "seed": seed}}
    (folder / "run.json").write_text(json.dumps({"method": method, "seed": seed, "config": config}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def grouped(*folders):
    return data.group_runs([load_run(folder) for folder in folders])


def estimate(value):
    return {"mean@2": {"value": value, "interval": [0, 1]}, "settings": {"k": 2}, "samples": ["x"], "num_prompts": 3}


def test_a_cell_is_the_mean_over_seeds(tmp_path):
    """Two seeds trained at .5 give .2 and .4 when evaluated at 1: .3; one of them at 2 only: .1."""
    folders = [
        write_run(tmp_path / "a", temperature=0.5, seed=0, evaluation={"1.0": estimate(0.2), "2.0": estimate(0.1)}),
        write_run(tmp_path / "b", temperature=0.5, seed=1, evaluation={"1.0": estimate(0.4)}),
        write_run(tmp_path / "c", temperature=1.0, evaluation={"1.0": estimate(0.6), "samples": estimate(0.9)}),
    ]
    (found,) = pictures.heat_maps(grouped(*folders))
    assert (found["axis"], found["columns"]) == ("evaluation temperature", [1.0, 2.0])
    assert [row["label"] for row in found["rows"]] == ["one-shot EM, T 0.5, n = 2", "one-shot EM, T 1"]
    assert found["values"] == {"mean@2": [[pytest.approx(0.3), 0.1], [0.6, None]]}


def test_the_map_over_steps_needs_two_training_temperatures(tmp_path):
    rows = [{"step": 0, "eval/mean_at_k": 0.1}, {"step": 5, "eval/mean_at_k": 0.3}]
    cold = write_run(tmp_path / "a", temperature=0.5, rows=rows)
    assert pictures.heat_maps(grouped(cold)) == []
    hot = write_run(tmp_path / "b", temperature=1.0, rows=[{"step": 5, "eval/mean_at_k": 0.2}])
    (found,) = pictures.heat_maps(grouped(cold, hot))
    assert (found["axis"], found["columns"]) == ("optimizer step", [0.0, 5.0])
    assert found["values"]["mean@k"] == [[0.1, 0.3], [None, 0.2]]


def test_one_temperature_is_no_map(tmp_path):
    """Trained and evaluated at 1, beside a run that does not say: nothing differs. Trained at .5: something does."""
    write_run(tmp_path / "a", temperature=1.0, evaluation={"1.0": estimate(0.3)})
    write_run(tmp_path / "b", temperature=None, evaluation={"1.0": estimate(0.3)})
    assert pictures.heat_maps(grouped(*find_runs([tmp_path]))) == []
    write_run(tmp_path / "c", temperature=0.5, evaluation={"1.0": estimate(0.3)})
    assert len(pictures.heat_maps(grouped(*find_runs([tmp_path])))) == 1


def test_long_maps_keep_their_ends(tmp_path):
    rows = [{"step": s, "eval/mean_at_k": 0.5} for s in range(500)]
    folders = [write_run(tmp_path / str(t), temperature=t, rows=rows) for t in (0.5, 1.0)]
    (found,) = pictures.heat_maps(grouped(*folders))
    assert len(found["columns"]) == pictures.MAX_COLUMNS
    assert (found["columns"][0], found["columns"][-1]) == (0.0, 499.0)


def test_the_base_model_is_a_folder_with_an_evaluation_only(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "evaluation.json").write_text(json.dumps({"1.0": estimate(0.2)}))
    write_run(tmp_path / "a", temperature=0.5, evaluation={"1.0": estimate(0.3)})
    groups = grouped(*find_runs([tmp_path]))
    (found,) = pictures.heat_maps(groups)
    assert [row["label"] for row in found["rows"]] == ["base model", "one-shot EM, T 0.5"]
    base = next(group.runs[0] for group in groups if group.key == "base")
    assert base.notes == ["an evaluation only: it is in the temperature heat map"]


def test_histogram_is_a_density():
    """Counts 1, 3 on bins of 0.5 from 2: densities 1/2 and 3/2, at 2.25 and 2.75."""
    found = pictures.histogram({"low": 2.0, "bin_width": 0.5, "counts": [1, 3]})
    assert found == {"x": [2.25, 2.75], "density": [0.5, 1.5]}


def test_many_bins_are_put_together():
    counts = list(range(901))
    found = pictures.histogram({"low": -1.0, "bin_width": 0.25, "counts": counts})
    assert len(found["x"]) <= pictures.MAX_BINS
    assert np.sum(found["density"]) * 0.75 == pytest.approx(1, abs=1e-3)
    assert found["density"][1] == pytest.approx((3 + 4 + 5) / (sum(counts) * 0.75), rel=1e-4)


def test_logits_take_the_style_of_their_run(tmp_path):
    folder = write_run(tmp_path / "x", temperature=1.0)
    (group,) = grouped(folder)
    base, tuned = pictures.logits(synthetic_runs.logits(("any_pair", str(folder))), [group])["models"]
    assert (base["method"], tuned["method"], tuned["color"]) == ("base", "one_shot_em", group.color)
    assert tuned["shift"]["skewness"] == pytest.approx([0.1, 0.08, 0.12])
    assert pictures.logits(None, [group]) is None


@pytest.mark.parametrize("broken", [{}, {"models": []}, {"settings": {}, "models": {"a": {"histogram": 3}}}])
def test_other_logits_are_refused_in_one_line(broken):
    with pytest.raises(UserError, match=r"not what `autotelic logits --output` writes"):
        pictures.logits(broken | {"x": 1}, [])


def test_files_beside_the_runs_are_found_and_checked(tmp_path):
    assert find_json([tmp_path], "logits.json") is None
    (tmp_path / "logits.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        find_json([tmp_path], "logits.json")


def test_seeds_by_hand(tmp_path):
    """Three runs: first .1, best .5 at step 2, last .3."""
    rows = [{"step": s, "eval/mean_at_k": v} for s, v in ((0, 0.1), (2, 0.5), (4, 0.3))]
    folders = [write_run(tmp_path / str(s), temperature=1.0, seed=s, rows=rows) for s in range(3)]
    assert pictures.seeds(grouped(*folders[:2])) is None
    (row,) = pictures.seeds(grouped(*folders))["rows"]
    assert (row["first"], row["best"], row["best_step"], row["last"]) == ([0.1] * 3, [0.5] * 3, [2] * 3, [0.3] * 3)


def test_accuracy_is_joined_with_the_loss_of_its_step(tmp_path):
    rows = [{"step": s, "train/em_loss": 1.0 / s} for s in (1, 2, 4)]
    rows += [{"step": s, "eval/mean_at_k": v} for s, v in ((0, 0.1), (2, 0.5), (4, 0.3))]
    (found,) = pictures.decoupling(grouped(write_run(tmp_path / "a", temperature=0.5, rows=rows)))
    assert (found["step"], found["loss"], found["accuracy"]) == ([2, 4], [0.5, 0.25], [0.5, 0.3])


def test_preference_curves_come_from_the_glossary(tmp_path):
    charts, _ = data.charts(grouped(synthetic_runs.write_preference_run(tmp_path / "p")), data.preference_charts())
    assert [chart["title"] for chart in charts] == ["Success", "Train NLL", "Train accuracy", "Held-out NLL"]
    assert charts[1]["unit"] == "nats per pair"
    (success,) = charts[0]["series"]
    assert (success["method"], success["n"], success["x"]) == ("ppl", 1, [10, 20, 30, 40])
    assert np.subtract(success["y"], success["low"]) == pytest.approx([0.1] * 4, abs=1e-4)
    assert np.subtract(success["high"], success["y"]) == pytest.approx([0.05] * 4, abs=1e-4)


@pytest.mark.parametrize(
    ("objective", "label"), [("ppl", "PPL"), ("dpo", "DPO"), ("repo", "RePO"), ("auto", "auto"), (None, "PPL")]
)
def test_preference_runs_are_named_by_their_objective(tmp_path, objective, label):
    folder = synthetic_runs.write_preference_run(tmp_path / "p")
    (folder / "run.json").write_text(json.dumps({"method": "ppl", "config": {"run": {"objective": objective}}}))
    assert grouped(folder)[0].label == label


def test_what_is_missing_is_said_with_the_command_that_makes_it(tmp_path):
    run = load_run(synthetic_runs.write_run(tmp_path / "r", "grpo", steps=5))
    absent = " ".join(build_payload([run], None, "t")["absent"])
    for part in (
        "autotelic eval RUN",
        "autotelic logits BASE",
        "--follow_prompts",
        "three runs",
        "autotelic train ppl",
    ):
        assert part in absent
    whole = load_run(synthetic_runs.write_run(tmp_path / "w", "grpo", steps=5, followed=1, evaluated=True))
    absent = " ".join(build_payload([whole], None, "t", logits=synthetic_runs.logits(("b", "w")))["absent"])
    for part in ("autotelic eval RUN", "autotelic logits BASE", "--follow_prompts"):
        assert part not in absent


def test_runs_of_sweeps_and_of_evidence_are_found_and_named(tmp_path):
    write_run(tmp_path / "sweep" / "trials" / "abc" / "run", temperature=1.0)
    write_run(tmp_path / "evidence" / "grpo-seed0" / "run", temperature=1.0)
    (trial,) = find_runs([tmp_path / "sweep"])
    (evidence,) = find_runs([tmp_path / "evidence"])
    assert [load_run(path).name for path in (trial, evidence)] == ["abc", "grpo-seed0"]


def test_followed_prompts_come_first_and_name_their_answers(tmp_path):
    from autotelic.report.rollout_viewer import rollouts

    groups = grouped(synthetic_runs.write_run(tmp_path / "r", "grpo", steps=40, followed=2))
    prompts = rollouts(groups)[0]["runs"][0]["prompts"]
    assert [(p["followed"], p["id"]) for p in prompts] == [
        (True, "f0"),
        (True, "f1"),
        *((False, f"p{i}") for i in range(3)),
    ]
    assert all(len(p["steps"]) == 3 for p in prompts)
    answers = prompts[0]["steps"][0]["answers"]
    assert answers and set(answers.values()) <= {"13", "14", "15", "16"}


def test_frames_of_a_control_run_are_embedded(tmp_path):
    """A picture that is one, and small; anything else under that name is left alone."""
    png = pictures.PNG + b"rest"
    large = pictures.PNG + bytes(pictures.MAX_FRAME_BYTES)
    for name, content in (("a", png), ("b", b"<svg onload=alert(1)>"), ("c", large)):
        (write_run(tmp_path / name, temperature=1.0) / "rollout.png").write_bytes(content)
    found = pictures.frames([load_run(tmp_path / name) for name in "abc"])
    assert [frame["run"] for frame in found] == ["a"]
    assert base64.b64decode(found[0]["png"]) == png
