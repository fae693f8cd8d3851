"""What a command writes never destroys what it reads, nor a device, nor another result."""

import json
import os
import stat
import threading

import pytest
import synthetic_runs

from autotelic.cli.main import main
from autotelic.runs.files import write_atomically, write_output

ROW = {"prompt": "a", "responses": ["= 1", "= 2"], "answer": "1", "id": "a"}


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


@pytest.mark.parametrize("command", ["score", "eval", "select"])
@pytest.mark.parametrize("option", ["--output", "--plot"])
def test_a_file_that_is_read_is_not_written_over(samples, command, option, capsys):
    if option == "--plot" and command != "select":
        pytest.skip("draws nothing")
    before = samples.read_bytes()
    link = samples.with_name("link.jsonl")
    link.symlink_to(samples)
    for place in (samples, link):
        assert main([command, str(samples), option, str(place)]) == 2
        assert "this command reads it" in capsys.readouterr().err
    assert samples.read_bytes() == before


def test_a_report_is_not_written_over_a_file_of_its_run(tmp_path, capsys):
    synthetic_runs.write_run(tmp_path / "run", "grpo", steps=3)
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "run" / "run.json")]) == 2
    assert "a file of a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_two_results_need_two_places(samples, tmp_path, capsys):
    both = str(tmp_path / "both")
    assert main(["select", str(samples), "--output", both, "--plot", both]) == 2
    assert "two results" in capsys.readouterr().err
    assert main(["score", str(samples), "--output", "-"]) == 2
    assert "/dev/stdout" in capsys.readouterr().err


def test_a_link_is_followed_and_a_pipe_stays_a_pipe(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_output(pipe, "through")
    reader.join()
    assert found == ["through"] and pipe.is_fifo()


def test_a_full_device_is_one_line(samples, capsys):
    full = samples.with_name("full")  # not the machine's own: a mistake would replace it
    try:
        os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        full.write_bytes(b"")
    except OSError:
        pytest.skip("only root makes a device")
    assert main(["score", str(samples), "--output", str(full)]) == 2
    error = capsys.readouterr().err
    assert "No space left" in error and error.count("\n") == 1 and full.is_char_device()


@pytest.mark.parametrize("command", ["score", "eval", "select"])
def test_samples_may_come_through_a_pipe(samples, command, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(samples.read_bytes()))
    writer.start()
    assert main([command, str(pipe)]) == 0
    writer.join()


@pytest.mark.parametrize("command", ["score", "eval", "select"])
def test_half_a_surrogate_pair_is_written_and_printed(tmp_path, command, capsys):
    path, out = tmp_path / "s.jsonl", tmp_path / "out"
    path.write_text(json.dumps({**ROW, "prompt": "\ud83d", "id": "\ud83d"}) + "\n")
    assert main([command, str(path), "--output", str(out)]) == 0
    assert "\\ud83d" in out.read_text()
