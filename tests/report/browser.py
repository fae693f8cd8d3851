"""Chromium over its debugging pipe: opens a page and works it with real mouse and key events.

Nothing beside the standard library. Console messages, exceptions and network requests are collected as the browser
itself reports them, not as the page sees them.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Home": 36, "End": 35, "Escape": 27}
KEYS |= {"Tab": 9, "Enter": 13, " ": 32, "[": 219, "]": 221, "n": 78, "p": 80}
READY = "document.documentElement?.dataset.ready === 'true'"


class Browser:
    """One headless browser with one page. Use as a context manager."""

    def __init__(self, profile: Path):
        command = [
            str(EXECUTABLE), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--disable-dev-shm-usage", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]  # 3 and 4 must be free to take

        def wire() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            command,
            preexec_fn=wire,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        self.write_to, self.read_from, self.buffer, self.number = ours_out, ours_in, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        self.shown: tuple[Path, int, bool] | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self.session = None
            self.call("Browser.close", timeout=5)
            self.process.wait(timeout=10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.write_to)
        os.close(self.read_from)

    def call(self, method: str, timeout: float = 60, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write_to, json.dumps(message).encode() + b"\0")
        ends = time.monotonic() + timeout
        while True:
            found = self.receive(ends)
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def receive(self, ends: float) -> dict[str, Any]:
        """Return the next message."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_from], [], [], max(0.0, ends - time.monotonic()))
            part = os.read(self.read_from, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("the browser does not answer")
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, wait: str = READY) -> None:
        """Load a file and wait until the page says that it is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.shown = None
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for(wait)
        self.shown = (path, width, dark)

    def show(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Open a page unless it is open already; what was chosen in it stays."""
        if self.shown != (path, width, dark):
            self.open(path, width=width, dark=dark)
        self.events.clear()

    def wait_for(self, expression: str, timeout: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        ends = time.monotonic() + timeout
        while not self.run(f"Boolean({expression})"):
            if time.monotonic() > ends:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited where it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def place(self, selector: str, x: float = 0.5) -> tuple[float, float]:
        """Scroll an element into view and return a point of it, `x` of its width from the left, in the window."""
        box = self.run(
            f"(() => {{ const n = document.querySelector({json.dumps(selector)}); "
            "n.scrollIntoView({block: 'center', behavior: 'instant'}); const b = n.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        return box[0] + x * box[2], box[1] + box[3] / 2

    def move(self, selector: str, x: float = 0.5) -> None:
        """Move the mouse over an element."""
        at = self.place(selector, x)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])

    def click(self, selector: str, x: float = 0.5) -> None:
        """Click an element with the left button."""
        at = self.place(selector, x)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def choose(self, selector: str, text: str, *, number: int = 0) -> None:
        """Choose the first option that holds a text, in the select element of this number."""
        self.run(
            f"(() => {{ const s = document.querySelectorAll({json.dumps(selector)})[{number}]; "
            f"s.value = [...s.options].find((o) => o.text.includes({json.dumps(text)})).value; "
            "s.dispatchEvent(new Event('change')); })()"
        )

    def fill(self, selector: str, text: str) -> None:
        """Put a text into an input."""
        self.run(
            f"(() => {{ const i = document.querySelector({json.dumps(selector)}); i.value = {json.dumps(text)}; "
            "i.dispatchEvent(new Event('input')); })()"
        )

    def key(self, name: str) -> None:
        """Press and release one key."""
        text = {"text": name} if len(name) == 1 else {"text": "\r"} if name == "Enter" else {}
        common = {"key": name, "windowsVirtualKeyCode": KEYS[name], "code": name if len(name) > 1 else ""}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path, selector: str | None = None) -> None:
        """Write a PNG: the whole page, or one element of it."""
        box = self.run(
            f"(() => {{ const n = document.querySelector({json.dumps(selector or 'html')}); "
            "const b = n.getBoundingClientRect(); "
            "return [b.left + scrollX, b.top + scrollY, b.width, Math.max(b.height, n.scrollHeight)]; })()"
        )
        clip = {"x": box[0], "y": box[1], "width": box[2], "height": min(box[3], 16000), "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Return console warnings and errors, and exceptions, since the page was opened."""
        self.run("1")
        found = []
        for event in self.events:
            parameters = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"])[:500])
            elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(parameters["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                found.append(str(parameters["args"])[:500])
        return found

    def requests(self) -> list[str]:
        """Return every address that the page asked for since it was opened, but for itself and what it holds."""
        self.run("1")
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        own = self.run("location.href.split('#')[0]")
        return [url for url in sent if url.split("#")[0] != own and not url.startswith(("data:", "blob:"))]
