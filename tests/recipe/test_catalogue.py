"""`asyncrl recipes`: what ships can be listed, copied and used anywhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.plugins import load_object
from asyncrl.recipe.catalogue import Entry, copy, entries
from asyncrl.recipe.load import load

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    *lines, empty, hint = capsys.readouterr().out.splitlines()
    assert [re.split(r"  +", line)[0] for line in lines] == NAMES
    assert re.split(r"  +", lines[NAMES.index("gsm8k-lora")])[1:] == [
        "2 x L40S", "Qwen2.5-3B-Instruct on GSM8K with LoRA: the smallest machine, two GPUs of 48 GB",
    ]  # fmt: skip
    assert (empty, hint) == ("", "asyncrl recipes copy NAME [DIR] makes one yours")


@pytest.mark.parametrize("entry", list(entries()), ids=lambda entry: entry.name)
def test_a_copy_has_the_code_that_it_names(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry.what
    monkeypatch.chdir(tmp_path)
    path, *files = copy(entry.name, Path("mine"))
    assert all(f"./{file.name}" in path.read_text() for file in files)
    code = [file for file in files if file.suffix == ".py"]
    recipe = load(path)
    if recipe.from_data or recipe.taught_alone:
        assert not code
        return
    named = load_object(recipe.code.get("env") or recipe.code["reward"], tmp_path, "code")
    assert [Path(inspect.getfile(named))] == [tmp_path / file for file in code] or not code
