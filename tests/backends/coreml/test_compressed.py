"""Compressed constants: each form is chosen where it should be, is small, and means the same numbers."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("coremltools")

from effc.backends.coreml.convert.compressed import pack  # noqa: E402
from effc.core.ir import add_const  # noqa: E402
from effc.core.quant import QuantParams, make_params  # noqa: E402

SHAPE = (64, 32, 3, 3)
ELEMENTS = 64 * 32 * 9


def graph(
    nodes: list[ir.Node], x: ir.Value, y: ir.Value, constants: dict[str, np.ndarray]
) -> ir.Model:
    """A model of one input and one output; `constants` are put where the nodes name them."""
    made = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 23}, name="g")
    for name, array in constants.items():
        value = add_const(made, name, array)
        for node in nodes:
            for i, old in enumerate(node.inputs):
                if old is not None and old.name == name and old is not value:
                    node.replace_input_with(i, value)
    return ir.Model(made, ir_version=11)


def value(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def conv_of(weight: ir.Node, constants: dict[str, np.ndarray]) -> tuple[ir.Model, np.ndarray]:
    """Conv of x [1, 32, 6, 6] with the weight that a node makes."""
    x = value("x", ir.DataType.FLOAT, (1, 32, 6, 6))
    out = weight.outputs[0]
    out.name, out.dtype, out.shape = "w", ir.DataType.FLOAT, ir.Shape(SHAPE)
    conv = ir.node("Conv", [x, out], name="conv")
    y = conv.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape((1, 64, 4, 4))
    feed = np.random.default_rng(3).standard_normal((1, 32, 6, 6)).astype(np.float32)
    return graph([weight, conv], x, y, constants), feed


def quantized(params: QuantParams, stored: np.ndarray) -> tuple[ir.Model, np.ndarray]:
    names = {"q": stored, "s": params.scale, "z": params.zero_point}
    inputs = [value(n, ir.DataType.from_numpy(a.dtype), a.shape) for n, a in names.items()]
    attributes = {"axis": params.axis, **({"block_size": params.block} if params.block else {})}
    node = ir.node("DequantizeLinear", inputs, attributes, name="dq")
    return conv_of(node, names)


def answer(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The convolution by its definition."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float32))


def integers(dtype: str, zeros: float = 0.0) -> np.ndarray:
    """Random integers of the whole range; a share of zeros."""
    rng = np.random.default_rng(5)
    info = ml_dtypes.iinfo(dtype)
    found = rng.integers(info.min, info.max, SHAPE, endpoint=True)
    found[found == 0] = 1
    found[rng.random(SHAPE) < zeros] = 0
    return found.astype(np.int16).astype(getattr(ml_dtypes, dtype, dtype))


def weights(package: Path) -> int:
    return (package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size


def forms(converted) -> set[str]:
    operations = converted.program.functions["main"].operations
    return {op.op_type for op in operations if op.op_type.startswith("constexpr_")}


def scales(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(7).uniform(0.01, 0.1, shape).astype(np.float32)


QUANTIZED = [
    # stored, scale's shape, zero point, axis, block, version -> the form, bytes an element
    ("int8", (64,), 0, 0, 0, 16, "constexpr_affine_dequantize", 1.0),
    ("uint8", (), 117, 0, 0, 17, "constexpr_affine_dequantize", 1.0),
    ("int4", (), 0, 0, 0, 17, "constexpr_lut_to_dense", 0.5),
    ("int4", (64,), 0, 0, 0, 17, "constexpr_affine_dequantize", 1.0),
    ("int8", (64,), 3, 0, 0, 18, "constexpr_blockwise_shift_scale", 1.0),
    ("int4", (64, 4, 3, 3), 0, 1, 8, 18, "constexpr_blockwise_shift_scale", 0.5),
    ("uint4", (64,), 7, 0, 0, 18, "constexpr_blockwise_shift_scale", 0.5),
    ("int2", (64,), 0, 0, 0, 18, "constexpr_blockwise_shift_scale", 0.5),
]


@pytest.mark.parametrize(
    ("dtype", "shape", "zero", "axis", "block", "ios", "form", "size"), QUANTIZED
)
def test_integers_stay_integers(packaged, dtype, shape, zero, axis, block, ios, form, size) -> None:
    stored = integers(dtype)
    params = make_params(ir.DataType[dtype.upper()], scales(shape), zero, axis=axis, block=block)
    model, x = quantized(params, stored)
    got = packaged(model, {"x": x}, ios)["y"]
    np.testing.assert_allclose(got, answer(x, params.dequantize(stored)), rtol=2e-4, atol=2e-4)
    assert forms(packaged.converted) == {form}
    extra = 4 * params.scale.size + params.zero_point.size + 1024
    assert weights(packaged.package) <= size * ELEMENTS + extra


def test_joint_sparse_integers_leave_their_zeros_out(packaged) -> None:
    stored = integers("int8", zeros=0.75)
    params = make_params(ir.DataType.INT8, scales((64,)), axis=0)
    model, x = quantized(params, stored)
    got = packaged(model, {"x": x}, 18)["y"]
    np.testing.assert_allclose(got, answer(x, params.dequantize(stored)), rtol=2e-4, atol=2e-4)
    assert "constexpr_sparse_blockwise_shift_scale" in forms(packaged.converted)
    assert weights(packaged.package) <= 0.30 * ELEMENTS + ELEMENTS / 8 + 1024


def palettized(k: int, zeros: float = 0.0) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    lut = np.sort(rng.standard_normal(k)).astype(np.float32)
    indices = rng.integers(0, k, SHAPE).astype(np.int64)
    if zeros:
        lut[k // 2] = 0.0
        indices[rng.random(SHAPE) < zeros] = k // 2
    names = {"lut": lut, "indices": indices}
    inputs = [value(n, ir.DataType.from_numpy(a.dtype), a.shape) for n, a in names.items()]
    model, x = conv_of(ir.node("Gather", inputs, {"axis": 0}, name="gather"), names)
    return model, x, lut[indices]


@pytest.mark.parametrize("ios", [16, 18])
@pytest.mark.parametrize(("k", "bits"), [(2, 1), (4, 2), (13, 4), (64, 6), (200, 8)])
def test_palettes(packaged, k: int, bits: int, ios: int) -> None:
    model, x, w = palettized(k)
    got = packaged(model, {"x": x}, ios)["y"]
    np.testing.assert_allclose(got, answer(x, w), rtol=2e-4, atol=2e-4)
    assert forms(packaged.converted) == {"constexpr_lut_to_dense"}
    assert weights(packaged.package) <= bits * ELEMENTS / 8 + 4 * 2**bits + 512


def test_joint_sparse_palette(packaged) -> None:
    model, x, w = palettized(16, zeros=0.7)
    got = packaged(model, {"x": x}, 18)["y"]
    np.testing.assert_allclose(got, answer(x, w), rtol=2e-4, atol=2e-4)
    assert "constexpr_lut_to_sparse" in forms(packaged.converted)


@pytest.mark.parametrize("ios", [17, 18])
@pytest.mark.parametrize("zeros", [0.1, 0.6])
def test_sparse_floats(packaged, zeros: float, ios: int) -> None:
    rng = np.random.default_rng(13)
    w = rng.standard_normal(SHAPE).astype(np.float32)
    w[rng.random(SHAPE) < zeros] = 0
    x = value("x", ir.DataType.FLOAT, (1, 32, 6, 6))
    conv = ir.node("Conv", [x, value("w", ir.DataType.FLOAT, SHAPE)], name="conv")
    y = conv.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape((1, 64, 4, 4))
    feed = rng.standard_normal((1, 32, 6, 6)).astype(np.float32)
    got = packaged(graph([conv], x, y, {"w": w}), {"x": feed}, ios)["y"]
    np.testing.assert_allclose(got, answer(feed, w), rtol=2e-4, atol=2e-4)
    assert forms(packaged.converted) == ({"constexpr_sparse_to_dense"} if zeros > 0.5 else set())
    if zeros > 0.5:
        assert weights(packaged.package) <= 4 * np.count_nonzero(w) + ELEMENTS / 8 + 512


def test_bits_are_packed_from_the_lowest() -> None:
    assert pack(np.array([0, 3, 2, 1, 3]), 2).tolist() == [0b01101100, 0b11]  # MIL's own example
    assert pack(np.array([1, 2, 63, 4]), 6).tolist() == [0b10000001, 0b11110000, 0b00010011]


@pytest.mark.parametrize(("group", "ios"), [(0, 17), (16, 18)])
def test_the_pass_palettize_stays_palettized(packaged, group: int, ios: int) -> None:
    """Whatever the pass writes, the package holds a table and means the same as the graph."""
    from effc.core.passinfra import PassContext
    from effc.core.reference import record_goldens
    from effc.passes import parse

    rng = np.random.default_rng(17)
    x = value("x", ir.DataType.FLOAT, (1, 32, 6, 6))
    conv = ir.node("Conv", [x, value("w", ir.DataType.FLOAT, SHAPE)], name="conv")
    y = conv.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape((1, 64, 4, 4))
    model = graph([conv], x, y, {"w": rng.standard_normal(SHAPE).astype(np.float32)})
    parse(f"palettize{{bits=4,group={group}}}").run(model, PassContext())
    feed = {"x": rng.standard_normal((1, 32, 6, 6)).astype(np.float32)}
    golden = record_goldens(model, [feed])[0]["y"]
    np.testing.assert_allclose(packaged(model, feed, ios)["y"], golden, rtol=2e-4, atol=2e-4)
    assert forms(packaged.converted) == {"constexpr_lut_to_dense"}
    assert weights(packaged.package) <= ELEMENTS / 2 + 4 * 16 * 4 + 512


def test_grouped_palettes_are_refused_before_ios_18(packaged) -> None:
    from effc.core.errors import UnsupportedOpError
    from effc.core.passinfra import PassContext
    from effc.passes import parse

    x = value("x", ir.DataType.FLOAT, (1, 32, 6, 6))
    conv = ir.node("Conv", [x, value("w", ir.DataType.FLOAT, SHAPE)], name="conv")
    y = conv.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape((1, 64, 4, 4))
    w = np.random.default_rng(17).standard_normal(SHAPE).astype(np.float32)
    model = graph([conv], x, y, {"w": w})
    parse("palettize{bits=4,group=16}").run(model, PassContext())
    with pytest.raises(UnsupportedOpError, match="iOS 18") as caught:
        packaged(model, {"x": None}, 17)
    assert "deployment=iOS18" in caught.value.hint


def test_a_residual_sum_between_quantized_values_is_in_half_precision(packaged) -> None:
    """The Neural Engine has no fp32: one such sum would take the network off it."""
    from effc.backends.coreml.backend import CoreMLBackend
    from effc.core.passinfra import PassContext
    from effc.core.profiles import load_profile
    from effc.core.reference import record_goldens
    from effc.core.shapes import infer_shapes
    from effc.core.target import Target
    from effc.passes import parse

    text = """<ir_version: 10, opset_import: ["": 23]> g (float[1,4,3,3] x) => (float[1,4,1,1] y)
        <float s = {0.03}, float t = {0.04}, int8 zero = {0}> {
            q = QuantizeLinear (x, s, zero)
            a = DequantizeLinear (q, s, zero)
            r = Relu (a)
            qr = QuantizeLinear (r, t, zero)
            b = DequantizeLinear (qr, t, zero)
            sum = Add (a, b)
            qs = QuantizeLinear (sum, t, zero)
            c = DequantizeLinear (qs, t, zero)
            mean = GlobalAveragePool (c)
            qm = QuantizeLinear (mean, s, zero)
            y = DequantizeLinear (qm, s, zero)
        }"""
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    feed = {"x": np.random.default_rng(5).standard_normal((1, 4, 3, 3)).astype(np.float32)}
    golden = record_goldens(model, [feed])[0]["y"]
    target = Target(load_profile("iphone-15"), precision="int8")
    parse(CoreMLBackend().legalize(target)).run(model, PassContext(target))
    found = packaged(model, feed)["y"]
    assert np.abs(found - golden).max() <= 0.0301 and np.abs(golden).max() > 0.1
    kinds = {
        op.op_type: str(op.outputs[0].dtype.__type_info__())
        for op in packaged.converted.program.functions["main"].operations
        if op.op_type in ("add", "reduce_mean", "relu")
    }
    assert len(kinds) == 3 and set(kinds.values()) == {"fp16"}, kinds
