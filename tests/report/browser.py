"""A real browser for the tests: headless Chromium, told what to do over its DevTools pipe. No package is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DEADLINE_S = 60.0


class Browser:
    """One page. Every call has a deadline."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self._profile = tempfile.mkdtemp()
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        self._process = subprocess.Popen(
            # Chromium reads from 3 and writes to 4.
            ["bash", "-c", f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}', CHROMIUM, "--headless", "--no-sandbox",
             "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={self._profile}",
             "about:blank"],
            pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._readable = select.poll()
        self._readable.register(self._in, select.POLLIN)
        self._number, self._read, self.events = 0, b"", []
        self.requests: list[str] = []
        """Addresses that were asked for since the page was opened, its own too; not data that are their own address."""
        self.complaints: list[dict[str, Any]] = []
        """Since then: exceptions, what breaks the page's policy, and what was written to the console."""
        targets = self._send("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")
        self.send("Runtime.enable")
        self.send("Log.enable")
        self.send("Network.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    # -- what tests do

    def look(self, width: int, height: int = 900, dark: bool = False, scale: float = 1) -> None:
        """Size of the window, and which colours its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> float:
        """Seconds from the navigation to the load event."""
        self.requests, self.complaints = [], []
        began = time.monotonic()
        self.send("Page.navigate", url=url)
        self._wait("Page.loadEventFired")
        return time.monotonic() - began

    def value(self, expression: str) -> Any:
        """Of JavaScript; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait for JavaScript that becomes true."""
        end = f"Date.now() + {1000 * DEADLINE_S / 2}"
        poll = f"new Promise((yes, no) => {{ const end = {end}; const look = () => ({expression}) ? yes() : "
        self.value(poll + "Date.now() > end ? no('it did not come') : setTimeout(look, 50); look(); })")

    def middle(self, selector: str) -> tuple[float, float]:
        """Of an element, in the window, into which it is scrolled."""
        x, y = self.value(f"""(() => {{ const node = document.querySelector("{selector}");
            node.scrollIntoView({{block: "center"}}); const at = node.getBoundingClientRect();
            return [at.x + at.width / 2, at.y + at.height / 2]; }})()""")
        return x, y

    def axe(self) -> list[str]:
        """What axe-core finds wrong with the page as it is shown now, or leaves to a reader, but for contrast in plots,
        of which it cannot see the ground: the rule, and the first place that breaks it. Skips the test where the
        package is not installed."""
        package = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed (extra: dev)")
        self.value((Path(package.__file__).parent / "axe.min.js").read_text() + ";null")
        kept = "said.incomplete.filter((one) => one.id !== 'color-contrast')"
        found = self.value(f"axe.run().then((said) => [said.passes.length, [...said.violations, ...{kept}]])")
        assert found[0] >= 15, "it looked at nothing"
        return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found[1]]

    def paper(self) -> bytes:
        """A PDF of the page, as the user's printer would have it; without backgrounds, as browsers are set."""
        printed = self.send("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(printed["data"])

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            what = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **what)

    def mouse(self, *places: tuple[float, float], pressed: bool = False) -> None:
        """Move it from place to place; with its button down from the first to the last if `pressed`."""
        for number, (x, y) in enumerate(places):
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=int(pressed and number > 0))
            for kind, when in (("mousePressed", 0), ("mouseReleased", len(places) - 1)):
                if pressed and number == when:
                    self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, x: float, y: float, up: float) -> None:
        """With a finger."""
        for kind, at in [("touchStart", y), *(("touchMove", y - up * part / 10) for part in range(1, 11))]:
            self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": at}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def picture(self, path: Path, whole: bool = True) -> None:
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(shot["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**size, "scale": 1}}

    # -- the pipe

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._send(method, self._session, **parameters)

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE_S
        while (answer := self._receive(deadline)).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def cpu_s(self) -> float:
        """Seconds that its processes have computed: not those in which others did."""
        total = 0.0
        for process in (psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _wait(self, event: str) -> None:
        """For the next event of this name since the command before the last."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self._receive(deadline))
        self.events.clear()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert self._readable.poll(1000 * max(0.0, deadline - time.monotonic())), "the browser is silent"
            data = os.read(self._in, 2**16)
            assert data, "the browser has ended"
            self._read += data
        line, _, self._read = self._read.partition(b"\0")
        message = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests += [url for url in (message["params"]["request"]["url"],) if not url.startswith("data:")]
        if message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(message["params"])
        return message
