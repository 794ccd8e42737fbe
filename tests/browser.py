"""A browser that tests look into: Debian's Chromium, headless, spoken to over a pipe.

The Chrome DevTools Protocol on two pipes is JSON messages, each ended by a zero byte: no driver, no port
and no package is needed for it.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe", "--window-size=1400,900",
)  # fmt: skip
WAIT = 60.0
"""Seconds for an answer: the machine may be busy."""
_KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Delete": 46, "Enter": 13, "Escape": 27}


class Page:
    """A page of the browser.

    Attributes:
        requests: Addresses that it asked for.
        complaints: What it wrote to the console, and uncaught errors.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def open(self, address: str, downloads: Path) -> None:
        """Open the page in a tab of its own; what it saves goes into a folder."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]  # fmt: skip
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        downloads.mkdir(parents=True, exist_ok=True)
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self.go(address)

    def go(self, address: str) -> None:
        """Load an address and wait until the page stands."""
        self.send("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the protocol, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            answer = self._receive(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
        raise TimeoutError(method)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + WAIT
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.1)

    def press(self, key: str) -> None:
        """A key: a letter, or a name like ``ArrowRight``."""
        code = _KEYS.get(key, ord(key.upper()[0]))
        text = {"text": "\r" if key == "Enter" else key} if key == "Enter" or len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)  # fmt: skip
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def drag(self, start: tuple[float, float], end: tuple[float, float], *, steps: int = 5) -> None:
        """Press the mouse at one point of the window, move it, and let go at another."""
        self._mouse("mouseMoved", *start)
        self._mouse("mousePressed", *start, button="left", buttons=1, clickCount=1)
        for step in range(1, steps + 1):
            x, y = (a + (b - a) * step / steps for a, b in zip(start, end, strict=True))
            self._mouse("mouseMoved", x, y, button="left", buttons=1)
        self._mouse("mouseReleased", *end, button="left", clickCount=1)

    def click(self, x: float, y: float) -> None:
        """A click at a point of the window."""
        self.drag((x, y), (x, y), steps=0)

    def centre(self, selector: str) -> tuple[float, float]:
        """Middle of an element, in the window."""
        x, y = self.evaluate(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        return x, y

    def shoot(self, path: Path) -> None:
        """A picture of the window as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def _mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser says nothing")
            part = os.read(self._from, 1 << 16)
            assert part, "the browser has gone"
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        self._hear(message.get("method", ""), message.get("params", {}))
        return message

    def _hear(self, event: str, said: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(said["args"]))
        elif event == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])


@contextmanager
def browse(address: str, folder: Path) -> Iterator[Page]:
    """A page in a fresh browser, with a profile and downloads (``downloads/``) in a folder.

    Skips the test where there is no Chromium.
    """
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium here")
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    # The browser reads from descriptor 3 and writes to 4.
    shell = f'exec "$@" 3<&{read_there} 4>&{write_there}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "browser", *command],
        pass_fds=(read_there, write_there),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there)
    os.close(write_there)
    page = Page(write_here, read_here)
    try:
        page.open(address, folder / "downloads")
        yield page
    finally:
        os.close(write_here)  # a browser whose pipe is closed ends by itself
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(read_here)
