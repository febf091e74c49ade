"""A page in headless Chromium, driven over its debugging pipe: sizes, colour schemes, keys, requests and pictures."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60.0
"""Seconds until an answer is given up."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}


class Page:
    """One page; `requests` are the addresses that it asked for, `complaints` what its console said."""

    def __init__(self, to: int, out: int) -> None:
        self._to, self._out = to, out
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        self._answers: dict[int, dict[str, Any]] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    @property
    def requests(self) -> list[str]:
        """The address of everything that was asked for."""
        return [one["params"]["request"]["url"] for one in self.events if one["method"] == "Network.requestWillBeSent"]

    @property
    def complaints(self) -> list[str]:
        """What the console said: refused scripts and uncaught errors among it."""
        logged = [one["params"]["entry"]["text"] for one in self.events if one["method"] == "Log.entryAdded"]
        thrown = [
            one["params"]["exceptionDetails"] for one in self.events if one["method"] == "Runtime.exceptionThrown"
        ]
        return logged + [str(one.get("exception", one)) for one in thrown]

    def open(self, uri: str) -> None:
        """Load a page and wait until it is there."""
        self.events.clear()
        self.call("Page.navigate", url=uri)
        self._wait(lambda: any(one["method"] == "Page.loadEventFired" for one in self.events))

    def size(self, width: int, height: int = 900, scale: float = 1.0) -> None:
        """Be as wide as a phone or a desktop."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def scheme(self, name: str) -> None:
        """Prefer `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def allow_scripts(self, is_allowed: bool) -> None:
        """Let pages run scripts, or not."""
        self.call("Emulation.setScriptExecutionDisabled", value=not is_allowed)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, shift: bool = False) -> None:
        """Press one key, as a person would."""
        one: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
        one["modifiers"] = 8 if shift else 0
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown", **one, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **one)

    def picture(self, path: Path, selector: str | None = None, margin: int = 0, height: int | None = None) -> None:
        """A PNG of what is seen, or of one element with a margin, cut at a height."""
        asked: dict[str, Any] = {"format": "png"}
        if selector:
            box = self.ask(
                f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                "return [r.x + scrollX, r.y + scrollY, r.width, r.height]; })()"
            )
            x, y, width, tall = box
            clip = {"x": max(0, x - margin), "y": y - margin, "width": width + 2 * margin, "height": tall + 2 * margin}
            asked |= {"clip": {**clip, "height": min(clip["height"], height or 1e6), "scale": 1}}
            asked["captureBeyondViewport"] = True
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **asked)["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        self._wait(lambda: number in self._answers)
        found = self._answers.pop(number)
        assert "error" not in found, f"{method}: {found['error']}"
        result: dict[str, Any] = found["result"]
        return result

    def _wait(self, is_there: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not is_there():
            left = until - time.monotonic()
            assert left > 0 and select.select([self._out], [], [], left)[0], "Chromium does not answer"
            self._buffer += os.read(self._out, 1 << 20)
            *whole, self._buffer = self._buffer.split(b"\0")
            for part in whole:
                one = json.loads(part)
                if "method" in one:
                    self.events.append(one)
                else:
                    self._answers[one["id"]] = one


@contextmanager
def a_page(profile: Path) -> Iterator[Page]:
    """A page in a Chromium of its own, which is closed at the end."""
    assert CHROMIUM
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    # Chromium reads from 3 and writes to 4; the pipes' own numbers may be those.
    high = [fcntl.fcntl(one, fcntl.F_DUPFD, 20) for one in (theirs_in, theirs_out)]

    def wire() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, preexec_fn=wire, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for one in (theirs_in, theirs_out, *high):
        os.close(one)
    try:
        yield Page(ours_out, ours_in)
    finally:
        process.terminate()
        process.wait(20)
        os.close(ours_out)
        os.close(ours_in)
