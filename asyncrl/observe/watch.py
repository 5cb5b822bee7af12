"""`asyncrl watch`: the report of a run as a page that follows it; of a finished or crashed one too.

    browser --GET /TOKEN/--> page    --GET /TOKEN/sections?seen=TAG, every two seconds--> what has changed since
Only files are read, so nothing in the run waits for it. Loopback unless told otherwise; without the token all is 404.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from pathlib import Path
from typing import Any

from rich.console import Console

from asyncrl.errors import UserError
from asyncrl.observe import page
from asyncrl.observe.report import sections

_FILES = ("recipe.yaml", "metrics.jsonl", "summary.json", "samples.jsonl", "trace.json", "waiting.txt")
_SCRIPT = """
const parts = {};
async function follow() {
  const state = document.getElementById("connection");
  try {
    const answer = await fetch("sections?seen=" + seen);
    if (!answer.ok) throw new Error(answer.status);
    const found = await answer.json();
    seen = found.tag;
    for (const [name, html] of Object.entries(found.sections)) {
      if (parts[name] === html) continue;
      const place = document.getElementById(name);
      const open = place.querySelector("details")?.open;
      place.innerHTML = parts[name] = html;
      if (open) place.querySelector("details").open = true;
    }
    state.textContent = "";
  } catch { state.textContent = "asyncrl watch does not answer; the page shows what it last said"; }
  setTimeout(follow, 2000);
}
follow();
"""


def watch(run_dir: Path, host: str, port: int) -> None:
    """Serve until Ctrl-C. Raises UserError if the address cannot be had."""
    import uvicorn

    token = secrets.token_urlsafe(16)
    listening = _listen(host, port)
    url = f"http://{host}:{listening.getsockname()[1]}/{token}/"
    Console().print(
        f"{run_dir}: {url}\nCtrl-C ends it; the run goes on.", markup=False, highlight=False, soft_wrap=True
    )
    config = uvicorn.Config(app(run_dir, token), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise UserError(f"watch: cannot listen at {host}:{port}: {error.strerror}; set --port or --host") from error


def app(run_dir: Path, token: str) -> Any:
    """The FastAPI application."""
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import HTMLResponse

    served = FastAPI(openapi_url=None)

    def check(given: str) -> None:
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(404)

    @served.get("/{given}/")
    def whole(given: str) -> Any:
        check(given)
        tag = _tag(run_dir)
        places = [f'<section id="{name}">{html}</section>' for name, html in _sections(run_dir).items()]
        connection = '<p id="connection" class="soft" role="status"></p>'
        script = f'<script>let seen = "{tag}";{_SCRIPT}</script>'
        html = page.page(f"{run_dir.resolve().name} - asyncrl watch", [*places, connection, script])
        return HTMLResponse(html, headers={"Referrer-Policy": "no-referrer"})

    @served.get("/{given}/sections")
    def changed(given: str, seen: str = "") -> Any:
        check(given)
        tag = _tag(run_dir)
        return {"tag": tag, "sections": {} if tag == seen else _sections(run_dir)}

    return served


def _sections(run_dir: Path) -> dict[str, str]:
    own = sections(run_dir)
    return {"title": own.pop("title"), "state": _state(run_dir), **own}


def _tag(run_dir: Path) -> str:
    """Another one whenever a file has changed, or the run has begun or ended."""
    stats = [path.stat() if (path := run_dir / name).exists() else None for name in _FILES]
    known = [(s.st_mtime_ns, s.st_size) if s else None for s in stats]
    return hashlib.sha256(repr((known, _is_running(run_dir))).encode()).hexdigest()[:16]


def _state(run_dir: Path) -> str:
    if _is_running(run_dir):
        waits = run_dir / "waiting.txt"
        overdue = waits.read_text(errors="replace") if waits.exists() else ""
        shown = f" Waits that were overdue: {overdue}" if overdue else ""
        return page.line(f"running; this page follows it.{shown}", warn=bool(overdue))
    if (run_dir / "summary.json").exists():
        return page.line("done")
    return page.line(f"not running, and not done: `asyncrl resume {run_dir}` takes it up", warn=True)


def _is_running(run_dir: Path) -> bool:
    """Whether a driver holds the run's lock; on another machine, whether one took it and did not end the run. Nothing
    is locked here, not even for a moment, in which a driver might start."""
    path = run_dir / ".lock"
    if not path.exists():
        return False
    _, _, host = path.read_text(errors="replace").strip().partition(" ")
    locks = Path("/proc/locks")
    if host not in ("", socket.gethostname()) or not locks.exists():
        return not (run_dir / "summary.json").exists()
    return any(line.split()[5].endswith(f":{path.stat().st_ino}") for line in locks.read_text().splitlines())
