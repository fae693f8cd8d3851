"""`autotelic control`: tables, files, recipes, refusals."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from autotelic.cli.main import main

RECIPES = Path(__file__).parents[2] / "recipes"


def test_tree_prints_and_writes(tmp_path, capsys):
    files = ["--out", str(tmp_path / "t.json"), "--plot", str(tmp_path / "t.svg")]
    assert main(["control", "tree", "--p-bad", "0.5", "--pairs", "200", "--seeds", "3", *files]) == 0
    out = capsys.readouterr().out
    assert "0.8669" in out and "0.1420" in out
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert {r["method"] for r in rows} >= {"cpl", "ppl", "ppl_d"}
    assert all(r["low"] <= r["mean"] <= r["high"] for r in rows)
    ElementTree.fromstring((tmp_path / "t.svg").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.json", "t.svg"]


def test_mdp_prints_and_writes(tmp_path, capsys):
    command = ["control", "mdp", "--pairs", "300", "--judges", "regret", "--seeds", "2", "--methods", "ppl", "auto"]
    assert main([*command, "--out", str(tmp_path / "m.json"), "--plot", str(tmp_path / "m.svg")]) == 0
    out = capsys.readouterr().out
    assert "auto picked PPL on" in out
    rows = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert [r["method"] for r in rows] == ["cpl", "ppl", "auto"]
    ElementTree.fromstring((tmp_path / "m.svg").read_text())


def test_lqr_prints_and_writes(tmp_path, capsys):
    command = ["control", "lqr", "--config", str(RECIPES / "ppl_lqr.yaml"), "--sets", "mono", "--segments", "1"]
    files = ["--out", str(tmp_path / "l.json"), "--plot", str(tmp_path / "l.svg")]
    assert main([*command, "--judges", "regret", "--methods", "ppl", "--pairs", "100", "--seeds", "3", *files]) == 0
    assert "minus CPL, paired" in capsys.readouterr().out
    rows = json.loads((tmp_path / "l.json").read_text())["rows"]
    assert [r["method"] for r in rows] == ["cpl", "ppl"] and rows[1]["minus_cpl_low"] <= rows[1]["minus_cpl"]
    ElementTree.fromstring((tmp_path / "l.svg").read_text())


def test_a_biased_estimator_is_named_once(capsys):
    command = ["control", "mdp", "--pairs", "100", "--judges", "regret", "--seeds", "3", "--methods", "ppl_observed"]
    assert main(command) == 0
    assert capsys.readouterr().err.count("warning: the look-ahead 'observed' is biased") == 1
    assert main([*command[:-1], "ppl"]) == 0
    assert "biased" not in capsys.readouterr().err


def test_intervals_of_probabilities_are_possible(capsys):
    """Two seeds printed [-3.7, 4.8]: two have no interval, and three stay within [0, 1]."""
    for seeds in (2, 3):
        assert main(["control", "tree", "--p-bad", "0.5", "--seeds", str(seeds), "--pairs", "20", "--json"]) == 0
        for row in json.loads(capsys.readouterr().out)["rows"]:
            assert row["low"] is None if seeds == 2 else 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
            assert ("no interval" in row["text"]) == (seeds == 2)


def test_the_command_line_overrides_the_recipe(capsys):
    recipe = str(RECIPES / "ppl_tree.yaml")
    assert main(["control", "tree", "--config", recipe, "--p-bad", "0.9", "--seeds", "2", "--pairs", "0"]) == 0
    assert capsys.readouterr().out.count("cpl") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("experiment: mdp\n", "no recipe for"),
        ("experiment: tree\nsed: 3\n", "did you mean 'seeds'"),
        ("experiment: tree\nseeds: many\n", "seeds"),
        ("experiment: [", "is not YAML"),
        ("- 1\n", "must be a mapping"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(tmp_path, capsys, text, words):
    (tmp_path / "r.yaml").write_text(text)
    assert main(["control", "tree", "--config", str(tmp_path / "r.yaml")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["tree", "--seeds", "0"], "seeds"),
        (["lqr", "--temperature", "-1"], "temperature"),
        (["lqr", "--slip", "-1"], "slip"),
        (["lqr", "--methods", "pl"], "unknown method"),
        (["lqr", "--pairs", "0"], "pairs"),
        (["tree", "--p-bad", "2"], "p_bad"),
        (["tree", "--temperature", "0"], "temperature"),
        (["tree", "--methods", "ppl_e"], "unknown method"),
        (["tree", "--out", "/proc/x.json"], "cannot write"),
        (["tree", "--pairs", "-1"], "pairs"),
        (["mdp", "--pairs", "1"], "pairs"),
        (["mdp", "--temperature", "-1"], "temperature"),
        (["mdp", "--gamma", "1"], "gamma"),
        (["mdp", "--rollout-length", "2"], "rollout_length"),
        (["mdp", "--num-states", "0"], "num_states"),
    ],
)
def test_bad_options_are_refused_in_one_line(capsys, options, words):
    assert main(["control", *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
