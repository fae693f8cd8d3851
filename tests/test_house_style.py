"""What a reader relies on: import direction, label isolation, declared metrics, cheap imports, no raw text parsed."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autotelic

PACKAGE = Path(autotelic.__file__).parent
LAYERS = {
    "errors": 0,
    "endpoint": 1,
    "functional": 1,
    "kernels": 2,
    "answers": 2,
    "tasks": 2,
    "lm": 3,
    "decoding": 3,
    "rewards": 4,
    "controls": 4,
    "runs": 4,
    "trl": 5,
    "preferences": 6,
    "verl": 6,
    "control": 6,
    "evaluation": 7,
    "diagnostics": 7,
    "report": 7,
    "cli": 8,
}
"""Every folder and every module at the top of the package, by how high it stands; imports never point upwards."""
COMPAT_READERS = ("compat", "verl")
LABEL_READERS = ("evaluation.py", "rewards/verifiers.py", "rewards/label_reader.py", "rewards/__init__.py")


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every autotelic module that a file imports, lazily or not; type-checking imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("autotelic")}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_a_layer():
    rooms = {room(path) for path in modules()} - {"__init__", "__main__", "compat"}
    assert rooms == set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name in imports(path):
        other = name.split(".")[1] if "." in name else ""
        if other == "compat":
            assert here in COMPAT_READERS, f"{path.name} imports {name}: only tests, presets and verl read compat/"
        elif other in LAYERS and here != "compat":
            assert LAYERS[other] <= LAYERS[here], f"{path.name} imports {name}, which is above it"


def test_no_two_files_share_a_name():
    names = [path.stem for path in modules() if path.stem not in ("__init__", "__main__")]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice
    tests = [path.stem for path in Path(__file__).parent.rglob("test_*.py")]  # pytest imports them by that name
    assert len(tests) == len(set(tests)), sorted(name for name in tests if tests.count(name) > 1)


@pytest.mark.parametrize("folder", ["trl", "verl", "rewards", "functional", "control"])
def test_training_code_does_not_import_evaluation(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        assert not any(name.startswith("autotelic.evaluation") for name in imports(path)), path


def test_label_free_rewards_have_no_place_for_a_label():
    forbidden = re.compile(r"\b(answer_key|ground_truth|solution|label|labels|gold)\b")
    for path in (PACKAGE / "rewards").glob("*.py"):
        if str(path.relative_to(PACKAGE)) in LABEL_READERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.arg] if isinstance(node, ast.arg) else []
            names += [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []
            assert not any(forbidden.fullmatch(name) for name in names), f"{path.name}: {names}"


def test_no_raw_text_is_evaluated():
    """No eval, exec, parse_expr or sympify; no pickle, no unsafe torch.load or yaml.load."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            owner = getattr(getattr(function, "value", None), "id", "")
            plain = not isinstance(function, ast.Attribute)
            assert not (plain and name in ("eval", "exec", "compile")), f"{path}: {name}"
            assert name not in ("parse_expr", "sympify"), f"{path}: {name}"
            assert (owner, name) not in {("yaml", "load"), ("pickle", "load"), ("pickle", "loads")}, path
            if (owner, name) == ("torch", "load"):
                assert any(k.arg == "weights_only" and getattr(k.value, "value", 0) is True for k in node.keywords)


def test_every_emitted_metric_is_declared():
    """String literals that look like one of our metrics are declared ones."""
    from autotelic.runs.callbacks import TRL_NAMES
    from autotelic.runs.glossary import METRICS

    prefixes = {name.split("/")[0] for name in METRICS}
    pattern = re.compile(rf"({'|'.join(sorted(prefixes))})/[a-z0-9_]+")
    for path in [*(PACKAGE / "trl").glob("*.py"), *(PACKAGE / "rewards").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and pattern.fullmatch(node.value):
                trls_own = set(TRL_NAMES)  # completions/..., which we read and rename
                declared = node.value in METRICS or node.value in trls_own or node.value.endswith("_")
                assert declared, f"{path.name}: {node.value}"


def test_docs_metrics_page_is_current():
    from autotelic.runs.glossary import to_markdown

    page = Path(__file__).parent.parent / "docs" / "metrics.md"
    assert page.read_text() == to_markdown(), "regenerate: python -m autotelic.runs.glossary > docs/metrics.md"


def test_an_undeclared_metric_is_an_error():
    from autotelic.runs.glossary import check_declared

    check_declared(["policy/entropy", "trl/whatever"])
    with pytest.raises(KeyError, match="not declared"):
        check_declared(["policy/entropi"])


@pytest.mark.parametrize("statement", ["import autotelic", "import autotelic.cli.main", "import autotelic.tasks"])
def test_imports_are_cheap(statement):
    """Nothing heavy is loaded: torch, transformers and sympy stay out until a function needs them."""
    heavy = "('torch', 'transformers', 'trl', 'sympy')"
    code = f"{statement}; import sys, json; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == []


def test_no_machine_path_is_committed():
    """Paths of one machine and registry hosts do not belong in the repository."""
    root = PACKAGE.parent.parent
    files = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout: nothing to list")
    pattern = re.compile(r"(?<![\w.])/(work|root|home|farm)/\w")
    for name in files.stdout.splitlines():
        path = root / name
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".cfg", "") and path.is_file():
            text = path.read_text(errors="ignore")
            assert not pattern.search(text) or name.endswith("test_house_style.py"), name
