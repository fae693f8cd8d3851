"""`autotelic forecast`: recovers a known law, and says when there is none."""

import json
import math
import random

import pytest

from autotelic.cli.main import main


def write_log(path, *, a=0.5, b=1.2, noise=0.005, points=30, rise=False):
    rng = random.Random(3)
    rows = []
    for i in range(points):
        h = 0.7 * math.exp(-i / 12) + (0.1 * i / points if rise else 0.0)
        rows.append({"step": 10 * i, "entropy": h, "reward": -a * math.exp(h) + b + rng.gauss(0, noise)})
    path.write_text(json.dumps({"log_history": rows}))
    return path


def test_json_recovers_the_law(tmp_path, capsys):
    path = write_log(tmp_path / "trainer_state.json")
    assert main(["forecast", str(path), "--json", "--at", "0"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert {"a", "b", "ceiling", "a_interval", "b_interval", "ceiling_interval", "warnings", "forecast"} <= set(out)
    for name, truth in (("a", 0.5), ("b", 1.2), ("ceiling", 0.7)):
        low, high = out[f"{name}_interval"]
        assert low < out[name] < high
        assert out[name] == pytest.approx(truth, abs=0.02)
    assert out["predictions"][0]["reward"] == pytest.approx(out["ceiling"])
    assert out["forecast"]["share"] == 0.15
    assert set(out["forecast"]["rmse"]) == {"law", "last_value", "linear_in_entropy", "linear_in_step"}
    assert out["forecast"]["rmse"]["law"] < out["forecast"]["rmse"]["last_value"]
    assert out["forecast"]["rolling"]
    assert out["warnings"] == []


def test_text_names_ceiling_interval_and_baselines(tmp_path, capsys):
    path = write_log(tmp_path / "trainer_state.json")
    assert main(["forecast", str(path)]) == 0
    text = capsys.readouterr().out
    assert "ceiling b - a" in text
    assert "% of the predicted gain" in text
    assert "last value" in text
    assert "\x1b" not in text


def test_warnings_are_shown(tmp_path, capsys):
    path = write_log(tmp_path / "trainer_state.json", points=5)
    assert main(["forecast", str(path), "--intervention", "a bonus"]) == 0
    text = capsys.readouterr().out
    assert "warning: too few points" in text
    assert "warning: intervention: a bonus" in text


def test_own_runs_tell_their_intervention(tmp_path, capsys):
    write_log(tmp_path / "trainer_state.json")
    (tmp_path / "run.json").write_text(json.dumps({"method": "grpo+kl_cov"}))
    assert main(["forecast", str(tmp_path)]) == 0
    assert "KL-Cov acts on entropy" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_plots_are_written(tmp_path, capsys, suffix):
    path = write_log(tmp_path / "trainer_state.json")
    plot = tmp_path / f"law{suffix}"
    assert main(["forecast", str(path), "--plot", str(plot)]) == 0
    head = plot.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if suffix == ".png" else b"<html" in head
    assert str(plot) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--entropy-column", "entropi"], "did you mean 'entropy'"),
        (["--share", "2"], "--share must be between 0 and 1"),
        (["--plot", "law.pdf"], "--plot writes .html or .png"),
        (["--at", "-1"], "none of them negative"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    path = write_log(tmp_path / "trainer_state.json")
    assert main(["forecast", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_too_few_points_are_refused(tmp_path, capsys):
    path = write_log(tmp_path / "trainer_state.json", points=2)
    assert main(["forecast", str(path)]) == 2
    assert "at least 3 evaluations" in capsys.readouterr().err


def test_several_logs_give_one_table(tmp_path, capsys):
    for name, a in (("one", 0.5), ("two", 0.3)):
        (tmp_path / name).mkdir()
        write_log(tmp_path / name / "trainer_state.json", a=a)
    (tmp_path / "empty.jsonl").write_text('{"step": 1, "x": 2}\n')
    logs = [str(tmp_path / name) for name in ("one", "two", "empty.jsonl")]
    assert main(["forecast", *logs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ceiling" in lines[0] and lines[1].split()[:3] == [logs[0], "30", lines[1].split()[2]]
    assert "no law: " in lines[3] and "no entropy column" in lines[3]
    assert main(["forecast", *logs, "--json"]) == 0
    first, second, third = json.loads(capsys.readouterr().out)["logs"]
    assert first["a"] == pytest.approx(0.5, abs=0.05) and second["a"] == pytest.approx(0.3, abs=0.05)
    assert "error" in third
    assert main(["forecast", logs[2], logs[2]]) == 2
    assert main(["forecast", *logs, "--plot", "x.html"]) == 2
    assert "--plot draws one log" in capsys.readouterr().err


def test_fractional_steps_are_kept(tmp_path, capsys):
    path = tmp_path / "epochs.csv"
    rows = [f"{i / 400},{0.7 * math.exp(-i / 12)},{1.2 - 0.5 * math.exp(0.7 * math.exp(-i / 12))}" for i in range(12)]
    path.write_text("epoch,entropy,reward\n" + "\n".join(rows) + "\n")
    assert main(["forecast", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last_step"] == pytest.approx(11 / 400)
