"""The state of one lowering: tensors and their storage, calls, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from effc.backends.tvm.mcu.cores import Core
from effc.backends.tvm.mcu.layouts import Order, row_major, same_bytes
from effc.backends.tvm.mcu.program import Argument, Call, Constant, Tensor
from effc.backends.tvm.mcu.strided import StridedCopy
from effc.backends.tvm.mcu.templates import Kernels
from effc.core.ir import Array, const, shape_of

_DTYPES = {
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
    ir.DataType.FLOAT: "float32",
}


class Refusal(Exception):
    """Why a node can't be lowered, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class Lowering:
    """Operators put their calls here, through `call`, and read tensors through `read`."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.kernels = Kernels()
        self.tensors: dict[str, Tensor] = {}
        self.views: dict[str, tuple[str, int]] = {}
        self.calls: list[Call] = []
        self._copies: dict[tuple[str, Order], str] = {}
        self._constants: dict[bytes, Constant] = {}

    def known(self, value: ir.Value) -> Tensor:
        """The tensor that holds `value`."""
        return self.tensors[str(value.name)]

    def define(self, value: ir.Value, order: Order) -> Tensor:
        """A new tensor for `value`, stored in `order`."""
        shape, dtype = static(value)
        return self.add(Tensor(str(value.name), dtype, shape, order))

    def add(self, tensor: Tensor) -> Tensor:
        self.tensors[tensor.name] = tensor
        return tensor

    def view(self, value: ir.Value, of: str, order: Order, offset: int = 0) -> Tensor:
        """`value` in the memory of the tensor `of`, from its byte `offset` on."""
        tensor = self.define(value, order)
        self.views[tensor.name] = (of, offset)
        return tensor

    def read(self, value: ir.Value | None, order: Order | None = None) -> str | Constant:
        """What kernels are given for `value`, lying in `order`: a copy is made where it lies otherwise."""
        if value is None:
            raise Refusal("an input is missing", "give it")
        array = const(value)
        if array is not None:
            if array.dtype.name not in ("int8", "uint8", "float32"):
                raise Refusal(f"a constant is of {array.dtype}", "quantize it to int8")
            order = order if order is not None else row_major(array.ndim)
            return self.constant(str(value.name), array.transpose(order))
        tensor = self.known(value)
        if order is None or same_bytes(tensor.shape, tensor.order, order):
            return tensor.name
        found = self._copies.get((tensor.name, order))
        if found is None:
            found = f"{tensor.name}/{''.join(map(str, order))}"
            moved = self.add(Tensor(found, tensor.dtype, tensor.shape, order))
            index = np.arange(tensor.count).reshape(tensor.stored)
            index = index.transpose(np.argsort(tensor.order)).transpose(order)
            copy = StridedCopy.of(index)
            assert copy is not None
            producer = value.producer()
            self.call(
                copy.kernel(self.kernels, "permute", tensor.dtype),
                (tensor.name, moved.name),
                moved.name,
                nodes=() if producer is None else (str(producer.name),),
                op="Transpose",
            )
            self._copies[tensor.name, order] = found
        return found

    def constant(self, name: str, array: Array) -> Constant:
        """`array` in flash; equal arrays are stored once."""
        array = np.ascontiguousarray(array)
        key = array.dtype.str.encode() + str(array.shape).encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = Constant(c_name(name, len(self._constants)), array)
        return self._constants[key]

    def call(
        self,
        kernel: object,
        arguments: Sequence[Argument],
        output: str,
        *,
        nodes: Sequence[str],
        op: str,
        macs: int = 0,
        ahead: Mapping[str, int] | None = None,
        stretch: int | None = None,
    ) -> None:
        """Add a call; `ahead` only counts for tensors, not constants."""
        from effc.backends.tvm.mcu.program import Kernel

        assert isinstance(kernel, Kernel)
        over = {k: v for k, v in (ahead or {}).items() if k in self.tensors}
        self.calls.append(
            Call(kernel, tuple(arguments), output, tuple(nodes), op, macs, over, stretch)
        )


def static(value: ir.Value) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of `value`; Refusal where it has none here."""
    shape = shape_of(value)
    if shape is None:
        raise Refusal(f"{value.name!r} has the dynamic shape {value.shape}", "fix it with --shape")
    dtype = _DTYPES.get(value.dtype) if value.dtype is not None else None
    if dtype is None:
        raise Refusal(
            f"{value.name!r} is of {value.dtype}",
            "microcontrollers compute int8, uint8 and float32",
        )
    return shape, dtype


def c_name(name: str, number: int) -> str:
    """An identifier of C like `name`, with a number that makes it the only one."""
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_").lower()
    return f"c{number}_{plain[-40:].strip('_')}"


def tensor_array(value: ir.Value | None, what: str) -> npt.NDArray[np.int64]:
    """A constant of integers, as int64; Refusal where it is computed."""
    array = const(value)
    if array is None:
        raise Refusal(f"its {what} are computed", "fold them into constants")
    return array.astype(np.int64)
