"""The page itself: one file, hostile text stays text, written whole or not at all, and works in a browser."""

import csv
import json
import re
import time
from pathlib import Path

import pytest
import synthetic_runs
from browser import EXECUTABLE, Browser

from autotelic.errors import UserError
from autotelic.report import write_report
from autotelic.report.figure_page import embed_json, figure_page

PROBE, CONTRAST = ((Path(__file__).parent / name).read_text() for name in ("probe.js", "contrast.js"))
needs_browser = pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on PATH: the page is not opened")


def test_page_asks_nothing_of_any_server(full_page):
    text = full_page.read_text()
    assert "default-src 'none'" in text
    own = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", own)
    assert "url(" not in own


def test_model_text_cannot_leave_its_element(full_page):
    text = full_page.read_text()
    assert "<script>document.title='owned'" not in text
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert embedded
    assert not set("<>&\u2028\u2029") & set(embedded[1])
    assert synthetic_runs.HOSTILE in json.loads(embedded[1])["rollouts"]["vocabulary"]


def test_json_survives_escaping_and_half_characters():
    value = {"text": synthetic_runs.HOSTILE, "cut": "\ud83d", "whole": "😀é"}
    text = embed_json(value)
    text.encode("utf-8")
    assert json.loads(text) == value


def test_script_puts_no_text_through_markup():
    script = (Path(__file__).parents[2] / "src/autotelic/report/assets/page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)


def test_failed_write_leaves_the_old_page(full_runs, tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(UserError, match="no space left"):
        write_report([full_runs], target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run"):
        write_report([], tmp_path / "page.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def seen(full_page, chromium):
    """What `probe.js` sees in the page, and what the browser says of it."""
    chromium.open(full_page)
    found = chromium.run("(async () => {const out = {}; " + PROBE + "; return out; })()")
    return found | {"complaints": chromium.complaints(), "requests": chromium.requests()}


SECTIONS = [
    *(
        "results",
        "differences",
        "curves",
        "preferences",
        "online",
        "probes",
        "seeds",
        "decoupling",
        "heat",
        "law",
        "covariance",
        "semantic",
    ),
    *("logits", "passk", "viewer", "about"),
]


@needs_browser
def test_browser_draws_every_chart_without_error_or_request(seen):
    assert (seen["errors"], seen["complaints"], seen["requests"]) == ("", [], [])
    assert len(seen["drawn"]) >= 20
    assert all(drawn == "true" and marks >= 1 for drawn, marks in seen["drawn"])
    assert seen["sections"] == SECTIONS
    assert seen["unlabelled"] == 0


@needs_browser
def test_browser_shows_hostile_text_as_text(seen):
    assert seen["hostile"] == synthetic_runs.HOSTILE
    assert seen["title"] == "A <b>title</b>"
    assert seen["images"] == 0


@needs_browser
def test_browser_draws_the_heat_maps_and_the_histograms(seen):
    """Trained at .5 and 1, the base model beside them; evaluated at four temperatures."""
    evaluations, steps = seen["heat"]
    assert evaluations["x"] == ["0.3", "0.6", "1", "1.5"]
    assert evaluations["y"] == ["base model", "one-shot EM, T 0.5", "one-shot EM, T 1"]
    assert evaluations["z"][1] == pytest.approx([0.68, 0.56, 0.4, 0.2])
    assert any("T 0.5" in row for row in steps["y"])
    assert (len(evaluations["inks"]), seen["misplaced"]) == (12, [])
    inks = dict(evaluations["inks"])
    assert inks["0.68"] == "#000000" and inks["0.20"] == "#ffffff"  # on yellow, and on the darkest blue
    assert seen["logits"] == ["any_pair (base)", "GRPO"]
    assert "best, step" in seen["seeds"]


@needs_browser
def test_browser_legend_and_theme(full_page, chromium):
    chromium.show(full_page)
    visible = "document.querySelector('.chart').data.map((t) => t.visible)"
    assert all(chromium.run(visible))
    chromium.click("button.key[data-method=grpo]")
    hidden = chromium.run(visible)
    assert any(hidden) and not all(hidden)
    assert (
        chromium.run("document.querySelector('button.key[data-method=grpo]').getAttribute('aria-pressed')") == "false"
    )
    chromium.click("button.key[data-method=grpo]")
    theme = "document.documentElement.dataset.theme"
    assert chromium.run(theme) == "light"
    chromium.click("#theme")
    assert chromium.run(theme) == "dark"
    chromium.click("#theme")


STEP = "document.querySelector('#step-slider').getAttribute('aria-valuetext')"
PROMPT = "document.querySelector('.prompt').textContent"
TIP = "document.querySelector('#tip').hidden ? null : document.querySelector('#tip').textContent"


@pytest.fixture
def viewer(full_page, chromium):
    chromium.show(full_page)
    chromium.choose("#viewer select", "clip_cov-0")
    chromium.run("document.querySelector('input[value=h]').click()")
    return chromium


@needs_browser
def test_browser_slider_shows_the_same_prompt_change(viewer):
    """By mouse and by keyboard: the prompt stays, the step and the responses change."""
    text = "document.querySelector('#rollout-body').innerText"
    assert (viewer.run(STEP), viewer.run(PROMPT)) == ("step 30", "0+0=")
    last = viewer.run(text)
    viewer.click("#step-slider", x=0.02)
    assert (viewer.run(STEP), viewer.run(PROMPT)) == ("step 0", "0+0=")
    assert viewer.run(text) != last
    viewer.key("ArrowRight")  # the focus is on the slider
    assert (viewer.run(STEP), viewer.run(PROMPT)) == ("step 10", "0+0=")
    viewer.key("End")
    assert viewer.run(text) == last
    assert "4 of 4 with this prompt" in viewer.run("document.querySelector('.stepper').textContent")


@needs_browser
def test_browser_viewer_by_keyboard(viewer):
    viewer.run("document.querySelector('.tokens').focus()")
    viewer.key("ArrowRight")
    viewer.key("ArrowRight")
    assert "token 2 of" in viewer.run(TIP) and "entropy" in viewer.run(TIP)
    viewer.key("Escape")
    assert viewer.run(TIP) is None
    viewer.key("[")
    assert viewer.run(STEP) == "step 20"
    assert viewer.run("document.activeElement.className") == "tokens"
    viewer.key("]")
    assert viewer.run(STEP) == "step 30"
    viewer.key("n")
    assert viewer.run(PROMPT) == "1+1="
    boxes = "[...document.querySelectorAll('.tokens')].indexOf(document.activeElement)"
    at = viewer.run(boxes)
    viewer.key("ArrowDown")
    assert viewer.run(boxes) == at + 1


@needs_browser
def test_browser_everything_is_reached_by_tab(full_page, chromium):
    """From the top: skip link, theme, sections, legend; the focus is always visible, and is never trapped."""
    chromium.open(full_page)
    reached = []
    for _ in range(60):
        chromium.key("Tab")
        node = "document.activeElement"
        style = f"getComputedStyle({node}).outlineStyle"
        reached.append(chromium.run(f"[{node}.tagName, {node}.id || {node}.className, {style}]"))
    names = [name for _, name, _ in reached]
    assert {"skip", "theme", "key"} <= set(names)
    assert any(tag == "INPUT" for tag, _, _ in reached) and any(tag == "SUMMARY" for tag, _, _ in reached)
    assert all(style != "none" for tag, _, style in reached if tag in ("BUTTON", "SUMMARY", "INPUT", "SELECT"))


@needs_browser
def test_browser_viewer_by_mouse(viewer):
    viewer.move("h1")
    viewer.move(".tokens span")
    assert "token 1 of" in viewer.run(TIP)
    viewer.move("h1")
    assert viewer.run(TIP) is None
    assert viewer.run("document.querySelectorAll('.response').length") == 8
    assert viewer.run("document.querySelector('.cluster h3').textContent").startswith("Answer 1: 1")
    groups = viewer.run("[...document.querySelectorAll('#prompt-select optgroup')].map((g) => g.label)")
    assert groups == ["Followed through training", "Drawn in training"]
    change = "const p = document.querySelector('#prompt-select'); p.value = '2'; p.dispatchEvent(new Event('change'))"
    viewer.run(f"(() => {{ {change} }})()")
    assert viewer.run(PROMPT) == "12+7-5="
    viewer.click("input[value=x]")
    assert viewer.run("document.querySelectorAll('.tokens span.chosen').length") > 1
    viewer.move(".response .tokens span")
    assert "covariance" in viewer.run(TIP)


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(400, True), (1280, False)])
def test_browser_text_can_be_read(full_page, chromium, width, dark):
    """Contrast of at least 4.5 (3 for large text), coloured tokens included; nothing wider than the window."""
    chromium.show(full_page, width=width, dark=dark)
    chromium.choose("#viewer select", "clip_cov-0")
    assert chromium.run("document.documentElement.scrollWidth") <= width
    found = chromium.run(CONTRAST)
    assert found["checked"] > 300
    assert found["low"] == []


@needs_browser
def test_browser_saves_tables_as_csv_and_figures_as_svg(full_page, chromium, tmp_path):
    """By a real click: the saved file holds the table's cells; every table has its button, every figure its SVG."""
    chromium.show(full_page)
    counts = "['main table', 'main table + .save'].map((s) => document.querySelectorAll(s).length)"
    tables, buttons = chromium.run(counts)
    assert tables == buttons > 5
    chromium.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    chromium.run("document.querySelectorAll('#differences details').forEach((node) => { node.open = true; })")
    chromium.click("#differences .save")
    saved = tmp_path / "what-differs-between-these-runs.csv"
    ends = time.monotonic() + 10
    while not saved.exists() and time.monotonic() < ends:
        time.sleep(0.05)
    rows = list(csv.reader(saved.open(newline="")))
    assert rows[0][0] == "setting"
    assert next(row for row in rows if row[0] == "temperature").count("0.5") == 1
    assert len({len(row) for row in rows}) == 1
    formats = chromium.run(
        "[...document.querySelectorAll('.chart')].map((n) => n._context.toImageButtonOptions.format)"
    )
    assert set(formats) == {"svg"}
    assert chromium.complaints() == []


@needs_browser
def test_browser_axis_by_tokens_and_by_time(full_page, chromium):
    """20 s an update, 1000 tokens: step 30 is 10 minutes and 30,000 tokens; runs that log neither are not drawn."""
    chromium.show(full_page)
    chart = "document.querySelector('#curves .chart')"
    last = f"{chart}.data.map((t) => [...t.x].at(-1))"
    title = f"{chart}.layout.xaxis.title.text"
    assert len(set(chromium.run(last))) == 1 and chromium.run(title) == "optimizer step"
    everything = len(chromium.run(last))
    chromium.choose("#curves select", "tokens")
    assert set(chromium.run(last)) == {30000} and len(chromium.run(last)) < everything
    assert chromium.run(title) == "tokens seen"
    chromium.choose("#curves select", "wall time")
    assert set(chromium.run(last)) == {10} and chromium.run(title) == "wall time of the updates (minutes)"
    chromium.choose("#curves select", "step")


@needs_browser
def test_browser_filter_by_name_and_by_setting(full_page, chromium):
    chromium.show(full_page)
    shown = "document.querySelector('#curves .chart').data.filter((t) => t.visible && t.name)"
    drawn = f"[...new Set({shown}.map((t) => t.name.split(' (')[0]))]"
    keys = "[...document.querySelectorAll('.key')].filter((n) => !n.hidden).length"
    everything = chromium.run(keys)
    chromium.fill("#legend input", "KL_cov")
    assert (chromium.run(drawn), chromium.run(keys)) == (["KL-Cov"], 1)
    chromium.fill("#legend input", "temperature = 0.5")
    assert all(name.startswith("one-shot EM") for name in chromium.run(drawn))
    chromium.fill("#legend input", "")
    assert chromium.run(keys) == everything


@needs_browser
def test_browser_two_runs_side_by_side_with_right_and_wrong(viewer):
    """The second run shows the same prompt at the nearest step; both follow the slider and the prompt."""
    columns = "[...document.querySelectorAll('.column > p:first-child')].map((n) => n.textContent)"
    assert viewer.run(columns) == []
    right = "document.querySelectorAll('#rollout-body .right').length"
    judged = "document.querySelectorAll('#rollout-body .right, #rollout-body .wrong').length"
    assert viewer.run(judged) == 8 and f"{viewer.run(right)} of 8 responses right" in viewer.run(
        "document.querySelector('#rollout-body').textContent"
    )
    viewer.choose("#viewer select", "kl_cov-0", number=1)
    assert [text.split(" (")[0] for text in viewer.run(columns)] == ["Clip-Cov, seed 0", "KL-Cov, seed 0"]
    assert viewer.run("document.querySelectorAll('.response').length") == 16
    viewer.click("#step-slider", x=0.02)
    assert all(text.endswith("step 0") for text in viewer.run(columns))
    viewer.run("document.querySelector('.tokens').focus()")
    viewer.key("n")
    assert viewer.run(PROMPT) == "1+1=" and viewer.run(judged) == 0  # no label
    viewer.choose("#viewer select", "no second run", number=1)
    assert viewer.run(columns) == []


@needs_browser
def test_browser_draws_plain_figures(tmp_path, chromium):
    """What `--plot` writes: every figure, its title as text, no request."""
    traces = [{"x": [1, 2], "y": [1, 4], "mode": "lines+markers"}]
    page = tmp_path / "figures.html"
    page.write_text(figure_page("<i>Two</i>", [{"title": name, "traces": traces} for name in ("one", "two")]))
    chromium.open(page, wait="document.querySelectorAll('.scatterlayer .trace').length === 2")
    assert chromium.run("document.querySelector('h1').textContent") == "<i>Two</i>"
    assert chromium.run("[...document.querySelectorAll('.gtitle')].map((n) => n.textContent)") == ["one", "two"]
    assert (chromium.complaints(), chromium.requests()) == ([], [])


@needs_browser
def test_browser_sees_requests_and_errors(tmp_path, chromium):
    """The checks for requests and complaints can fail."""
    bad = tmp_path / "bad.html"
    bad.write_text("<body><script>console.error('no'); fetch('http://127.0.0.1:9/x').catch(() => {})</script></body>")
    chromium.open(bad, wait="document.body")
    chromium.run("new Promise((resolve) => setTimeout(resolve, 200))")
    assert any("no" in text for text in chromium.complaints())
    assert chromium.requests() == ["http://127.0.0.1:9/x"]


@needs_browser
def test_browser_half_the_data_gives_half_the_page(tmp_path, chromium):
    """Curves only: no viewer, no heat map, and a list of what is missing with the commands that make it."""
    folder = synthetic_runs.write_run(tmp_path / "run", "grpo", steps=5)
    (folder / "rollouts.jsonl").unlink()
    chromium.open(write_report([folder], tmp_path / "page.html"))
    assert chromium.run("[...document.querySelectorAll('section')].map((s) => s.id)") == [
        *("results", "curves", "law", "covariance", "about")
    ]
    missing = chromium.run("document.querySelector('.absent').textContent")
    assert chromium.run("document.querySelector('.absent').open") is False
    assert chromium.run("document.querySelector('main > section, main > details').id") == "results"
    for part in ("no rollouts", "no results.json", "autotelic eval", "autotelic logits", "preference learning"):
        assert part in missing
    assert chromium.complaints() == []


@needs_browser
@pytest.mark.slow
def test_fifty_megabytes_of_logs_open_within_five_seconds(tmp_path, chromium):
    folder = synthetic_runs.write_run(
        tmp_path / "runs" / "grpo", "grpo", steps=8000, prompts=8, responses=16, rollout_every=250, followed=8
    )
    logs = [folder / "metrics.jsonl", folder / "rollouts.jsonl"]
    while sum(log.stat().st_size for log in logs) < 50e6:
        with logs[1].open("a") as file:
            file.write(logs[1].read_text())
    started = time.perf_counter()
    page = write_report([folder], tmp_path / "page.html")
    written = time.perf_counter() - started
    assert page.stat().st_size < 15e6
    started = time.perf_counter()
    chromium.open(page)
    opened = time.perf_counter() - started
    size = sum(log.stat().st_size for log in logs) / 1e6
    print(f"{size:.0f} MB of logs: page written in {written:.1f} s, opened in {opened:.1f} s")
    assert chromium.complaints() == []
    assert opened < 5
