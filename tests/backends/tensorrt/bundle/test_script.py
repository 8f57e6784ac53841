"""build_on_device.py: whole with stand-ins for TensorRT and CUDA, and held to recorded APIs."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest

from effc.backends.tensorrt import bundle as bundles
from effc.backends.tensorrt.bundle.on_device import board, engine, plan, store, trtexec
from effc.core.artifact import load_artifact
from effc.core.errors import DeviceError

Script = Callable[..., CompletedProcess[str]]
ON_DEVICE = sorted((Path(bundles.__file__).parent / "on_device").glob("*.py"))


def test_check_runs_anywhere_and_explains_every_jetpack(bundle: Path, script: Script) -> None:
    done = script(bundle, "--check", tensorrt="")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    said = {}
    for at, line in enumerate(lines):
        if line.startswith("JetPack"):
            said[line.split(" (")[0]] = lines[at + 1 : at + 3]
    assert said["JetPack 5.1"][0] == "  int8: int8.onnx, flags INT8, FP16, on GPU"
    assert said["JetPack 6.1, 6.2"][0] == "  int8: int8-fp16.onnx, strongly typed, on GPU"
    assert said["JetPack 7.2.2"][1] == "  fp16: fp16.onnx, strongly typed, on GPU"
    assert "512 MiB" in done.stdout and "4 recorded samples" in done.stdout
    assert not list(bundle.rglob("__pycache__"))


def test_check_explains_the_dla(bundle: Path, script: Script) -> None:
    done = script(bundle, "--check", "--dla", "0", tensorrt="")
    old, new = (
        "int8: fp16.onnx, flags INT8, FP16, on DLA core 0",
        "int8: int8-fp16.onnx, strongly typed",
    )
    assert done.stdout.count(old) == 3 and "scales of calibration.cache" in done.stdout
    assert done.stdout.count("refused: TensorRT 10.13.3 has no DLA") == 1
    assert f"{new}, on DLA core 0" in done.stdout


def test_another_files_hash(bundle: Path, script: Script) -> None:
    path = bundle / "fp16.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    done = script(bundle)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(
        "error: file 'fp16.onnx' of the bundle is not what was built (SHA-256"
    )
    path.unlink()
    assert "lacks its file 'fp16.onnx'" in script(bundle, "--check").stderr


def test_nothing_to_build_with(bundle: Path, script: Script) -> None:
    done = script(bundle, tensorrt="")
    assert done.returncode == 2 and "neither TensorRT's Python module nor trtexec" in done.stderr
    with pytest.raises(DeviceError, match="neither TensorRT nor trtexec is found here"):
        bundles.finish(load_artifact(bundle))


@pytest.mark.parametrize(
    ("version", "file"), [("8.5.2", "int8.onnx"), ("11.4.1", "int8-fp16.onnx")]
)
def test_stand_in_whole_run(bundle: Path, script: Script, version: str, file: str) -> None:
    """With the stand-ins: build, compare, measure, report; then effc takes the report in."""
    done = script(bundle, "--seconds", "0.02", tensorrt=version)
    assert done.returncode == 0, done.stderr
    report = json.loads((bundle / "report.json").read_text())
    assert report["tensorrt"] == version and report["via"] == "Python module"
    rows = {r["form"]: r for r in report["engines"]}
    assert list(rows) == ["int8", "fp16"] and rows["int8"]["file"] == file
    for row in rows.values():
        assert (bundle / row["engine"]).is_file() and row["verdict"]["status"] == "passed"
        assert row["capability"] == "87"
        times = row["device_ms"]
        assert times["count"] >= 10 and 0 < times["least"] <= times["median"] <= times["most"]
    assert (
        rows["int8"]["verdict"]["outputs"][0]["sqnr_db"]
        < rows["fp16"]["verdict"]["outputs"][0]["sqnr_db"]
    )
    taken = bundles.finish(load_artifact(bundle)).manifest
    assert taken.verdict.status == "passed" and f"TensorRT {version}" in taken.verdict.reason
    assert taken.details["finished"]["fp16"]["median_ms"] == rows["fp16"]["device_ms"]["median"]
    assert [m.name for m in taken.measurements] == ["TensorRT int8", "TensorRT fp16"]


def test_dry_run(bundle: Path, script: Script) -> None:
    done = script(bundle, "--dry-run", "--form", "int8", "--workspace", "64M")
    assert done.returncode == 0 and "64 MiB for kernels" in done.stdout
    assert "int8-fp16.onnx" in done.stdout and "fp16: " not in done.stdout
    assert not (bundle / "engines").exists() and not (bundle / "report.json").exists()


@pytest.mark.parametrize(
    ("version", "fails", "said"),
    [
        ("8.4.1", "", "TensorRT 8.4.1 is too old: this bundle needs 8.5.0 or later"),
        (
            "10.3.0",
            "memory",
            "can't build int8-fp16.onnx: Requested amount of GPU memory: out of memory",
        ),
        (
            "10.3.0",
            "killed",
            "the board ran out of memory: the kernel ended the process that was to build",
        ),
    ],
)
def test_one_clear_line(bundle: Path, script: Script, version: str, fails: str, said: str) -> None:
    done = script(bundle, "--form", "int8", tensorrt=version, fails=fails)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2  # the error and its hint
    if fails:
        assert "--workspace" in done.stderr
    assert not (bundle / "report.json").exists()


def test_wrong_answers_are_reported(bundle: Path, script: Script) -> None:
    done = script(bundle, "--form", "fp16", "--seconds", "0.02", fails="answers")
    assert done.returncode == 1
    row = json.loads((bundle / "report.json").read_text())["engines"][0]
    assert row["verdict"]["status"] == "failed" and "SQNR" in row["verdict"]["reason"]
    assert row["verdict"]["max_error"] > 1
    taken = bundles.finish(load_artifact(bundle)).manifest
    assert taken.verdict.status == "failed"


def test_a_report_of_another_bundle_is_refused(bundle: Path) -> None:
    (bundle / "report.json").write_text('{"bundle": "0", "engines": []}')
    with pytest.raises(DeviceError, match="is about another bundle"):
        bundles.finish(load_artifact(bundle))


@pytest.mark.parametrize("version", ["10.3", "10.16", "11.1"])
@pytest.mark.parametrize("dla", [None, 0])
def test_building_keeps_to_the_recorded_api(
    contract: ModuleType, built: Path, tmp_path: Path, version: str, dla: int | None
) -> None:
    """Every call of `build` exists in that version, with these arguments."""
    answers: dict[str, Any] = {
        "Builder.build_serialized_network": b"engine",
        "ITimingCache.serialize": b"timing",
        "IBuilderConfig.can_run_on_DLA": lambda layer: False,
        "INetworkDefinition.num_layers": 1,
        "ILayer.name": "conv",
    }
    trt = contract.Recorded(version, answers)
    if version == "10.3":  # the bindings' base class of calibrators is not among the recorded
        trt.IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (), {})
    found = plan.parse_version(trt.__version__)
    description = store.read_bundle(built)
    description["profiles"] = {"x": [[1, 3, 16, 16]] * 3}
    if dla is not None and version != "10.3":
        with pytest.raises(store.Refused, match="has no DLA"):
            plan.steps(description, found, dla=dla)
        return
    step = plan.steps(description, found, ["int8"], dla)[0]
    asked = {
        "engine": str(tmp_path / "e"), "cache": str(tmp_path / "c" / "t"), "workspace": 1 << 20
    }  # fmt: skip
    facts = engine.build(trt, built, description, step, asked)
    assert (tmp_path / "e").read_bytes() == b"engine"
    assert (tmp_path / "c" / "t").read_bytes() == b"timing"
    flags = trt.called("Builder.create_network")[0][0]
    strong = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert (flags == strong) == (dla is None)
    set_flags = {a[0].name for a in trt.called("IBuilderConfig.set_flag")}
    assert set_flags == (set() if dla is None else {"INT8", "FP16", "GPU_FALLBACK"})
    if dla is not None:
        assert facts["on_gpu"] == ["conv"]
        cache = trt.written["IBuilderConfig.int8_calibrator"].read_calibration_cache().decode()
        assert cache.splitlines()[0] == "TRT-100300-EntropyCalibration2"
        assert cache.splitlines()[1:] == (built / "calibration.cache").read_text().splitlines()[1:]


def test_trtexec_commands(built: Path) -> None:
    description = store.read_bundle(built)
    description["profiles"] = {"x": [[1, 3, 16, 16], [2, 3, 16, 16], [4, 3, 16, 16]]}

    def command(version: tuple[int, int, int], dla: int | None = None) -> list[str]:
        step = plan.steps(description, version, ["int8"], dla)[0]
        asked = {"engine": "e", "cache": "c", "workspace": 64 << 20, "version": version}
        return trtexec.build_command("trtexec", Path("/b"), description, step, asked)

    old, new, newest = command((8, 5, 2)), command((10, 3, 0)), command((11, 4, 1))
    assert {"--onnx=/b/int8.onnx", "--int8", "--fp16", "--buildOnly"} <= set(old)
    assert {"--onnx=/b/int8-fp16.onnx", "--stronglyTyped", "--skipInference"} <= set(new)
    assert "--fp16" not in new and "--stronglyTyped" not in newest
    assert "--memPoolSize=workspace:64" in new and "--maxShapes=x:4x3x16x16" in new
    dla = command((8, 6, 2), 1)
    assert {"--useDLACore=1", "--allowGPUFallback", "--calib=/b/calibration.cache"} <= set(dla)


def test_stand_in_trtexec(bundle: Path, script: Script, tmp_path: Path) -> None:
    """The whole way by trtexec, a stand-in that refuses unknown options."""
    program = tmp_path / "trtexec"
    source = Path(__file__).parent / "stand_in" / "trtexec.py"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{source}" "$@"\n')
    program.chmod(0o755)
    done = script(bundle, "--form", "fp16", "--trtexec", str(program), "--seconds", "0.1")
    assert done.returncode == 0, done.stderr
    report = json.loads((bundle / "report.json").read_text())
    assert (report["tensorrt"], report["via"]) == ("10.3.0", "trtexec")
    (row,) = report["engines"]
    assert row["verdict"]["status"] == "passed" and row["verdict"]["max_error"] < 1e-2
    assert (row["device_ms"]["median"], row["host_ms"]["median"]) == (0.25, 0.5)
    description = json.loads((bundle / "bundle.json").read_text())
    assert description["level"] is None
    taken = bundles.finish(load_artifact(bundle)).manifest
    assert taken.details["device"]["via"] == "trtexec"


def test_trtexec_files() -> None:
    like = {"y": store.Tensor("f4", (1, 2), b"")}
    text = '[{"name": "y", "dimensions": "1x2", "values": [1.5, -2]}]'
    found = trtexec.read_answers(text, like)
    assert found["y"].values() == (1.5, -2.0) and found["y"].shape == (1, 2)
    with pytest.raises(store.Refused, match="no output 'y'"):
        trtexec.read_answers("[]", like)
    times = '[{"computeMs": 2.0, "latencyMs": 3.0, "startH2dMs": 1.0}]'
    assert trtexec.read_times(times) == {"device": [0.002], "host": [0.003]}
    assert plan.decoded(8502) == (8, 5, 2) and plan.decoded(100300) == (10, 3, 0)
    assert plan.decoded(110401) == (11, 4, 1)


def test_the_board_says_what_disturbs(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/meminfo": "MemTotal: 8 kB\nMemAvailable:    5000000 kB\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
        "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
        "sys/class/devfreq/17000000.gpu/max_freq": "624750000",
        "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "91500",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = board.state(tmp_path)
    assert found["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["gpu_hz"]["max"] == 624750000 and found["celsius"] == {"gpu-thermal": 91.5}
    notes = board.cautions({"power_mode": "15W"}, found)
    assert [n.split(":")[0] for n in notes] == [
        "the GPU's clock changes with load",
        "the board is at 92 degrees Celsius and may lower its clocks",
        "power mode 15W",
    ]
    free = board.memory_free(tmp_path)
    assert free == 5000000 * 1024
    assert plan.workspace({"workspace_bytes": 4 << 30}, free) == free // 2
    assert board.memory_free(tmp_path / "nowhere") is None


@pytest.mark.parametrize("path", ON_DEVICE, ids=lambda p: p.name)
def test_the_script_is_python_3_8(path: Path) -> None:
    """JetPack 5 brings Python 3.8: its grammar, its standard library, and no package but tensorrt."""
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    later = {"removeprefix", "removesuffix", "is_relative_to", "pairwise", "batched", "bit_count"}
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not names & later
    keywords = {k.arg for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords}
    assert not keywords & {"strict", "slots", "kw_only"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {a.name.split(".")[0] for a in node.names} <= sys.stdlib_module_names | {
                "tensorrt"
            }
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] in sys.stdlib_module_names
