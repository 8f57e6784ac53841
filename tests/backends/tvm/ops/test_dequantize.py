"""Stored integers become the floats that onnxruntime reads out of them, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.ops.dequantize import DequantizeWeights
from effc.core.ir import add_const
from effc.core.passinfra import PassContext
from effc.core.quant import integer_range
from effc.core.reference import random_feeds, record_goldens
from effc.frontend.onnx import load

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[4, 6] x) => (float[4, 6] y) { d = DequantizeLinear<axis = AXIS>(q, s, z)  y = Add(x, d) }
"""


def model(dtype: str, scale: np.ndarray, axis: int) -> ir.Model:
    rng = np.random.default_rng(0)
    text = TEXT.replace("AXIS", str(axis))
    found = ir.from_onnx_text(text.replace("float[4, 6] x)", f"float[4, 6] x, {dtype}[4, 6] q)"))
    info = np.iinfo(dtype)
    zero = rng.integers(-5, 5, scale.shape) if dtype == "int8" else rng.integers(0, 9, scale.shape)
    zero = zero * (dtype != "int32")
    drop = found.graph.inputs.pop()
    node = next(n for n in found.graph if n.op_type == "DequantizeLinear")
    for at, array in enumerate(
        (
            rng.integers(max(info.min, -1000), min(info.max, 1000), (4, 6)).astype(dtype),
            scale,
            zero.astype(dtype),
        )
    ):
        node.replace_input_with(at, add_const(found.graph, f"{drop.name}{at}", array))
    return found


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
@pytest.mark.parametrize(("extent", "axis"), [(0, 1), (4, 0), (6, 1), (6, -1)])
def test_constants_are_read_as_onnxruntime_does(dtype: str, extent: int, axis: int) -> None:
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.01, 0.1, (extent,) if extent else ()).astype(np.float32)
    found = model(dtype, scale, axis)
    feeds = random_feeds(found, 2)
    goldens = record_goldens(found, feeds)
    assert DequantizeWeights().run(found, PassContext()) == 1
    assert [n.op_type for n in found.graph] == ["Add"]
    for golden, answer in zip(goldens, record_goldens(found, feeds), strict=True):
        np.testing.assert_array_equal(golden["y"], answer["y"])


def test_activations_stay_quantized() -> None:
    text = TEXT.replace("AXIS", "1").replace(
        "float[4, 6] x)", "float[4, 6] x, int8[4, 6] q, float s, int8 z)"
    )
    found = ir.from_onnx_text(text)
    assert DequantizeWeights().run(found, PassContext()) == 0
    assert [n.op_type for n in found.graph] == ["DequantizeLinear", "Add"]


@pytest.mark.parametrize("dtype", ["INT4", "UINT4", "INT8"])
@pytest.mark.parametrize(
    ("shape", "axis", "block"), [((3, 6), 0, 2), ((4, 2), 1, 4), ((4, 6), 1, 1)]
)
def test_blocks_and_four_bits(
    dtype: str, shape: tuple[int, int], axis: int, block: int, tmp_path: Path
) -> None:
    """Read from a file, where two integers of four bits share a byte."""
    rng = np.random.default_rng(2)
    kind = getattr(onnx.TensorProto, dtype)
    low, high = integer_range(ir.DataType[dtype])
    size = (6, 6) if axis == 0 else (4, 6)
    numbers = rng.integers(low, high + 1, size)
    zeros = rng.integers(low, high + 1, shape)
    extent = size[axis]
    assert shape[axis] == -(-extent // block)
    scales = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    text = TEXT.replace("AXIS", f"{axis}, block_size = {block}").replace("20]", "21]")
    text = text.replace("[4, 6]", f"[{size[0]}, {size[1]}]")
    proto = onnx.parser.parse_model(text)
    for name, of, array in (
        ("q", kind, numbers), ("s", onnx.TensorProto.FLOAT, scales), ("z", kind, zeros)
    ):  # fmt: skip
        proto.graph.initializer.append(
            onnx.helper.make_tensor(name, of, array.shape, array.ravel().tolist())
        )
    onnx.save(proto, tmp_path / "m.onnx")
    found = load(tmp_path / "m.onnx")
    feeds = random_feeds(found, 1)
    golden = record_goldens(found, feeds)[0]["y"]
    assert DequantizeWeights().run(found, PassContext()) == 1
    np.testing.assert_array_equal(record_goldens(found, feeds)[0]["y"], golden)
    spread = np.repeat(scales, block, axis).take(range(extent), axis)
    at = np.repeat(zeros, block, axis).take(range(extent), axis)
    np.testing.assert_array_equal(
        golden, feeds[0]["x"] + (numbers - at).astype(np.float32) * spread
    )
