"""quantize, dequantize, and compressed constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper


def through(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: Any) -> list[np.ndarray]:
    """onnx's QuantizeLinear and DequantizeLinear."""
    kind = helper.np_dtype_to_tensor_dtype(zero.dtype)
    extra = {"axis": 1 if axis is None else axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **extra),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **extra),
    ]
    infos = [
        helper.make_tensor_value_info("x", 1, x.shape),
        helper.make_tensor_value_info("s", 1, np.shape(scale)),
        helper.make_tensor_value_info("z", kind, np.shape(zero)),
    ]
    outs = [
        helper.make_tensor_value_info("q", kind, None),
        helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos, outs),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": x, "s": np.asarray(scale), "z": np.asarray(zero)}
    results: list[np.ndarray] = session.run(None, feeds)
    return results


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 1])
def test_quantize_and_dequantize(mil: Any, rng: np.random.Generator, dtype: str, axis: Any) -> None:
    """Against onnxruntime; 0.25 and odd multiples of 0.125 meet halves."""
    x = (rng.integers(-900, 900, (2, 3, 4)) / 8).astype(np.float32)
    scales = np.array([0.25, 0.5, 0.3], np.float32)
    zeros = np.array([3, 10, 7]).astype(dtype)
    scale, zero = (scales, zeros) if axis is not None else (scales[0], zeros[0])
    extra = {} if axis is None else {"axis": axis}

    def build(mb: Any, x: Any) -> list[Any]:
        q = mb.quantize(input=x, scale=scale, zero_point=zero, output_dtype=dtype, **extra)
        bare = mb.quantize(input=x, scale=scale, output_dtype=dtype, **extra)
        return [
            q,
            mb.dequantize(input=q, scale=scale, zero_point=zero, **extra),
            mb.dequantize(input=bare, scale=scale, **extra),
        ]

    q, back, plain = mil.run(build, {"x": x})
    want_q, want_back = through(x, scale, zero, axis)
    assert np.array_equal(q, want_q)
    np.testing.assert_allclose(back, want_back, rtol=1e-6)
    np.testing.assert_allclose(
        plain, through(x, scale, zero * zero.dtype.type(0), axis)[1], rtol=1e-6
    )


ZERO = np.zeros((1,), np.float32)


def stored(mil: Any, make: Any, opset: int = 18) -> np.ndarray:
    """The constant that `make` gives, through a saved package."""

    def build(mb: Any, x: Any) -> Any:
        return mb.add(x=make(mb), y=x)

    result: np.ndarray = mil.one(build, ZERO, opset=opset)
    return result


def test_affine_dequantize(mil: Any, rng: np.random.Generator) -> None:
    data = rng.integers(-128, 128, (4, 5, 3)).astype(np.int8)
    scale = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    zero = np.array([1, -2, 3, -4, 5], np.int8)
    got = stored(
        mil,
        lambda mb: mb.constexpr_affine_dequantize(
            quantized_data=data, scale=scale, zero_point=zero, axis=1
        ),
        16,
    )
    want = (data.astype(np.float64) - zero[None, :, None]) * scale[None, :, None]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_tables(mil: Any, rng: np.random.Generator, bits: int) -> None:
    """Bits written one after the other, the least significant first, across the bytes."""
    indices = rng.integers(0, 1 << bits, (5, 3, 7))
    lut = rng.normal(size=1 << bits).astype(np.float32)
    stream = [(int(i) >> b) & 1 for i in indices.ravel() for b in range(bits)]
    packed = [
        sum(bit << k for k, bit in enumerate(stream[n : n + 8])) for n in range(0, len(stream), 8)
    ]
    got = stored(
        mil,
        lambda mb: mb.constexpr_lut_to_dense(
            indices=np.array(packed, np.uint8), lut=lut, shape=np.array([5, 3, 7], np.uint32)
        ),
        16,
    )
    np.testing.assert_array_equal(got, lut[indices])


def test_packed_mask(mil: Any) -> None:
    """The example of the documentation: bits 2 and 3 of five."""
    got = stored(
        mil,
        lambda mb: mb.constexpr_sparse_to_dense(
            nonzero_data=np.array([3.0, 5.0], np.float32), mask=np.array([0b01100], np.uint8),
            shape=np.array([5], np.uint32),
        ),
        16,
    )  # fmt: skip
    assert got.tolist() == [0, 0, 3, 5, 0]


def test_constexpr_cast(mil: Any) -> None:
    data = np.array([0.1, 65504.0, -3.25], np.float16)
    got = stored(mil, lambda mb: mb.constexpr_cast(source_val=data, output_dtype="fp32"), 16)
    np.testing.assert_array_equal(got, data.astype(np.float32))


def small(values: Any, name: str) -> np.ndarray:
    """An array of one of MIL's types under 8 bits."""
    from coremltools.converters.mil.mil import types

    kind = types.string_to_nptype(name)
    return np.asarray(values).astype(kind)


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8"])
def test_blocks(mil: Any, rng: np.random.Generator, kind: str) -> None:
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}[kind]
    data = rng.integers(low, high, (4, 6))
    scale = np.array([[0.5, 2.0, 3.0], [0.1, 0.2, 0.7]], np.float32)
    offset = rng.integers(max(low, -8), min(high, 16), (2, 3))
    got = stored(
        mil,
        lambda mb: mb.constexpr_blockwise_shift_scale(
            data=small(data, kind), scale=scale, offset=small(offset, kind)
        ),
    )
    want = np.empty((4, 6))
    for i, j in np.ndindex(4, 6):
        want[i, j] = scale[i // 2, j // 2] * (data[i, j] - offset[i // 2, j // 2])
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_grouped_table_of_the_documentation(mil: Any) -> None:
    indices = small([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]], "uint2")
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
    got = stored(mil, lambda mb: mb.constexpr_lut_to_dense(indices=indices, lut=lut))
    assert got.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]


@pytest.mark.parametrize("axis", [1, 2])
def test_vector_table_of_the_documentation(mil: Any, axis: int) -> None:
    indices = small([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], "uint1")
    a, b = [1.0, 2.0, 3.0], [7.0, 8.0, 9.0]
    lut = np.array([a, b], np.float32).reshape(1, 1, 1, 2, 3)
    got = stored(
        mil, lambda mb: mb.constexpr_lut_to_dense(indices=indices, lut=lut, vector_axis=axis)
    )
    if axis == 1:
        first = [[1, 1], [2, 2], [3, 3], [7, 1], [8, 2], [9, 3]]
        want = [first, [[7, 7], [8, 8], [9, 9], [1, 1], [2, 2], [3, 3]]]
    else:
        want = [[a + a, b + a], [b + b, a + a]]
    assert got.tolist() == want


MASK = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize("vector", [1, 2])
def test_sparse_table_of_the_documentation(mil: Any, vector: int) -> None:
    nonzero = small([0, 1, 1, 0, 1, 1, 0, 0, 1], "uint1")
    lut = np.array([2.0, 3.0], np.float32).repeat(vector).reshape(1, 1, 2, vector)
    extra = {} if vector == 1 else {"vector_axis": 0}

    def make(mb: Any) -> Any:
        mask, data = mb.constexpr_lut_to_sparse(
            indices_mask=small(MASK, "uint1"), indices_nonzero_data=nonzero, lut=lut, **extra
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask)

    rows = [[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 3], [0, 3, 2, 0, 2, 0], [0, 0, 0, 3, 0, 0]]
    assert stored(mil, make).tolist() == np.repeat(rows, vector, axis=0).tolist()


def test_sparse_scales_of_the_documentation(mil: Any) -> None:
    mask = small([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], "uint1")

    def make(mb: Any) -> Any:
        out_mask, data = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask,
            nonzero_data=np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8),
            scale=np.array([[0.1, 0.2, 0.3, 0.4]], np.float32),
            offset=np.array([[1, 2, 3, 4]], np.int8),
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=out_mask)

    want = [[0.9, 1.8, 0, 0], [0.2, 0.4, 0.6, 0], [0, 0, 0.9, 1.2], [0.7, 1.4, 0, 0]]
    np.testing.assert_allclose(stored(mil, make), want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["int4", "uint3", "uint6"])
def test_small_integers_in_the_weight_file(mil: Any, rng: np.random.Generator, kind: str) -> None:
    """More than ten elements go to the file, fewer into the specification."""
    low, high = {"int4": (-8, 8), "uint3": (0, 8), "uint6": (0, 64)}[kind]
    for count in (9, 1001):
        data = rng.integers(low, high, (count, 1))
        if kind == "int4":
            got = stored(
                mil,
                lambda mb, d=data: mb.constexpr_blockwise_shift_scale(
                    data=small(d, "int4"), scale=np.ones((1, 1), np.float32)
                ),
            )
        else:
            lut = np.arange(high, dtype=np.float32).reshape(1, 1, high, 1)
            got = stored(
                mil,
                lambda mb, d=data, t=lut: mb.constexpr_lut_to_dense(indices=small(d, kind), lut=t),
            )
        np.testing.assert_array_equal(got, data)
