"""Bad input that takes a model or Ray to see: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from asyncrl.cli import main
from asyncrl.orchestrator import run
from asyncrl.recipe.load import load

TINY = str(Path(__file__).resolve().parents[2] / "recipes" / "tiny.yaml")
REWARD = "def reward(completion, answer, **row):\n    return 1.0\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = {
        "words": [{"prompt": "a", "answer": "b"}],
        "chats": [{"prompt": [{"role": "user", "content": "a"}], "answer": "b"}],
    }
    for name, lines in rows.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("mine.py").write_text(REWARD)
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], folder: Path, *overrides: str) -> str:
    """The one sentence of a refused run that has left nothing behind."""
    before = sorted(folder.rglob("*"))
    code = main(["train", TINY, "reward=./mine.py:reward", "track.wandb=off", *overrides])
    error = capfd.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    assert sorted(folder.rglob("*")) == before
    sentence = [line for line in error.splitlines() if line.startswith("asyncrl: ")]
    assert len(sentence) == 1
    return sentence[0]


def test_model_without_chat_template(folder: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = folder / "plain"
    plain.mkdir()
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (plain / file.name).write_bytes(file.read_bytes())
    overrides = [f"model={plain}", "data.path=chats.jsonl", "data.options={}"]
    assert "chat template" in refused(capfd, folder, *overrides)


def test_model_that_lacks_a_tensor(folder: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_model, folder / "holed")
    weights = load_file(tiny_model / "model.safetensors")
    lost = weights.popitem()[0]
    save_file(weights, folder / "holed" / "model.safetensors", metadata={"format": "pt"})
    overrides = [f"model={folder}/holed", "data.path=words.jsonl", "data.options={}"]
    assert f"it lacks {lost}. Name a whole folder" in refused(capfd, folder, *overrides)


@pytest.mark.parametrize(("size", "prompt", "largest"), [(30, "a", 258), (260, "a<new>", 260), (260, "a", None)])
def test_tokenizer_that_is_larger_than_the_embedding(
    folder: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], size: int, prompt: str, largest: int | None
) -> None:
    """Of tokens beyond the embedding, those that were added are no fault until a prompt has them."""
    small, config = folder / "small", json.loads((tiny_model / "config.json").read_text())
    LlamaForCausalLM(LlamaConfig(**{**config, "vocab_size": size})).save_pretrained(small)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<image>", "<new>"])
    tokenizer.save_pretrained(small)
    Path("rows.jsonl").write_text(json.dumps({"prompt": prompt, "answer": "b"}))
    overrides = [f"model={small}", "data.path=rows.jsonl", "data.options={}"]
    if largest is None:
        tasks, *_ = run._tasks(load(Path(TINY), [*overrides, "reward=./mine.py:reward"]), folder)
        assert len(tasks.first_prompt(tokenizer)[1]) == 1
        return
    for more in ([], ["--dry-run"]):
        sentence = refused(capfd, folder, *overrides, *more)
        assert f"its tokenizer gives tokens up to {largest}, but its embedding has {size} (vocab_size" in sentence


def test_adapters_on_no_layer(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides = ["data.path=words.jsonl", "data.options={}", "trainer.lora={rank: 4, targets: [nope]}"]
    assert "trainer.lora.targets: model random:tiny-llama has no module nope" in refused(capfd, folder, *overrides)


def test_more_gpus_than_this_machine_has(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides = ["data.path=words.jsonl", "data.options={}", "rollout.gpus_per_replica=1", "rollout.replicas=64"]
    sentence = refused(capfd, folder, *overrides, "rollout.engine_args={tensor_parallel_size: 1}")
    assert re.search(
        r"asks for 64 GPUs \(64 generators x 1\), "
        r"this machine has (none; say rollout.gpus_per_replica=0 to run|\d+: no room for \d+ generators x 1)",
        sentence,
    )


def test_existing_run_directory(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "taken").mkdir()
    sentence = refused(capfd, folder, "data.path=words.jsonl", "data.options={}", "run_dir=taken")
    assert "taken exists; choose another run_dir" in sentence
