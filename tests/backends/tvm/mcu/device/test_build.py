"""effc build for an emulated board: the verdict, exact counts, reports, and the commands on the artifact."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from effc.backends.tvm.mcu.device import emulator
from effc.bench import BenchRow, judge
from effc.build import BuildResult, build
from effc.choices import BuildOptions
from effc.cli import run
from effc.commands.output import Output
from effc.core.errors import VerificationError
from effc.core.measure import LayerTime
from effc.core.profiles import load_profile
from effc.core.target import HardwareProfile
from effc.report.page import page
from effc.report.terminal import bench_report, build_report

BOARD = "stm32f746"


def profile_with_tools(name: str) -> HardwareProfile:
    profile = load_profile(name)
    for key in ("cc", "emulator"):
        if shutil.which(profile.toolchain[key]) is None:
            pytest.skip(f"{profile.toolchain[key]} is not installed")
    return profile


def qdq_model(path: Path) -> Path:
    """x float [1, 3, 12, 12] -> conv, relu -> global mean -> dense -> softmax, all quantized."""
    rng = np.random.default_rng(2)
    arrays = {
        "w0": rng.integers(-127, 128, (6, 3, 3, 3)).astype(np.int8),
        "w1": rng.integers(-127, 128, (6, 4)).astype(np.int8),
        "sx": np.float32(0.02), "sw": np.float32(0.01), "sh": np.float32(0.05), "sy": np.float32(0.1),
        "ss": np.float32(1 / 256), "z": np.int8(0), "zl": np.int8(-128), "zs": np.int8(-128),
    }  # fmt: skip
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 12, 12] image) => (float[1, 4] scores) {
      xq = QuantizeLinear(image, sx, z)   x = DequantizeLinear(xq, sx, z)
      w0d = DequantizeLinear(w0, sw, z)   w1d = DequantizeLinear(w1, sw, z)
      c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0d)
      r = Relu(c)
      rq = QuantizeLinear(r, sh, zl)      rd = DequantizeLinear(rq, sh, zl)
      m = GlobalAveragePool(rd)
      mq = QuantizeLinear(m, sh, zl)      md = DequantizeLinear(mq, sh, zl)
      f = Flatten(md)
      d = MatMul(f, w1d)
      dq = QuantizeLinear(d, sy, z)       dd = DequantizeLinear(dq, sy, z)
      s = Softmax(dd)
      sq = QuantizeLinear(s, ss, zs)      scores = DequantizeLinear(sq, ss, zs)
    }"""
    model = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    profile_with_tools(BOARD)
    folder = tmp_path_factory.mktemp("build")
    options = BuildOptions(backend_options={"layout": "arduino"})
    return build(str(qdq_model(folder / "m.onnx")), BOARD, folder / "out", options)


def printed(parts) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=160)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def test_the_verdict_and_the_counts(result):
    manifest = result.artifact.manifest
    assert manifest.verdict.status == "passed"
    assert manifest.verdict.reason.startswith("emulator: bit-exact on 4 samples; ")
    (measured,) = manifest.measurements
    assert (measured.source, measured.seconds) == ("emulator", ())
    # 36 positions x 6 channels x 27 products, and the dense layer's 24
    macs = 36 * 6 * 27 + 24
    assert macs / 2 < measured.instructions < 20 * macs
    arena = manifest.details["arena_bytes"]
    assert arena < measured.peak_bytes < arena + 1024
    text = printed(build_report(result, 1.0))
    assert "passed (emulator: bit-exact on 4 samples)" in text
    assert (
        f"{measured.instructions:,}" in text
        and "ms" not in text.split("pass  ")[0].split("\n", 12)[-1]
    )
    html = (result.path / "report.html").read_text()
    assert "Instructions by layer" in html and f"{measured.instructions:,}" in html
    # the project stands beside the sources, and the manifest knows each file
    for name in (
        "Makefile",
        "CMakeLists.txt",
        "MEMORY.txt",
        "device/startup_arm.c",
        "arduino/library.properties",
    ):
        assert f"firmware/{name}" in manifest.files


def test_layers_sum_to_the_whole(result):
    profile = profile_with_tools(BOARD)
    feeds = {"image": np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)}
    with emulator.QemuDevice(profile).runner(result.artifact) as runner:
        total = runner.time(feeds, 1).instructions
        layers = runner.layers(feeds, 1)
    calls = sum(result.artifact.manifest.details["calls"].values())
    assert len(layers) == calls + 1
    assert sum(x.instructions for x in layers) == total
    nodes = [n for x in layers for n in x.nodes]
    assert len(nodes) == len(set(nodes))
    assert layers[0].instructions == max(x.instructions for x in layers)


def test_wrong_bits_are_not_called_exact(result, tmp_path, monkeypatch):
    """An artifact whose integers are off by one."""
    profile_with_tools(BOARD)
    own = emulator.QemuRunner.infer

    def off(self, feeds):
        return {k: v + np.float32(1 / 256) for k, v in own(self, feeds).items()}

    monkeypatch.setattr(emulator.QemuRunner, "infer", off)
    try:
        again = build(str(qdq_model(tmp_path / "m.onnx")), BOARD, tmp_path / "out")
        assert "bit-exact" not in again.artifact.manifest.verdict.reason
    except VerificationError as error:
        assert "bit-exact" not in str(error)


def command(*arguments: object) -> tuple[int, dict]:
    stream = io.BytesIO()
    code = run([*map(str, arguments), "--json"], Output(json=True, stream=stream))
    return code, json.loads(stream.getvalue())


def test_commands_on_the_artifact(result):
    code, found = command("bench", result.path, "--layers", "--rounds", 2)
    assert code == 0
    (row,) = found["rows"]
    assert row["source"] == "emulator"
    assert row["instructions"] == result.artifact.manifest.measurements[0].instructions
    assert [x["instructions"] for x in found["layers"][str(result.path)]]
    code, here = command("run", result.path, "--device", "host")
    assert code == 0
    code, there = command("run", result.path)
    assert code == 0 and there["samples"] == here["samples"]
    code, found = command("run", result.path, "--device", "serial:///dev/ttyNOT0")
    assert code == 3 and "ttyNOT0" in found["error"]["message"]
    code, found = command("run", result.path, "--device", "tcp://board")
    assert code == 2 and "serial" in found["error"]["hint"]


def test_counts_are_compared_and_times_with_counts_are_not():
    def row(instructions: int | None, milliseconds: float = 0.0) -> BenchRow:
        pair = (milliseconds, milliseconds)
        return BenchRow("a", 1, milliseconds, pair, 1, "emulator", instructions=instructions)

    few, many, timed = row(100), row(200), row(None, 3.0)
    assert (judge(few, many).verdict, judge(few, many).ratio) == ("fewer", 0.5)
    assert judge(many, few).verdict == "more"
    assert judge(few, few).verdict == "as many"
    assert judge(few, timed) == msgspec.structs.replace(few, verdict="not comparable")
    assert judge(timed, few).ratio is None


def test_the_page_shows_counts(result):
    layers = [
        LayerTime("a<b", "conv", ("n",), 0.0, 1_234_567),
        LayerTime("rest", "calls", (), 0.0, 0),
    ]
    html = page(result.artifact.manifest, layers=layers)
    assert "1,234,567" in html and "a&lt;b" in html and "100.0 %" in html
    from effc.bench import Bench
    from effc.machine import this_machine

    row = BenchRow("x", 1, 0.0, (0.0, 0.0), 0, "emulator", instructions=1_234_567)
    text = printed(bench_report(Bench((row,), this_machine(), (), {"x": tuple(layers)})))
    assert text.count("1,234,567") == 2 and "exact" in text
