"""The page itself: one file, hostile text stays text, written whole or not at all, and works in a browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import synthetic_runs

from autotelic.errors import UserError
from autotelic.report import write_report
from autotelic.report.page import embed_json

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028&amp;"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: the page is not opened")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    synthetic_runs.write_run(folder / "grpo-0", "grpo", seed=0, steps=30, text=HOSTILE)
    synthetic_runs.write_run(folder / "grpo-1", "grpo", seed=1, steps=30)
    synthetic_runs.write_run(folder / "clip_cov-0", "clip_cov", steps=30)
    return folder


@pytest.fixture(scope="module")
def page(runs):
    return write_report([runs], runs / "out" / "page.html", results=synthetic_runs.results(), title="A <b>title</b>")


def test_page_asks_nothing_of_any_server(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    own = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", own)
    assert "url(" not in own


def test_model_text_cannot_leave_its_element(page):
    text = page.read_text()
    assert "<script>document.title='owned'" not in text
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert embedded
    assert not set("<>&\u2028\u2029") & set(embedded[1])
    assert HOSTILE in json.loads(embedded[1])["rollouts"]["vocabulary"]


def test_json_survives_escaping_and_half_characters():
    value = {"text": HOSTILE, "cut": "\ud83d", "whole": "😀é"}
    text = embed_json(value)
    text.encode("utf-8")
    assert json.loads(text) == value


def test_script_puts_no_text_through_markup():
    script = (Path(__file__).parents[2] / "src/autotelic/report/assets/page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)


def test_failed_write_leaves_the_old_page(runs, tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(UserError, match="no space left"):
        write_report([runs], target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run"):
        write_report([], tmp_path / "page.html")


def open_page(path, tmp_path, probe):
    """Open a copy of the page that runs `probe`; return what the probe wrote, and the console's errors."""
    copy = tmp_path / "probe.html"
    script = """<script>window.addEventListener("load", async () => { const out = {};
      try { PROBE } catch (error) { out.failed = String(error); }
      const pre = document.createElement("pre"); pre.id = "probe"; pre.textContent = JSON.stringify(out);
      document.body.append(pre); });</script>""".replace("PROBE", probe)
    copy.write_text(path.read_text().replace("</body>\n</html>", script + "</body>\n</html>"))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=20000",
        "--window-size=1280,900", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


WAIT = """for (let i = 0; i < 200 && !document.documentElement.dataset.ready; i++)
  await new Promise((r) => setTimeout(r, 50));
out.ready = document.documentElement.dataset.ready;"""
PROBE = (Path(__file__).parent / "probe.js").read_text()


@pytest.fixture(scope="module")
def opened(page, tmp_path_factory):
    return open_page(page, tmp_path_factory.mktemp("browser"), PROBE)


@needs_browser
def test_browser_draws_every_chart_without_error_or_request(opened):
    found, console = opened
    assert found.get("failed") is None
    assert (found["ready"], found["errors"], console, found["requests"]) == ("true", "", [], [])
    assert len(found["drawn"]) >= 12
    assert all(drawn == "true" and plots >= 1 for drawn, plots in found["drawn"])
    wanted = ["results", "curves", "law", "covariance", "semantic", "passk", "viewer", "about"]
    assert found["sections"] == wanted
    assert found["unlabelled"] == 0


@needs_browser
def test_browser_shows_hostile_text_as_text(opened):
    found, _ = opened
    assert found["hostile"] == HOSTILE
    assert found["title"] == "A <b>title</b>"
    assert found["images"] == 0


@needs_browser
def test_browser_legend_and_theme(opened):
    found, _ = opened
    assert all(found["before"])
    assert not all(found["after"])
    assert any(found["after"])
    assert found["pressed"] == "false"
    assert set(found["themes"]) == {"light", "dark"}


@needs_browser
def test_browser_viewer_by_mouse_and_keyboard(opened):
    found, _ = opened
    assert found["responses"] == 8
    assert found["clusters"][0] == "Answer 1"
    assert "token 2 of" in found["tip"]
    assert "covariance" in found["tip"]
    assert found["closed"] is None
    assert "token 1 of" in found["hover"]
    assert (found["lastStep"], found["previousStep"], found["firstStep"]) == ("step 20", "step 0", "step 0")
    assert found["focused"] == "tokens"
    assert found["chosen"] > 0
    assert found["prompts"][0] != found["prompts"][1]


@needs_browser
@pytest.mark.slow
def test_fifty_megabytes_of_logs_open_within_five_seconds(tmp_path):
    import time

    folder = synthetic_runs.write_run(
        tmp_path / "runs" / "grpo", "grpo", steps=8000, prompts=8, responses=16, rollout_every=250
    )
    logs = [folder / "metrics.jsonl", folder / "rollouts.jsonl"]
    while sum(log.stat().st_size for log in logs) < 50e6:
        with logs[1].open("a") as file:
            file.write(logs[1].read_text())
    started = time.perf_counter()
    page = write_report([folder], tmp_path / "page.html")
    written = time.perf_counter() - started
    assert page.stat().st_size < 15e6
    blank = tmp_path / "blank.html"
    blank.write_text("<body>\n</body>\n</html>\n")
    seconds = []
    for path in (blank, page):
        started = time.perf_counter()
        found, _ = open_page(path, tmp_path, WAIT if path == page else "")
        seconds.append(time.perf_counter() - started)
    assert found["ready"] == "true"
    print(f"written in {written:.1f} s, opened in {seconds[1] - seconds[0]:.1f} s above a blank page")
    assert seconds[1] - seconds[0] < 5
