"""`autotelic report`: writes the page, watches, and refuses in one line."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import synthetic_runs

from autotelic.cli import report
from autotelic.cli.main import main


def test_page_is_written_and_named(tmp_path, capsys):
    synthetic_runs.write_run(tmp_path / "demo" / "grpo", "grpo", steps=5)
    (tmp_path / "demo" / "results.json").write_text(json.dumps(synthetic_runs.results()))
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "demo"), "-o", str(page)]) == 0
    assert "page.html (" in capsys.readouterr().out
    assert "one-shot EM" in page.read_text()  # from results.json
    assert 'http-equiv="refresh"' not in page.read_text()
    assert main(["report", str(tmp_path / "demo"), "-o", str(page), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_watch_follows_the_log_until_interrupted(tmp_path, monkeypatch, capsys):
    folder = synthetic_runs.write_run(tmp_path / "run", "grpo", steps=5)
    page = tmp_path / "page.html"
    pages = []

    def sleep(seconds):
        pages.append(page.read_text())
        if len(pages) == 1:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"step": 77, "reward/mean": 0.5}\n')
        if len(pages) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("autotelic.cli.report.time.sleep", sleep)
    assert main(["report", str(folder), "-o", str(page), "--watch", "--every", "3"]) == 0
    assert all('http-equiv="refresh" content="3"' in text for text in pages)
    assert ",77]" not in pages[0]
    assert ",77]" in pages[1]
    assert pages[1] == pages[2]  # nothing new, nothing written
    assert 'http-equiv="refresh"' not in page.read_text()
    assert capsys.readouterr().out.count("page.html (") == 2


def test_serve_reads_growing_logs_and_answers_its_own_names_only(tmp_path):
    """A process of its own, ended as Ctrl-C ends it."""
    folder = synthetic_runs.write_run(tmp_path / "run", "grpo", steps=5)
    start = "import sys; from autotelic.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "report", str(folder), "--serve", "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "page.html")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        port = int(json.loads(process.stdout.readline())["address"].rpartition(":")[2])

        def get(path="/", host=f"127.0.0.1:{port}"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            found = answer.status, answer.read().decode(), answer.headers["Refresh"]
            connection.close()
            return found

        status, page, refresh = get()
        assert status == 200 and ",77]" not in page and refresh == "10"
        assert 'http-equiv="refresh"' not in (tmp_path / "page.html").read_text()
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 77, "reward/mean": 0.5}\n')
        assert ",77]" in get()[1]
        assert get(host="elsewhere.example")[0] == 403
        assert get("/metrics.jsonl")[0] == 404
    finally:
        os.kill(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "autotelic: stopped serving\n")
    assert 'http-equiv="refresh"' not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("words", [["--json"], []])
def test_ctrl_c_in_the_instant_of_the_address_loses_nothing(tmp_path, monkeypatch, capsys, words):
    """What was logged between the first page and Ctrl-C stands in the file, and the file does not load itself anew."""
    folder = synthetic_runs.write_run(tmp_path / "run", "grpo", steps=5)
    page = tmp_path / "page.html"

    def interrupted_print(*values, **options):
        print(*values, **options)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 77, "reward/mean": 0.5}\n')
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(report, "print", interrupted_print, raising=False)
    before = signal.getsignal(signal.SIGINT)
    assert main(["report", str(folder), "--serve", "--port", "0", "-o", str(page), *words]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert ",77]" in page.read_text() and 'http-equiv="refresh"' not in page.read_text()
    assert signal.getsignal(signal.SIGINT) is before


def test_serve_on_a_taken_port_is_one_line(tmp_path, capsys):
    folder = synthetic_runs.write_run(tmp_path / "run", "grpo", steps=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["report", str(folder), "-o", str(tmp_path / "page.html"), "--serve", "--port", port]) == 2
    assert "choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "is not a folder"),
        (["."], "holds no run"),
        ([".", "--every", "0"], "--every must be above 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_unwritable_output_is_one_line(tmp_path, capsys):
    folder = synthetic_runs.write_run(tmp_path / "run", "grpo", steps=2)
    (tmp_path / "file").write_text("")
    assert main(["report", str(folder), "-o", str(tmp_path / "file" / "page.html")]) == 2
    assert "cannot write" in capsys.readouterr().err
