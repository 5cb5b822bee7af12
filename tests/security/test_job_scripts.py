"""What a recipe says is text in the scripts and manifests that are made of it, whatever is in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from asyncrl.cli import main
from asyncrl.cluster.bundle import plain

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["x$(touch HIT)", "x;touch HIT;", "x`touch HIT`", 'x"\ntouch HIT\n"', "x'\ntouch HIT #", "$(touch HIT)", "ü"]


def submitted(tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The script of a recipe with a hostile name, in a hostile folder, that says hostile things."""
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text((ROOT / "recipes/tiny.yaml").read_text())
    hostile = "/shared/$(touch HIT)`touch HIT`'\"\nASYNCRL_RECIPE\ntouch HIT\n"
    said = f"rewards.kwargs={{note: {yaml.safe_dump(hostile, default_style=chr(34)).strip()}}}"
    (tmp_path / "r.py").write_text("def reward(completion, note, **row):\n    return 0.0\n")
    keys = ["run_dir=/shared/$(touch HIT);`touch HIT`", f"reward={tmp_path}/r.py:reward", said]
    assert main(["submit", str(recipe), *keys, kind]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_the_slurm_script_runs_nothing_of_a_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By bash itself, with stand-ins for the programs that it calls."""
    folder = tmp_path / "a $(touch HIT) `touch HIT` folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    script = submitted(folder, name, "--slurm", capsys)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("python", "srun", "scontrol", "ray"):
        (tools / tool).write_text("#!/bin/sh\necho 127.0.0.1\n")
        (tools / tool).chmod(0o755)
    # The script puts the folder of this Python first.
    script = "\n".join(line for line in script.splitlines() if not line.startswith("export PATH="))
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "TMPDIR": str(tmp_path),
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "a",
        "SLURM_JOB_NUM_NODES": "1",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("HIT")) == []
    said = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name=")]
    assert said == [f"#SBATCH --job-name={plain(name)}"]


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_is_two_objects_with_plain_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config, job = yaml.safe_load_all(submitted(tmp_path, name, "--kuberay", capsys))
    assert config["metadata"]["name"] == job["metadata"]["name"] == plain(name)
    assert job["spec"]["entrypoint"].count("'") == 2
    assert "HIT" not in yaml.safe_dump(job)


@pytest.mark.parametrize("name", [*NAMES, "-x-", "X" * 300, "a" * 39 + "--b"])
def test_a_plain_name_means_nothing_to_anyone(name: str) -> None:
    assert plain(name).isascii()
    assert plain(name).replace("-", "").isalnum()
    assert plain(name)[0].isalnum()
    assert plain(name)[-1].isalnum()
    assert len(plain(name)) <= 40
