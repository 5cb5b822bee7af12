"""`asyncrl watch`: the report of a run as a page that follows it; of a finished or crashed one too.

    browser --GET /TOKEN/--> page    --GET /TOKEN/sections?seen=NUMBER, every two seconds--> what has changed since
Only files are read, so nothing in the run waits for it. Loopback unless told otherwise; without the token all is 404.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from asyncrl.errors import UserError
from asyncrl.report import page, standing
from asyncrl.report.charts import script
from asyncrl.report.report import Sections
from asyncrl.storage.run_dir import open_file, text
from asyncrl.terminal.console import Console

logger = logging.getLogger(__name__)

_SILENT_S = 10.0
"""The driver says where it stands every second."""
_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_SCRIPT = """
async function follow() {
  const state = document.getElementById("connection");
  try {
    const answer = await fetch("sections?seen=" + seen);
    if (!answer.ok) throw new Error(answer.status);
    const found = await answer.json();
    for (const [name, html] of Object.entries(found.sections)) replace(document.getElementById(name), html);
    seen = found.seen;
    state.textContent = "";
  } catch { state.textContent = "asyncrl watch does not answer; the page shows what it last said"; }
  setTimeout(follow, 2000);
}
const KEPT = "details, input, [tabindex], summary";
function replace(place, html) {  // what its reader opened, chose, scrolled or zoomed to and has the focus on, stays
  const plots = new Map([...place.querySelectorAll(".plot")].map((old) => [old.ariaLabel, old]));
  const before = [...place.querySelectorAll(KEPT)];
  const focus = before.indexOf(document.activeElement);
  const at = before.map((old) => [old.scrollLeft, old.scrollTop]);
  place.innerHTML = html;
  const after = [...place.querySelectorAll(KEPT)];
  before.forEach((old, i) => {
    if (after[i]?.tagName !== old.tagName) return;
    if (old.open) after[i].open = true;
    if (old.type === "radio") after[i].checked = old.checked;
    after[i].scrollTo(...at[i]);
  });
  after[focus]?.focus({preventScroll: true});
  for (const plot of place.querySelectorAll(".plot")) {
    const old = plots.get(plot.ariaLabel);
    if (!old) continue;
    old.dataset.figure = plot.dataset.figure;
    plot.replaceWith(old);
  }
  draw(place);
}
follow();
"""


App = Callable[..., Awaitable[None]]


def serve(run_dir: Path, host: str, port: int, application: Callable[[Path, str], App]) -> None:
    """Serve until Ctrl-C what `application` makes of the folder and a token. Raises UserError if the address cannot be
    had, or the folder cannot be shown."""
    import uvicorn

    token = secrets.token_urlsafe(16)
    served = application(run_dir, token)
    listening = _listen(host, port)
    url = f"http://{host}:{listening.getsockname()[1]}/{token}/"
    if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
        logger.warning("the page and its token go over the network as they are: plain HTTP (docs/safety.md)")
    Console().print(
        f"{run_dir}: {url}\nCtrl-C ends the page, not the run.", markup=False, highlight=False, soft_wrap=True
    )
    # h11 takes no header of more than 64 KiB; httptools, which uvicorn prefers where it is, has no such limit.
    config = uvicorn.Config(served, http="h11", ws="none", lifespan="off", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise UserError(f"watch: cannot listen at {host}:{port}: {error.strerror}; set --port or --host") from error


def app(run_dir: Path, token: str) -> App:
    """The ASGI application. Raises UserError for a run that cannot be shown."""
    following = Following(run_dir)
    following.changed(0)

    def answer(scope: Mapping[str, Any], nonce: str) -> tuple[str, str] | None:
        """Type and text; None for whoever has no token, and for all that is not there."""
        _, given, *place = [*scope["path"].split("/"), ""]
        if not secrets.compare_digest(given.encode(errors="replace"), token.encode()) or scope["method"] != "GET":
            return None
        if place == ["", ""]:
            return "text/html", _whole(run_dir, *following.changed(0), nonce)
        seen = re.fullmatch(rb"(?:seen=([0-9]{1,18}))?", scope["query_string"])
        if place != ["sections", ""] or seen is None:
            return None
        newest, html = following.changed(int(seen[1] or 0))
        return "application/json", json.dumps({"seen": newest, "sections": html})

    async def served(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        nonce = secrets.token_urlsafe(16)
        kind, text = await asyncio.to_thread(answer, scope, nonce) or ("text/plain", None)
        await send_page(send, text, kind, nonce)

    return served


async def send_page(send: Any, text: str | None, kind: str = "text/html", nonce: str = "") -> None:
    """Answer a request; None: nothing is there. `nonce` lets the page's own scripts run."""
    kind, body = (kind, text) if text is not None else ("text/plain", "Not Found")
    policy = _policy(nonce or secrets.token_urlsafe(16))
    named = {"content-type": f"{kind}; charset=utf-8", **_HEADERS, "content-security-policy": policy}
    headers = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": 404 if text is None else 200, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode(errors="replace")})


def _whole(run_dir: Path, seen: int, html: Mapping[str, str], nonce: str) -> str:
    places = [page.place(name, part) for name, part in html.items()]
    connection = '<p id="connection" class="soft" role="status"></p>'
    follow = f'<script nonce="{nonce}">let seen = {seen};{_SCRIPT}</script>'
    return page.page(f"{run_dir.resolve().name} - asyncrl watch", [*places, connection, script(nonce), follow])


def _policy(nonce: str) -> str:
    """What a browser lets the page do: its own script and looks, pictures that it holds itself, for Plotly tries one,
    and asking here again."""
    only = f"script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
    return f"default-src 'none'; {only}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Following:
    """The parts of the page as they are now, numbered by the changes that made them so."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._run_dir, self._sections = run_dir, Sections(run_dir)
        self._clock = clock
        self._said: tuple[float | None, float] = (None, clock())
        """`time_s` of the newest status, and when it was found here: clocks of two machines are not compared."""
        self._lock = threading.Lock()
        self._html: dict[str, str] = {}
        self._changed_at: dict[str, int] = {}
        self._number = 0

    def changed(self, seen: int) -> tuple[int, dict[str, str]]:
        """The number of the newest change, and the parts that changed after `seen`. Raises UserError if what is there
        at the first look cannot be shown; if that is so later, the page says it, and keeps its other parts."""
        with self._lock:
            try:
                now = self._now()
            except UserError as error:
                if not self._html:
                    raise
                now = {"state": page.line(str(error), warn=True)}
            for name, html in now.items():
                # Half a pair of surrogates cannot be sent.
                html = html.encode(errors="backslashreplace").decode()
                if self._html.get(name) != html:
                    self._number += 1
                    self._html[name], self._changed_at[name] = html, self._number
            return self._number, {name: html for name, html in self._html.items() if self._changed_at[name] > seen}

    def _now(self) -> dict[str, str]:
        own = self._sections.html()
        running = is_running(self._run_dir)
        status = self._sections.files.status
        if status.get("time_s") != self._said[0]:
            self._said = status.get("time_s"), self._clock()
        silent_s = self._clock() - self._said[1]
        waits = page.section("What is waited for", standing.waits(status)) if running else ""
        own["generators"] += waits
        return {"title": own.pop("title"), "state": _state(self._run_dir, running, status, silent_s), **own}


def _state(run_dir: Path, running: bool, status: Mapping[str, Any], silent_s: float) -> str:
    if not running:
        if os.path.lexists(run_dir / "summary.json"):
            return page.line("done")
        return page.line(f"not running, and not done: `asyncrl resume {run_dir}` takes it up", warn=True)
    overdue = text(run_dir, "waiting.txt")
    shown = f" Waits that were overdue: {overdue}" if overdue else ""
    if silent := "time_s" in status and silent_s > _SILENT_S:
        shown += f" The driver has said nothing for {silent_s:.0f} s: it hangs, or its disk does."
    doing = f", {status['phase']}" if status.get("phase") else ""
    return page.line(f"running{doing}; this page follows it.{shown}", warn=bool(overdue) or silent)


def is_running(run_dir: Path) -> bool:
    """Whether a driver holds the run's lock; on another machine, whether one took it and did not end the run. Nothing
    is locked here, not even for a moment, in which a driver might start."""
    try:
        with open_file(run_dir, ".lock") as file:
            _, _, host = file.read(300).decode(errors="replace").strip().partition(" ")
            number = os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
    locks = Path("/proc/locks")
    if host not in ("", socket.gethostname()) or not locks.exists():
        return not os.path.lexists(run_dir / "summary.json")
    return any(line.split()[5].endswith(f":{number}") for line in locks.read_text().splitlines())
