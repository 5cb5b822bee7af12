"""No code of a model's repository is run, or offered to be run; to look at a run, no hub is asked."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncrl.errors import UserError
from asyncrl.models import load_tokenizer
from asyncrl.report import inspection
from asyncrl.trainer.loading import from_folder, outline

ROOT = Path(__file__).resolve().parents[2]
LOADERS = ("from_pretrained", "from_config")


@pytest.mark.parametrize("load", [load_tokenizer, from_folder, outline])
def test_a_model_with_code_of_its_own_is_refused_without_a_question(
    load: Callable[[str], Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    ran, asked = tmp_path / "ran", []
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    for name, entries in (
        ("config.json", {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", None]}),
    ):
        config = json.loads((folder / name).read_text())
        config |= {"auto_map": entries, "model_type": "own", "tokenizer_class": "Own"}
        (folder / name).write_text(json.dumps(config))
    monkeypatch.setattr(builtins, "input", lambda *question: asked.append(question) or "y")
    with pytest.raises(UserError, match="could not be loaded"):
        load(str(folder))
    assert asked == []
    assert not ran.exists()


def test_every_call_that_loads_a_model_says_so() -> None:
    calls = list(loading_calls())
    assert len(calls) >= 5
    for where, call in calls:
        said = {keyword.arg: keyword.value for keyword in call.keywords}
        value = said.get("trust_remote_code")
        assert isinstance(value, ast.Constant), where
        assert value.value is False, where


def loading_calls() -> Iterator[tuple[str, ast.Call]]:
    """Of transformers' Auto classes: the others have no way to a model's own code."""
    for path in [*(ROOT / "asyncrl").rglob("*.py"), *(p for p in (ROOT / "scripts").iterdir() if p.is_file())]:
        text = path.read_text()
        if path.suffix != ".py" and "python" not in text.partition("\n")[0]:
            continue
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)) if (
                    name in LOADERS and owner.startswith("Auto")
                ):
                    yield f"{path}:{node.lineno}", node


def test_the_engine_is_told_so_too() -> None:
    said = [
        value
        for node in ast.walk(ast.parse((ROOT / "asyncrl/rollout/vllm_engine.py").read_text()))
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "trust_remote_code"
    ]
    assert [ast.literal_eval(value) for value in said] == [False]


def test_to_inspect_a_run_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    def look_up(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    (tmp_path / "recipe.yaml").write_text("model: somebody/a-model-that-is-not-here\n")
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/groups_000000.log").write_bytes(b"x")
    with pytest.raises(UserError, match="to look at a run nothing is fetched"):
        inspection.inspect(tmp_path, inspection.Filters(None, None, None), 1, False, None)
    assert asked == []
