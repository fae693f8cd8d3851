"""The documents stay true: code blocks run, command lines parse, links resolve, the site builds strictly.

A Python block runs unless the line above it is `<!-- skip: reason -->`. `<!-- slow: reason -->` leaves it to the slow
tests. The blocks of a page share one namespace, in their order.
"""

import argparse
import ast
import importlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml

from autotelic.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```\s*$", re.M | re.S)
MARK = re.compile(r"<!--\s*(?P<kind>\w+)\s*:?\s*(?P<reason>(?:(?!-->).)*?)\s*-->\s*\Z", re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
SHELL = ("", "bash", "sh", "console")


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    body: str
    line: int
    mark: str
    reason: str


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        above = MARK.search(text[: match.start()].rstrip())
        mark, reason = (above["kind"], above["reason"]) if above else ("", "")
        body = "\n".join(line.removeprefix(match["indent"]) for line in match["body"].split("\n"))
        found.append(Block(match["language"], body, text[: match.start("body")].count("\n"), mark, reason))
    return found


def python_blocks(path: Path) -> list[Block]:
    return [block for block in blocks(path) if block.language == "python"]


def run_blocks(path: Path, chosen: list[Block]) -> None:
    namespace = {"__name__": "page"}
    for block in chosen:
        # Empty lines in front make a traceback name the line of the page.
        exec(compile("\n" * block.line + block.body, str(path), "exec"), namespace)


WITH_CODE = [path for path in PAGES if python_blocks(path)]
SLOW = [path for path in WITH_CODE if any(block.mark == "slow" for block in python_blocks(path))]


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_code_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(path, [block for block in python_blocks(path) if block.mark not in ("skip", "slow")])


@pytest.mark.slow
@pytest.mark.parametrize("path", SLOW, ids=name_of)
def test_slow_code_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(path, [block for block in python_blocks(path) if block.mark != "skip"])


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_block_that_does_not_run_says_why(path):
    for block in python_blocks(path):
        if block.mark in ("skip", "slow"):
            assert len(block.reason) > 5, f"{name_of(path)}, line {block.line}: <!-- {block.mark}: why? -->"


def command_lines(path: Path) -> list[list[str]]:
    """Every command line of ours in a shell block, as words; what follows a pipe or a redirection is left out."""
    found = []
    for block in blocks(path):
        if block.language not in SHELL:
            continue
        for line in block.body.replace("\\\n", " ").split("\n"):
            if "autotelic" not in line or line.lstrip().startswith("#"):
                continue
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                launched = place > 0 and words[place - 1] == "-m"
                if Path(word).name == "autotelic" and (place == 0 or launched or "=" in words[place - 1]):
                    ours = words[place + 1 :]
                    cut = next((i for i, w in enumerate(ours) if w in ("|", ">", ">>", "&&", "&", ";")), len(ours))
                    found.append(ours[:cut])
                    break
    return found


@pytest.fixture(scope="module")
def training_options():
    """Every option of `autotelic train`."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import DPOConfig, GRPOConfig, ModelConfig

    from autotelic.preferences.run import PreferenceArguments
    from autotelic.trl.arguments import RunArguments

    kinds = (RunArguments, PreferenceArguments, GRPOConfig, DPOConfig, ModelConfig)
    return {"config", "output", "help", "help_all"} | {field.name for kind in kinds for field in fields(kind)}


def refuse(message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("path", [p for p in PAGES if command_lines(p)], ids=name_of)
def test_command_lines_exist(path, request):
    for words in command_lines(path):
        if words[0] in ("--help", "--version", "COMMAND"):
            continue
        assert words[0] in COMMANDS, f"{name_of(path)}: autotelic {' '.join(words)}"
        if words[0] == "train":
            check_training(words[1:], request.getfixturevalue("training_options"))
            continue
        module = importlib.import_module(f"autotelic.cli.{words[0]}")
        parser = argparse.ArgumentParser(prog=f"{name_of(path)}: autotelic {words[0]}")
        module.add_arguments(parser)
        for each in (parser, *subparsers(parser)):
            each.error = refuse
        if "--help" not in words:
            parser.parse_args(words[1:])


def subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [each for action in actions for each in action.choices.values()]


def check_training(words: list[str], known: set[str]) -> None:
    from autotelic.controls.entropy_control import EntropyControlWarning
    from autotelic.controls.table import read_control
    from autotelic.diagnostics.stopping import read_rules
    from autotelic.rewards.reward_table import read_reward
    from autotelic.runs.training_methods import METHODS

    assert words[0] in METHODS, words
    for place, word in enumerate(words):
        if word.startswith("--"):
            option, _, value = word.removeprefix("--").partition("=")
            option = option.replace("-", "_").removeprefix("no_").partition(".")[0]
            assert option in known, f"autotelic train has no option {word}"
            value = value or next(iter(words[place + 1 : place + 2]), "")
            readers = {"entropy_control": read_control, "reward": read_reward, "stop_rule": read_rules}
            if option in readers and "." not in word and "." not in value.partition(",")[0] and "NAME" not in value:
                with warnings.catch_warnings(action="ignore", category=EntropyControlWarning):  # large shares
                    readers[option](value)
            if option == "config":
                assert (ROOT / value).is_file() or (ROOT / "recipes" / f"{value}.yaml").is_file(), f"no recipe {value}"


def prose(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))


def anchors(path: Path) -> set[str]:
    """What may stand after # in a link to this file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return {n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    headings = re.findall(r"^#+ +(.*?)\s*$", FENCE.sub("", text), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_resolve(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (path.parent / place).resolve() if place else path
        assert file.exists(), f"{name_of(path)} links to {target}, which does not exist"
        if anchor and file.suffix in (".md", ".py") and file.name != "api.md":
            assert anchor in anchors(file), f"{name_of(path)} links to {target}: no such heading or name there"


def test_the_checks_can_fail(tmp_path):
    page = tmp_path / "page.md"
    python, shell = "```python\n1 / 0\n```\n\n", "```bash\nautotelic x\n```\n"
    page.write_text(f"{python}<!-- skip: needs a GPU -->\n{python}<!-- slow: trains -->\n{python}{shell}")
    first, *marked = python_blocks(page)
    assert first.mark == ""
    assert [(block.mark, block.reason) for block in marked] == [("skip", "needs a GPU"), ("slow", "trains")]
    with pytest.raises(ZeroDivisionError):
        run_blocks(page, [first])
    assert command_lines(page) == [["x"]]
    with pytest.raises(AssertionError, match="no option"):
        check_training(["grpo", "--fractoin", "0.1"], {"fraction"})


PAPERS = ("entropy_mechanism", "empo", "ppl", "one_shot_em")


def equation_rows(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The rows of "Where each equation is": the equation, and the (module, name) of every function beside it."""
    section = text.split("## Where each equation is", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.split("\n") if line.startswith("|")][2:]
    found = []
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row.strip("|"))
        links = re.findall(r"\]\((?:\.\./)+src/([\w/]+)\.py#(\w+)\)", cells[-1])
        found.append((cells[0].strip(), [(path.replace("/", "."), name) for path, name in links]))
    return found


def api_modules() -> set[str]:
    """Every module that docs/api.md shows."""
    text = (ROOT / "docs/api.md").read_text()
    found = set(re.findall(r"^::: ([\w.]+)", text, re.M))
    for package in re.findall(r"<!-- modules of ([\w.]+) -->", text):
        found |= {f"{package}.{p.stem}" for p in (ROOT / "src" / package.replace(".", "/")).glob("*.py")}
    return found


@pytest.mark.parametrize("paper", PAPERS)
def test_every_equation_is_one_click_from_its_function(paper):
    """Each row links to a function that exists, is documented, and is in the API reference."""
    rows = equation_rows((ROOT / f"docs/papers/{paper}.md").read_text())
    assert len(rows) >= 5
    for equation, functions in rows:
        assert functions, f"{paper}: {equation} has no link to a function"
        for module, name in functions:
            assert module in api_modules(), f"{paper}: docs/api.md does not show {module}"
            tree = ast.parse((ROOT / "src" / f"{module.replace('.', '/')}.py").read_text())
            nodes = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
            assert nodes and ast.get_docstring(nodes[0]), f"{paper}: {module}.{name} is missing or says nothing"


def test_a_row_without_a_link_is_noticed():
    text = "## Where each equation is\n\n| e | f |\n| - | - |\n| `x \\| y` | `f` |\n| z | [`g`](../../src/a/b.py#g) |\n"
    assert equation_rows(text) == [("`x \\| y`", []), ("z", [("a.b", "g")])]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=name_of)
def test_every_recipe_has_its_command_and_its_expected_result(path):
    """One row of docs/recipes.md names it; a recipe whose head says that it needs GPUs was never run at its size."""
    page = (ROOT / "docs/recipes.md").read_text()
    (row,) = [line for line in page.split("\n") if line.startswith("| [") and f"](../recipes/{path.name})" in line]
    _, command, result = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert command.startswith(("`", "first `", "a judge first")) and result
    head = path.read_text().split("\n")[0]
    assert ("ot run here" in head) == (result.strip("| ") == "never run at this size"), head


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install '.[docs]'")
def test_the_site_builds_strictly(tmp_path):
    """No warning in the build, and every equation's link leads to its function, in the source and in the API."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site/search/search_index.js").is_file(), "search needs a server"
    for paper in PAPERS:
        page = (tmp_path / f"site/papers/{paper}.html").read_text()
        for _, functions in equation_rows((ROOT / f"docs/papers/{paper}.md").read_text()):
            for module, name in functions:
                place = f"src/{module.replace('.', '/')}.py.html"
                assert f"{place}#{name}" in page
                assert f'id="{name}"' in (tmp_path / "site" / place).read_text()
                api = (tmp_path / f"site/api/{module}.html").read_text()
                assert f'id="{module}.{name}"' in api, f"{module}.{name} is not in the API reference"
        assert "<math" in page and "arithmatex" not in page, f"{paper}: equations are not typeset"


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_examples_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--max-steps", "2"])
    runpy.run_path(str(path), run_name="__main__")
    assert "2 updates" in capsys.readouterr().out


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
FAST_NOTEBOOKS = ("entropy_by_hand",)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem in FAST_NOTEBOOKS else pytest.mark.slow) for p in NOTEBOOKS],
    ids=name_of,
)
def test_notebooks_run(path, tmp_path, monkeypatch, capsys):
    """Every code cell, in order, in one namespace; a notebook is kept without outputs.

    The first installs the package into an empty Colab; here the package is the one that is tested.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "2")
    namespace = {"__name__": "notebook"}
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    install = "".join(cells.pop(0)["source"])
    assert re.fullmatch(r'%pip install -q "autotelic(\[\w+\])? @ git\+https://\S+"', install), install
    assert cells
    for number, cell in enumerate(cells):
        assert not cell["outputs"], f"{path.name}: clear the outputs"
        exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), namespace)


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_setting_of_a_recipe_has_its_source(path):
    """`docs/papers.md` names the recipe, and each of its keys in the recipe's own section."""
    sections = re.split(r"^## ", (ROOT / "docs/papers.md").read_text(), flags=re.M)
    own = [section for section in sections if path.name in section]
    assert own, f"docs/papers.md does not name {path.name}"
    if "as above" in own[0]:
        own += sections
    for key in yaml.safe_load(path.read_text()):
        assert any(f"`{key}`" in section for section in own), f"docs/papers.md, {path.name}: no row for `{key}`"
