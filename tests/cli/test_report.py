"""`autotelic report`: writes the page, watches, and refuses in one line."""

import json

import pytest
import synthetic_runs

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
