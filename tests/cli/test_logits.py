"""`autotelic logits`: a model against a sharpened copy of itself, files, pictures, refusals."""

import json

import pytest

from autotelic.cli.main import main

SMALL = ["--limit", "3", "--k", "2", "--max-new-tokens", "20", "--quiet"]


@pytest.fixture(scope="module")
def sharper(tmp_path_factory):
    """The carried model with its last normalisation scaled: every logit times 1.5."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autotelic.tasks import model_path

    folder = tmp_path_factory.mktemp("model")
    model = AutoModelForCausalLM.from_pretrained(model_path("any_pair"))
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path("any_pair")).save_pretrained(folder)
    return str(folder)


def test_scaled_logits_scale_mean_and_std_and_leave_skewness(tmp_path, sharper, capsys):
    out, plot = tmp_path / "shift.json", tmp_path / "shift.html"
    assert main(["logits", "any_pair", sharper, *SMALL, "--out", str(out), "--plot", str(plot)]) == 0
    assert "skewness - base" in capsys.readouterr().out
    base, tuned = json.loads(out.read_text())["models"].values()
    for name in ("mean", "std"):
        assert tuned[name]["value"] == pytest.approx(1.5 * base[name]["value"], rel=1e-4)
    assert tuned["shift"]["skewness"]["value"] == pytest.approx(0.0, abs=1e-4)
    assert base["num_values"] == base["num_positions"] * 18
    assert "Mean logit per rank" in plot.read_text()


def test_given_responses_are_the_shared_text(tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "1+2=?", "responses": ["3", "4"]}) + "\n")
    assert main(["logits", "any_pair", "--prompts", str(prompts), "--json", "--quiet"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"].values()
    assert row["num_sequences"] == 2 and row["num_positions"] == 4


def test_compat_official_sees_each_model_on_its_own_text(sharper, capsys):
    assert main(["logits", "any_pair", sharper, *SMALL, "--compat", "official", "--json"]) == 0
    base, tuned = json.loads(capsys.readouterr().out)["models"].values()
    assert "shift" not in tuned or base["num_positions"] == tuned["num_positions"]
    assert base["num_values"] == base["num_positions"] * 18  # fewer than 50 tokens: all of them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["any_pair", "any_pair"], "twice"),
        (["any_pear"], "neither"),
        (["any_pair", "any_pear"], "neither"),
        (["any_pair", "--limit", "0"], "at least 1"),
        (["any_pair", "--out", "/proc/x/y.json"], "cannot write"),
        (["any_pair", "--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_line(capsys, options, message):
    assert main(["logits", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and error.startswith("autotelic: error")


def test_every_model_is_looked_at_before_anything_is_sampled(tmp_path, capsys, monkeypatch):
    from autotelic.lm import sampling

    monkeypatch.setattr(sampling, "sample", lambda *args, **kwargs: pytest.fail("sampled"))
    (tmp_path / "config.json").write_text("{}")
    assert main(["logits", "any_pair", str(tmp_path)]) == 2
    assert "without weights" in capsys.readouterr().err


def test_an_interruption_compares_what_was_sampled(capsys, monkeypatch):
    from autotelic.cli import progress_line

    def call(self, done, total):
        if done > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress_line.ProgressLine, "__call__", call)
    assert main(["logits", "any_pair", *SMALL, "--batch-size", "2", "--json"]) == 130
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)["models"].values()
    assert row["num_sequences"] == 2
    assert captured.err == "interrupted: the models are compared on 2 of 6 responses\n"
