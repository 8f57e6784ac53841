"""The MLPerf Tiny files against TFLite's interpreter, and where quantized ones may differ from it."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc import frontend
from effc.core.ir import attr, const
from effc.frontend.tflite.read import read

NAMES = ("resnet8", "vww96", "kws")


def samples(tfl: Any, name: str, count: int) -> np.ndarray:
    """int8 inputs [count, H, W, C]: pictures, speech features, or noise where there is no data."""
    if name == "resnet8":
        x = np.load(tfl.file("data/cifar10_dev_5000.npz"))["x"][:count]
        return (x.astype(int) - 128).astype(np.int8)
    if name == "kws":
        return np.load(tfl.file("data/kws_dev_500.npz"))["x"][:count, :, :, None]  # type: ignore[no-any-return]
    return np.random.default_rng(0).integers(-128, 128, (count, 96, 96, 3)).astype(np.int8)


def outputs(tfl: Any, data: bytes, x: np.ndarray, kind: str) -> np.ndarray:
    interpreter = tfl.Interpreter(data, kind)
    return np.concatenate([interpreter.run(s[None])[0] for s in x])


def ort_outputs(tfl: Any, model: ir.Model, x: np.ndarray, *, optimized: bool) -> np.ndarray:
    made = tfl.session(model, optimized=optimized)
    name = made.get_inputs()[0].name
    return np.concatenate([made.run(None, {name: s[None]})[0] for s in x])


def showing(tfl: Any, data: bytes, tensor: int) -> bytes:
    """The file with `tensor` as its output, patched in place."""
    graph = tfl.schema.Model.GetRootAs(data, 0).Subgraphs(0)
    patched = bytearray(data)
    struct.pack_into("<i", patched, graph._tab.Vector(graph._tab.Offset(8)), tensor)
    assert read(tfl.schema, bytes(patched)).outputs == (tensor,)
    return bytes(patched)


@pytest.mark.parametrize("name", ["resnet8", "vww96"])
def test_float_models(tfl: Any, name: str) -> None:
    path = tfl.file(f"models/mlperf_tiny_{name}_float.tflite")
    model = frontend.load_source(str(path)).model
    x = np.random.default_rng(0).uniform(0, 1, (8, *model.graph.inputs[0].shape[1:]))
    x = (x * (255 if name == "resnet8" else 1)).astype(np.float32)
    expected = outputs(tfl, path.read_bytes(), x, "reference")
    np.testing.assert_allclose(ort_outputs(tfl, model, x, optimized=True), expected, atol=1e-5)


def test_a_model_with_quantized_weights(tfl: Any) -> None:
    """kws_float has int8 weights in float operators, whose inputs TFLite quantizes as it runs.

    The import does not (its note says so). Doing it in the imported model, as TFLite's specification of
    hybrid kernels has it (symmetric, one scale a sample), brings both together.
    """
    path = tfl.file("models/mlperf_tiny_kws_float.tflite")
    source = frontend.load_source(str(path))
    assert any("5 operators have quantized weights" in note for note in source.notes)
    x = ((samples(tfl, "kws", 50).astype(np.float32) - 83) * np.float32(0.5847029)).astype(
        np.float32
    )
    expected = outputs(tfl, path.read_bytes(), x, "reference")
    plain = ort_outputs(tfl, source.model, x, optimized=False)
    assert (plain.argmax(-1) == expected.argmax(-1)).mean() >= 0.96
    for node in list(source.model.graph):
        weight = node.inputs[1].producer() if node.op_type == "Conv" else None
        if weight is not None and weight.op_type == "DequantizeLinear":
            _quantize_input(source.model.graph, node)
    both = ort_outputs(tfl, source.model, x, optimized=False)
    off = np.abs(both - expected).max(axis=-1)
    # a value next to the middle of two integers may still go either way
    assert np.median(off) < 1e-5 and np.median(np.abs(plain - expected).max(axis=-1)) > 1e-5


def _quantize_input(graph: ir.Graph, node: ir.Node) -> None:
    def constant(array: Any, name: str) -> ir.Value:
        value = ir.Value(name=f"{node.name}/{name}", const_value=ir.tensor(array))
        graph.register_initializer(value)
        return value

    x = node.inputs[0]
    steps = [ir.node("Abs", [x])]
    steps.append(ir.node("ReduceMax", [steps[-1].outputs[0]], {"keepdims": 0}))
    steps.append(ir.node("Div", [steps[-1].outputs[0], constant(np.float32(127), "n")]))
    scale = steps[-1].outputs[0]
    zero = constant(np.int8(0), "z")
    steps.append(ir.node("QuantizeLinear", [x, scale, zero]))
    steps.append(ir.node("DequantizeLinear", [steps[-1].outputs[0], scale, zero]))
    for k, step in enumerate(steps):
        step.name = step.outputs[0].name = f"{node.name}/hybrid{k}"
        graph.insert_before(node, step)
    node.replace_input_with(0, steps[-1].outputs[0])


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_bit_exact(tfl: Any, name: str) -> None:
    path = tfl.file(f"models/mlperf_tiny_{name}_int8.tflite")
    contents = read(tfl.schema, path.read_bytes())
    initializers = frontend.load_source(str(path)).model.graph.initializers
    found = {n: v.const_value.numpy() for n, v in initializers.items() if v.const_value is not None}
    checked = 0
    for operator in contents.operators:
        for i in (*operator.inputs, *operator.outputs):
            tensor = contents.tensors[i]
            if tensor.quantization is None:
                continue
            checked += 1
            scale = found[f"{tensor.name}/scale"].reshape(-1)
            assert scale.tobytes() == tensor.quantization.scale.tobytes()
            if tensor.dtype == np.int8:
                zero = found[f"{tensor.name}/zero_point"]
                assert zero.dtype == np.int8
                np.testing.assert_array_equal(zero.reshape(-1), tensor.quantization.zero_point)
            if tensor.data is not None:
                order = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2)}
                data = tensor.data
                if data.ndim == 4:
                    data = data.transpose(order[operator.op])
                np.testing.assert_array_equal(found[tensor.name], data)
    assert checked >= 40


@pytest.mark.parametrize("name", NAMES)
def test_bit_exact_under_tflites_rounding(tfl: Any, name: str) -> None:
    """The imported model, computed with integers and TFLite's rounding rule, gives the same logits.

    So nothing is lost in the import: what onnxruntime does differently is the rounding alone.
    """
    path = tfl.file(f"models/mlperf_tiny_{name}_int8.tflite")
    data = path.read_bytes()
    contents = read(tfl.schema, data)
    softmax = contents.operators[-1]
    assert softmax.op == "SOFTMAX"
    x = samples(tfl, name, 100)
    expected = outputs(tfl, showing(tfl, data, softmax.inputs[0]), x, "reference")
    model = frontend.load_source(str(path)).model
    found = Integers(model).run(x)[contents.tensors[softmax.inputs[0]].name]
    np.testing.assert_array_equal(found, expected)


# measured on 100 samples with onnxruntime 1.31 and ai-edge-litert 2.3:
# share of the int8 probabilities that differ from the interpreter's default (XNNPACK) kernels, and the
# largest difference
DEFAULT = {"kws": (0.0, 0), "vww96": (0.04, 1), "resnet8": (0.09, 60)}


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_against_the_default_kernels(tfl: Any, name: str) -> None:
    """XNNPACK rounds a real number once, half to even, as QuantizeLinear does; only ties differ.

    resnet8 has many: its average of 8x8 is an integer over 64, so one in 64 is a tie, which TFLite takes
    away from zero. The dense layer and a steep softmax turn such a unit into several.
    """
    path = tfl.file(f"models/mlperf_tiny_{name}_int8.tflite")
    x = samples(tfl, name, 100)
    expected = outputs(tfl, path.read_bytes(), x, "default").astype(int)
    model = frontend.load_source(str(path)).model
    found = ort_outputs(tfl, model, x, optimized=False)
    off = np.abs(found - expected)
    share, most = DEFAULT[name]
    assert found.dtype == np.int8 and (off > 0).mean() <= share and off.max() <= most
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.98


def test_accuracy_of_keyword_spotting(tfl: Any) -> None:
    model = frontend.load_source(str(tfl.file("models/mlperf_tiny_kws_int8.tflite"))).model
    y = np.load(tfl.file("data/kws_dev_500.npz"))["y"]
    found = ort_outputs(tfl, model, samples(tfl, "kws", 500), optimized=True)
    assert (found.argmax(-1) == y).mean() == pytest.approx(0.906)


def test_accuracy_of_resnet8(tfl: Any) -> None:
    """74.84 % on 5000 pictures in the default interpreter, 74.82 % in onnxruntime: one picture."""
    model = frontend.load_source(str(tfl.file("models/mlperf_tiny_resnet8_int8.tflite"))).model
    y = np.load(tfl.file("data/cifar10_dev_5000.npz"))["y"]
    found = ort_outputs(tfl, model, samples(tfl, "resnet8", 5000), optimized=True)
    assert (found.argmax(-1) == y).mean() == pytest.approx(0.7484, abs=0.0006)


# TFLite's integer arithmetic (common.h, quantization_util.cc, reference/integer_ops), on imported models


def multiplier(real: Any) -> tuple[np.ndarray, np.ndarray]:
    """QuantizeMultiplier: `real` as a 31-bit fraction and a power of two."""
    fraction, shift = np.frexp(np.asarray(real, np.float64))
    fixed = np.floor(fraction * (1 << 31) + 0.5).astype(np.int64)
    shift = np.where(fixed == 1 << 31, shift + 1, shift)
    fixed = np.where(fixed == 1 << 31, 1 << 30, fixed)
    return np.where(shift < -31, 0, fixed), np.where(shift < -31, 0, shift)


def rescale(x: np.ndarray, real: Any) -> np.ndarray:
    """MultiplyByQuantizedMultiplier: rounds twice, the second time half away from zero."""
    fixed, shift = multiplier(real)
    product = (x.astype(np.int64) << np.maximum(shift, 0)) * fixed
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)
    right = np.maximum(-shift, 0)
    mask = (np.int64(1) << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def rescale_once(x: np.ndarray, real: Any) -> np.ndarray:
    """What the kernel of FULLY_CONNECTED does: rounds once, half up."""
    fixed, shift = multiplier(real)
    return (x * fixed + (np.int64(1) << (30 - shift))) >> (31 - shift)


class Integers:
    """Runs an imported model with numpy; a real number is a function from (scale, zero point) to int8."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        (entry,) = self.graph.inputs
        self.q: dict[str, np.ndarray] = {str(entry.name): x}
        self.real: dict[str, Any] = {}
        for node in self.graph:
            name = str(node.outputs[0].name)
            done = getattr(self, node.op_type)(node)
            (self.q if isinstance(done, np.ndarray) else self.real)[name] = done
        return self.q

    def Transpose(self, node: ir.Node) -> np.ndarray:
        return self.q[node.inputs[0].name].transpose(attr(node, "perm"))

    def Reshape(self, node: ir.Node) -> np.ndarray:
        shape = const(node.inputs[1])
        return self.q[node.inputs[0].name].reshape(-1, *shape[1:])

    def DequantizeLinear(self, node: ir.Node) -> Any:
        scale = const(node.inputs[1]).astype(np.float64)
        stored = const(node.inputs[0])
        stored = self.q[node.inputs[0].name] if stored is None else stored
        zero = const(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0
        assert stored.dtype == np.int8 or not np.any(zero)
        return {"q": stored.astype(np.int64) - np.max(zero), "scale": scale, "zero": np.max(zero)}

    def Conv(self, node: ir.Node) -> Any:
        x, w = (self.real[v.name] for v in node.inputs[:2])
        top, left, bottom, right = attr(node, "pads")
        (sy, sx), group = attr(node, "strides"), attr(node, "group", 1)
        padded = np.pad(x["q"], ((0, 0), (0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, w["q"].shape[2:], (2, 3))
        windows = windows[:, :, ::sy, ::sx].astype(np.float64)  # exact: far below 2^53
        kernel = w["q"].astype(np.float64)
        if group == 1:
            acc = np.tensordot(windows, kernel, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        else:
            acc = np.einsum("nchwij,cij->nchw", windows, kernel[:, 0])
        bias = self.real[node.inputs[2].name]["q"].reshape(-1, 1, 1)
        scale = (x["scale"] * w["scale"]).reshape(-1, 1, 1)
        return self._rescaled(acc.astype(np.int64) + bias, scale)

    def Gemm(self, node: ir.Node) -> Any:
        x, w, b = (self.real[v.name] for v in node.inputs)
        acc, real = x["q"] @ w["q"].T + b["q"], x["scale"] * w["scale"]
        return lambda scale, zero: rescale_once(acc, real / scale) + zero

    def Add(self, node: ir.Node) -> Any:
        a, b = (self.real[v.name] for v in node.inputs)
        twice = 2 * max(a["scale"], b["scale"])
        total = sum(rescale(v["q"] << 20, v["scale"] / twice) for v in (a, b))
        return self._rescaled(total, twice / (1 << 20))

    def AveragePool(self, node: ir.Node) -> Any:
        x = self.real[node.inputs[0].name]
        stored = x["q"] + x["zero"]
        count = stored.shape[2] * stored.shape[3]
        assert tuple(attr(node, "kernel_shape")) == stored.shape[2:]
        total = stored.sum(axis=(2, 3), keepdims=True)
        mean = np.sign(total) * ((np.abs(total) + count // 2) // count)

        def quantize(scale: float, zero: int) -> np.ndarray:
            assert scale == x["scale"] and zero == x["zero"]
            return mean  # type: ignore[no-any-return]

        return quantize

    def Relu(self, node: ir.Node) -> Any:
        inner = self.real[node.inputs[0].name]
        return lambda scale, zero: np.maximum(inner(scale, zero), zero)

    def Softmax(self, node: ir.Node) -> Any:
        x = self.real[node.inputs[0].name]
        e = np.exp((x["q"] - x["q"].max(-1, keepdims=True)) * x["scale"])
        return lambda scale, zero: np.round(e / e.sum(-1, keepdims=True) / scale) + zero

    def QuantizeLinear(self, node: ir.Node) -> np.ndarray:
        scale = float(const(node.inputs[1]))
        zero = int(const(node.inputs[2]))
        value = self.real[node.inputs[0].name](scale, zero)
        return np.clip(value, -128, 127).astype(np.int8)  # type: ignore[no-any-return]

    @staticmethod
    def _rescaled(acc: np.ndarray, real: Any) -> Any:
        return lambda scale, zero: rescale(acc, real / scale) + zero
