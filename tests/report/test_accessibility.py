"""The page's tree as a screen reader gets it, judged by axe-core (from npm), and the page worked by keyboard alone.

Slow: it takes axe-core from the package registry once, into build/axe.
"""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from browser import EXECUTABLE, Browser

AXE = "4.14.1"
STORE = Path(__file__).parents[2] / "build" / "axe"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None or shutil.which("npm") is None, reason="needs chromium and npm"),
]


@pytest.fixture(scope="module")
def axe() -> str:
    """The library's script."""
    script = STORE / f"axe-{AXE}.js"
    if not script.exists():
        STORE.mkdir(parents=True, exist_ok=True)
        asked = subprocess.run(
            ["npm", "pack", "--silent", f"axe-core@{AXE}"], cwd=STORE, capture_output=True, text=True
        )
        if asked.returncode:
            pytest.skip(f"npm cannot give axe-core: {asked.stderr[-200:]}")
        with tarfile.open(STORE / asked.stdout.strip()) as archive:
            content = archive.extractfile("package/axe.min.js")
            assert content is not None
            script.write_bytes(content.read())
    return script.read_text()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def complaints(browser: Browser, axe: str) -> list[str]:
    """Return one line per rule that the page breaks: the rule, and the first places."""
    browser.run(f"(() => {{ {axe}; window.axe = axe; }})()")
    browser.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    options = {"runOnly": RULES, "resultTypes": ["violations"]}
    found = browser.run(f"axe.run(document, {json.dumps(options)}).then((result) => result.violations)")
    places = {rule["id"]: [f"{node['target']} {node['html'][:160]}" for node in rule["nodes"][:4]] for rule in found}
    return [f"{rule}: {'; '.join(nodes)}" for rule, nodes in places.items()]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing_in_the_page(full_page, chromium, axe, width, dark):
    chromium.open(full_page, width=width, dark=dark)
    chromium.choose("#viewer select", "clip_cov-0")
    chromium.choose("#viewer select", "kl_cov-0", number=1)
    found = complaints(chromium, axe)
    assert not found, "\n".join(found)


def test_axe_sees_what_is_wrong(tmp_path, chromium, axe):
    """The check above can fail."""
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><html><body><img src='data:,'><input><p style='color:#ccc'>pale</p></body></html>")
    chromium.open(bad, wait="document.body")
    found = " ".join(complaints(chromium, axe))
    assert all(rule in found for rule in ("image-alt", "label", "color-contrast", "html-has-lang"))


def test_the_page_is_worked_by_keyboard_alone(full_page, chromium):
    """Tab, Enter, space and arrows change theme, legend, axis, a fold, run, second run, step, token."""
    chromium.open(full_page)

    def tab_to(condition: str, limit: int = 400) -> None:
        for _ in range(limit):
            chromium.key("Tab")
            if chromium.run(f"(() => {{ const n = document.activeElement; return Boolean({condition}); }})()"):
                return
        raise AssertionError(f"Tab does not reach {condition}")

    tab_to("n.id === 'theme'")
    chromium.key("Enter")
    assert chromium.run("document.documentElement.dataset.theme") == "dark"
    tab_to("n.dataset.method === 'grpo'")
    chromium.key(" ")
    assert chromium.run("document.activeElement.getAttribute('aria-pressed')") == "false"
    tab_to("n.tagName === 'SELECT' && n.closest('#curves')")
    chromium.key("ArrowDown")
    assert chromium.run("document.querySelector('#curves .chart').layout.xaxis.title.text") == "tokens seen"
    tab_to("n.tagName === 'SUMMARY' && n.closest('#curves')")
    chromium.key("Enter")
    assert chromium.run("document.activeElement.parentElement.open")
    tab_to("n.tagName === 'SELECT' && n.closest('#viewer')")
    chromium.key("ArrowDown")
    tab_to("n.tagName === 'SELECT' && n.closest('#viewer')")
    chromium.key("ArrowDown")
    assert chromium.run("document.querySelectorAll('.column').length") == 2
    tab_to("n.id === 'step-slider'")
    chromium.key("Home")
    assert chromium.run("document.activeElement.getAttribute('aria-valuetext')") == "step 0"
    tab_to("n.className === 'tokens'")
    chromium.key("ArrowRight")
    assert chromium.run("document.querySelector('#tip').hidden") is False
    assert chromium.complaints() == []
