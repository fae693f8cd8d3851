"""Make an environment that holds a few packages of its own and sees all others of the environment that runs this.

    python tests/packaging/thin.py FOLDER REQUIREMENT ...

Nothing else is downloaded or moved: what is installed here shadows what is there.
"""

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def thin_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Create the environment, without the requirements' own dependencies; return its Python."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *requirements], check=True)
        ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        own = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
        # addsitedir, not a plain line: it also reads that folder's .pth files, such as the editable install's.
        base = sysconfig.get_paths()["purelib"]
        (own / "zz_base.pth").write_text(f"import site; site.addsitedir({base!r})\n")
        (folder / ".ready").touch()
    return python


if __name__ == "__main__":
    thin_environment(Path(sys.argv[1]), sys.argv[2:])
