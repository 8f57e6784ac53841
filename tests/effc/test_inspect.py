"""effc inspect and effc check on models whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from effc.build import BuildResult
from effc.cli import run
from effc.commands.output import Output


def save(path: Path, text: str) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    onnx.save(model, path)
    return path


def test_counts_of_a_small_model(command: Any, tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        "g (float[1,3,8,8] x, float[16,3,3,3] w) => (float[1,16,6,6] y) { a = Conv(x, w) y = Relu(a) }",
    )
    code, found = command("inspect", path)
    assert code == 0
    assert found["macs"] == 16 * 36 * 27 and found["flops"] == 576 and found["nodes"] == 2
    assert found["ops"] == {"Conv": 1, "Relu": 1} and found["complete"] is True
    assert found["estimate_ms"] is None and len(found["layers"]) == 2


def test_roofline_of_a_board(command: Any) -> None:
    code, found = command(
        "inspect", "zoo:tiny-resnet", "--target", "raspberry-pi-5", "--threads", "1"
    )
    assert code == 0 and found["target"] == "raspberry-pi-5" and found["threads"] == 1
    if found["estimate_ms"] is not None:
        assert found["estimate_ms"] == pytest.approx(sum(x["estimate_ms"] for x in found["layers"]))
        assert found["basis"]


def test_a_dynamic_model_is_a_lower_bound(command: Any) -> None:
    code, found = command("inspect", "zoo:tiny-dynamic{batch=0}")
    assert code == 0 and found["complete"] is False
    name = found["inputs"][0]["name"]
    shape = ",".join(str(d if isinstance(d, int) else 2) for d in found["inputs"][0]["shape"])
    code, fixed = command("inspect", "zoo:tiny-dynamic{batch=0}", "--shape", f"{name}={shape}")
    assert code == 0 and fixed["macs"] > found["macs"]


def test_the_manifest_of_an_artifact(command: Any, built: BuildResult) -> None:
    code, found = command("inspect", built.path)
    assert code == 0 and found["backend"] == "ort" and found["verdict"]["status"] == "passed"
    assert "model.onnx" in found["files"]


@pytest.mark.parametrize("source", ["zoo:tiny-resnet", "artifact"])
def test_shown_to_people(
    source: str, built: BuildResult, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(built.path) if source == "artifact" else source], Output()) == 0
    shown = capsys.readouterr().out
    assert ("MACs" in shown) == (source != "artifact") and "float32 1x3x32x32" in shown


def test_published_parameters(command: Any, testdata: Path) -> None:
    manifest = json.loads((testdata / "MANIFEST.json").read_text())
    for name in ("mobilenet_v1_0.75", "squeezenet1.1", "mobilenet_v2_1.0_dq"):
        entry = next(m for m in manifest["models"] if m["file"] == f"models/{name}.onnx")
        code, found = command("inspect", testdata / entry["file"])
        assert code == 0 and found["parameters"] == entry["parameters"]
        assert found["nodes"] == entry["nodes"]


def test_check_supported(command: Any) -> None:
    code, found = command("check", "zoo:tiny-resnet", "--backend", "ort")
    assert code == 0 and found["supported"] is True and found["problems"] == []


def test_check_names_what_is_not(command: Any, tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        "g (float64[1,3,8,8] x) => (float64[1,3,8,8] y) { y = Gelu(x) }".replace(
            "float64", "double"
        ),
    )
    code, found = command("check", path, "--backend", "ort")
    assert code in (2, 3)
    if code == 3:
        (problem,) = found["problems"]
        assert set(problem) >= {"node", "op", "reason", "remedy"} and problem["reason"]
    else:  # opset 17 has no Gelu, so the model is refused before any backend is asked
        assert "Gelu" in found["error"]["message"]


def test_check_says_where_and_who_else(command: Any, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    path = save(
        tmp_path / "m.onnx",
        "g (float[4,4] x) => (float y, float[4,4] z) { z = Relu(x) y = Det(z) }",
    )
    model = onnx.load(path)
    trace = 'File "/home/a/net.py", line 7, in forward\n    return torch.linalg.det(z)'
    prop = onnx.StringStringEntryProto(key="pkg.torch.onnx.stack_trace", value=trace)
    model.graph.node[1].metadata_props.append(prop)
    onnx.save(model, path)
    code, found = command("check", path)
    assert code == 3 and found["supported"] is False and found["backend"] == "tvm"
    (problem,) = found["problems"]
    assert problem["op"] == "Det" and problem["source"] == "/home/a/net.py:7"
    assert problem["taken_by"] == ["ort"] and "--backend ort" in problem["remedy"]
    code, found = command("check", path, "--backend", "ort")
    assert code == 0 and found["supported"] is True
