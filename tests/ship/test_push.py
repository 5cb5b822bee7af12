"""An exported folder on a hub: a real client, against a server that takes what the hub takes and checks it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from shipped_runs import make_run

from asyncrl.cli import main

TOKEN = "hf_" + "a" * 34
ROOT = Path(__file__).resolve().parents[2]


class Hub:
    """`files`: committed ones by repository and path; `private`: whether a repository that was made is."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.url = self.card = ""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        repo = "me/my-model"
        if path == "/api/repos/create":
            said = json.loads(body)
            self.private[f"{said.get('organization')}/{said['name']}"] = said["visibility"] == "private"
            return {"url": f"{self.url}/{repo}"}
        if path == f"/api/models/{repo}/preupload/main":
            modes = [
                (f["path"], "lfs" if f["path"].endswith("safetensors") else "regular")
                for f in json.loads(body)["files"]
            ]
            return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]}
        if path == f"/{repo}.git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            put = [{**o, "actions": {"upload": {"href": f"{self.url}/blobs/{o['oid']}"}}} for o in objects]
            return {"transfer": "basic", "objects": put}
        if path == "/api/validate-yaml":
            self.card = json.loads(body)["content"]
            return {"errors": [], "warnings": []}
        assert path == f"/api/models/{repo}/commit/main"
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files.setdefault(repo, {})[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.files.setdefault(repo, {})[value["path"]] = self.blobs[value["oid"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/1", "commitOid": "1" * 40}


@pytest.fixture
def hub(served: Callable[[type[BaseHTTPRequestHandler]], str]) -> Hub:
    ours = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _say(self, code: int, answer: dict[str, Any]) -> None:
            said = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def do_POST(self) -> None:
            body = self._take()
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._say(401, {"error": "Invalid credentials in Authorization header"})
                return
            self._say(200, ours.answer(self.path, body))

        def do_PUT(self) -> None:
            content = self._take()
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(content).hexdigest() == oid
            ours.blobs[oid] = content
            self._say(200, {})

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    ours.url = served(Handler)
    return ours


@pytest.fixture
def run_dir(tiny_model: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path, tiny_model)[0]


def pushed(hub: Hub, run_dir: Path, token: str) -> subprocess.CompletedProcess[str]:
    """The client reads its environment when it is imported."""
    more = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "asyncrl", "export", str(run_dir), "--out", "out", "--push", "me/my-model"]
    environment = {**os.environ, **more, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=run_dir.parent, env=environment, capture_output=True, text=True, timeout=120)


def test_every_file_is_there_as_it_was_written(hub: Hub, run_dir: Path) -> None:
    done = pushed(hub, run_dir, TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["out", f"{hub.url}/me/my-model"]
    written = {path.name: path.read_bytes() for path in (run_dir.parent / "out").iterdir()}
    assert hub.files == {"me/my-model": written}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= written.keys()
    assert hub.card.encode() == written["README.md"]
    assert hub.private == {"me/my-model": True}


def test_what_the_hub_refuses_is_one_sentence_and_the_folder_stays(hub: Hub, run_dir: Path) -> None:
    done = pushed(hub, run_dir, "hf_wrong")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("asyncrl: out is written, and was not pushed to me/my-model: ")
    assert "401" in said
    assert said.endswith("; `hf upload me/my-model out` tries again")
    assert (run_dir.parent / "out/model.safetensors").exists()
    assert hub.files == {}


@pytest.mark.parametrize(
    ("repo", "token", "offline", "said"),
    [
        ("a/b/c", TOKEN, False, "--push 'a/b/c' is no name of a repository, such as me/my-model"),
        ("me/x", None, False, "--push needs a token that may write; set HF_TOKEN, or `hf auth login`"),
        ("me/x", TOKEN, True, "--push needs the hub, and HF_HUB_OFFLINE says to leave it alone; unset that"),
    ],
)
def test_what_cannot_be_pushed_is_not_written(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repo: str,
    token: str | None,
    offline: bool,
    said: str,
) -> None:
    monkeypatch.chdir(run_dir.parent)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    assert main(["export", str(run_dir), "--out", "out", "--push", repo]) == 2
    assert capsys.readouterr().err == f"asyncrl: {said}\n"
    assert not Path("out").exists()
