"""A real browser: Debian's Chromium without a window, driven by its debugging protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_CODES = {"Enter": 13, "Escape": 27, "Tab": 9}
_SECONDS = 30.0


class Browser:
    """One tab."""

    def __init__(self, socket: Any):
        self._socket = socket
        self._numbers = itertools.count(1)

    def command(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            reply = json.loads(self._socket.recv(timeout=_SECONDS))
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def open(self, address: str) -> None:
        """Load a page."""
        self.command("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.command(
            "Runtime.evaluate", expression=expression, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self, id: str) -> str:
        """The text that a user sees in an element."""
        return self.value(f"document.getElementById({id!r}).innerText")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # the page is still loading
                if self.value(expression):
                    return
            time.sleep(0.02)
        raise AssertionError(f"never true: {expression}")

    def press(self, key: str, control: bool = False) -> None:
        """Press a key and let it go."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = _CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)
        event = {
            "key": key,
            "windowsVirtualKeyCode": code,
            "modifiers": 2 if control else 0,
        }
        if text and not control:
            event["text"] = text
        self.command("Input.dispatchKeyEvent", type="keyDown", **event)
        event.pop("text", None)
        self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Enter a text where the cursor is."""
        self.command("Input.insertText", text=text)

    def screenshot(self, path: Path, width: int, height: int) -> None:
        """Save what a user sees as a PNG."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        found = self.command("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A new browser; the test is skipped where the machine has none."""
    from websockets.sync.client import connect

    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if not program:
        pytest.skip("no browser: install one, such as Debian's package chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",  # Chromium refuses to run as root with it
                "--disable-gpu",
                "--no-proxy-server",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_tab(Path(profile)), max_size=None, proxy=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            process.wait()


def _tab(profile: Path) -> str:
    """The address by which the first tab is driven."""
    file = profile / "DevToolsActivePort"
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError, StopIteration):
            port = file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as reply:
                tabs = json.load(reply)
            return next(
                tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"
            )
        time.sleep(0.05)
    raise AssertionError("the browser did not start")
