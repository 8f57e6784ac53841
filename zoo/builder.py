"""Building models in the IR, one operator a call, with shapes known at every step.

    net = Builder("example", seed=0)
    x = net.input("image", (1, 3, 32, 32))
    x = net.relu(net.batch_norm(net.conv(x, 16, 3)))
    net.output(net.linear(net.flatten(net.global_average_pool(x)), 10), "logits")
    model = net.model()

Weights are random but never degenerate: He-normal kernels, batch-norm statistics around (0, 1) with
variances in 0.5..1.5, no zeros; the same seed gives the same model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from effc.core.ir import WORKING_IR_VERSION, WORKING_OPSET

Array = npt.NDArray[Any]
Pads = int | Sequence[int]


class Builder:
    """Appends operators to one graph. All layouts are ONNX's: NCHW, kernels OIHW."""

    def __init__(self, name: str, seed: int = 0, opset: int = WORKING_OPSET) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name)
        self._counts: dict[str, int] = {}

    def input(
        self,
        name: str,
        shape: Sequence[int | str],
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """A graph input; a string is a symbolic size."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> None:
        """Make `value` a graph output called `name`."""
        value.name = name
        self._graph.outputs.append(value)

    def constant(self, array: Array, name: str = "const") -> ir.Value:
        """An initializer that holds `array`."""
        unique = self._unique(name)
        value = ir.Value(
            name=unique,
            const_value=ir.tensor(np.asarray(array, order="C"), name=unique),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        self._graph.register_initializer(value)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        """An initializer of int64 numbers."""
        return self.constant(np.array(numbers, np.int64), "ints")

    def scalar(self, number: float) -> ir.Value:
        """An initializer of one float32 number, without dimensions."""
        return self.constant(np.array(number, np.float32), "scalar")

    def op(
        self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any
    ) -> Any:
        """Append an operator; its output, or a tuple of `outputs` of them, with type and shape."""
        name = self._unique(op_type.lower())
        given = {k: v for k, v in attributes.items() if v is not None}
        while inputs and inputs[-1] is None:  # named "" at the end, it stops onnxruntime's fusions
            inputs = inputs[:-1]
        node = ir.node(op_type, inputs, given, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = f"{name}_out" if outputs == 1 else f"{name}_out{i}"
        self._infer(node)
        self._graph.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def model(self) -> ir.Model:
        """The model, complete."""
        return ir.Model(self._graph, ir_version=WORKING_IR_VERSION, producer_name="effc")

    # weights

    def normal(self, shape: Sequence[int], fan_in: int, name: str = "weight") -> ir.Value:
        """A He-normal weight: variance 2 / fan_in (He et al., 2015, arXiv:1502.01852)."""
        array = self.rng.standard_normal(tuple(shape)) * math.sqrt(2 / fan_in)
        return self.constant(array.astype(np.float32), name)

    def uniform(self, shape: Sequence[int], low: float, high: float, name: str) -> ir.Value:
        """A weight drawn evenly from low..high."""
        return self.constant(self.rng.uniform(low, high, tuple(shape)).astype(np.float32), name)

    # layers

    def conv(
        self,
        x: ir.Value,
        channels: int,
        kernel: int,
        stride: int = 1,
        *,
        group: int = 1,
        bias: bool = False,
        dilation: int = 1,
        pads: Pads | None = None,
    ) -> ir.Value:
        """A convolution; `pads` (top, left, bottom, right, or one for all) keep the size by default."""
        inputs = extent(x, 1)
        fan_in = inputs // group * kernel * kernel
        weight = self.normal((channels, inputs // group, kernel, kernel), fan_in)
        return self.op(  # type: ignore[no-any-return]
            "Conv",
            x,
            weight,
            self.uniform((channels,), -0.2, 0.2, "bias") if bias else None,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            group=group,
            dilations=[dilation, dilation],
            pads=_pads(dilation * (kernel // 2) if pads is None else pads),
        )

    def depthwise(self, x: ir.Value, kernel: int, stride: int = 1) -> ir.Value:
        """A convolution of every channel by itself."""
        return self.conv(x, extent(x, 1), kernel, stride, group=extent(x, 1))

    def conv_transpose(self, x: ir.Value, channels: int, kernel: int, stride: int) -> ir.Value:
        """A transposed convolution with a bias and without padding."""
        inputs = extent(x, 1)
        return self.op(  # type: ignore[no-any-return]
            "ConvTranspose",
            x,
            self.normal((inputs, channels, kernel, kernel), inputs),
            self.uniform((channels,), -0.2, 0.2, "bias"),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
        )

    def batch_norm(self, x: ir.Value) -> ir.Value:
        """Batch normalization for inference with statistics that differ from channel to channel."""
        shape = (extent(x, 1),)
        return self.op(  # type: ignore[no-any-return]
            "BatchNormalization",
            x,
            self.uniform(shape, 0.5, 1.5, "scale"),
            self.uniform(shape, -0.3, 0.3, "shift"),
            self.uniform(shape, -0.3, 0.3, "mean"),
            self.uniform(shape, 0.5, 1.5, "variance"),
            epsilon=1e-5,
        )

    def linear(self, x: ir.Value, features: int, *, bias: bool = True) -> ir.Value:
        """A dense layer over the last axis: Gemm on matrices, MatMul and Add otherwise."""
        size = extent(x, -1)
        offset = self.uniform((features,), -0.2, 0.2, "bias") if bias else None
        if x.shape is not None and len(x.shape) == 2:
            weight = self.normal((features, size), size)
            return self.op("Gemm", x, weight, offset, transB=1)  # type: ignore[no-any-return]
        y = self.op("MatMul", x, self.normal((size, features), size))
        return self.op("Add", y, offset) if offset is not None else y  # type: ignore[no-any-return]

    def layer_norm(self, x: ir.Value) -> ir.Value:
        """Layer normalization over the last axis, with a scale and a bias."""
        shape = (extent(x, -1),)
        return self.op(  # type: ignore[no-any-return]
            "LayerNormalization",
            x,
            self.uniform(shape, 0.5, 1.5, "scale"),
            self.uniform(shape, -0.3, 0.3, "shift"),
            axis=-1,
            epsilon=1e-6,
        )

    # activations

    def relu(self, x: ir.Value) -> ir.Value:
        return self.op("Relu", x)  # type: ignore[no-any-return]

    def relu6(self, x: ir.Value) -> ir.Value:
        """min(max(x, 0), 6), as exporters write it."""
        return self.op("Clip", x, self.scalar(0), self.scalar(6))  # type: ignore[no-any-return]

    def silu(self, x: ir.Value) -> ir.Value:
        """x * sigmoid(x), also called swish."""
        return self.op("Mul", x, self.op("Sigmoid", x))  # type: ignore[no-any-return]

    def gelu(self, x: ir.Value) -> ir.Value:
        """x * (1 + erf(x / sqrt 2)) / 2, written out as older exporters do."""
        inner = self.op("Erf", self.op("Div", x, self.scalar(math.sqrt(2))))
        doubled = self.op("Mul", x, self.op("Add", inner, self.scalar(1)))
        return self.op("Mul", doubled, self.scalar(0.5))  # type: ignore[no-any-return]

    def squeeze_excite(self, x: ir.Value, channels: int) -> ir.Value:
        """Scale every channel by a gate computed from all of them (Hu et al., arXiv:1709.01507)."""
        gate = self.conv(self.global_average_pool(x), channels, 1, bias=True)
        gate = self.conv(self.relu(gate), extent(x, 1), 1, bias=True)
        gate = self.op("HardSigmoid", gate, alpha=1 / 6, beta=0.5)
        return self.op("Mul", x, gate)  # type: ignore[no-any-return]

    # shapes and pooling

    def global_average_pool(self, x: ir.Value) -> ir.Value:
        return self.op("GlobalAveragePool", x)  # type: ignore[no-any-return]

    def max_pool(self, x: ir.Value, kernel: int, stride: int, pads: Pads = 0) -> ir.Value:
        return self.op(  # type: ignore[no-any-return]
            "MaxPool",
            x,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=_pads(pads),
        )

    def average_pool(self, x: ir.Value, kernel: int, stride: int) -> ir.Value:
        return self.op(  # type: ignore[no-any-return]
            "AveragePool", x, kernel_shape=[kernel, kernel], strides=[stride, stride]
        )

    def flatten(self, x: ir.Value) -> ir.Value:
        return self.op("Flatten", x, axis=1)  # type: ignore[no-any-return]

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """`shape` as ONNX has it: -1 is what is left, 0 copies."""
        return self.op("Reshape", x, self.ints(*shape))  # type: ignore[no-any-return]

    def transpose(self, x: ir.Value, *order: int) -> ir.Value:
        return self.op("Transpose", x, perm=list(order))  # type: ignore[no-any-return]

    def concat(self, *values: ir.Value, axis: int = 1) -> ir.Value:
        return self.op("Concat", *values, axis=axis)  # type: ignore[no-any-return]

    def split(self, x: ir.Value, *sizes: int, axis: int = 1) -> tuple[ir.Value, ...]:
        return self.op(  # type: ignore[no-any-return]
            "Split", x, self.ints(*sizes), axis=axis, outputs=len(sizes)
        )

    def slice(self, x: ir.Value, start: int, stop: int, axis: int) -> ir.Value:
        return self.op(  # type: ignore[no-any-return]
            "Slice", x, self.ints(start), self.ints(stop), self.ints(axis)
        )

    def upsample(self, x: ir.Value, factor: int, mode: str = "nearest") -> ir.Value:
        """Height and width times `factor`; nearest copies, linear interpolates at half pixels."""
        scales = self.constant(np.array([1, 1, factor, factor], np.float32), "scales")
        nearest = mode == "nearest"
        return self.op(  # type: ignore[no-any-return]
            "Resize",
            x,
            None,
            scales,
            mode=mode,
            coordinate_transformation_mode="asymmetric" if nearest else "half_pixel",
            nearest_mode="floor" if nearest else None,
        )

    def _unique(self, stem: str) -> str:
        number = self._counts.get(stem, 0)
        self._counts[stem] = number + 1
        return f"{stem}_{number}"

    def _infer(self, node: ir.Node) -> None:
        proto = ir.to_proto(node)
        types, data = {}, {}
        for value in node.inputs:
            if value is None or value.name is None:
                continue
            types[value.name] = ir.serde.serialize_value(value).type
            if value.const_value is not None and value.const_value.size <= 64:
                data[value.name] = ir.serde.serialize_tensor(value.const_value)
        inferred = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, self.opset, ""),
            proto,
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid("", self.opset)],
        )
        for value in node.outputs:
            found = inferred[value.name or ""]
            value.type = ir.serde.deserialize_type_proto_for_type(found)
            value.shape = ir.serde.deserialize_type_proto_for_shape(found)


def extent(x: ir.Value, axis: int) -> int:
    """The static size of `x` along `axis`."""
    size = x.shape[axis] if x.shape is not None else None
    if not isinstance(size, int):
        raise ValueError(f"{x.name} has no static size on axis {axis}: {x.shape}")
    return size


def _pads(pads: Pads) -> list[int]:
    return [pads] * 4 if isinstance(pads, int) else list(pads)
