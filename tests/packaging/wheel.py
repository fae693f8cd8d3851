"""Build the wheel, install it into an empty environment, and run the demo from there: `make test-wheel`.

The environment gets what pip takes from the package's own requirements, at the pins of constraints.txt, torch first.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"


def run(*command: object, **kwargs) -> str:
    """Run a command and return its output; its own message is shown where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    """Build, look inside, install, run."""
    started = time.monotonic()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", BUILD / "dist", ROOT)
    wheel = max((BUILD / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    names = zipfile.ZipFile(wheel).namelist()
    assert "autotelic/py.typed" in names, "the wheel is not typed"
    assert any(re.fullmatch(r"autotelic/tasks/models/[^/]+/model\.safetensors", name) for name in names), "no model"
    assert any(re.fullmatch(r"autotelic/recipes/tiny_grpo\.yaml", name) for name in names), "no recipes"
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert not re.findall(r"\]\((?!https?:|#)[^)]+\)", metadata), "a link that a package page cannot follow"
    assert all(name.startswith(("autotelic/", "autotelic-")) for name in names), "more than the package"
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 2**20:.1f} MiB, {seconds(started)}", flush=True)

    started = time.monotonic()
    environment = BUILD / "wheel-environment"
    run(sys.executable, "-m", "venv", "--clear", environment)
    python = environment / "bin" / "python"
    torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.M)
    assert torch is not None
    run(python, "-m", "pip", "install", "-q", torch.group())
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[trl]")
    print(f"installed in {seconds(started)}", flush=True)

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as elsewhere:  # not the checkout, which would be imported in its place
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        where = run(python, "-c", "import autotelic; print(autotelic.__file__)", cwd=elsewhere, env=environ)
        assert str(environment) in where, where
        run(environment / "bin" / "autotelic", "demo", "--output", "demo", cwd=elsewhere, env=environ)
        pages = list(Path(elsewhere).rglob("*.html"))
        assert pages and all(page.stat().st_size > 10_000 for page in pages), "the demo left no page"
    print(f"demo from the wheel in {seconds(started)}")


def seconds(started: float) -> str:
    """Return the time since then."""
    return f"{time.monotonic() - started:.0f} s"


if __name__ == "__main__":
    main()
