"""A headless Chromium, driven by ChromeDriver through the W3C WebDriver protocol: some hundred lines instead of a package.

`Browser` starts both on free ports with an empty profile and nothing but loopback to reach; every call has a timeout.
`requests` and `complaints` say what the page asked for and what the console had to say, from the driver's own logs, so
that a test can insist on nothing from outside and nothing wrong. `scheme` and `size` make it dark, light, a desk, a phone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from tests.conftest import Process, free_port

_OPEN = build_opener(ProxyHandler({})).open
#: A browser starts in two seconds; on a machine that does much else at once it takes a minute.
_SECONDS = 240
_ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
              "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
              "--force-color-profile=srgb", "--disable-extensions", "--no-default-browser-check", "--no-proxy-server")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"       # the protocol's own name of a reference to an element
TAB, SHIFT, ENTER = "\ue004", "\ue008", "\ue007"


def why_not() -> str:
    """What lacks for a browser; empty where nothing does."""
    lack = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and '.join(lack)} on PATH; run tests/setup_components.sh" if lack else ""


class Browser:
    """One window of a browser; a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tidemark-browser-"))
        port = free_port()
        self._driver = Process([shutil.which("chromedriver"), f"--port={port}"], self.folder / "driver.log")
        self._base = f"http://127.0.0.1:{port}"
        try:
            self._driver.wait_port(port)
            options = {"binary": shutil.which("chromium"),
                       "args": [*_ARGUMENTS, f"--user-data-dir={self.folder / 'profile'}", "--window-size=1200,900"]}
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": {
                "browserName": "chrome", "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "timeouts": {"pageLoad": 120_000, "script": 60_000}}}})
            self._base += f"/session/{made['sessionId']}"
            self.open("about:blank")
            self.requests()                         # those of the browser's own first page
        except BaseException:
            self._end()
            raise

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = Request(self._base + path, content, {"content-type": "application/json"}, method=method)
        try:
            with _OPEN(request, timeout=_SECONDS) as answer:
                return json.load(answer)["value"]
        except OSError as error:
            said = error.read().decode() if hasattr(error, "read") else ""          # type: ignore[attr-defined]
            raise AssertionError(f"{method} {path}: {said[:500] or error}") from None

    def _devtools(self, command: str, **values: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": values})

    def open(self, address: str) -> None:
        """Go there and wait until it is loaded."""
        self._call("POST", "/url", {"url": address})

    def run(self, script: str, *values: Any) -> Any:
        """What a function's body returns in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(values)})

    def text(self, selector: str) -> str:
        """The text that is seen of the first element that matches; AssertionError where there is none."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return str(self._call("GET", f"/element/{found[_ELEMENT]}/text"))

    def count(self, selector: str) -> int:
        """How many elements match."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def click(self, selector: str) -> None:
        """Click on the first element that matches, as a person would: where it can be seen."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{found[_ELEMENT]}/click", {})

    def press(self, *keys: str) -> None:
        """Press and release keys, one after the other."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def size(self, width: int, height: int = 900) -> None:
        """The size of what is seen, CSS pixels; below 500 as a phone shows it."""
        self._devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def scheme(self, name: str, *, reduced_motion: bool = False) -> None:
        """`light` or `dark`, and whether the reader asked for less motion."""
        self._devtools("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else "no-preference"}])

    def scripts(self, *, on: bool) -> None:
        """Whether pages may run scripts; takes effect with the next page."""
        self._devtools("Emulation.setScriptExecutionDisabled", value=not on)

    def picture(self, path: Path, *, height: int | None = None, part: str = "") -> Path:
        """The page as PNG: the whole of it, its first `height` pixels, or the element that matches `part`."""
        size = self._devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(height or size["height"], size["height"])}
        if part:
            clip = self.run("const box = document.querySelector(arguments[0]).getBoundingClientRect(); "
                            "return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}", part)
        clip["scale"] = 1
        made = self._devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(made["data"]))
        return path

    def complaints(self) -> list[str]:
        """What the console said since the last call: errors, refused loads, violations of the policy."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})
                if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Every address that was asked for since the last call, `data:` ones left out."""
        found = []
        for entry in self._call("POST", "/se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if urlsplit(url).scheme != "data"]

    def close(self) -> None:
        """End the browser and its driver."""
        with contextlib.suppress(AssertionError):
            self._call("DELETE", "")
        self._end()

    def _end(self) -> None:
        """End the driver, and what is left of a browser that did not hear of it: the one with our folder, no other."""
        self._driver.stop()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
