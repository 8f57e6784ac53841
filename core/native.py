"""Runs a model library that effc built, through its C interface: numpy and ctypes, nothing else."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from effc.core.errors import ConfigError, DeviceError

Array = npt.NDArray[Any]
API = 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output: row-major, numpy dtype name."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CallTime:
    """The seconds of one kernel call, and the model's nodes that it computes."""

    template: str
    nodes: tuple[str, ...]
    seconds: float


class _CTensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
    ]


class _CCall(ctypes.Structure):
    _fields_ = [("nodes", ctypes.c_char_p), ("template", ctypes.c_char_p)]


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path.resolve()))
        version = library.effc_model_api_version
    except (OSError, AttributeError) as error:
        raise ConfigError(
            f"{str(path)!r} is no model library of effc for this machine: {error}",
            hint="give the model.so of an artifact that was built for a target like this machine",
        ) from error
    if version() != API:
        raise ConfigError(
            f"{str(path)!r} has version {version()} of the C interface, and this effc reads {API}",
            hint="build the model again",
        )
    for name in ("input", "output"):
        getattr(library, f"effc_model_{name}").restype = ctypes.POINTER(_CTensor)
    library.effc_model_call.restype = ctypes.POINTER(_CCall)
    library.effc_model_create.restype = ctypes.c_void_p
    library.effc_model_last_error.restype = ctypes.c_char_p
    library.effc_model_arena_bytes.restype = ctypes.c_size_t
    library.effc_model_arena_bytes.argtypes = [ctypes.c_void_p]
    library.effc_model_destroy.argtypes = [ctypes.c_void_p]
    library.effc_model_set_threads.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    pointers = ctypes.POINTER(ctypes.c_void_p)
    library.effc_model_invoke.argtypes = [ctypes.c_void_p, pointers, pointers]
    library.effc_model_profile.argtypes = [
        ctypes.c_void_p,
        pointers,
        pointers,
        ctypes.POINTER(ctypes.c_uint64),
    ]
    return library


class Model:
    """A model in memory: `model(x=array)` or `model.run({"x": array})` gives output name -> array.

    A context manager; outside a `with` block, `close` frees its threads and memory. One caller at a time.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        path = Path(path)
        if path.is_dir():
            path = path / "model.so"
        if not path.is_file():
            raise ConfigError(
                f"{str(path)!r} is not there", hint="give an artifact or its model.so"
            )
        self._handle: int | None = None
        self._library = _load(path)
        self.inputs = self._describe("input")
        self.outputs = self._describe("output")
        self._handle = self._library.effc_model_create(threads)
        if not self._handle:
            raise DeviceError(f"{str(path)!r}: {self._error()}")
        self._threads = threads
        self._in = (ctypes.c_void_p * max(1, len(self.inputs)))()
        self._out = (ctypes.c_void_p * max(1, len(self.outputs)))()

    def _describe(self, what: str) -> tuple[Tensor, ...]:
        count = getattr(self._library, f"effc_model_{what}_count")()
        found = []
        for i in range(count):
            c = getattr(self._library, f"effc_model_{what}")(i).contents
            shape = tuple(c.shape[axis] for axis in range(c.ndim))
            found.append(Tensor(c.name.decode(), c.dtype.decode(), shape))
        return tuple(found)

    def _error(self) -> str:
        return bytes(self._library.effc_model_last_error()).decode(errors="replace")

    @property
    def handle(self) -> int:
        if self._handle is None:
            raise ConfigError("the model is closed", hint="open it again with Model(path)")
        return self._handle

    @property
    def threads(self) -> int:
        """Threads of an inference, the caller's included."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        if self._library.effc_model_set_threads(self.handle, threads):
            raise ConfigError(f"{threads} threads: {self._error()}")
        self._threads = threads

    @property
    def arena_bytes(self) -> int:
        """Bytes held for intermediate tensors and the threads' scratch."""
        return int(self._library.effc_model_arena_bytes(self.handle))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One inference: input name -> array in, output name -> new array out."""
        handle = self.handle
        held, outputs = self._bind(feeds)
        if self._library.effc_model_invoke(handle, self._in, self._out):
            raise DeviceError(self._error())
        del held
        return outputs

    def __call__(self, **feeds: Array) -> dict[str, Array]:
        return self.run(feeds)

    def profile(self, feeds: Mapping[str, Array]) -> list[CallTime]:
        """One inference with the time of every call, in order; waiting for the slowest thread included."""
        count = self._library.effc_model_call_count()
        nanoseconds = (ctypes.c_uint64 * max(1, count))()
        handle = self.handle
        held, _ = self._bind(feeds)
        if self._library.effc_model_profile(handle, self._in, self._out, nanoseconds):
            raise DeviceError(self._error())
        del held
        times = []
        for i in range(count):
            call = self._library.effc_model_call(i).contents
            nodes = tuple(call.nodes.decode().split("\n"))
            times.append(CallTime(call.template.decode(), nodes, nanoseconds[i] * 1e-9))
        return times

    def _bind(self, feeds: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
        """Point the C interface at the arrays; the caller holds what is returned while it runs."""
        unknown = [name for name in feeds if name not in {t.name for t in self.inputs}]
        if unknown:
            raise ConfigError(
                f"{unknown[0]!r} is no input of the model",
                hint=f"its inputs: {', '.join(t.name for t in self.inputs)}",
            )
        held = []
        for i, tensor in enumerate(self.inputs):
            if tensor.name not in feeds:
                raise ConfigError(
                    f"input {tensor.name!r} is missing",
                    hint=f"it is {tensor.dtype} of shape {tensor.shape}",
                )
            array = np.asarray(feeds[tensor.name])
            if array.shape != tensor.shape or array.dtype != np.dtype(tensor.dtype):
                raise ConfigError(
                    f"input {tensor.name!r} is {array.dtype} of shape {array.shape}",
                    hint=f"the model takes {tensor.dtype} of shape {tensor.shape}",
                )
            array = np.ascontiguousarray(array)
            held.append(array)
            self._in[i] = array.ctypes.data
        outputs = {}
        for i, tensor in enumerate(self.outputs):
            result = np.empty(tensor.shape, tensor.dtype)
            outputs[tensor.name] = result
            self._out[i] = result.ctypes.data
        return held, outputs

    def close(self) -> None:
        """Free the instance; closing twice is fine."""
        if self._handle is not None:
            self._library.effc_model_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
