"""What a bundle holds, and that its ONNX files are right."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import effc
from effc.backends.tensorrt.bundle.on_device import store
from effc.choices import BuildOptions
from effc.core.artifact import load_artifact
from effc.core.check_quantization import check_quantization
from effc.core.errors import ConfigError, EffcError, VerificationError
from effc.core.measure import Array
from effc.core.schemes import scheme

Script = Callable[..., CompletedProcess[str]]
FILES = {"int8.onnx": 17, "int8-fp16.onnx": 19, "fp16.onnx": 17}


def goldens(folder: Path) -> tuple[list[Array], list[Array]]:
    archive = np.load(folder / "goldens.npz")
    return (
        [archive[k] for k in sorted(archive.files) if k.startswith("feeds/")],
        [archive[k] for k in sorted(archive.files) if k.startswith("answers/")],
    )


def answers(path: Path, feeds: list[Array]) -> list[Array]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, {"x": f})[0] for f in feeds]


def sqnr(wanted: list[Array], found: list[Array]) -> float:
    noise = sum(float(((a - b) ** 2).sum()) for a, b in zip(wanted, found, strict=True))
    return 10 * math.log10(sum(float((a**2).sum()) for a in wanted) / noise)


@pytest.mark.parametrize("name", FILES)
def test_every_file_answers_like_the_goldens(built: Path, name: str) -> None:
    feeds, wanted = goldens(built)
    assert len(feeds) == 4
    model = onnx.load(built / name)
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if o.domain == ""] == [FILES[name]]
    found = answers(built / name, feeds)
    assert sqnr(wanted, found) > (50 if name == "fp16.onnx" else 18)
    assert all(a.dtype == np.float32 and a.shape == (1, 10) for a in found)


def test_the_int8_file_keeps_to_tensorrts_rules(built: Path) -> None:
    model = ir.load(built / "int8.onnx")
    assert not check_quantization(model.graph, scheme("tensorrt"))
    proto = onnx.load(built / "int8.onnx")
    made = {o: n for n in proto.graph.node for o in n.output}
    stored = {t.name: t for t in proto.graph.initializer}
    # TensorRT 8 reads no constant of int8 but zero points: weights are reals behind Q and DQ
    large = [t.name for t in stored.values() if t.data_type == onnx.TensorProto.INT8 and t.dims]
    assert all(not numpy_helper.to_array(stored[n]).any() for n in large)
    products = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(products) == 4
    for node in products:
        for value in node.input[:2]:
            assert made[value].op_type == "DequantizeLinear"
            assert made[made[value].input[0]].op_type == "QuantizeLinear"
        assert all(v in stored for v in node.input[2:])  # biases are reals
    assert not any(n.op_type == "Cast" for n in proto.graph.node)


def test_the_strongly_typed_file_has_no_casts_around_quantizers(built: Path) -> None:
    proto = onnx.load(built / "int8-fp16.onnx")
    made = {o: n for n in proto.graph.node for o in n.output}
    pairs = [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]
    casts = {o for n in proto.graph.node if n.op_type == "Cast" for o in n.output}
    readers = [n for n in proto.graph.node if set(n.input) & {p.output[0] for p in pairs}]
    assert len(pairs) >= 8 and not any(n.op_type == "Cast" for n in readers)
    weights = [n for n in pairs if n.input[0] not in made]
    assert len(weights) == 4 and not any(n.input[0] in casts for n in weights)


def test_weights_of_both_int8_files_are_the_same_numbers(built: Path) -> None:
    """Also those of the tiny filter, whose scale float16 barely holds."""

    def weights(name: str) -> list[Array]:
        graph = onnx.load(built / name).graph
        stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        found = []
        for node in graph.node:
            if node.op_type != "DequantizeLinear":
                continue
            source = node.input[0]
            pair = next((n for n in graph.node if source in n.output), None)
            if pair is not None and pair.input[0] in stored:
                found.append(stored[pair.input[0]])
            elif source in stored:
                axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                q = stored[source].astype(np.float32)
                scale = stored[node.input[1]].astype(np.float32)
                found.append(q * scale.reshape([-1 if i == axis else 1 for i in range(q.ndim)]))
        return found

    old, new = weights("int8.onnx"), weights("int8-fp16.onnx")
    assert len(old) == len(new) == 4
    for a, b in zip(old, new, strict=True):
        assert np.allclose(a, b, rtol=1e-6, atol=0)
    conv = next(w for w in old if w.shape == (8, 3, 3, 3))
    assert 0 < np.abs(conv[3]).max() < 2e-3


def test_what_the_description_says(built: Path) -> None:
    found = json.loads((built / "bundle.json").read_text())
    assert found["main"] == "int8" and list(found["forms"]) == ["int8", "fp16"]
    assert found["workspace_bytes"] == 512 << 20 and found["sm"] == "87"
    assert found["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": [1, 3, 16, 16], "layout": ""}
    ] or found["inputs"][0]["shape"] == [1, 3, 16, 16]
    manifest = load_artifact(built).manifest
    scripts = {"build_on_device.py", "on_device/main.py", "on_device/cuda.py"}
    assert {*FILES, *scripts, "goldens.npz", "calibration.cache"} <= set(manifest.files)
    assert manifest.verdict.status == "passed"
    wanted = "ONNX of the bundle in onnxruntime; engine not built: no Jetson here"
    assert wanted in manifest.verdict.reason
    assert not manifest.measurements


def test_the_calibration_cache_holds_the_scales_of_the_graph(built: Path) -> None:
    lines = (built / "calibration.cache").read_text().splitlines()
    assert lines[0] == "TRT-8502-EntropyCalibration2"
    cached = {
        name: struct.unpack("!f", bytes.fromhex(bits))[0]
        for name, bits in (line.rsplit(": ", 1) for line in lines[1:])
    }
    graph = onnx.load(built / "int8.onnx").graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    scales = {
        n.input[0]: float(stored[n.input[1]])
        for n in graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] not in stored
    }
    assert len(cached) >= 4 and "x" in cached
    assert all(cached[n] == pytest.approx(scales[n], rel=1e-6) for n in cached)
    tensors = {o for n in onnx.load(built / "fp16.onnx").graph.node for o in n.output} | {"x"}
    assert set(cached) <= tensors


def test_goldens_are_read_without_numpy(built: Path) -> None:
    feeds, wanted = goldens(built)
    for (given, answer), x, y in zip(store.read_goldens(built), feeds, wanted, strict=True):
        assert given["x"].shape == (1, 3, 16, 16)
        assert np.array_equal(given["x"].values(), x.ravel())
        assert np.array_equal(answer["logits"].values(), y.ravel())


@pytest.mark.parametrize("code", ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "b1"])
def test_arrays_of_every_type(tmp_path: Path, code: str) -> None:
    array = (np.random.default_rng(2).standard_normal((2, 3)) * 50).astype(code)
    answers = {"answers/0/y": np.asarray(array)}
    np.savez(tmp_path / "goldens.npz", **{"feeds/0/x": array}, **answers)  # type: ignore[arg-type]
    given, _ = store.read_goldens(tmp_path)[0]
    assert given["x"].values() == tuple(array.ravel().tolist())
    assert given["x"].cast("f4").values() == tuple(array.astype("f4").ravel().tolist())


def test_int8_wants_samples(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8 for jetson-orin-nano needs samples") as caught:
        effc.build(str(model_file), "jetson", tmp_path / "b", BuildOptions(precision="int8"))
    assert "--samples" in caught.value.hint


def test_a_plain_bundle(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    effc.build(str(model_file), "jetson", out, BuildOptions(precision="fp16"))
    assert sorted(p.name for p in out.glob("*.onnx")) == ["fp16.onnx"]
    found = json.loads((out / "bundle.json").read_text())
    assert found["forms"]["fp16"]["weak"]["flags"] == ["FP16"] and found["calibration"] is None
    assert found["workspace_bytes"] == 1 << 30  # an eighth of 8 GiB


def test_a_wrong_form_is_found(bundle: Path) -> None:
    from effc.backends.tensorrt.bundle.verify import Bundled

    model = onnx.load(bundle / "fp16.onnx")
    bias = next(t for t in model.graph.initializer if list(t.dims) == [10])
    half = (numpy_helper.to_array(bias) + 3).astype(np.float16)
    bias.CopyFrom(numpy_helper.from_array(half, bias.name))
    onnx.save(model, bundle / "fp16.onnx")
    artifact = load_artifact(bundle, verify=False)
    with pytest.raises(VerificationError, match=r"fp16.onnx \(form fp16\).*SQNR"):
        with Bundled().runner(artifact):
            pass


def test_an_operator_without_an_older_form(tmp_path: Path, to_model: Callable[[str], Path]) -> None:
    path = to_model("(float[1,4,6,6] x) => (float[1,4,6,6] y) { y = LpNormalization<p=1>(x) }")
    effc.build(str(path), "jetson", tmp_path / "ok", BuildOptions(precision="fp32"))
    path = to_model(
        "(float[1,4,6,6] x) => (float[1,4,8,6] y)"
        " <int64[2] pads = {1, 1}, int64[1] axes = {2}>"
        ' { y = Pad<mode="wrap">(x, pads, , axes) }'
    )
    with pytest.raises(EffcError, match="Pad of opset 17 does not wrap"):
        effc.build(str(path), "jetson", tmp_path / "b", BuildOptions(precision="fp32"))


def test_an_open_batch(model_file: Path, samples: Path, tmp_path: Path, script: Script) -> None:
    """A profile opens the batch of every file; the stand-in runs all three shapes."""
    out = tmp_path / "b"
    options = BuildOptions(
        precision="int8",
        samples=samples,
        backend_options={"profile": "x=1x3x16x16:2x3x16x16:4x3x16x16"},
    )
    effc.build(str(model_file), "jetson", out, options)
    feeds, wanted = goldens(out)
    for name in FILES:
        found = answers(out / name, [np.concatenate(feeds[:3])])[0]
        assert found.shape == (3, 10)
        alone = np.concatenate(answers(out / name, feeds[:3]))
        assert np.allclose(found, alone, atol=0.05 * np.abs(alone).max())
    done = script(out, "--form", "fp16", "--seconds", "0.02")
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "report.json").read_text())["engines"][0]["batches"]
    assert [r["inputs"]["x"][0] for r in rows] == [1, 2, 4]
    assert all(r["device_ms"] > 0 for r in rows)
