"""`asyncrl watch FOLDER`: the runs in a folder, each with its page (`watch.py`) behind its name.

/TOKEN/ --> table of runs     /TOKEN/NAME/... --> the page of one
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from asyncrl.errors import UserError
from asyncrl.observe.evaluations import newest_accuracy
from asyncrl.report import page, watch
from asyncrl.report.run_files import RunFiles
from asyncrl.terminal.live import number
from asyncrl.terminal.progress import duration

_MOST_RUNS = 200
_HEADS = ("run", "state", "steps", "reward", "held-out accuracy", "elapsed")


def runs(folder: Path) -> list[Path]:
    """Run directories in it, the newest first."""
    found = [path for path in folder.iterdir() if (path / "recipe.yaml").is_file() and not path.is_symlink()]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def app(folder: Path, token: str) -> watch.App:
    """The ASGI application. Raises UserError if there are no runs."""
    if not runs(folder):
        raise UserError(f"{folder} is not a run directory, and has none in it")
    pages: dict[str, watch.App] = {}

    async def served(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        _, given, name, *rest = [*scope["path"].split("/"), "", ""]
        known = secrets.compare_digest(given.encode(errors="replace"), token.encode()) and scope["method"] == "GET"
        if not (known and name):
            text = await asyncio.to_thread(_index, folder) if known else None
            return await watch.send_page(send, text)
        if name not in pages:
            there = {path.name: path for path in await asyncio.to_thread(runs, folder)}
            if name not in there:
                return await watch.send_page(send, None)
            pages[name] = await asyncio.to_thread(watch.app, there[name], token)
        below = "/".join(part for part in rest if part)
        await pages[name]({**scope, "path": f"/{token}/{below}"}, receive, send)

    return served


def _index(folder: Path) -> str:
    rows = [_row(run_dir) for run_dir in runs(folder)[:_MOST_RUNS]]
    links = [f'<a href="{quote(name)}/">{escape(name)}</a>' for name, *_ in rows]
    lines = [
        "".join(f"<td>{cell}</td>" for cell in (link, *map(escape, row[1:])))
        for link, row in zip(links, rows, strict=True)
    ]
    heads = "".join(f'<th scope="col">{head}</th>' for head in _HEADS)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><caption>runs</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    parts = [f"<h1>{escape(folder.resolve().name)}</h1>", f'<div class="card wide">{table}</div>']
    return page.page(f"{folder.resolve().name} - asyncrl watch", parts)


def _row(run_dir: Path) -> list[str]:
    files = RunFiles(run_dir)
    try:
        files.refresh()
        last = files.records[-1] if files.records else {}
        score = newest_accuracy(files.evaluations)
    except UserError as error:
        return [run_dir.name, str(error), "-", "-", "-", "-"]
    state = "running" if watch.is_running(run_dir) else "done" if files.summary else "not running, not done"
    planned = files.recipe.get("max_steps", "?")
    return [
        *(run_dir.name, state, f"{len(files.records)} of {planned}", number(last.get("reward/mean"))),
        *("-" if score is None else f"{100 * score:.1f} %", duration(last.get("time_s") or 0.0)),
    ]
