"""What the page is given: seeds as bands, settings kept apart, tables, laws, bounded rollouts, and notes."""

import json

import numpy as np
import pytest
import synthetic_runs
from synthetic_runs import grouped, write_metrics

from autotelic.errors import UserError
from autotelic.report import data
from autotelic.report import rollout_viewer as rollouts
from autotelic.report.page import build_payload
from autotelic.report.run_folders import find_runs, load_run


def test_seeds_of_one_setting_are_a_band_with_n(tmp_path):
    """Two seeds, 0.2 and 0.4 at step 1: mean 0.3, band 0.2 to 0.4, n = 2; step 2 has one seed only and is left out."""
    first = write_metrics(
        tmp_path / "a", [{"step": 1, "reward/mean": 0.2}, {"step": 2, "reward/mean": 1.0}], method="grpo", seed=0
    )
    second = write_metrics(tmp_path / "b", [{"step": 1, "reward/mean": 0.4}], method="grpo", seed=1)
    (group,) = grouped(first, second)
    curve = data.band(group.runs, "reward/mean")
    assert curve == {"x": [1], "y": [0.3], "n": 2, "low": [0.2], "high": [0.4]}


def test_runs_that_ask_while_they_learn_have_their_answers_on_the_axis(tmp_path):
    """50 and 900 updates for the same 10 answers; a run with all answers from the start stays apart."""
    rows = [{"step": 0, "eval/success": 0.1, "feedback/labels": 0, "feedback/env_steps": 5}]
    folders = [
        write_metrics(
            tmp_path / method,
            [*rows, {"step": updates, "eval/success": 0.4, "feedback/labels": 10, "feedback/env_steps": 9}],
            method=method,
            seed=0,
        )
        for method, updates in (("online_ppl", 50), ("online_pebble", 900))
    ]
    folders.append(write_metrics(tmp_path / "cpl", [{"step": 7, "eval/success": 0.3}], method="cpl", seed=0))
    offline, online = data.preference_learning(grouped(*folders))
    assert [(c["metric"], [(s["method"], s["x"]) for s in c["series"]]) for c in offline] == [
        ("eval/success", [("cpl", [7])])
    ]
    assert [c["metric"] for c in online] == ["eval/success", "feedback/env_steps"]
    assert [(s["x"], s["y"]) for s in online[0]["series"]] == [([0, 10], [0.1, 0.4])] * 2


def test_other_settings_of_a_method_are_not_its_seeds(tmp_path):
    folders = []
    for rate in (1e-4, 2e-4):
        config = {
            "run": {"reward": "verifier"},
            "training": {"learning_rate": rate, "seed": 0, "output_dir": str(rate)},
        }
        folders.append(
            write_metrics(tmp_path / str(rate), [{"step": 1, "reward/mean": 1}], method="grpo", config=config)
        )
    groups = grouped(*folders)
    assert [len(g.runs) for g in groups] == [1, 1]
    assert "learning_rate = 0.0001" in groups[0].label
    assert groups[0].color != groups[1].color


@pytest.mark.parametrize("method", synthetic_runs.METHODS)
def test_methods_are_recognised_and_keep_their_colours(tmp_path, method):
    (group,) = grouped(synthetic_runs.write_run(tmp_path / "some-run", method, steps=5))
    assert group.key == method
    assert group.color == data.styles()[method].color


def test_ranks_with_the_same_tokens_are_drawn_once(tmp_path):
    """700 tokens: the top .02 % and the top .2 % are the same token."""
    rows = [
        {"step": s, **{f"covariance/top_{n}": 3.0 for n in ("0_02", "0_2")}, "covariance/mean": 0.1} for s in (1, 2)
    ]
    (entry,) = data.covariance(grouped(write_metrics(tmp_path / "a", rows, method="grpo")))
    assert [rank["name"] for rank in entry["ranks"]] == ["top 0.2 %", "all tokens"]


def test_thresholds_of_empo_are_in_nats(tmp_path):
    """0.2 and 0.9 of ln 8."""
    (entry,) = data.semantic(grouped(synthetic_runs.write_run(tmp_path / "e", "empo")))
    assert entry["thresholds"] == pytest.approx([0.2 * np.log(8), 0.9 * np.log(8)])


def test_semantic_entropy_by_hand():
    """Clusters of 2 and 2: ln 2."""
    assert data.cluster_entropy([0, 0, 1, 1]) == pytest.approx(np.log(2))


def test_missing_clusters_are_read_from_the_answers(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    responses = [{"text": t, "tokens": [t]} for t in ("the answer is 4", "4", "5", "none")]
    row = {"step": 0, "prompt_id": "p", "prompt": "2+2=", "responses": responses}
    (folder / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    assert load_run(folder).rollouts[0].clusters == (0, 0, 1, -1)


def test_half_a_run_is_read_and_what_is_missing_is_said(tmp_path):
    folder = synthetic_runs.write_run(tmp_path / "r", "grpo", steps=5)
    (folder / "rollouts.jsonl").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "reward/me')  # a killed run
    payload = build_payload([load_run(folder)], None, "t")
    assert payload["charts"]
    assert payload["rollouts"]["runs"] == []
    assert any("no rollouts" in note for note in payload["absent"])
    assert any("no results.json" in note for note in payload["absent"])
    assert payload["table"]["interval"] == "range over seeds"


def test_folders_of_runs_are_found(tmp_path):
    synthetic_runs.write_run(tmp_path / "demo" / "a", "grpo", steps=2)
    synthetic_runs.write_run(tmp_path / "demo" / "b", "empo", steps=2)
    assert [p.name for p in find_runs([tmp_path / "demo", tmp_path / "demo" / "a"])] == ["a", "b"]
    with pytest.raises(UserError, match="holds no run"):
        find_runs([tmp_path])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json is not JSON"),
        ("run.json", "[]", "run.json is not a JSON object"),
        ("metrics.jsonl", "{}\nnope\n{}\n", "line 2 is not JSON"),
        ("rollouts.jsonl", '{"step": 1}\n', "line 1 is not a rollout"),
    ],
)
def test_broken_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_run(tmp_path)


def test_rollouts_are_bounded_and_the_cut_is_said(tmp_path, monkeypatch):
    folder = synthetic_runs.write_run(tmp_path / "r", "grpo", steps=40, rollout_every=1, prompts=20, responses=4)
    groups = grouped(folder)
    viewer, notes = rollouts.rollouts(groups)
    (run,) = viewer["runs"]
    assert len(run["prompts"]) == rollouts.MAX_PROMPTS
    steps = [s["step"] for s in run["prompts"][0]["steps"]]
    assert len(steps) == rollouts.MAX_STEPS
    assert (steps[0], steps[-1]) == (0, 40)
    assert any("not embedded" in note for note in notes)
    monkeypatch.setattr(rollouts, "MAX_TOKENS", 100)
    small, _ = rollouts.rollouts(groups)
    assert sum(len(r["t"]) for p in small["runs"][0]["prompts"] for s in p["steps"] for r in s["responses"]) < 200


def test_embedded_tokens_are_the_recorded_ones(tmp_path):
    folder = synthetic_runs.write_run(tmp_path / "r", "kl_cov", steps=20)
    viewer, _ = rollouts.rollouts(grouped(folder))
    shown = viewer["runs"][0]["prompts"][0]["steps"][0]["responses"][0]
    recorded = json.loads((folder / "rollouts.jsonl").read_text().splitlines()[0])["responses"][0]
    assert [viewer["vocabulary"][i] for i in shown["t"]] == recorded["tokens"]
    assert shown["h"] == pytest.approx(recorded["entropy"], rel=5e-3)
    assert shown["x"] == [i for i, chosen in enumerate(recorded["selected"]) if chosen]
    assert shown["g"] == recorded["cluster"]


def test_long_curves_are_thinned_to_their_ends(tmp_path):
    rows = [{"step": s, "reward/mean": float(s)} for s in range(3000)]
    curve = data.band(grouped(write_metrics(tmp_path / "r", rows, method="grpo"))[0].runs, "reward/mean")
    assert len(curve["x"]) == data.MAX_POINTS
    assert (curve["x"][0], curve["x"][-1]) == (0, 2999)


def test_results_become_a_table_and_curves():
    table = data.table_from_results(synthetic_runs.results(), [])
    assert table["rows"][0]["method"] == "base"
    assert table["columns"] == ["mean@8", "greedy", "maj@8", "pass@1", "pass@2", "pass@4", "pass@8", "entropy"]
    (base, *_) = data.pass_curves(synthetic_runs.results(), [])
    assert base["k"] == [1, 2, 4, 8]
    broken = {"base": {"mean@8": {"value": float("nan"), "interval": [0, 1]}, "greedy": {"value": 0.5}}, "note": "x"}
    (row,) = data.table_from_results(broken, [])["rows"]
    assert row["cells"] == {"greedy": {"value": 0.5, "low": None, "high": None}}


def test_every_chart_metric_is_declared():
    from autotelic.runs.glossary import METRICS

    assert [name for _, _, names in data.CHARTS for name in names if name not in METRICS] == []


def test_prompts_that_never_come_back_are_spread_over_training(tmp_path):
    """Forty prompts at one step each: the twelve that are kept reach from the first step to the last."""
    folder = tmp_path / "r"
    folder.mkdir()
    response = {"text": "4", "tokens": ["4"], "cluster": 0}
    rows = [{"step": i, "prompt_id": f"p{i}", "prompt": "2+2=", "responses": [response]} for i in range(40)]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [row.step for row in rollouts.choose_rows(load_run(folder).rollouts)]
    assert (len(steps), steps[0], steps[-1]) == (rollouts.MAX_PROMPTS, 0, 39)


def test_every_curve_of_the_covariance_has_its_own_name(tmp_path):
    (entry,) = data.covariance(grouped(synthetic_runs.write_run(tmp_path / "r", "clip_cov", steps=5)))
    ranks = [curve["name"] for curve in entry["ranks"]]
    assert ranks == ["top 0.02 %", "top 0.2 %", "top 2 %", "top 20 %", "top 50 %", "all tokens"]
    assert [c["name"] for c in entry["accuracies"]] == list(data.ACCURACIES.values())
    assert len({c["name"] for c in entry["quadrants"]}) == 4


def test_differences_are_the_settings_that_differ(tmp_path):
    """Seeds and folders are no difference; a nested setting is named by its path, a missing one is None."""
    synthetic_runs.write_run(tmp_path / "a", "grpo", steps=1, seed=0)
    synthetic_runs.write_run(tmp_path / "b", "grpo", steps=1, seed=1)
    assert data.differences(data.group_runs([load_run(tmp_path / name) for name in "ab"])) == []
    synthetic_runs.write_run(tmp_path / "c", "grpo", steps=1, temperature=0.5)
    described = json.loads((tmp_path / "c" / "run.json").read_text())
    described["config"]["training"]["optimizer"] = {"kind": {"beta": 0.9}}
    (tmp_path / "c" / "run.json").write_text(json.dumps(described))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "evaluation.json").write_text(json.dumps(synthetic_runs.evaluation(1.0)))
    groups = data.group_runs([load_run(tmp_path / name) for name in ("a", "b", "c", "base")])
    values = {group.key: place for place, group in enumerate(groups)}
    found = {row["name"]: row["values"] for row in data.differences(groups)}
    assert {name: [row[values[key]] for key in ("grpo", "grpo 2", "base")] for name, row in found.items()} == {
        "optimizer.kind.beta": [None, "0.9", None],
        "temperature": ["1.0", "0.5", None],
    }


def test_long_settings_do_not_hide_how_the_model_is_passed(tmp_path):
    """Settings are cut at their bound; which head runs, and what is shared, stands before them."""
    config = {"run": {}, "training": {f"option_{i}": "x" * 50 for i in range(200)}}
    folder = write_metrics(tmp_path / "a", [{"step": 1, "reward/mean": 1}], method="grpo", config=config)
    description = json.loads((folder / "run.json").read_text()) | {"passes": {"prompt in training": "shared"}}
    (folder / "run.json").write_text(json.dumps(description))
    (shown,) = build_payload([load_run(folder)], None, "t")["configs"]
    assert '"prompt in training": "shared"' in shown["text"] and shown["text"].endswith("... (cut)")
