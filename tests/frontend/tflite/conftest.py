"""Small TFLite files, written by the schema's own builders, and both sides that run them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from effc.frontend.tflite import convert
from effc.frontend.tflite.read import read

tflite = pytest.importorskip("tflite")
flatbuffers = pytest.importorskip("flatbuffers")

TESTDATA = Path(os.environ.get("EFFC_TESTDATA", Path(__file__).parents[4] / "shared/testdata"))
_TYPES = {
    np.dtype(np.float32): "FLOAT32", np.dtype(np.float16): "FLOAT16", np.dtype(np.int8): "INT8",
    np.dtype(np.uint8): "UINT8", np.dtype(np.int16): "INT16", np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64", np.dtype(np.bool_): "BOOL",
}  # fmt: skip


@dataclass
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: Any
    data: np.ndarray | None = None
    scale: Sequence[float] = ()
    zero_point: Sequence[int] = ()
    axis: int = 0


@dataclass
class OpSpec:
    op: str
    inputs: list[int]
    outputs: list[int]
    options: str
    values: dict[str, Any]
    custom: str = ""


@dataclass
class Net:
    """A TFLite model in the making; `bytes()` is the file."""

    tensors: list[TensorSpec] = field(default_factory=list)
    ops: list[OpSpec] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def tensor(self, shape: Sequence[int], dtype: Any = np.float32, **more: Any) -> int:
        self.tensors.append(TensorSpec(f"t{len(self.tensors)}", tuple(shape), dtype, **more))
        return len(self.tensors) - 1

    def input(self, shape: Sequence[int], dtype: Any = np.float32, **more: Any) -> int:
        i = self.tensor(shape, dtype, **more)
        self.inputs.append(i)
        return i

    def const(self, array: Any, **more: Any) -> int:
        array = np.asarray(array)
        return self.tensor(array.shape, array.dtype, data=array, **more)

    def op(
        self,
        op: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        custom: str = "",
        **values: Any,
    ) -> None:
        self.ops.append(OpSpec(op, list(inputs), list(outputs), options, values, custom))

    def bytes(self) -> bytes:
        b = flatbuffers.Builder(1024)

        def offsets(values: list[int]) -> int:
            b.StartVector(4, len(values), 4)
            for value in reversed(values):
                b.PrependUOffsetTRelative(value)
            return b.EndVector()

        def numbers(values: Any, dtype: Any) -> int:
            return b.CreateNumpyVector(np.asarray(values, dtype))

        buffers, tensors, codes, operators = [], [], [], []
        tflite.BufferStart(b)
        buffers.append(tflite.BufferEnd(b))
        for spec in self.tensors:
            number = 0
            if spec.data is not None and spec.data.size:
                data = np.frombuffer(np.ascontiguousarray(spec.data).tobytes(), np.uint8)
                data = b.CreateNumpyVector(data)
                tflite.BufferStart(b)
                tflite.BufferAddData(b, data)
                number = len(buffers)
                buffers.append(tflite.BufferEnd(b))
            quantization = None
            if len(spec.scale):
                scale = numbers(spec.scale, np.float32)
                zero = numbers(spec.zero_point, np.int64)
                tflite.QuantizationParametersStart(b)
                tflite.QuantizationParametersAddScale(b, scale)
                tflite.QuantizationParametersAddZeroPoint(b, zero)
                tflite.QuantizationParametersAddQuantizedDimension(b, spec.axis)
                quantization = tflite.QuantizationParametersEnd(b)
            name, shape = b.CreateString(spec.name), numbers(spec.shape, np.int32)
            tflite.TensorStart(b)
            tflite.TensorAddName(b, name)
            tflite.TensorAddShape(b, shape)
            tflite.TensorAddType(b, getattr(tflite.TensorType, _TYPES[np.dtype(spec.dtype)]))
            tflite.TensorAddBuffer(b, number)
            if quantization is not None:
                tflite.TensorAddQuantization(b, quantization)
            tensors.append(tflite.TensorEnd(b))
        for spec in self.ops:
            custom = b.CreateString(spec.custom) if spec.custom else None
            tflite.OperatorCodeStart(b)
            code = getattr(tflite.BuiltinOperator, spec.op)
            tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
            tflite.OperatorCodeAddBuiltinCode(b, code)
            tflite.OperatorCodeAddVersion(b, 2 if spec.op == "BROADCAST_TO" else 1)
            if custom is not None:
                tflite.OperatorCodeAddCustomCode(b, custom)
            codes.append(tflite.OperatorCodeEnd(b))
            options = None
            if spec.options:
                values = {
                    k: numbers(v, np.int32) if isinstance(v, list) else v
                    for k, v in spec.values.items()
                }
                getattr(tflite, f"{spec.options}Start")(b)
                for k, v in values.items():
                    getattr(tflite, f"{spec.options}Add{k}")(b, v)
                options = getattr(tflite, f"{spec.options}End")(b)
            inputs, outputs = numbers(spec.inputs, np.int32), numbers(spec.outputs, np.int32)
            tflite.OperatorStart(b)
            tflite.OperatorAddOpcodeIndex(b, len(codes) - 1)
            tflite.OperatorAddInputs(b, inputs)
            tflite.OperatorAddOutputs(b, outputs)
            if options is not None:
                tflite.OperatorAddBuiltinOptionsType(
                    b, getattr(tflite.BuiltinOptions, spec.options)
                )
                tflite.OperatorAddBuiltinOptions(b, options)
            operators.append(tflite.OperatorEnd(b))
        lists = [offsets(tensors), numbers(self.inputs, np.int32)]
        lists += [numbers(self.outputs, np.int32), offsets(operators)]
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, lists[0])
        tflite.SubGraphAddInputs(b, lists[1])
        tflite.SubGraphAddOutputs(b, lists[2])
        tflite.SubGraphAddOperators(b, lists[3])
        graph = offsets([tflite.SubGraphEnd(b)])
        code_list, buffer_list = offsets(codes), offsets(buffers)
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, 3)
        tflite.ModelAddOperatorCodes(b, code_list)
        tflite.ModelAddSubgraphs(b, graph)
        tflite.ModelAddBuffers(b, buffer_list)
        b.Finish(tflite.ModelEnd(b), b"TFL3")
        return bytes(b.Output())


class Interpreter:
    """TFLite with its reference kernels, its plain ones, or what it runs by default (XNNPACK's)."""

    def __init__(self, data: bytes, kind: str = "reference") -> None:
        litert = pytest.importorskip("ai_edge_litert.interpreter")
        resolvers = litert.OpResolverType

        def make(resolver: Any) -> Any:
            return litert.Interpreter(
                model_content=data, num_threads=1, experimental_op_resolver_type=resolver
            )

        if kind == "default":
            self._it = make(resolvers.AUTO)
        elif kind == "plain":
            self._it = make(resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        else:
            try:
                self._it = make(resolvers.BUILTIN_REF)
            except ValueError:  # some operators have one kernel only
                self._it = make(resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        self._it.allocate_tensors()

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        for detail, array in zip(self._it.get_input_details(), inputs, strict=True):
            self._it.set_tensor(detail["index"], array)
        self._it.invoke()
        return [self._it.get_tensor(d["index"]).copy() for d in self._it.get_output_details()]


def imported(data: bytes) -> ir.Model:
    return convert(read(tflite, data))


def session(model: ir.Model, *, optimized: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Tools:
    """What the tests share, as a fixture."""

    Net = Net
    Interpreter = Interpreter
    imported = staticmethod(imported)
    session = staticmethod(session)
    schema = tflite

    @staticmethod
    def settle(net: Net) -> bytes:
        """The file, with the shapes of what operators make as the interpreter finds them."""
        Interpreter(net.bytes())  # skips, by name, where there is no interpreter
        outputs, shapes = net.outputs, {}
        for op in net.ops:
            for o in op.outputs:
                net.outputs = [o]
                done = Interpreter(net.bytes())._it
                shapes[o] = tuple(int(d) for d in done.get_output_details()[0]["shape"])
        net.outputs = outputs
        for o, shape in shapes.items():
            net.tensors[o].shape = shape
        return net.bytes()

    @staticmethod
    def run(model: ir.Model, *inputs: np.ndarray, optimized: bool = False) -> list[np.ndarray]:
        made = session(model, optimized=optimized)
        names = [i.name for i in made.get_inputs()]
        return list(made.run(None, dict(zip(names, inputs, strict=True))))  # type: ignore[no-any-return]

    @staticmethod
    def file(name: str) -> Path:
        path = TESTDATA / name
        if not path.exists():
            pytest.skip(f"no {name} below {TESTDATA}: set EFFC_TESTDATA")
        return path


@pytest.fixture(scope="session")
def tfl() -> type[Tools]:
    return Tools
