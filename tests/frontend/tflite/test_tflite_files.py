"""Damaged files, refusals, constants in other types, and the layout of the interface."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc import frontend
from effc.core.errors import EffcError, FrontendError
from effc.frontend import tflite


def small(tfl: Any) -> bytes:
    """Two quantized convolutions, a pool, a dense layer and a softmax."""
    rng = np.random.default_rng(0)
    net = tfl.Net()
    x = net.input((1, 8, 8, 3), np.int8, scale=[0.05], zero_point=[3])
    w = net.const(
        rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), scale=[0.01] * 4, zero_point=[0] * 4
    )
    b = net.const(rng.integers(-99, 99, 4).astype(np.int32), scale=[0.0005] * 4, zero_point=[0] * 4)
    y = net.tensor((1, 4, 4, 4), np.int8, scale=[0.1], zero_point=[-128])
    net.op("CONV_2D", [x, w, b], [y], "Conv2DOptions", Padding=0, StrideH=2, StrideW=2,
           DilationHFactor=1, DilationWFactor=1, FusedActivationFunction=1)  # fmt: skip
    z = net.tensor((1, 16, 4), np.int8, scale=[0.1], zero_point=[-128])
    net.op("RESHAPE", [y, net.const(np.array([1, 16, 4], np.int32))], [z])
    out = net.tensor((1, 16, 4), np.int8, scale=[1 / 256], zero_point=[-128])
    net.op("SOFTMAX", [z], [out], "SoftmaxOptions", Beta=1.0)
    net.outputs = [out]
    return net.bytes()  # type: ignore[no-any-return]


def test_the_interface_is_tflites_own(tfl: Any) -> None:
    model = tfl.imported(small(tfl))
    (x,), (y,) = model.graph.inputs, model.graph.outputs
    assert (x.name, x.dtype, tuple(x.shape)) == ("t0", ir.DataType.INT8, (1, 8, 8, 3))
    assert (y.name, y.dtype, tuple(y.shape)) == ("t6", ir.DataType.INT8, (1, 16, 4))


def test_every_parameter_is_kept(tfl: Any) -> None:
    data = small(tfl)
    found = {n: v.const_value.numpy() for n, v in tfl.imported(data).graph.initializers.items()}
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    np.testing.assert_array_equal(found["t1"], w.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found["t2"], rng.integers(-99, 99, 4).astype(np.int32))
    assert found["t1/scale"].tobytes() == np.full(4, 0.01, np.float32).tobytes()
    assert found["t2/scale"].tobytes() == np.full(4, 0.0005, np.float32).tobytes()
    assert found["t0/scale"] == np.float32(0.05) and found["t0/zero_point"] == 3
    assert found["t3/zero_point"].dtype == np.int8 and found["t3/zero_point"] == -128


def test_channels_first_inside_without_transposes(tfl: Any) -> None:
    """Convolution, activation, addition and convolution again: one Transpose in, one out."""
    net, rng = tfl.Net(), np.random.default_rng(0)
    w = net.const(rng.normal(size=(4, 1, 1, 4)).astype(np.float32))
    x = net.input((1, 5, 6, 4))
    t = [net.tensor((1, 5, 6, 4)) for _ in range(4)]
    conv = {"Padding": 0, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    net.op("CONV_2D", [x, w], [t[0]], "Conv2DOptions", **conv)
    net.op("RELU", [t[0]], [t[1]])
    net.op("ADD", [t[0], t[1]], [t[2]], "AddOptions")
    net.op("CONV_2D", [t[2], w], [t[3]], "Conv2DOptions", **conv)
    net.outputs = [t[3]]
    ops = [n.op_type for n in tfl.imported(net.bytes()).graph]
    assert ops == ["Transpose", "Conv", "Relu", "Add", "Conv", "Transpose"]


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_weights_in_another_type(tfl: Any, kind: str) -> None:
    """Weights of 16 bits behind a DEQUANTIZE, and of 8 bits in a float operator (hybrid)."""
    net, rng = tfl.Net(), np.random.default_rng(0)
    real = rng.normal(size=(6, 3, 3, 4)).astype(np.float32)
    x = net.input((1, 5, 6, 4))
    if kind == "float16":
        stored = net.const(real.astype(np.float16))
        real = real.astype(np.float16).astype(np.float32)
    else:
        q = np.clip(np.round(real * 32), -127, 127).astype(np.int8)
        stored = net.const(q, scale=[1 / 32], zero_point=[0])
        real = q.astype(np.float32) / 32
    w = net.tensor((6, 3, 3, 4))
    net.op("DEQUANTIZE", [stored], [w])
    y = net.tensor((1, 5, 6, 6))
    b = net.const(rng.normal(size=6).astype(np.float32))
    net.op("CONV_2D", [x, w, b], [y], "Conv2DOptions", Padding=0, StrideH=1, StrideW=1,
           DilationHFactor=1, DilationWFactor=1)  # fmt: skip
    net.outputs = [y]
    feed = rng.normal(size=(1, 5, 6, 4)).astype(np.float32)
    expected = tfl.Interpreter(net.bytes()).run(feed)[0]
    model = tfl.imported(net.bytes())
    np.testing.assert_allclose(tfl.run(model, feed)[0], expected, rtol=1e-5, atol=1e-5)
    if kind == "int8":
        assert any(v.dtype == ir.DataType.INT8 for v in model.graph.initializers.values())


def test_every_refused_operator_is_listed_at_once(tfl: Any, tmp_path: Path) -> None:
    net = tfl.Net()
    x = net.input((1, 4))
    t = [net.tensor((1, 4)) for _ in range(4)]
    net.op("CUSTOM", [x], [t[0]], custom="TFLite_Detection_PostProcess")
    net.op("RELU", [t[0]], [t[1]])
    net.op("LSTM", [t[1]], [t[2]])
    net.op("CUSTOM", [t[2]], [t[3]], custom="MyOp")
    net.outputs = [t[3]]
    path = tmp_path / "m.tflite"
    path.write_bytes(net.bytes())
    with pytest.raises(FrontendError) as caught:
        frontend.load_source(str(path))
    text = str(caught.value)
    for part in ("#0", "TFLite_Detection_PostProcess", "#2", "LSTM", "#3", "MyOp", "m.tflite"):
        assert part in text
    assert "post-processing" in caught.value.hint and "MyOp" in caught.value.hint


def test_the_frontend_is_chosen_by_content(tfl: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(small(tfl))
    source = frontend.load_source(str(path))
    assert source.kind == "tflite" and len(source.sha256) == 64


def _judge(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    start = time.monotonic()
    try:
        tflite.load_source(path)
        return "taken"
    except EffcError as error:
        assert str(error) and "\n" not in str(error)
        return "refused"
    finally:
        assert time.monotonic() - start < 5


def test_a_truncated_file_is_refused(tfl: Any, tmp_path: Path) -> None:
    data = small(tfl)
    for end in range(0, len(data), 23):
        assert _judge(tmp_path / "m.tflite", data[:end]) == "refused"


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_are_refused_or_harmless(tfl: Any, tmp_path: Path, seed: int) -> None:
    data, rng = small(tfl), np.random.default_rng(seed)
    verdicts = []
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        verdicts.append(_judge(tmp_path / "m.tflite", bytes(damaged)))
    assert 40 < verdicts.count("refused") < 250


def test_large_numbers_in_every_place_are_refused_or_harmless(tfl: Any, tmp_path: Path) -> None:
    """Every aligned word in turn becomes a huge count or offset."""
    data = small(tfl)
    for at in range(0, len(data) - 4, 4):
        for value in (0x7FFFFFFF, 0xFFFFFFFF, 0x00100000):
            damaged = bytearray(data)
            struct.pack_into("<I", damaged, at, value)
            _judge(tmp_path / "m.tflite", bytes(damaged))


def test_an_axis_is_never_mirrored_in_full_on_the_files_word(tfl: Any, tmp_path: Path) -> None:
    net = tfl.Net()
    x, y = net.input((1, 1 << 28)), net.tensor((1, 1 << 29))
    edges = np.array([[0, 0], [0, 1 << 28]], np.int32)
    net.op("MIRROR_PAD", [x, net.const(edges)], [y], "MirrorPadOptions", Mode=1)
    net.outputs = [y]
    assert _judge(tmp_path / "m.tflite", net.bytes()) == "refused"
