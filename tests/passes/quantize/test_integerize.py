"""integerize: every node within one unit of the Q/DQ model, fed alike; which patterns match, which don't."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc import passes, zoo
from effc.core.errors import ConfigError
from effc.core.instruments import VerifyEach
from effc.core.integers import DOMAIN
from effc.core.integers.reference import run, run_node
from effc.core.ir import const, graphs
from effc.core.passinfra import PassContext
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import fix_shapes, infer_shapes
from effc.passes.quantize.integerize import Integerize

Feeds = dict[str, np.ndarray]
OPTIONS = ("", "{activations=unsigned}", "{activations=signed}", "{rounding=fixed}")


def build(text: str, **arrays: Any) -> ir.Model:
    """`(uint8[1,3] x) => (uint8[1,3] y) {...}` with initializers."""
    header = '<ir_version: 10, opset_import: ["": 23]>\ng '
    proto = onnx.parser.parse_model(header + text)
    for name, array in arrays.items():
        if not re.search(rf"\b{name}\b", text):
            continue
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def integerize(model: ir.Model, options: str = "") -> ir.Model:
    """A copy in integer form, its structure checked."""
    made = model.clone()
    interface = [(v.name, v.dtype, v.shape) for v in (*made.graph.inputs, *made.graph.outputs)]
    (step,) = passes.parse(f"integerize{options}").passes
    step.run(made, PassContext())
    after = [(v.name, v.dtype, v.shape) for v in (*made.graph.inputs, *made.graph.outputs)]
    assert after == interface
    names = [v.name for g in graphs(made) for n in g for v in n.outputs]
    names += [n for g in graphs(made) for n in g.initializers]
    assert len(names) == len(set(names))
    for value in made.graph.initializers.values():
        assert value.uses(), f"{value.name} is left over"
    infer_shapes(made)
    assert step.run(made, PassContext()) == 0, "not idempotent"
    return made


def ops(model: ir.Model) -> list[str]:
    return [("i." if n.domain == DOMAIN else "") + n.op_type for n in model.graph]


def every_value(model: ir.Model, feeds: Feeds) -> Feeds:
    """What onnxruntime, unoptimized, computes for every value of a Q/DQ model."""
    shown = model.clone()
    outputs = set(shown.graph.outputs)
    for node in shown.graph:
        for value in node.outputs:
            if value.name and value not in outputs:
                shown.graph.outputs.append(value)
                outputs.add(value)
    with OnnxRuntimeRunner(shown, optimize=False) as runner:
        return {**feeds, **runner.infer(feeds)}


def held_to(model: ir.Model, integer: ir.Model, feeds: Feeds) -> int:
    """Every node of `integer`, fed with the values of the Q/DQ `model`; how many were compared.

    8-bit results may be one unit off, but by the rule float32 (the others take ties elsewhere) at most one
    in 64 is; real results by 1e-4 of the range.
    """
    expected = every_value(model, feeds)
    known: dict[ir.Value, np.ndarray] = {v: feeds[str(v.name)] for v in integer.graph.inputs}
    compared = 0
    for node in integer.graph:
        inputs = [
            None if v is None else known[v] if v in known else v.const_value.numpy()
            for v in node.inputs
        ]
        outputs = run_node(node, inputs, dict(integer.opset_imports))
        for value, array in zip(node.outputs, outputs, strict=True):
            assert value.dtype is not None and array.dtype == value.dtype.numpy(), node
            if value.shape is not None and value.shape.is_static():
                assert tuple(value.shape) == array.shape, node
            wanted = expected.get(str(value.name))
            if wanted is not None and array.dtype.kind in "iu" and array.dtype.itemsize == 1:
                shift = 128 if array.dtype == np.uint8 else -128
                shift = 0 if wanted.dtype == array.dtype else shift
                shifted = wanted.astype(int) + shift
                off = np.abs(array.astype(int) - shifted)
                assert off.max(initial=0) <= 1, (node, off.max())
                if node.attributes.get_string("rounding", "float32") == "float32":
                    assert off.sum() <= max(1, off.size / 64), (node, off.mean())
                array = shifted.astype(array.dtype)
                compared += 1
            elif wanted is not None and wanted.dtype == array.dtype:
                if node.domain == DOMAIN:
                    limit = 1e-4 * np.abs(wanted).max(initial=0) + 1e-30
                    assert np.abs(array - wanted).max(initial=0) <= limit, node
                    compared += 1
                array = wanted
            known[value] = array
    return compared


TINY = [n for n in zoo.names() if n.startswith("tiny-")]
SCHEMES = ("vnni", "ort", "integer", "coreml", "tensorrt")


@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name: str) -> None:
    """Each under two schemes, so that every one of the five is seen."""
    for k in range(2):
        scheme = SCHEMES[(TINY.index(name) + 2 * k) % len(SCHEMES)]
        model = zoo.build(name)
        fix_shapes(model, {str(model.graph.inputs[0].name): zoo.member(name).input_shape})
        infer_shapes(model)
        text = f"{passes.CANONICALIZE},{passes.FUSE},quantize{{scheme={scheme}}}"
        passes.parse(text).run(model, PassContext())
        infer_shapes(model)
        feeds = random_feeds(model, 1)[0]
        products = [n for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul")]
        for options in (OPTIONS[0], OPTIONS[1 + TINY.index(name) % 3]):
            integer = integerize(model, options)
            left = [n for n in integer.graph if n.op_type in ("Conv", "Gemm") and n.domain == ""]
            assert not left, f"{scheme}: {left}"
            assert held_to(model, integer, feeds) >= len(products) * 3 // 4


CONV = """(uint8[1,2,5,5] x) => (uint8[1,3,5,5] y) {
  xr = DequantizeLinear(x, sx, zx)
  wr = DequantizeLinear<axis=0>(w, sw, zw)
  c = Conv<pads=[1,1,1,1]>(xr, wr, b)
  r = Relu(c)
  y = QuantizeLinear(r, sy, zy) }"""


def conv_arrays(rng: np.random.Generator, **changes: Any) -> dict[str, Any]:
    arrays = {
        "sx": np.float32(0.02), "zx": np.uint8(120), "sy": np.float32(0.05), "zy": np.uint8(3),
        "w": rng.integers(-127, 128, (3, 2, 3, 3)).astype(np.int8),
        "sw": np.array([0.01, 0.02, 0.005], np.float32), "zw": np.zeros(3, np.int8),
        "b": rng.normal(0, 1, 3).astype(np.float32),
    }  # fmt: skip
    return {**arrays, **changes}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pixels(rng: np.random.Generator, shape: Any, dtype: Any = np.uint8) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


def test_conv_relu(rng: np.random.Generator) -> None:
    arrays = conv_arrays(rng)
    model = build(CONV, **arrays)
    integer = integerize(model)
    (node,) = integer.graph
    assert ops(integer) == ["i.Conv"] and node.name == model.graph[2].name
    given = {k: a.value for k, a in node.attributes.items()}
    assert given == {
        "x_zero_point": 120, "y_zero_point": 3, "low": 3, "high": 255, "to": 2,
        "pads": (1, 1, 1, 1),
    }  # fmt: skip
    assert node.inputs[1].name == "w"  # the stored weights themselves
    m = const(node.inputs[3])
    exact = np.float64(np.float32(0.02)) * arrays["sw"].astype(np.float64) / np.float32(0.05)
    assert m.tobytes() == exact.astype(np.float32).tobytes()
    scale = np.float64(np.float32(0.02)) * arrays["sw"].astype(np.float64)
    np.testing.assert_array_equal(const(node.inputs[2]), np.rint(arrays["b"] / scale))
    assert held_to(model, integer, {"x": pixels(rng, (1, 2, 5, 5))}) == 1


def test_an_int32_bias_of_the_right_scale_stays(rng: np.random.Generator) -> None:
    bias = rng.integers(-20000, 20000, 3).astype(np.int32)
    arrays = conv_arrays(rng, b=bias)
    text = CONV.replace("wr, b)", "wr, br)").replace(
        "c = Conv", "br = DequantizeLinear<axis=0>(b, sb) c = Conv"
    )
    scale = (arrays["sx"] * arrays["sw"]).astype(np.float32)
    node = integerize(build(text, **arrays, sb=scale)).graph[0]
    np.testing.assert_array_equal(const(node.inputs[2]), bias)
    # of another scale it is rounded to the right one
    node = integerize(build(text, **arrays, sb=scale * np.float32(1.5))).graph[0]
    np.testing.assert_array_equal(const(node.inputs[2]), np.rint(bias * 1.5))
    # TensorFlow Lite takes it as it is while it is near
    node = integerize(
        build(text, **arrays, sb=scale * np.float32(1.01)), "{rounding=tflite}"
    ).graph[0]
    np.testing.assert_array_equal(const(node.inputs[2]), bias)


def test_clip_is_bounds(rng: np.random.Generator) -> None:
    text = CONV.replace("Relu(c)", "Clip(c, lo, hi)")
    arrays = conv_arrays(rng, lo=np.float32(-0.1), hi=np.float32(6))
    node = integerize(build(text, **arrays)).graph[0]
    assert (node.attributes["low"].value, node.attributes["high"].value) == (1, 123)


def test_unsigned_weights_become_signed(rng: np.random.Generator) -> None:
    w = rng.integers(0, 256, (3, 2, 3, 3)).astype(np.uint8)
    arrays = conv_arrays(rng, w=w, zw=np.full(3, 128, np.uint8))
    model = build(CONV, **arrays)
    integer = integerize(model)
    (node,) = integer.graph
    np.testing.assert_array_equal(const(node.inputs[1]), w.astype(int) - 128)
    assert const(node.inputs[1]).dtype == np.int8
    held_to(model, integer, {"x": pixels(rng, (1, 2, 5, 5))})


@pytest.mark.parametrize("bits", [4, 2])
def test_narrow_weights(bits: int) -> None:
    model = zoo.build("tiny-mobilenetv2")
    fix_shapes(model, {str(model.graph.inputs[0].name): zoo.member("tiny-mobilenetv2").input_shape})
    infer_shapes(model)
    passes.parse(f"{passes.FUSE},quantize{{weight-bits={bits}}}").run(model, PassContext())
    infer_shapes(model)
    stored = {v.dtype for v in model.graph.initializers.values()}
    assert ir.DataType.INT4 in stored  # 2 bits, too
    integer = integerize(model)
    assert {"Conv", "Gemm"}.isdisjoint(ops(integer))
    held_to(model, integer, random_feeds(model, 1)[0])


def test_weights_far_from_their_zero_point_stay_float(rng: np.random.Generator) -> None:
    w = rng.integers(0, 256, (3, 2, 3, 3)).astype(np.uint8)
    w[0, 0, 0, 0] = 255
    arrays = conv_arrays(rng, w=w, zw=np.full(3, 100, np.uint8))
    model = build(CONV, **arrays)
    assert ops(integerize(model)) == ops(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"sx": np.array([0.02, 0.03], np.float32), "zx": np.array([1, 2], np.uint8)},  # a channel
        {"b": np.full(3, 1e6, np.float32)},  # the sums exceed 32 bits
        {"sw": np.array([0.01, 0.0, 0.01], np.float32)},
        {"b": np.full(3, np.inf, np.float32)},
    ],
)
def test_declines(rng: np.random.Generator, changes: dict[str, Any]) -> None:
    model = build(CONV, **conv_arrays(rng, **changes))
    integer = integerize(model)
    assert ops(integer) == ops(model)


def test_the_limit_of_32_bits_is_exact(rng: np.random.Generator) -> None:
    """x - 0 up to 255 times 127 for 66311 products is just under 2^31, one more is over."""
    for depth, expected in ((66311, "i.MatMul"), (66312, "MatMul")):
        text = f"""(uint8[1,{depth}] x) => (float[1,1] y) {{
          xr = DequantizeLinear(x, s, z) wr = DequantizeLinear(w, s, zw) y = MatMul(xr, wr) }}"""
        s, z, zw = np.float32(0.01), np.uint8(0), np.int8(0)
        model = build(text, s=s, z=z, zw=zw, w=np.full((depth, 1), 127, np.int8))
        found = integerize(model)
        assert ops(found)[-1] == expected
        if expected == "i.MatMul":
            run(found, {"x": np.full((1, depth), 255, np.uint8)})  # no overflow


def test_the_limit_of_32_bits_where_both_factors_are_negative() -> None:
    for depth, expected in ((131071, "i.MatMul"), (131072, "MatMul")):  # times 128 * 128 is 2^31
        text = f"""(int8[1,{depth}] x) => (float[1,1] y) {{
          xr = DequantizeLinear(x, s, z) wr = DequantizeLinear(w, s, z) y = MatMul(xr, wr) }}"""
        w = np.full((depth, 1), -128, np.int8)
        assert ops(integerize(build(text, s=np.float32(0.01), z=np.int8(0), w=w)))[-1] == expected


def test_a_constant_of_256_numbers_is_no_table(rng: np.random.Generator) -> None:
    row = rng.normal(0, 1, 256).astype(np.float32)
    model = one_tensor("v = Mul(r, row)", shape="1,256", out="1,256", row=row)
    assert ops(integerize(model)) == ops(model)


@pytest.mark.parametrize("other", ["b", "a"])
def test_a_formula_of_two_tensors_is_no_table(rng: np.random.Generator, other: str) -> None:
    """Also not where one tensor is read with two scales."""
    text = f"""(uint8[1,3] a, uint8[1,3] b) => (uint8[1,3] y, uint8[1,3] u) {{
      ar = DequantizeLinear(a, s, z) br = DequantizeLinear({other}, t, z) u = Identity(b)
      g = Sigmoid(ar) m = Mul(g, br) y = QuantizeLinear(m, s, z) }}"""
    model = build(text, s=np.float32(0.02), t=np.float32(0.05), z=np.uint8(90))
    integer = integerize(model)
    assert "i.Lookup" not in ops(integer) and "Sigmoid" in ops(integer)
    held_to(model, integer, {"a": pixels(rng, (1, 3)), "b": pixels(rng, (1, 3))})


def test_a_second_reader_keeps_the_sums_real(rng: np.random.Generator) -> None:
    text = """(uint8[1,2,5,5] x) => (uint8[1,3,5,5] y, float[1,3,5,5] s) {
      xr = DequantizeLinear(x, sx, zx)
      wr = DequantizeLinear<axis=0>(w, sw, zw)
      c = Conv<pads=[1,1,1,1]>(xr, wr, b)
      y = QuantizeLinear(c, sy, zy)
      s = Sigmoid(c) }"""
    model = build(text, **conv_arrays(rng))
    integer = integerize(model)
    assert sorted(ops(integer)) == ["QuantizeLinear", "Sigmoid", "i.Conv"]
    assert held_to(model, integer, {"x": pixels(rng, (1, 2, 5, 5))}) == 2


def test_an_activation_that_is_read_twice_computes_its_product_once(
    rng: np.random.Generator,
) -> None:
    text = """(uint8[1,2,5,5] x) => (uint8[1,3,5,5] y, float[1,3,5,5] s) {
      xr = DequantizeLinear(x, sx, zx)
      wr = DequantizeLinear<axis=0>(w, sw, zw)
      c = Conv<pads=[1,1,1,1]>(xr, wr, b)
      r = Relu(c)
      y = QuantizeLinear(r, sy, zy)
      s = Exp(r) }"""
    integer = integerize(build(text, **conv_arrays(rng)))
    assert sorted(ops(integer)) == ["Exp", "QuantizeLinear", "Relu", "i.Conv"]


RESIDUAL = """(uint8[1,2,5,5] x, uint8[1,3,5,5] z) => (uint8[1,3,5,5] y) {
  xr = DequantizeLinear(x, sx, zx)
  wr = DequantizeLinear<axis=0>(w, sw, zw)
  c = Conv<pads=[1,1,1,1]>(xr, wr, b)
  zr = DequantizeLinear(z, sz, zz)
  a = Add(FIRST, SECOND)
  r = Relu(a)
  y = QuantizeLinear(r, sy, zy) }"""


@pytest.mark.parametrize("order", [("c", "zr"), ("zr", "c")])
@pytest.mark.parametrize("rounding", ["float32", "fixed"])
def test_residual(rng: np.random.Generator, order: tuple[str, str], rounding: str) -> None:
    text = RESIDUAL.replace("FIRST", order[0]).replace("SECOND", order[1])
    arrays = conv_arrays(rng, sz=np.float32(0.03), zz=np.uint8(100))
    model = build(text, **arrays)
    integer = integerize(model, f"{{rounding={rounding}}}")
    (node,) = integer.graph
    assert node.op_type == "Conv" and [v.name for v in integer.graph.inputs] == ["x", "z"]
    assert node.inputs[4].name == "z"
    feeds = {"x": pixels(rng, (1, 2, 5, 5)), "z": pixels(rng, (1, 3, 5, 5))}
    assert held_to(model, integer, feeds) == 1


def test_a_batch_that_is_chosen_later(rng: np.random.Generator) -> None:
    """Both branches of the sum have the same N; the mean needs to know its spatial axes alone."""
    text = """(uint8[N,2,5,5] x) => (uint8[N,3,1,1] y, uint8[N,3,5,5] v) {
      xr = DequantizeLinear(x, sx, zx)
      wr = DequantizeLinear<axis=0>(w, sw, zw)
      c = Conv<pads=[1,1,1,1]>(xr, wr, b)
      z = QuantizeLinear(c, sy, zy) zr = DequantizeLinear(z, sy, zy)
      ur = DequantizeLinear(u, sx, zw1)
      e = Conv(zr, ur)
      a = Add(e, zr)
      q = QuantizeLinear(a, sx, zx) qr = DequantizeLinear(q, sx, zx)
      m = GlobalAveragePool(qr)
      y = QuantizeLinear(m, sy, zy)
      t = Transpose<perm=[0,1,3,2]>(qr)
      p = MatMul(qr, t)
      v = QuantizeLinear(p, sy, zy) }"""
    u = rng.integers(-128, 128, (3, 3, 1, 1)).astype(np.int8)
    model = build(text, **conv_arrays(rng, u=u, zw1=np.int8(0)))
    integer = integerize(model)
    assert ops(integer) == ["i.Conv", "i.Conv", "i.GlobalAveragePool", "Transpose", "i.MatMul"]
    assert held_to(model, integer, {"x": pixels(rng, (3, 2, 5, 5))}) >= 4


def test_a_residual_that_is_broadcast_is_none(rng: np.random.Generator) -> None:
    text = (
        RESIDUAL.replace("FIRST", "c")
        .replace("SECOND", "zr")
        .replace("uint8[1,3,5,5] z", "uint8[1,3,1,1] z")
    )
    model = build(text, **conv_arrays(rng, sz=np.float32(0.03), zz=np.uint8(100)))
    integer = integerize(model)
    assert "i.Conv" in ops(integer) and "Add" in ops(integer)
    held_to(model, integer, {"x": pixels(rng, (1, 2, 5, 5)), "z": pixels(rng, (1, 3, 1, 1))})


def test_matmul_with_a_bias_behind_it_and_gemm(rng: np.random.Generator) -> None:
    w = rng.integers(-128, 128, (6, 4)).astype(np.int8)
    shared = {
        "sx": np.float32(0.02), "zx": np.int8(-7), "sw": rng.uniform(0.01, 0.02, 4).astype(np.float32),
        "zw": np.zeros(4, np.int8), "b": rng.normal(0, 1, 4).astype(np.float32),
        "sy": np.float32(0.04), "zy": np.int8(5),
    }  # fmt: skip
    text = """(int8[2,3,6] x) => (int8[2,3,4] y) {
      xr = DequantizeLinear(x, sx, zx) wr = DequantizeLinear<axis=1>(w, sw, zw)
      p = MatMul(xr, wr) a = Add(b, p) y = QuantizeLinear(a, sy, zy) }"""
    model = build(text, w=w, **shared)
    integer = integerize(model)
    assert ops(integer) == ["i.MatMul"]
    assert held_to(model, integer, {"x": pixels(rng, (2, 3, 6), np.int8)}) == 1
    text = """(int8[3,6] x) => (float[3,4] y) {
      xr = DequantizeLinear(x, sx, zx) wr = DequantizeLinear<axis=0>(w, sw, zw)
      y = Gemm<transB=1>(xr, wr, b) }"""
    del shared["sy"], shared["zy"]
    model = build(text, w=np.ascontiguousarray(w.T), **shared)
    integer = integerize(model)
    assert ops(integer) == ["i.MatMul"] and integer.graph[0].attributes["to"].value == 1
    np.testing.assert_array_equal(const(integer.graph[0].inputs[1]), w)
    assert held_to(model, integer, {"x": pixels(rng, (3, 6), np.int8)}) == 1


def test_matmul_of_two_activations(rng: np.random.Generator) -> None:
    text = """(uint8[2,3,6] a, int8[2,6,4] b) => (uint8[2,3,4] y) {
      ar = DequantizeLinear(a, sa, za) br = DequantizeLinear(b, sb, zb)
      p = MatMul(ar, br) y = QuantizeLinear(p, sy, zy) }"""
    model = build(
        text, sa=np.float32(0.02), za=np.uint8(100), sb=np.float32(0.03), zb=np.int8(4),
        sy=np.float32(0.1), zy=np.uint8(128),
    )  # fmt: skip
    feeds = {"a": pixels(rng, (2, 3, 6)), "b": pixels(rng, (2, 6, 4), np.int8)}
    for options in OPTIONS:
        integer = integerize(model, options)
        assert "i.MatMul" in ops(integer)
        held_to(model, integer, feeds)


TWO = """(uint8[1,3,4,4] a, uint8[1,3,1,4] b) => (uint8[1,3,4,4] y) {
  ar = DequantizeLinear(a, sa, za) br = DequantizeLinear(b, sb, zb)
  p = OP(ar, br) y = QuantizeLinear(p, sy, zy) }"""


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["Add", "Sub", "Mul"]),
    st.sampled_from(["float32", "fixed", "tflite"]),
    st.tuples(*[st.floats(0.002, 0.1)] * 3),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.integers(0, 1000),
)
def test_two_tensors(op: str, rounding: str, scales: Any, zeros: Any, seed: int) -> None:
    names = ("a", "b", "y")
    arrays: dict[str, Any] = {f"s{n}": np.float32(s) for n, s in zip(names, scales, strict=True)}
    arrays |= {f"z{n}": np.uint8(z) for n, z in zip(names, zeros, strict=True)}
    model = build(TWO.replace("OP", op), **arrays)
    integer = integerize(model, f"{{rounding={rounding}}}")
    assert ops(integer) == ["i.Mul" if op == "Mul" else "i.Add"]
    rng = np.random.default_rng(seed)
    held_to(model, integer, {"a": pixels(rng, (1, 3, 4, 4)), "b": pixels(rng, (1, 3, 1, 4))})


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    draw = data.draw
    group, per, out = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    rank = draw(st.integers(1, 2))
    turned = draw(st.booleans())
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    strides = [draw(st.integers(1, 2)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)]
    pads = [draw(st.integers(0, 1)) for _ in range(2 * rank)]
    unsigned = draw(st.booleans())
    dtype, kind = (np.uint8, "uint8") if unsigned else (np.int8, "int8")
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    channels, filters = group * per, group * out
    shape = (channels, out, *kernel) if turned else (filters, per, *kernel)
    size = ",".join(["6"] * rank)
    ends = ",".join("abcd"[: rank + 2])
    op = "ConvTranspose" if turned else "Conv"
    text = f"""({kind}[2,{channels},{size}] x) => ({kind}[{ends}] y) {{
      xr = DequantizeLinear(x, sx, zx) wr = DequantizeLinear(w, sw, zw)
      c = {op}<group={group}, strides={strides}, dilations={dilations}, pads={pads}>(xr, wr, b)
      y = QuantizeLinear(c, sy, zy) }}"""
    info = np.iinfo(dtype)
    arrays = {
        "sx": np.float32(rng.uniform(0.01, 0.1)), "zx": dtype(rng.integers(info.min, info.max)),
        "sw": np.float32(rng.uniform(0.001, 0.1)), "zw": np.int8(0),
        "sy": np.float32(rng.uniform(0.05, 0.5)), "zy": dtype(rng.integers(info.min, info.max)),
        "w": rng.integers(-128, 128, shape).astype(np.int8),
        "b": rng.normal(0, 2, filters).astype(np.float32),
    }  # fmt: skip
    model = build(text, **arrays)
    options = draw(st.sampled_from((*OPTIONS, "{rounding=tflite}")))
    integer = integerize(model, options)
    assert f"i.{op}" in ops(integer) and op not in ops(integer)
    feeds = {"x": pixels(rng, (2, channels, *[6] * rank), dtype)}
    assert held_to(model, integer, feeds) >= 1


def test_transposed_convolution_with_a_scale_a_channel_of_its_group(
    rng: np.random.Generator,
) -> None:
    text = """(uint8[1,4,3,3] x) => (uint8[1,6,4,4] y) {
      xr = DequantizeLinear(x, sx, zx) wr = DequantizeLinear<axis=1>(w, sw, zw)
      c = ConvTranspose<group=2>(xr, wr) y = QuantizeLinear(c, sy, zy) }"""
    w = rng.integers(-127, 128, (4, 3, 2, 2)).astype(np.int8)
    model = build(text, **conv_arrays(rng, w=w, sw=np.array([0.001, 0.01, 0.1], np.float32)))
    integer = integerize(model)
    assert ops(integer) == ["i.ConvTranspose"]
    held_to(model, integer, {"x": pixels(rng, (1, 4, 3, 3))})


def one_tensor(body: str, shape: str = "1,3,4,4", out: str = "1,3,4,4", **more: Any) -> ir.Model:
    """x -> DQ -> body (from r to v) -> Q -> y."""
    text = f"""(uint8[{shape}] x) => (uint8[{out}] y) {{
      r = DequantizeLinear(x, sx, zx) {body} y = QuantizeLinear(v, sy, zy) }}"""
    arrays = {
        "sx": np.float32(0.04), "zx": np.uint8(110), "sy": np.float32(0.03), "zy": np.uint8(40),
        **more,
    }  # fmt: skip
    return build(text, **arrays)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("v = Sigmoid(r)", ["i.Lookup"]),
        ("s = Sigmoid(r) v = Mul(r, s)", ["i.Lookup"]),
        ("d = Div(r, two) e = Erf(d) f = Add(e, one) g = Mul(r, f) v = Mul(g, half)", ["i.Lookup"]),
        ("c = Clip(r, half, two) v = Relu(c)", ["i.Requantize"]),
        ("v = Identity(r)", ["Identity", "i.Requantize"]),
        ("v = GlobalMaxPool(r)", None),  # no formula of one element
        ("v = Softmax(r)", None),
        ("v = Mul(r, many)", None),
        ("v = PRelu(r, slopes)", None),
    ],
)
def test_functions_of_one_tensor(rng: np.random.Generator, body: str, expected: Any) -> None:
    more = {
        "two": np.float32(2), "one": np.float32(1), "half": np.float32(0.5),
        "many": rng.normal(0, 1, (3, 1, 1)).astype(np.float32),
        "slopes": rng.normal(0, 1, (3, 1, 1)).astype(np.float32),
    }  # fmt: skip
    model = one_tensor(body, out="1,3,1,1" if "Global" in body else "1,3,4,4", **more)
    integer = integerize(model)
    every = np.resize(np.arange(256, dtype=np.uint8), (1, 3, 4, 4))
    if expected is None:
        assert ops(integer) == ops(model)
        return
    assert sorted(ops(integer)) == sorted(expected)
    for start in range(0, 256, 48):
        held_to(model, integer, {"x": (every + np.uint8(start)).astype(np.uint8)})
    if expected == ["i.Lookup"]:  # a table has no rounding of its own
        expected_y = every_value(model, {"x": every})["y"]
        np.testing.assert_array_equal(run(integer, {"x": every})["y"], expected_y)


@pytest.mark.parametrize(
    ("body", "out", "expected"),
    [
        ("v = AveragePool<kernel_shape=[2,2], pads=[1,0,0,1]>(r)", "1,3,4,4", ["i.AveragePool"]),
        ("v = GlobalAveragePool(r)", "1,3,1,1", ["i.GlobalAveragePool"]),
        ("v = ReduceMean(r, axes)", "1,3,1,1", ["i.GlobalAveragePool"]),
        ("v = ReduceMean<keepdims=0>(r, axes)", "1,3", ["Reshape", "i.GlobalAveragePool"]),
        (
            "v = ReduceMean(r, other)",
            "1,1,4,4",
            ["Reshape"] * 2 + ["Transpose", "i.GlobalAveragePool"],
        ),
        ("v = ReduceMean(r, outer)", "1,1,1,4", ["Reshape", "Transpose", "i.GlobalAveragePool"]),
        ("v = ReduceMean<keepdims=0>(r, last)", "1,3,4", ["Reshape"] * 2 + ["i.GlobalAveragePool"]),
    ],
)
def test_averages(rng: np.random.Generator, body: str, out: str, expected: Any) -> None:
    more = {
        "axes": np.array([-1, 2]),
        "other": np.array([1]),
        "outer": np.array([1, 2]),
        "last": np.array([-1]),
    }
    model = one_tensor(body, out=out, **more)
    for options in OPTIONS:
        integer = integerize(model, options)
        found = [o for o in ops(integer) if o != "i.Requantize"]
        assert sorted(found) == sorted(expected)
        held_to(model, integer, {"x": pixels(rng, (1, 3, 4, 4))})


@pytest.mark.parametrize(
    ("body", "out"),
    [
        ("v = MaxPool<kernel_shape=[2,2], pads=[1,0,0,1]>(r)", "1,3,4,4"),
        ("v = Transpose<perm=[0,2,3,1]>(r)", "1,4,4,3"),
        ("v = Pad(r, pads, value)", "1,3,6,4"),
        ("v = Pad(r, pads)", "1,3,6,4"),
        ('v = Pad<mode="reflect">(r, pads)', "1,3,6,4"),
        ("v = Slice(r, from, to)", "1,2,4,4"),
        ('v = Resize<mode="nearest">(r, , scales)', "1,3,8,4"),
        ("m = MaxPool<kernel_shape=[2,2]>(r) v = Relu(m)", "1,3,3,3"),
        ("v = Concat<axis=1>(r, c, r)", "1,7,4,4"),
        ("a, b = Split<axis=3, num_outputs=2>(r) v = Concat<axis=1>(a, b)", "1,6,4,2"),
    ],
)
def test_moves(rng: np.random.Generator, body: str, out: str) -> None:
    more = {
        "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]), "value": np.float32(0.77),
        "from": np.array([0, 1]), "to": np.array([1, 3]),
        "scales": np.array([1, 1, 2, 1], np.float32),
        "c": rng.normal(0, 1, (1, 1, 4, 4)).astype(np.float32),
    }  # fmt: skip
    model = one_tensor(body, out=out, **more)
    feeds = {"x": pixels(rng, (1, 3, 4, 4))}
    for options in OPTIONS:
        integer = integerize(model, options)
        assert not {"DequantizeLinear", "QuantizeLinear", "Relu"} & set(ops(integer))
        held_to(model, integer, feeds)
        got, wanted = (
            run(integer, feeds)["y"].astype(int),
            every_value(model, feeds)["y"].astype(int),
        )
        assert np.abs(got - wanted).max() <= 1


@pytest.mark.parametrize(
    ("body", "out", "kept"),
    [
        ("m = Pad(r, pads, low) v = Relu(m)", "1,3,6,4", "Relu"),  # the border is clamped, too
        ("m = Transpose<perm=[0,1,3,2]>(r) c = Relu(m) d = Exp(c) e = Mul(c, d) v = Mul(e, many)",
         "1,3,4,4", "Exp"),
        ("a, b = Split<axis=3, num_outputs=2>(many4) c = Add(r, r) d, e = Split<axis=3, num_outputs=2>(c) "
         "f = Mul(e, a) g = Sigmoid(d) h = Mul(g, f) v = Concat<axis=3>(h, h)", "1,3,4,4", "Split"),
        ("c = Sigmoid(r) m = Pad(c, pads, value) v = Exp(m)", "1,3,6,4", None),
    ],
)  # fmt: skip
def test_what_a_move_must_not_take_along(
    rng: np.random.Generator, body: str, out: str, kept: str | None
) -> None:
    more = {
        "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]), "value": np.float32(0.777), "low": np.float32(-0.77),
        "many": rng.normal(0, 1, (3, 1, 1)).astype(np.float32),
        "many4": rng.normal(0, 1, (1, 3, 4, 4)).astype(np.float32),
    }  # fmt: skip
    model = one_tensor(body, out=out, **more)
    feeds = {"x": pixels(rng, (1, 3, 4, 4))}
    integer = integerize(model)
    assert kept is None or kept in ops(integer)
    held_to(model, integer, feeds)
    got, wanted = run(integer, feeds)["y"].astype(int), every_value(model, feeds)["y"].astype(int)
    assert np.abs(got - wanted).max() <= 1


@pytest.mark.parametrize(
    "body",
    [
        "v = Transpose<perm=[0,2,3,1]>(c) t = Exp(v)",  # what is moved is read as real numbers, too
        "v, u = Split<axis=1, num_outputs=2>(c) t = Exp(u)",
    ],
)
def test_a_move_with_other_readers_stays_real(rng: np.random.Generator, body: str) -> None:
    text = f"""(uint8[1,4,4,4] x) => (uint8[a,b,c,d] y, float[a,b,c,d] t) {{
      r = DequantizeLinear(x, s, z) c = Softmax(r) {body} y = QuantizeLinear(v, s, z) }}"""
    model = build(text, s=np.float32(0.01), z=np.uint8(50))
    integer = integerize(model)
    assert ops(integer) == ops(model)
    held_to(model, integer, {"x": pixels(rng, (1, 4, 4, 4))})


def test_a_border_that_has_no_integer_stays_real(rng: np.random.Generator) -> None:
    """Nothing is quantized behind this Pad, so its value may not be rounded."""
    text = """(uint8[1,3,4,4] x) => (float[1,3,6,4] y) {
      r = DequantizeLinear(x, s, z) y = Pad(r, pads, value) }"""
    given = {"s": np.float32(0.04), "z": np.uint8(110), "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0])}
    for value, expected in (
        (0.777, ["DequantizeLinear", "Pad"]),
        (np.float32(0.04) * 20, ["Pad", "DequantizeLinear"]),
    ):
        model = build(text, value=np.float32(value), **given)
        integer = integerize(model)
        assert ops(integer) == expected
        feeds = {"x": pixels(rng, (1, 3, 4, 4))}
        np.testing.assert_array_equal(run(integer, feeds)["y"], every_value(model, feeds)["y"])


@pytest.mark.parametrize(
    "body",
    [
        "p = Gemm<alpha=0.5>(xr, wr, b)",
        "p = Gemm<beta=0.5>(xr, wr, b)",
        "p = Gemm<transA=1>(xr, wr, b)",
        "m = MatMul(xr, wr) p = Add(m, rows)",  # a number a row is no bias
        "m = Gemm(xr, wr, b) p = Add(m, b)",  # two biases
    ],
)
def test_no_plain_product_with_a_bias(rng: np.random.Generator, body: str) -> None:
    text = f"""(uint8[4,4] x) => (uint8[4,4] y) {{
      xr = DequantizeLinear(x, sx, zx) wr = DequantizeLinear<axis=1>(w, sw, zw)
      {body} y = QuantizeLinear(p, sy, zy) }}"""
    model = build(
        text, sx=np.float32(0.02), zx=np.uint8(100), sw=np.full(4, 0.01, np.float32), zw=np.zeros(4, np.int8),
        w=rng.integers(-128, 128, (4, 4)).astype(np.int8), b=rng.normal(0, 1, 4).astype(np.float32),
        rows=rng.normal(0, 1, (4, 1)).astype(np.float32), sy=np.float32(0.01), zy=np.uint8(128),
    )  # fmt: skip
    integer = integerize(model)
    assert ops(integer)[-1] == "QuantizeLinear"
    held_to(model, integer, {"x": pixels(rng, (4, 4))})


def test_concat_of_different_parameters(rng: np.random.Generator) -> None:
    text = """(uint8[1,3] a, uint8[1,3] b) => (uint8[1,6] y) {
      ar = DequantizeLinear(a, s, z) br = DequantizeLinear(b, t, z)
      v = Concat<axis=1>(ar, br) y = QuantizeLinear(v, s, z) }"""
    model = build(text, s=np.float32(0.02), t=np.float32(0.05), z=np.uint8(9))
    integer = integerize(model)
    assert ops(integer) == ["i.Requantize", "Concat"]  # only b
    assert integer.graph[1].inputs[0].name == "a"
    held_to(model, integer, {"a": pixels(rng, (1, 3)), "b": pixels(rng, (1, 3))})


@pytest.mark.parametrize("options", ["{activations=unsigned}", "{activations=signed}"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_activations_of_one_type(rng: np.random.Generator, options: str, kind: str) -> None:
    """Inputs and outputs keep their types; all that is computed in between has the other."""
    text = f"""({kind}[1,2,5,5] x) => ({kind}[1,3,7,5] y) {{
      p = Transpose<perm=[0,1,3,2]>(x)
      xr = DequantizeLinear(p, sx, zx)
      wr = DequantizeLinear(w, sw, zw)
      c = Conv<pads=[1,1,1,1]>(xr, wr)
      q = QuantizeLinear(c, sy, zy)
      d = Pad(q, pads)
      dr = DequantizeLinear(d, sy, zy)
      e = Add(dr, dr)
      y = QuantizeLinear(e, sx, zx) }}"""
    dtype = np.dtype(kind).type
    model = build(
        text, sx=np.float32(0.02), zx=dtype(5), sw=np.float32(0.01), zw=np.int8(0),
        sy=np.float32(0.03), zy=dtype(7), pads=np.array([0, 0, 1, 0, 0, 0, 1, 0]),
        w=rng.integers(-128, 128, (3, 2, 3, 3)).astype(np.int8),
    )  # fmt: skip
    feeds = {"x": pixels(rng, (1, 2, 5, 5), dtype)}
    integer = integerize(model, options)
    wanted = ir.DataType.UINT8 if "unsigned" in options else ir.DataType.INT8
    same = wanted.numpy() == np.dtype(kind)
    assert ops(integer).count("i.Requantize") == (0 if same else 1)
    inner = [n for n in integer.graph if n.op_type == "Conv"]
    assert [n.outputs[0].dtype for n in inner] == [wanted]
    assert held_to(model, integer, feeds) >= 3
    np.testing.assert_array_equal(
        run(integer, feeds)["y"], run(integerize(model), feeds)["y"], "the type changes nothing"
    )


def test_verified_after_every_pass() -> None:
    """The instrument runs integer models by their reference; passes may follow integerize."""
    model = zoo.build("tiny-ghostnet")
    fix_shapes(model, {str(model.graph.inputs[0].name): zoo.member("tiny-ghostnet").input_shape})
    infer_shapes(model)
    text = f"{passes.FUSE},quantize{{scheme=integer}},integerize,eliminate-common-subexpressions"
    watch = VerifyEach(random_feeds(model, 2))
    records = passes.parse(text).run(model, PassContext(), [watch])
    assert [r.rewrites > 0 for r in records if r.id in ("quantize", "integerize")] == [True, True]


def test_options_are_checked() -> None:
    for options, message in (
        ({"activations": "int8"}, "activations=int8 is not one of keep, unsigned, signed"),
        ({"rounding": "half-up"}, "rounding=half-up is not one of float32, tflite, fixed"),
        ({"rounding": "tflite", "activations": "unsigned"}, "averages around the stored zero"),
    ):
        with pytest.raises(ConfigError, match=message):
            Integerize(**options).run(
                build("(float[1] x) => (float[1] y) { y = Relu(x) }"), PassContext()
            )


def test_a_float_model_is_left_alone() -> None:
    model = zoo.build("tiny-conv")
    before = ops(model)
    assert Integerize().run(model, PassContext()) == 0
    assert ops(model) == before and DOMAIN not in model.opset_imports
