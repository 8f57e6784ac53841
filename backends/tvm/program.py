"""The one lowered form of the TVM backend: kernels, the list of their calls, constants, an arena.

Layouts and fusion groups are decided before it, on the IR; an emitter only prints it (shared library
with a C API, firmware sources, cubin and launcher). No virtual machine and no graph at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.layout import TensorType

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One function `void name(p0, p1, ..., int32 begin, int32 end)` over flat typed pointers.

    It computes tasks [begin, end) of `tasks`; tasks are independent, so any partition of
    [0, tasks) over threads, in any order, gives the same bits. Outputs come first in `params`,
    then inputs, in the order of the call's arguments.
    """

    name: str
    func: Any  # tvm.tirx.PrimFunc, built by effc.backends.tvm.tir.prim_func
    tasks: int
    params: tuple[TensorType, ...]
    outputs: int = 1  # how many leading params are written
    macs: int = 0
    scratch_bytes: int = 0  # per-thread scratch, passed as one more leading uint8 pointer if > 0


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call. `args` are tensor names of the program, in the order of the kernel's params."""

    kernel: str
    args: tuple[str, ...]
    nodes: tuple[str, ...]  # IR nodes that this call computes
    template: str  # "conv2d", "depthwise", "gemm", "elementwise", ..., "tvm:<op>" for a fallback


@dataclass(frozen=True, slots=True)
class View:
    """A tensor that lives inside another one's storage, `offset` bytes in."""

    base: str
    offset: int = 0


@dataclass(slots=True)
class Site:
    """A kernel that can be cut in other ways; what `space` returns says in which."""

    kernel: str
    space: Callable[[], Any]  # effc.backends.tvm.candidates.Space, or None where there is no choice
    epilogue: str  # the operators behind the anchor
    build: Callable[[Blocking | None, str], Kernel]
    # the packed constants of each call: their names, and what makes them
    packs: list[tuple[tuple[str, ...], Callable[[Blocking | None], tuple[Array, ...]]]] = field(
        default_factory=list
    )


@dataclass(frozen=True, slots=True)
class Packing:
    """Where a packed constant comes from: another array packed likewise tells where elements went."""

    weight: Array
    pack: Callable[[Array, Blocking | None], Array]
    blocking: Blocking | None = None

    def repack(self, array: Array) -> Array:
        """`array`, float32 of the weight's shape, in the order of the packed constant."""
        return self.pack(array, self.blocking)


@dataclass(slots=True)
class Program:
    """Everything that an emitter prints. Names of tensors are unique within the program."""

    kernels: dict[str, Kernel] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    tensors: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # physical order, packed
    packings: dict[str, Packing] = field(default_factory=dict)  # of packed constants, by name
    views: dict[str, View] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    public: dict[str, str] = field(default_factory=dict)  # the caller's names, where they differ
    isa: Any = None  # effc.backends.tvm.isa.Isa
    offsets: Mapping[str, int] = field(default_factory=dict)  # bytes into the arena
    arena_bytes: int = 0
    arena_bound: int = 0  # the most bytes that are live at once: no arena is smaller
    sites: dict[str, Site] = field(default_factory=dict)  # by the name of the kernel
    tuning: Mapping[str, Any] = field(default_factory=dict)  # what tuning found and chose
    storage: Mapping[str, Any] = field(default_factory=dict)  # bytes of the constants once written

    def cut(self, choices: Mapping[str, Blocking]) -> Program:
        """The program with the kernels that `choices` names cut so, and their constants packed anew."""
        kernels, constants = dict(self.kernels), dict(self.constants)
        packings = dict(self.packings)
        for name, blocking in choices.items():
            site = self.sites[name]
            kernels[name] = site.build(blocking, name)
            for names, pack in site.packs:
                constants.update(zip(names, pack(blocking), strict=True))
                for packed in names:
                    if packed in packings:
                        packings[packed] = replace(packings[packed], blocking=blocking)
        return replace(self, kernels=kernels, constants=constants, packings=packings)

    def place(self, name: str) -> tuple[str, int]:
        """The storage that holds tensor `name`, and how many bytes in it begins."""
        offset = 0
        while name in self.views:
            view = self.views[name]
            name, offset = view.base, offset + view.offset
        return name, offset

    def root(self, name: str) -> str:
        """The storage that holds tensor `name`."""
        return self.place(name)[0]

    @property
    def scratch_bytes(self) -> int:
        """Scratch of one thread."""
        return max((k.scratch_bytes for k in self.kernels.values()), default=0)

    @property
    def constant_bytes(self) -> int:
        return sum(int(np.asarray(c).nbytes) for c in self.constants.values())
