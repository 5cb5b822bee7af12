"""A folder of runs: a table, and behind each name the page of one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from asyncrl.cli import main
from asyncrl.errors import UserError
from asyncrl.observe.metrics import MetricsWriter
from asyncrl.report.watch_many import app

NAMES = ("one", "a <b> run")


@pytest.fixture
def folder(tmp_path: Path, made_up: Any) -> Path:
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(made_up.RECIPE)
        for record in made_up.records(3):
            MetricsWriter(tmp_path / name / "metrics.jsonl").write(record)
    (tmp_path / "other").mkdir()
    return tmp_path


def get(folder: Path, path: str, query: bytes = b"") -> tuple[int, str]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": query}
    asyncio.run(app(folder, "token")(scope, None, send))
    return sent[0]["status"], sent[1]["body"].decode()


def test_runs_stand_in_a_table(folder: Path) -> None:
    status, page = get(folder, "/token/")
    assert status == 200
    assert 'href="a%20%3Cb%3E%20run/">a &lt;b&gt; run</a>' in page
    assert page.count("not running, not done") == 2
    assert "other" not in page


@pytest.mark.parametrize("name", NAMES)
def test_behind_each_name_is_the_page_of_the_run(name: str, folder: Path) -> None:
    status, page = get(folder, f"/token/{name}/")
    assert status == 200
    assert "asyncrl watch</title>" in page
    status, answer = get(folder, f"/token/{name}/sections", b"seen=0")
    assert status == 200
    assert "charts" in json.loads(answer)["sections"]


@pytest.mark.parametrize("path", ["/", "/other/", "/token/two/", "/token/other/", "/token/../one/", "/wrong/one/"])
def test_all_else_is_not_there(path: str, folder: Path) -> None:
    assert get(folder, path)[0] == 404


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="is not a run directory, and has none in it"):
        app(tmp_path, "token")
    assert main(["watch", str(tmp_path / "missing")]) == 2
    assert "is not a run directory: it does not exist" in capsys.readouterr().err
