"""Building the ONNX graph of a TFLite model: layouts and quantization of every tensor.

Every TFLite tensor may exist in up to four forms: as it is stored or as the real number that it stands
for (DequantizeLinear), each in TFLite's own layout or, if it has four dimensions, channels first. They
are made when an operator first asks for one, so that a chain of channels-first operators has no
transposition inside, and a chain of operators that only move data none of DequantizeLinear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.core.ir import WORKING_IR_VERSION, WORKING_OPSET
from effc.frontend.tflite.read import DAMAGED, Array, Contents, Operator, Quantization

NATIVE = "native"
NCHW = "NCHW"
TO_NCHW = (0, 3, 1, 2)
TO_NHWC = (0, 2, 3, 1)
AXIS_IN_NCHW = (0, 2, 3, 1)  # where each axis of NHWC is in NCHW

# TFLite itself refuses a bias whose scale is further off (kernel_util.cc)
_BIAS_TOLERANCE = 0.02


class Unsupported(Exception):
    """An operator that effc can't express; `remedy` says what the user can do."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


class Graph:
    """The ONNX graph under construction. Indices are those of the file's tensors."""

    def __init__(self, contents: Contents) -> None:
        self.tensors = contents.tensors
        self._graph = ir.Graph(
            [], [], nodes=[], opset_imports={"": WORKING_OPSET}, name=contents.name or "tflite"
        )
        self._stored: dict[tuple[int, str], ir.Value] = {}
        self._real: dict[tuple[int, str], ir.Value] = {}
        self._constants: dict[int, Array] = {}
        self._same: dict[int, int] = {}  # DEQUANTIZE of a constant -> that constant
        self._used: set[str] = {""}
        self._named: set[ir.Value] = set()
        self._prefix = ""
        self._count = 0
        for i, tensor in enumerate(self.tensors):
            if tensor.dtype is None:
                continue
            if tensor.data is not None:
                self._constants[i] = tensor.data
            elif 0 in tensor.shape:
                self._constants[i] = np.zeros(tensor.shape, tensor.dtype)
        for i in contents.inputs:
            if (i, NATIVE) in self._stored:
                raise FrontendError(f"tensor {self.tensors[i].name!r} is an input twice")
            self._constants.pop(i, None)
            value = ir.Value(
                name=self._unique(self.tensors[i].name),
                shape=ir.Shape(self.tensors[i].shape),
                type=ir.TensorType(self._dtype(i)),
            )
            self._graph.inputs.append(value)
            self._stored[i, NATIVE] = value
            self._named.add(value)

    def enter(self, operator: Operator) -> None:
        """Nodes made from here on belong to `operator`."""
        self._prefix = f"{operator.op.lower()}_{operator.index}"
        self._count = 0
        for i in (*operator.inputs, *operator.outputs):
            if i >= 0:
                self._dtype(i)
        for k, i in enumerate(operator.inputs):
            if i >= 0 and not self.known(i):
                raise FrontendError(
                    f"{operator.place} reads tensor {self.tensors[i].name!r} (input {k}), which nothing "
                    "before it makes",
                    hint=DAMAGED,
                )
        for i in operator.outputs:
            if i < 0 or self.known(i):
                raise FrontendError(
                    f"{operator.place} makes a tensor that is there already", hint=DAMAGED
                )

    def known(self, i: int) -> bool:
        """Whether tensor `i` can be read."""
        return i in self._constants or (i, NATIVE) in self._stored or (i, NCHW) in self._stored

    def poison(self, operator: Operator) -> None:
        """Stand in for the outputs of an operator that is refused, so that the others can be judged."""
        for i in operator.outputs:
            self._stored[i, NATIVE] = ir.Value(name=f"refused_{i}")

    # facts about tensors

    def shape(self, i: int) -> tuple[int, ...]:
        return self.tensors[i].shape

    def rank(self, i: int) -> int:
        return len(self.tensors[i].shape)

    def quantized(self, i: int) -> Quantization | None:
        """The quantization of tensor `i` where it is stored as integers."""
        tensor = self.tensors[i]
        if tensor.dtype is None or np.dtype(tensor.dtype).kind not in "iu":
            return None
        return tensor.quantization

    def same_quantization(self, i: int, j: int) -> bool:
        """Whether tensors `i` and `j` stand for the same numbers when they hold the same bits."""
        a, b = self.quantized(i), self.quantized(j)
        if self.tensors[i].dtype != self.tensors[j].dtype:
            return False
        if a is None or b is None:
            return a is b
        return (
            a.scale.size == b.scale.size == 1
            and bool(a.scale[0] == b.scale[0])
            and bool(a.zero_point[0] == b.zero_point[0])
        )

    def const(self, i: int) -> Array | None:
        """What tensor `i` always holds, as stored."""
        return self._constants.get(i)

    def ints(self, operator: Operator, k: int) -> list[int]:
        """The integers of constant input `k`."""
        array = self.const(operator.input(k))
        if array is None:
            raise Unsupported(
                f"its input {k} is computed at run time", "fix the input shapes before converting"
            )
        if array.dtype.kind not in "iub" or array.size > 1 << 16:
            raise FrontendError(f"input {k} of {operator.place} is no list of integers")
        return [int(v) for v in array.reshape(-1)]

    def one_int(self, operator: Operator, k: int) -> int:
        """The integer that is constant input `k`."""
        numbers = self.ints(operator, k)
        if len(numbers) != 1:
            raise FrontendError(
                f"input {k} of {operator.place} has {len(numbers)} numbers where one is needed",
                hint=DAMAGED,
            )
        return numbers[0]

    def axes(self, operator: Operator, k: int, rank: int) -> list[int]:
        """The constant axes of input `k`, from 0 on, sorted, each once."""
        return sorted({self.axis(operator, a, rank) for a in self.ints(operator, k)})

    def axis(self, operator: Operator, axis: int, rank: int) -> int:
        """`axis` counted from 0; FrontendError where there is no such axis."""
        if not -rank <= axis < rank:
            raise FrontendError(
                f"{operator.place} names axis {axis} of a tensor of rank {rank}", hint=DAMAGED
            )
        return axis % rank

    def layout(self, *indices: int) -> str:
        """The layout that suits an operator on these tensors that takes any."""
        varying = [i for i in indices if i not in self._constants]
        if any(self.rank(i) != 4 for i in varying):
            return NATIVE
        return NCHW if any((i, NCHW) in self._stored for i in varying) else NATIVE

    def has_nchw(self, i: int) -> bool:
        """Whether tensor `i` is there with channels first already."""
        return (i, NCHW) in self._stored

    # forms of tensors

    def stored(self, i: int, layout: str = NATIVE) -> ir.Value:
        """Tensor `i` as it is stored: integers where it is quantized."""
        key = (i, layout)
        if key not in self._stored:
            if i in self._constants:
                array = self._constants[i]
                if layout == NCHW:
                    array = array.transpose(TO_NCHW)
                self._stored[key] = self.constant(array, self._form(i, layout))
            else:
                other = self._stored[i, NATIVE if layout == NCHW else NCHW]
                value = self._relayout(other, self.shape(i), layout)
                self._stored[key] = self._name(value, self._form(i, layout))
        return self._stored[key]

    def real(self, i: int, layout: str = NATIVE) -> ir.Value:
        """Tensor `i` as numbers to compute with: dequantized where it is quantized."""
        key = (i, layout)
        if key not in self._real:
            quantization = self.quantized(i)
            value = self.stored(i, layout)
            if quantization is not None:
                axis = quantization.axis
                if layout == NCHW and quantization.scale.size > 1:
                    axis = AXIS_IN_NCHW[axis]
                value = self._dequantize(
                    value, quantization, axis, self.tensors[i].dtype, self.tensors[i].name
                )
            self._real[key] = value
        return self._real[key]

    def operand(self, i: int, layout: str, rank: int) -> ir.Value:
        """`real`, with ones put before the shape of a constant of lower rank where `layout` needs it."""
        if layout == NATIVE or self.rank(i) == rank:
            return self.real(i, layout)
        shape = (1,) * (rank - self.rank(i)) + self.shape(i)
        quantization = self.quantized(i)
        if quantization is not None and quantization.scale.size > 1:
            quantization = Quantization(
                quantization.scale,
                quantization.zero_point,
                AXIS_IN_NCHW[quantization.axis + rank - self.rank(i)],
            )
        array = self._constants[i].reshape(shape).transpose(TO_NCHW)
        value = self.constant(array, self.tensors[i].name)
        if quantization is None:
            return value
        return self._dequantize(
            value, quantization, quantization.axis, self.tensors[i].dtype, self.tensors[i].name
        )

    def weights(self, i: int, order: Sequence[int]) -> ir.Value:
        """Tensor `i` as numbers, its axes in `order`; of a constant, the stored bytes are reordered."""
        i = self._same.get(i, i)
        if i not in self._constants:
            value = self.real(i)
            return self.emit("Transpose", value, perm=list(order))
        array = self._constants[i].transpose(order)
        name = self.tensors[i].name
        value = self.constant(array, name)
        quantization = self.quantized(i)
        if quantization is None:
            return value
        axis = list(order).index(quantization.axis) if quantization.scale.size > 1 else 0
        return self._dequantize(value, quantization, axis, array.dtype, name)

    def bias(self, i: int, x: int, w: int) -> ir.Value:
        """A bias as numbers: int32 at the scale of `x` times that of the weights `w`."""
        array, qx, qw = self.const(i), self.quantized(x), self.quantized(self._same.get(w, w))
        if array is None or array.dtype.kind != "i" or qx is None or qw is None:
            return self.real(i)
        name = self.tensors[i].name
        implied = (qx.scale * qw.scale).astype(np.float32)
        own = self.quantized(i)
        scale = implied if own is None else own.scale
        if scale.size not in (1, array.size):
            raise FrontendError(f"bias {name!r} has {scale.size} scales for {array.size} channels")
        if not np.all(np.abs(scale - implied) <= _BIAS_TOLERANCE * implied + 1e-30):
            raise FrontendError(
                f"bias {name!r} is not quantized at the scale of its input times that of its weights",
                hint="TFLite refuses such a file, too: convert the model again",
            )
        if array.dtype == np.int64:  # of models with int16 activations
            if array.size and np.abs(array).max() > np.iinfo(np.int32).max:
                raise Unsupported(
                    "its bias exceeds 32 bits", "quantize the activations to int8 instead of int16"
                )
            array = array.astype(np.int32)
        zero = np.zeros(scale.size, np.int64)
        return self._dequantize(
            self.constant(array, name), Quantization(scale, zero, 0), 0, array.dtype, name
        )

    def put(self, i: int, value: ir.Value, layout: str = NATIVE) -> None:
        """`value` is tensor `i` as stored."""
        if layout == NCHW and self.rank(i) != 4:
            raise FrontendError(
                f"tensor {self.tensors[i].name!r} has the shape {list(self.shape(i))} where an image is "
                "needed",
                hint=DAMAGED,
            )
        self._stored[i, layout] = self._name(value, self._form(i, layout))

    def put_real(
        self, i: int, value: ir.Value, layout: str = NATIVE, activation: str = "NONE"
    ) -> None:
        """`value` is tensor `i` as numbers, before the fused `activation` and the quantization."""
        value = self.activate(value, activation)
        quantization = self.quantized(i)
        if quantization is not None:
            tensor = self.tensors[i]
            if np.dtype(tensor.dtype) not in (np.int8, np.uint8, np.int16, np.uint16):
                raise Unsupported(
                    f"its output {tensor.name!r} is quantized to {tensor.type_name}",
                    "quantize to int8",
                )
            if quantization.scale.size != 1:
                raise Unsupported("its output has a scale per channel", "quantize per tensor")
            scale, zero = self._parameters(quantization, tensor.dtype, tensor.name)
            value = self.emit("QuantizeLinear", value, scale, zero)
        self.put(i, value, layout)

    def put_const(self, i: int, array: Array) -> None:
        """Tensor `i` always holds `array`."""
        self._check_shape(i, array.shape)
        self._constants[i] = array

    def put_same(self, i: int, constant: int) -> None:
        """Tensor `i` is the dequantized `constant`."""
        self._check_shape(i, self.shape(constant))
        self._same[i] = constant
        self.put(i, self.emit("Identity", self.real(constant)))

    def move(
        self,
        i: int,
        o: int,
        build: Callable[[ir.Value], ir.Value],
        layout: str = NATIVE,
        into: str | None = None,
    ) -> None:
        """Tensor `o` is `i` with its elements moved: bits are copied where both are quantized alike."""
        into = layout if into is None else into
        if self.same_quantization(i, o):
            self.put(o, build(self.stored(i, layout)), into)
        else:
            self.put_real(o, build(self.real(i, layout)), into)

    # nodes

    def emit(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append an operator with one output."""
        return self.emit_many(1, op_type, *inputs, **attributes)[0]

    def emit_many(
        self, outputs: int, op_type: str, *inputs: ir.Value | None, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Append an operator with `outputs` outputs."""
        name = f"{self._prefix}/{op_type}" + (f"_{self._count}" if self._count else "")
        self._count += 1
        given = {k: v for k, v in attributes.items() if v is not None}
        node = ir.node(op_type, inputs, given, num_outputs=outputs, name=name)
        for k, value in enumerate(node.outputs):
            value.name = self._unique(name if outputs == 1 else f"{name}/{k}")
        self._graph.append(node)
        return tuple(node.outputs)

    def constant(self, array: Array, name: str) -> ir.Value:
        """An initializer that holds `array`."""
        unique = self._unique(name)
        array = np.ascontiguousarray(array).reshape(array.shape)
        value = ir.Value(
            name=unique,
            const_value=ir.tensor(array, name=unique),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        self._graph.register_initializer(value)
        self._named.add(value)
        return value

    def int64(self, *numbers: int) -> ir.Value:
        """An initializer of int64 numbers."""
        return self.constant(np.array(numbers, np.int64), f"{self._prefix}/ints")

    def number(self, number: float, dtype: Any = np.float32) -> ir.Value:
        """An initializer of one number, without dimensions."""
        return self.constant(np.array(number, dtype), f"{self._prefix}/number")

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.emit("Reshape", value, self.int64(*shape), allowzero=1 if 0 in shape else None)

    def activate(self, value: ir.Value, activation: str) -> ir.Value:
        """The activation that TFLite fuses into an operator, on real numbers."""
        if activation == "NONE":
            return value
        if activation == "RELU":
            return self.emit("Relu", value)
        if activation == "RELU6":
            return self.emit("Clip", value, self.number(0), self.number(6))
        if activation == "RELU_N1_TO_1":
            return self.emit("Clip", value, self.number(-1), self.number(1))
        if activation == "TANH":
            return self.emit("Tanh", value)
        raise Unsupported(f"the activation {activation} is fused into it")

    # the end

    def model(self, outputs: Sequence[int]) -> ir.Model:
        """The model, complete: its outputs are these tensors, in TFLite's own layout."""
        self._prefix, self._count = "outputs", 0
        for i in outputs:
            if not self.known(i):
                raise FrontendError(
                    f"nothing makes the output {self.tensors[i].name!r}", hint=DAMAGED
                )
            value = self.stored(i)
            if value.producer() is None or value.is_graph_output():
                value = self.emit("Identity", value)
            value.type = ir.TensorType(self._dtype(i))
            value.shape = ir.Shape(self.shape(i))
            self._graph.outputs.append(value)
        return ir.Model(self._graph, ir_version=WORKING_IR_VERSION, producer_name="effc")

    def declared(self) -> list[tuple[ir.Value, int]]:
        """The values that stand for a tensor in its own layout, to be held against its shape."""
        return [(v, i) for (i, layout), v in self._stored.items() if layout == NATIVE]

    def _relayout(self, value: ir.Value, shape: tuple[int, ...], layout: str) -> ir.Value:
        n, h, w, c = shape
        if h * w == 1 or c == 1:  # the same bytes
            return self.reshape(value, (n, c, h, w) if layout == NCHW else shape)
        order = TO_NCHW if layout == NCHW else TO_NHWC
        return self.emit("Transpose", value, perm=list(order))

    def _dequantize(
        self, value: ir.Value, quantization: Quantization, axis: int, dtype: Any, name: str
    ) -> ir.Value:
        scale, zero = self._parameters(quantization, dtype, name)
        return self.emit(
            "DequantizeLinear",
            value,
            scale,
            zero,
            axis=axis if quantization.scale.size > 1 else None,
        )

    def _parameters(
        self, quantization: Quantization, dtype: Any, name: str
    ) -> tuple[ir.Value, ir.Value | None]:
        scale, zero = quantization.scale, quantization.zero_point
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise FrontendError(
                f"tensor {name!r} has a scale that is not a positive number", hint=DAMAGED
            )
        limits = np.iinfo(dtype)
        if (zero < limits.min).any() or (zero > limits.max).any():
            raise FrontendError(
                f"tensor {name!r} has a zero point outside of {np.dtype(dtype).name}", hint=DAMAGED
            )
        if scale.size == 1:
            scale, zero = scale.reshape(()), zero.reshape(())
        offset = None
        if np.dtype(dtype) != np.int32:
            if np.dtype(dtype).itemsize > 2:
                raise Unsupported(
                    f"tensor {name!r} is quantized to {np.dtype(dtype).name}", "quantize to int8"
                )
            offset = self.constant(zero.astype(dtype), f"{name}/zero_point")
        elif zero.any():
            raise Unsupported(f"tensor {name!r} is int32 with a zero point")
        return self.constant(scale, f"{name}/scale"), offset

    def _check_shape(self, i: int, shape: tuple[int, ...]) -> None:
        if self.shape(i) != shape:
            raise FrontendError(
                f"tensor {self.tensors[i].name!r} has the shape {list(self.shape(i))} in the file, but "
                f"its operator makes {list(shape)}",
                hint=DAMAGED,
            )

    def _dtype(self, i: int) -> ir.DataType:
        tensor = self.tensors[i]
        if tensor.dtype is None:
            raise FrontendError(
                f"tensor {tensor.name!r} is of type {tensor.type_name}, which effc does not take",
                hint="convert the model with float32 or int8 there",
            )
        return ir.DataType.from_numpy(np.dtype(tensor.dtype))

    def _form(self, i: int, layout: str) -> str:
        name = self.tensors[i].name
        return name if layout == NATIVE else f"{name}/{layout}"

    def _name(self, value: ir.Value, name: str) -> ir.Value:
        if value not in self._named:
            value.name = self._unique(name)
            self._named.add(value)
        return value

    def _unique(self, name: str) -> str:
        unique, n = name, 0
        while unique in self._used:
            n += 1
            unique = f"{name}_{n}"
        self._used.add(unique)
        return unique


def elements(shape: Sequence[int]) -> int:
    return math.prod(shape)
