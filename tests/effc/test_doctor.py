"""effc doctor: what it finds, and that a missing core package fails."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from effc import doctor


def test_this_installation_works(command: Any) -> None:
    code, found = command("doctor")
    assert code == 0 and found["ok"] is True
    names = {c["name"]: c for c in found["checks"]}
    assert {"python", "onnx", "numpy", "backend ort", "C compiler", "processor", "memory"} <= set(
        names
    )
    for check in found["checks"]:
        assert check["status"] in ("ok", "warn") and check["detail"]
        if check["status"] == "warn" and not check["name"].startswith("test"):
            assert check["remedy"], check


def test_a_missing_core_package_fails(monkeypatch: pytest.MonkeyPatch, command: Any) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name == "msgspec":
            raise PackageNotFoundError(name)
        return "0.1" if name == "pillow" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    code, found = command("doctor")
    failed = {c["name"]: c["remedy"] for c in found["checks"] if c["status"] == "fail"}
    assert code == 1 and found["ok"] is False and set(failed) == {"msgspec", "pillow"}
    assert all(r.startswith("pip install") for r in failed.values())


def test_no_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    (finding,) = doctor._compiler()
    assert finding.status == "warn" and "PATH" in finding.detail and finding.remedy
    monkeypatch.setenv("CC", "false")
    (finding,) = doctor._compiler()
    assert finding.status == "warn" and "can't link" in finding.detail


def test_a_gpu_without_tensorrt_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from effc.backends.tensorrt.gpu import Gpu

    have: dict[str, str] = {}
    monkeypatch.setattr(doctor, "installed", lambda m: have.get(m, ""))
    monkeypatch.setattr(doctor, "gpus", lambda: (Gpu(0, "NVIDIA H200", "90"),))
    (finding,) = doctor._tensorrt()
    assert finding.status == "warn" and "H200 (SM90)" in finding.detail
    assert finding.remedy.startswith("pip install tensorrt")
    have["tensorrt_rtx"] = "1.7.1"  # which does not run there
    assert next(doctor._tensorrt()).status == "warn"
    monkeypatch.setattr(doctor, "gpus", lambda: (Gpu(0, "RTX 4090", "89"),))
    assert next(doctor._tensorrt()).status == "ok"
    have["tensorrt"] = "10.16"
    (finding,) = doctor._tensorrt()
    assert finding.status == "ok" and "tensorrt 10.16" in finding.detail
    monkeypatch.setattr(doctor, "gpus", lambda: ())
    assert "none" in next(doctor._tensorrt()).detail


def test_doctor_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_TESTDATA", "/nowhere")
    found = [f for f in doctor.examine().checks if f.name == "test data"]
    assert found and found[0].status == "warn"
