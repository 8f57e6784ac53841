"""What a model is lowered to for a microcontroller: C functions, and calls of them on tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.mcu.memory import MemoryPlan

Array = npt.NDArray[Any]

C_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t", "uint32": "uint32_t"}
C_TYPES |= {"float32": "float", "uint16": "uint16_t"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value: its ONNX shape, and the order in which its axes are stored, outermost first."""

    name: str
    dtype: str  # "int8", "uint8", "float32"
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def stored(self) -> tuple[int, ...]:
        """The extents as they lie in memory."""
        return tuple(self.shape[a] for a in self.order)

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        return self.count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Constant:
    """An array in flash."""

    name: str
    array: Array


@dataclass(frozen=True, slots=True)
class Kernel:
    """A C function: its name, and its text with the name in it."""

    name: str
    text: str

    @property
    def declaration(self) -> str:
        start = self.text.index(f"void {self.name}(")
        return self.text[start : self.text.index("{", start)].strip() + ";"


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory that one call needs for itself."""

    bytes: int


Argument = str | Constant | Scratch | None  # the name of a tensor, ..., NULL


@dataclass(frozen=True, slots=True)
class Call:
    """One step of the inference.

    `ahead[x]`: the output may lie over the input x where it starts at least that many bytes before it
    (0: at the same place), because the kernel has read what it writes over.
    """

    kernel: Kernel
    arguments: tuple[Argument, ...]
    output: str
    nodes: tuple[str, ...]
    op: str
    macs: int = 0
    ahead: Mapping[str, int] = field(default_factory=dict)
    stretch: int | None = None  # the call copies its input to this byte of its output, and no more

    @property
    def inputs(self) -> list[str]:
        """The names of the tensors that are read."""
        return [a for a in self.arguments if isinstance(a, str) and a != self.output]

    @property
    def scratches(self) -> list[tuple[int, int]]:
        """Index and bytes of every argument that is scratch."""
        return [(k, a.bytes) for k, a in enumerate(self.arguments) if isinstance(a, Scratch)]


@dataclass(frozen=True, slots=True)
class Border:
    """An input or output as the model's user sees it (`name`, `dtype`), and its tensor here.

    With `scale`, the user's reals are real = (q - zero_point) * scale; where `dtype` is float32 and the
    tensor holds integers, the caller quantizes or dequantizes.
    """

    name: str
    dtype: str
    tensor: Tensor
    scale: float | None = None
    zero_point: int = 0

    def pack(self, array: Array) -> Array:
        """The bytes that the firmware wants for `array`, as an array of the stored shape."""
        array = np.asarray(array).reshape(self.tensor.shape)
        if self.scale is not None and self.dtype != self.tensor.dtype:
            info = np.iinfo(self.tensor.dtype)
            with np.errstate(invalid="ignore", over="ignore"):
                q = np.rint(array.astype(np.float32) / np.float32(self.scale)) + self.zero_point
            array = np.clip(np.nan_to_num(q, nan=self.zero_point), info.min, info.max)
        array = array.astype(self.tensor.dtype)
        return np.ascontiguousarray(array.transpose(self.tensor.order))

    def unpack(self, stored: Array) -> Array:
        """The user's array of what the firmware has left, of the tensor's dtype."""
        array = stored.reshape(self.tensor.stored).transpose(np.argsort(self.tensor.order))
        if self.scale is not None and self.dtype != self.tensor.dtype:
            centred = array.astype(np.int32) - self.zero_point
            array = centred.astype(np.float32) * np.float32(self.scale)
        return np.ascontiguousarray(array)

    def describe(self) -> dict[str, Any]:
        """As it stands in the manifest; `border_of` reads it again."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "stored_dtype": self.tensor.dtype,
            "shape": list(self.tensor.shape),
            "order": list(self.tensor.order),
            **({} if self.scale is None else {"scale": self.scale, "zero_point": self.zero_point}),
        }


def border_of(described: Mapping[str, Any]) -> Border:
    """The Border that `describe` described."""
    tensor = Tensor(
        described["name"],
        described["stored_dtype"],
        tuple(described["shape"]),
        tuple(described["order"]),
    )
    scale = described.get("scale")
    return Border(
        described["name"], described["dtype"], tensor, scale, described.get("zero_point", 0)
    )


@dataclass(frozen=True, slots=True)
class Program:
    """A lowered model. `views` are tensors in the memory of others, from some byte on."""

    name: str
    core: str
    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]
    tensors: Mapping[str, Tensor]
    views: Mapping[str, tuple[str, int]]
    calls: Sequence[Call]
    plan: MemoryPlan
    bands: int = 1  # of patch-based inference
    banded: str = ""  # the tensor up to which the model runs in bands

    def place(self, name: str) -> tuple[str, int]:
        """The tensor in whose memory `name` lies, and from which byte on."""
        offset = 0
        while name in self.views:
            name, more = self.views[name]
            offset += more
        return name, offset

    def root(self, name: str) -> str:
        """The tensor in whose memory `name` lies."""
        return self.place(name)[0]

    @property
    def kernels(self) -> dict[str, Kernel]:
        return {c.kernel.name: c.kernel for c in self.calls}

    @property
    def constants(self) -> dict[str, Constant]:
        return {a.name: a for c in self.calls for a in c.arguments if isinstance(a, Constant)}

    @property
    def constant_bytes(self) -> int:
        return sum(c.array.nbytes for c in self.constants.values())
