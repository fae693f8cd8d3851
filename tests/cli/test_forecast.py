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
        (["--at", "-1"], "from 0 to 20"),
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


def write_sizes(folder, sizes, *, slope=0.1):
    """One run folder per size, whose law has a = .2 + slope (ln N - ln 1e6), run.json with the size."""
    logs = []
    for index, size in enumerate(sizes):
        place = folder / f"run{index}"
        place.mkdir()
        a = 0.2 + slope * (math.log(size) - math.log(1e6))
        write_log(place / "trainer_state.json", a=a, b=1.0 + a, noise=0.002)
        (place / "run.json").write_text(json.dumps({"method": "grpo", "parameters": size}))
        logs.append(str(place))
    return logs


def test_across_sizes_recovers_the_slope_and_predicts_the_largest(tmp_path, capsys):
    logs = write_sizes(tmp_path, [1_000_000, 2_000_000, 4_000_000, 16_000_000])
    assert main(["forecast", *logs, "--across", "size", "--at-size", "7e9", "--json"]) == 0
    across = json.loads(capsys.readouterr().out)["across"]
    assert across["sizes"] == [1e6, 2e6, 4e6, 16e6]
    assert across["a"]["slope"] == pytest.approx(0.1, abs=0.01)
    assert across["b"]["slope"] == pytest.approx(0.1, abs=0.01)
    assert across["ceiling"]["slope"] == pytest.approx(0.0, abs=0.01)
    largest = across["a"]["largest"]
    assert largest["size"] == 16e6 and largest["predicted"] == pytest.approx(largest["fitted"], abs=0.05)
    assert across["a"]["predictions"][0]["value"] == pytest.approx(0.2 + 0.1 * math.log(7e3), abs=0.1)
    assert main(["forecast", *logs, "--across", "size", "--at-size", "7e9"]) == 0
    out = capsys.readouterr().out
    assert (
        "across 4 sizes, 4 runs" in out and "largest, from the smaller" in out and "at 7,000,000,000 parameters" in out
    )


def test_sizes_can_be_given_and_are_asked_for(tmp_path, capsys):
    logs = write_sizes(tmp_path, [1_000_000, 2_000_000, 4_000_000])
    for log in logs:
        (tmp_path / log / "run.json").unlink()
    assert main(["forecast", *logs, "--across", "size", "--sizes", "1e6", "2e6", "4e6"]) == 0
    assert "warning: the smaller models are too few" in capsys.readouterr().out
    for arguments, message in (
        ([*logs, "--across", "size"], "give --sizes"),
        ([*logs, "--across", "size", "--sizes", "1e6"], "give one each"),
        ([*logs, "--across", "size", "--sizes", "1", "2", "-3"], "above zero"),
        ([*logs, "--sizes", "1", "2", "3"], "belong to --across size"),
        ([*logs[:2], "--across", "size"], "three at least"),
    ):
        assert main(["forecast", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_size_is_counted_from_the_weights_where_run_json_has_none(tmp_path):
    import torch
    from safetensors.torch import save_file

    from autotelic.cli.forecast_across import size_of

    assert size_of(tmp_path) is None
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model.safetensors")
    assert size_of(tmp_path) == 22 == size_of(tmp_path / "metrics.jsonl")
    (tmp_path / "run.json").write_text(json.dumps({"parameters": 7}))
    assert size_of(tmp_path) == 7
