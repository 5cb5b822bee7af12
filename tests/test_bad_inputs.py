"""Every kind of bad input: one sentence that says what is wrong, where, and what to change; exit code 2; no traceback;
nothing started that stays, nothing written. The table is bad_inputs.txt."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from asyncrl.cli import main

REPOSITORY = Path(__file__).parents[1]
FILES = {
    "circle.yaml": "base: round.yaml\n",
    "round.yaml": "base: circle.yaml\n",
    "child.yaml": "base: none.yaml\n",
    "listed.yaml": "base: [a]\n",
    "empty.yaml": "",
    "words.yaml": "just words\n",
    "broken.yaml": "model: a\ndata: [b\n",
    "tabs.yaml": "model: a\n\tdata: b\n",
    "twice.yaml": "base: recipes/tiny.yaml\nseed: 1\nseed: 2\n",
    "short.yaml": "model: random:tiny-llama\n",
    "interpolated.yaml": "base: recipes/tiny.yaml\nseed: ${sede}\n",
    "latin.yaml": b"model: \xff\xfe\n",
    "mine.py": "def odd(x): return 0\n\nnumber = 1\n\ndef reward(completion, answer, **row):\n    return 1.0\n\n"
    "class Odd: pass\n\ndef strict(completion, scale): return 1.0\n\n"
    "def trl(completions, environments, **kwargs): return [1.0 for _ in completions]\n",
    "faulty.py": "import nothing_of_that_name\n",
    "syntax.py": "def reward(:\n",
    "model/config.json": "{}",
    "empty.jsonl": "",
    "rows.jsonl": '{"prompt": "a", "answer": "b"}\n',
    "no_prompt.jsonl": '{"text": "a", "answer": "b"}\n',
    "marked.jsonl": '{"prompt": "a", "answer": "b</s> c"}\n{"prompt": "a", "answer": "b"}\n',
    "no_answer.jsonl": '{"prompt": "a"}\n',
    "numbers.jsonl": '{"prompt": 3, "answer": "b"}\n',
    "answered.jsonl": '{"prompt": [{"role": "assistant", "content": "a"}], "answer": "b"}',
    "null.jsonl": '{"prompt": "a"}\n{"prompt": null}\n',
    "images.jsonl": '{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "b"}\n',
    "alternating/config.json": "{}",
    "alternating/chat_template.jinja": "{{ raise_exception('System role not supported') }}",
    "alternating/tokenizer.json": json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}),
    "small/config.json": '{"vocab_size": 30}',
    "small/tokenizer.json": json.dumps(
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 258}, "unk_token": "a"}, "added_tokens": []}
    ),
    "broken.jsonl": '{"prompt": "a", "answer"\n',
    "rows.json": '[{"prompt": "a", "answer": "b"}]\n',
    "rows.txt": "a\n",
    "columns.csv": "a,b\n1,2\n",
    "problems.jsonl": '{"prompt": "a"}\n',
    "demonstrations.yaml": "model: random:tiny-llama\ndata: {path: rows.jsonl}\nmax_steps: 1\n"
    "trainer: {tokens_per_microbatch: 512}\n",
    "two_parts.jsonl": '{"instruction": "Add.", "input": "1 and 2", "output": "3"}\n',
    "judged.jsonl": '{"prompt": "a", "completion": "b", "label": true}\n',
    "two_trainers.py": "SFTTrainer('a/b')\nGRPOTrainer('a/b')\n",
    "odd_trainer.py": "GRPOTrainer('a/b', 'c/d', GRPOConfig(num_generations=0), load_dataset('e/f'))\n",
    "two_runs.sh": "python3 -m verl.trainer.main_ppo data.train_files=a\n" * 2,
    "a_file": "",
    "rows.jsonl.gz": gzip.compress(b'{"prompt": "a", "answer": "b"}\n'),
    "runs/old/recipe.yaml": "model: x\n",
    "runs/fresh/recipe.yaml": (REPOSITORY / "recipes/tiny.yaml")
    .read_text()
    .replace("./tiny_reward", "recipes/tiny_reward"),
}


def table() -> dict[str, str]:
    """Arguments and the sentence they get, from bad_inputs.txt."""
    lines = Path(__file__).with_name("bad_inputs.txt").read_text().splitlines()
    pairs = itertools.pairwise(lines)
    return {line.removeprefix("$ asyncrl "): answer for line, answer in pairs if line.startswith("$ ")}


BAD = table()


MEANWHILE = {
    "importing ray, torch and transformers",
    "ending what the run before this left behind",
    "reading the journal, in KiB",
    "loading the data",
    "checking the model",
    "starting Ray",
}
"""What may be said on stdout while it is found out: signs of life, no results."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the shipped recipes and FILES."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    # Other tests' files, whose folders stay there once a file in them was named.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p).is_relative_to(tmp_path.parent)])
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files but the lock, which every command that would write takes in an existing run directory."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*") if p.name != ".lock"}


@pytest.mark.parametrize(("line", "message"), BAD.items(), ids=BAD)
def test_one_sentence_exit_code_2_nothing_written(
    folder: Path, capfd: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    before = snapshot(folder)
    assert main(shlex.split(line)) == 2
    out, err = capfd.readouterr()
    err = re.sub(r"^planning \S+, \d+ s\n", "", err, flags=re.MULTILINE)  # said of what takes a while
    assert err.replace(str(folder), "FOLDER") == f"asyncrl: {message}\n"
    said = {re.sub(r"^\d\d:\d\d:\d\d  |, \d+ s$", "", words) for words in out.splitlines()}
    assert said <= MEANWHILE
    assert snapshot(folder) == before


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 60
