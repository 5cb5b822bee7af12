"""A recipe of a stranger, and a model that it names: nobody waits for a pipe or reads a device, and what is not as it
should be is one sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from stranger import sentence

from asyncrl.errors import UserError
from asyncrl.models import weight_files
from asyncrl.plugins import load_object
from asyncrl.recipe.load import load

ROOT = Path(__file__).resolve().parents[2]
NO_FILE = "it is no file, but a pipe or a device"


def put(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path.name)
        case _:
            path.write_text(kind)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("command", ["train", "plan", "doctor"])
@pytest.mark.parametrize(
    ("kind", "said"), [("pipe", NO_FILE), ("device", NO_FILE), ("loop", "Too many levels of symbolic links")]
)
def test_a_recipe_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str, said: str
) -> None:
    put(tmp_path / "one.yaml", kind)
    (tmp_path / "two.yaml").write_text("base: one.yaml\n")
    for name in ("one", "two"):
        assert f"one.yaml cannot be read as a recipe: {said}" in sentence(
            capsys, command, str(tmp_path / f"{name}.yaml")
        )


def test_a_recipe_has_a_bounded_size(tmp_path: Path) -> None:
    with (tmp_path / "one.yaml").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(UserError, match="cannot be read as a recipe: it has more than 16 MiB"):
        load(tmp_path / "one.yaml")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "override",
    [
        *(f"seed={number}" for number in ("9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "2001-99-99")),
        *(
            "data.options=" + "[" * 3000,
            "data.options=&a [*a]",
            "a." * 3000 + "b=1",
            'model="a\\0b"',
            'run_dir="a\\0b"',
        ),
    ],
    ids=lambda override: override[:20],
)
def test_a_value_has_a_bounded_size(capsys: pytest.CaptureFixture[str], override: str) -> None:
    assert len(sentence(capsys, "train", str(ROOT / "recipes/tiny.yaml"), override, "--dry-run")) < 300


ODD = {"text_config": 5, "rope_scaling": 7, "chat_template": [1], "bos_token": [1], "weight_map": {"a": [1]}}
TEXTS = ('{"a": [{% if %}', "[1]", "[" * 20_000, json.dumps(ODD))
BAD = {
    "config.json": TEXTS,
    "tokenizer.json": TEXTS,
    "tokenizer_config.json": (*TEXTS, "pipe", "device"),
    "model.safetensors.index.json": (*TEXTS, "pipe", "device"),
    "chat_template.jinja": TEXTS[:1],
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in BAD for kind in BAD[name]], ids=lambda one: one[:12]
)
def test_a_models_files_are_files_of_their_kind(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    if name == "tokenizer_config.json":
        (model / "chat_template.jinja").unlink()
    put(model / name, kind)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    keys = [
        "model=model",
        "data.path=rows.jsonl",
        "data.chat=true",
        "trainer.lora.rank=2",
        "trainer.lora.targets=q_proj",
    ]
    said = sentence(capsys, "train", str(ROOT / "recipes/tiny.yaml"), *keys, "--dry-run")
    assert ("its chat template is none" if name.endswith("jinja") else f"{name} cannot be used: ") in said


def test_weights_are_files(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    put(model / "model.safetensors", "pipe")
    assert weight_files(str(model)) == []


def chain(first: str, later: str, length: int, under: str) -> str:
    """Lines in which each value names the one before it."""
    names = [f"  a0: {first}"] + [f"  a{n}: {later.replace('$$', f'${{{under}.a{n - 1}}}')}" for n in range(1, length)]
    return "\n".join([f"{under}:", *names, ""])


@pytest.mark.timeout(5)
def test_interpolations_in_one_another(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"loose: '{'${' * 40_000}'\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: a text has 40000 interpolations, where 100 is the most$"):
        load(path)


@pytest.mark.parametrize("module", ["asyncrl.folders.{}.x", "asyncrl.folders.theirs.x", "a-b", ""])
def test_no_module_name_is_a_path(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else code is imported that `places` does not see."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/x.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match=r"must have the form|ModuleNotFoundError"):
        load_object(f"{module.format(tmp_path / 'theirs')}:reward", tmp_path, "reward")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        chain("xx", "$$$$", 45, "loose"),
        chain("xx", "$$$$", 45, "loose") + "data: {path: '${loose.a44}'}\n",
        chain("xx", "$$$$", 45, "loose") + "algorithm: {preset: '${loose.a44}'}\n",
        chain("{x: 1}", "{x: '$$', y: '$$'}", 30, "loose"),
        chain("[1]", "['$$', '$$']", 30, "loose"),
        chain("[1]", "'${oc.create:[$$, $$]}'", 30, "loose"),
        chain("[1]", "['$$']", 400, "loose"),
        chain("x" * 10**5, "${loose.a0}", 100, "loose"),
        "loose: {a: {x: '${loose.b}'}, b: {x: '${loose.a}'}}\n",
    ],
    ids=["text", "the data's path", "the preset", "maps", "lists", "made", "deep", "long", "circle"],
)
def test_interpolations_that_unfold(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml: [\w.]+: its interpolations unfold to more than a recipe"):
        load(path)


def test_interpolations_of_a_recipe_are_worked_out(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base: {ROOT}/recipes/tiny.yaml\nseed: 3\nmax_steps: ${{seed}}\n"
        "data: {options: {size: '${max_steps}', nested: {list: ['${seed}', null], same: '${.list}'}}}\n"
        "rewards: {kwargs: '${data.options.nested}'}\n"
    )
    recipe = load(path, ["trainer.ranks=${seed}"])
    assert (recipe.trainer.ranks, recipe.data.options["size"]) == (3, 3)
    assert recipe.rewards.kwargs == recipe.data.options["nested"] == {"list": [3, None], "same": [3, None]}
