"""lower-qoperators: the same parameters, bit by bit, and onnxruntime's own kernels within one unit."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import pytest

from effc import frontend, passes, zoo
from effc.core.errors import FrontendError, PassError
from effc.core.integers import DOMAIN
from effc.core.ir import const, is_op
from effc.core.passinfra import PassContext
from effc.core.quant import quant_params
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import fix_shapes, infer_shapes
from effc.passes.quantize.lower_qoperators import LowerQoperators

MS = "com.microsoft"
Array = np.ndarray


def model(
    op: str,
    inputs: dict[str, Any],
    domain: str = "",
    version: int = 21,
    out: str = "uint8",
    **attributes: Any,
) -> tuple[ir.Model, dict[str, Array]]:
    """One operator; arrays in `inputs` are initializers, or graph inputs where the name starts with `in`."""
    names = [n if a is not None else "" for n, a in inputs.items()]
    node = onnx.helper.make_node(op, names, ["y"], name="the_node", domain=domain, **attributes)
    feeds = {n: np.asarray(a) for n, a in inputs.items() if n.startswith("in")}
    held = {n: np.asarray(a) for n, a in inputs.items() if a is not None and n not in feeds}
    kind = onnx.helper.np_dtype_to_tensor_dtype
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in feeds.items()],
        [onnx.helper.make_tensor_value_info("y", kind(np.dtype(out)), None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in held.items()],
    )
    opsets = [onnx.helper.make_opsetid("", version), onnx.helper.make_opsetid(MS, 1)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ir.from_proto(proto), feeds


def held_to_onnxruntime(made: ir.Model, feeds: dict[str, Array], unit: float = 1) -> list[str]:
    """Lower it; the answers may be one `unit` off. The names of the operators that it became."""
    with OnnxRuntimeRunner(made, optimize=False) as runner:
        expected = runner.infer(feeds)
    assert LowerQoperators().run(made, PassContext()) == 1
    assert LowerQoperators().run(made, PassContext()) == 0
    assert {n.domain for n in made.graph} == {""} and MS not in made.opset_imports
    infer_shapes(made)
    with OnnxRuntimeRunner(made, optimize=False) as runner:
        found = runner.infer(feeds)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        off = np.abs(found[name].astype(np.float64) - array.astype(np.float64))
        assert off.max() <= unit
        assert unit < 1 or (off > 0).mean() <= 0.1
        assert np.unique(array).size > 3, "vacuous"
    return [n.op_type for n in made.graph]


def parameters(made: ir.Model) -> dict[str, tuple[bytes, bytes]]:
    """Scale and zero point of every Q and DQ by what it quantizes or dequantizes (inputs by name)."""
    found = {}
    for node in made.graph:
        if is_op(node, "QuantizeLinear", "DequantizeLinear"):
            p = quant_params(node)
            assert p is not None
            end = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
            found[str(end.name)] = (p.scale.tobytes(), p.zero_point.tobytes())
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def u8(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(0, 256, shape).astype(np.uint8)


def i8(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-128, 128, shape).astype(np.int8)


F, U, I = np.float32, np.uint8, np.int8  # noqa: E741


def test_qlinear_conv(rng: np.random.Generator) -> None:
    sw = rng.uniform(0.005, 0.02, 6).astype(F)
    bias = rng.integers(-2000, 2000, 6).astype(np.int32)
    made, feeds = model(
        "QLinearConv",
        {
            "in_x": u8(rng, 2, 4, 6, 6), "sx": F(0.0213), "zx": U(117), "w": i8(rng, 6, 2, 3, 3), "sw": sw,
            "zw": np.zeros(6, I), "sy": F(0.0871), "zy": U(99), "b": bias,
        },
        group=2, pads=[1, 0, 1, 0], strides=[2, 1],
    )  # fmt: skip
    assert held_to_onnxruntime(made, feeds) == [*["DequantizeLinear"] * 3, "Conv", "QuantizeLinear"]
    zero = np.zeros(6, np.int32).tobytes()
    assert parameters(made) == {
        "in_x": (F(0.0213).tobytes(), U(117).tobytes()),
        "w": (sw.tobytes(), np.zeros(6, I).tobytes()),
        "b": ((F(0.0213) * sw).tobytes(), zero),
        "y": (F(0.0871).tobytes(), U(99).tobytes()),
    }
    (stored,) = [n.inputs[0] for n in made.graph if n.inputs[0].name == "b"]
    np.testing.assert_array_equal(const(stored), bias)


@pytest.mark.parametrize("columns", [False, True])
def test_qlinear_matmul(rng: np.random.Generator, columns: bool) -> None:
    sb = rng.uniform(0.005, 0.02, 5).astype(F) if columns else np.array([0.013], F)
    zb = np.zeros(5, I) if columns else np.array([7], I)
    made, feeds = model(
        "QLinearMatMul",
        {
            "in_a": u8(rng, 2, 3, 8), "sa": F(0.02), "za": U(100), "b": i8(rng, 8, 5), "sb": sb, "zb": zb,
            "sy": F(0.05), "zy": U(128),
        },
    )  # fmt: skip
    assert "MatMul" in held_to_onnxruntime(made, feeds)
    assert parameters(made)["b"] == (sb.tobytes(), zb.tobytes())


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("real", [False, True])
def test_qgemm(rng: np.random.Generator, real: bool, alpha: float) -> None:
    sb = rng.uniform(0.005, 0.02, 5).astype(F)
    inputs = {
        "in_a": u8(rng, 3, 8), "sa": F(0.02), "za": U(100), "b": i8(rng, 5, 8), "sb": sb,
        "zb": np.zeros(5, I),
        "c": rng.integers(-900, 900, (1, 5)).astype(np.int32),
    }  # fmt: skip
    if not real:
        inputs |= {"sy": F(0.05), "zy": U(128)}
    out = "float32" if real else "uint8"
    made, feeds = model("QGemm", inputs, MS, out=out, transB=1, alpha=alpha)
    found = held_to_onnxruntime(made, feeds, 1e-5 if real else 1)
    assert found == [*["DequantizeLinear"] * 3, "Gemm", *([] if real else ["QuantizeLinear"])]


@pytest.mark.parametrize(
    ("op", "inner", "attributes"),
    [
        ("QLinearSigmoid", "Sigmoid", {}),
        ("QLinearLeakyRelu", "LeakyRelu", {"alpha": 0.3}),
        ("QLinearSoftmax", "Softmax", {"axis": 1, "opset": 21}),
        ("QLinearSoftmax", "Softmax", {"axis": 3, "opset": 11}),
        ("QLinearGlobalAveragePool", "GlobalAveragePool", {}),
        ("QLinearAveragePool", "AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        (
            "QLinearAveragePool",
            "AveragePool",
            {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_one_input(
    rng: np.random.Generator, op: str, inner: str, attributes: dict[str, Any], kind: str
) -> None:
    x = u8(rng, 1, 8, 5, 5) if kind == "uint8" else i8(rng, 1, 8, 5, 5)
    zero = np.dtype(kind).type
    sigma = 1 / 256 if inner in ("Sigmoid", "Softmax") else 0.03
    sy = F(sigma / 8 if inner == "Softmax" else sigma)
    made, feeds = model(
        op, {"in_x": x, "sx": F(0.04), "zx": zero(60), "sy": sy, "zy": zero(20)}, MS, out=kind,
        **attributes,
    )  # fmt: skip
    assert inner in held_to_onnxruntime(made, feeds)
    found = parameters(made)
    assert found["in_x"] == (F(0.04).tobytes(), zero(60).tobytes())
    assert found["y"] == (sy.tobytes(), zero(20).tobytes())


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_two_inputs(rng: np.random.Generator, op: str) -> None:
    made, feeds = model(
        op,
        {
            "in_a": i8(rng, 2, 3, 4), "sa": F(0.03), "za": I(-4), "b": i8(rng, 3, 1), "sb": F(0.02),
            "zb": I(9), "sy": F(0.07), "zy": I(-30),
        },
        MS, out="int8",
    )  # fmt: skip
    assert op.removeprefix("QLinear") in held_to_onnxruntime(made, feeds)
    assert parameters(made)["b"] == (F(0.02).tobytes(), I(9).tobytes())


def test_absent_zero_points_are_0(rng: np.random.Generator) -> None:
    """As the schema has it; onnxruntime's kernels crash there, so they are asked with the zeros given."""
    inputs = {"in_x": u8(rng, 9, 9), "sx": F(0.03), "zx": U(0), "sy": F(1 / 256), "zy": U(0)}
    made, feeds = model("QLinearSigmoid", inputs, MS)
    with OnnxRuntimeRunner(made, optimize=False) as runner:
        expected = runner.infer(feeds)["y"].astype(int)
    made, _ = model("QLinearSigmoid", {**inputs, "zx": None, "zy": None}, MS)
    LowerQoperators().run(made, PassContext())
    infer_shapes(made)
    with OnnxRuntimeRunner(made, optimize=False) as runner:
        assert np.abs(runner.infer(feeds)["y"] - expected).max() <= 1


def test_concat(rng: np.random.Generator) -> None:
    made, feeds = model(
        "QLinearConcat",
        {
            "sy": F(0.05), "zy": U(50), "in_a": u8(rng, 2, 3), "sa": F(0.03), "za": U(4), "b": u8(rng, 2, 4),
            "sb": F(0.02), "zb": U(9),
        },
        MS, axis=1,
    )  # fmt: skip
    assert "Concat" in held_to_onnxruntime(made, feeds)


def test_where(rng: np.random.Generator) -> None:
    made, feeds = model(
        "QLinearWhere",
        {
            "in_c": rng.random((4, 5)) < 0.5, "a": u8(rng, 4, 5), "sa": F(0.03), "za": U(4),
            "in_b": u8(rng, 5), "sb": F(0.02), "zb": U(9), "sy": F(0.05), "zy": U(50),
        },
        MS,
    )  # fmt: skip
    assert "Where" in held_to_onnxruntime(made, feeds)


@pytest.mark.parametrize(
    ("op", "x", "w"),
    [("ConvInteger", (1, 3, 6, 6), (4, 3, 3, 3)), ("MatMulInteger", (5, 6), (6, 4))],
)
def test_integer_products(rng: np.random.Generator, op: str, x: Any, w: Any) -> None:
    """Alone they keep their int32 output, exact below 2^24."""
    inputs = {"in_x": u8(rng, *x), "w": u8(rng, *w), "zx": U(100), "zw": U(127)}
    made, feeds = model(op, inputs, out="int32")
    assert held_to_onnxruntime(made, feeds, 0)[-1] == "Cast"


def test_operators_of_optimized_models(rng: np.random.Generator) -> None:
    made, feeds = model(
        "MatMulIntegerToFloat",
        {
            "in_a": u8(rng, 3, 8), "in_b": u8(rng, 8, 5), "sa": F(0.02), "sb": F(0.01), "za": U(100),
            "zb": U(90), "bias": rng.normal(0, 1, 5).astype(F),
        },
        MS, out="float32",
    )  # fmt: skip
    assert held_to_onnxruntime(made, feeds, 1e-5)[-2:] == ["MatMul", "Add"]
    made, feeds = model(
        "DynamicQuantizeMatMul",
        {"in_a": rng.normal(0, 1, (3, 8)).astype(F), "b": i8(rng, 8, 5), "sb": F(0.01), "zb": I(3)},
        MS, out="float32",
    )  # fmt: skip
    assert held_to_onnxruntime(made, feeds, 1e-5)[0] == "DynamicQuantizeLinear"


def test_what_has_no_equal_is_refused_with_a_remedy(rng: np.random.Generator) -> None:
    x = {"in_x": u8(rng, 1, 5, 5, 8), "sx": F(0.04), "zx": U(60), "sy": F(0.1), "zy": U(20)}
    made, _ = model("QLinearGlobalAveragePool", x, MS, channels_last=1)
    with pytest.raises(PassError, match="'the_node'.*has its channels last") as error:
        LowerQoperators().run(made, PassContext())
    assert "QuantFormat.QDQ" in error.value.hint
    made, _ = model("QLinearSoftmax", x, MS, axis=1, opset=11)
    with pytest.raises(PassError, match="over more than the last axis"):
        LowerQoperators().run(made, PassContext())


def test_a_standard_operator_that_has_no_equal_stays(rng: np.random.Generator) -> None:
    inputs = {
        "in_a": u8(rng, 2, 8), "sa": np.array([0.02, 0.03], F), "za": np.array([1, 2], U), "b": i8(rng, 8, 5),
        "sb": F(0.01), "zb": I(0), "sy": F(0.05), "zy": U(128),
    }  # fmt: skip
    made, _ = model("QLinearMatMul", inputs)
    count = len(made.graph.initializers)
    assert LowerQoperators().run(made, PassContext()) == 0
    assert [n.op_type for n in made.graph] == ["QLinearMatMul"]
    assert len(made.graph.initializers) == count


def test_the_loader_says_what_to_do_about_others(tmp_path: Path, rng: np.random.Generator) -> None:
    made, _ = model("QAttention", {"in_x": u8(rng, 1, 2, 4), "w": u8(rng, 4, 12)}, MS, num_heads=1)
    ir.save(made, tmp_path / "m.onnx")
    with pytest.raises(FrontendError, match="QAttention") as error:
        frontend.load_source(str(tmp_path / "m.onnx"))
    assert "QuantFormat.QDQ" in error.value.hint


# models that onnxruntime.quantization makes


def quantized(name: str, folder: Path, **options: Any) -> tuple[Path, list[dict[str, Array]]]:
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    made = zoo.build(name)
    fix_shapes(made, {str(made.graph.inputs[0].name): zoo.member(name).input_shape})
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(made, PassContext())
    infer_shapes(made)
    source, target = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(ir.to_proto(made), source)
    feeds = random_feeds(made, 3, seed=1)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    if options.pop("dynamic", False):
        quantize_dynamic(source, target, **options)
    else:
        quantize_static(source, target, Reader(), **options)
    return target, feeds


def stored_parameters(made: ir.Model) -> set[bytes]:
    """All constant scales, zero points and integer weights."""
    found = set()
    for node in made.graph:
        quantizing = "Q" in node.op_type or node.op_type.endswith(("Integer", "QuantizeLinear"))
        for value in node.inputs if quantizing or node.op_type == "DequantizeLinear" else ():
            array = const(value)
            if array is not None and (array.dtype.kind in "iu" or array.dtype == np.float32):
                found.add(array.tobytes())
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny-conv", {"format": "QOperator", "activation": "QUInt8", "per_channel": True}),
        ("tiny-resnet", {"format": "QOperator", "activation": "QInt8", "per_channel": False}),
        ("tiny-mobilenetv3", {"format": "QOperator", "activation": "QUInt8", "per_channel": True}),
        ("tiny-vit", {"format": "QOperator", "activation": "QInt8", "per_channel": False}),
        ("tiny-resnet", {"format": "QDQ", "activation": "QUInt8", "per_channel": True}),
        ("tiny-conv", {"dynamic": True}),
        ("tiny-mlp", {"dynamic": True}),
    ],
)
def test_models_of_onnxruntime(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Loaded and canonicalized, all parameters are there, bit by bit, and the answers within one unit."""
    from onnxruntime.quantization import QuantFormat, QuantType

    if options.get("dynamic"):
        given: dict[str, Any] = {"dynamic": True, "weight_type": QuantType.QInt8}
    else:
        given = {
            "quant_format": QuantFormat[options["format"]],
            "activation_type": QuantType[options["activation"]],
            "weight_type": QuantType.QInt8,
            "per_channel": options["per_channel"],
        }
    path, feeds = quantized(name, tmp_path, **given)
    made = frontend.load_source(str(path)).model
    before = stored_parameters(made)
    with OnnxRuntimeRunner(made, optimize=False) as runner:
        expected = [runner.infer(f) for f in feeds]
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(made, PassContext())
    infer_shapes(made)
    assert not [n for n in made.graph if n.domain or n.op_type.startswith("QLinear")]
    assert not [n for n in made.graph if n.op_type.endswith("Integer")]
    lost = before - stored_parameters(made)
    assert not lost, f"{len(lost)} of {len(before)}"
    with OnnxRuntimeRunner(made, optimize=False) as runner:
        found = [runner.infer(f) for f in feeds]
    (key,) = expected[0]
    span = max(np.abs(e[key]).max() for e in expected)
    off = np.array([np.abs(f[key] - e[key]).max() for f, e in zip(found, expected, strict=True)])
    assert off.max() <= span * 0.02  # a unit here and there, seen through the layers behind it
    if options.get("dynamic"):
        return
    passes.parse("integerize").run(made, PassContext())
    assert not [
        n for n in made.graph if n.op_type in ("Conv", "Gemm", "MatMul") and n.domain != DOMAIN
    ]
