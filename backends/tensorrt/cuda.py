"""As much of the CUDA driver's API as running an engine takes: memory, one stream, events, one graph.

Through ctypes, so that neither a toolkit nor a Python binding of it has to be installed.
Source: CUDA Driver API reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from types import TracebackType
from typing import Any, Self

from effc.backends.tensorrt.gpu import driver
from effc.core.errors import DeviceError
from effc.core.measure import Array

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class Cuda:
    """One GPU with a stream; a context manager that frees what it allocated."""

    def __init__(self, index: int = 0, api: Any = None) -> None:
        self.api: Any = api if api is not None else driver()
        self.index = index
        self.device = c_int()
        self.context, self.stream = c_void_p(), c_void_p()
        self.memory: list[int] = []
        self.graphs: list[tuple[c_void_p, c_void_p]] = []

    def __enter__(self) -> Self:
        if self.api is None:
            raise DeviceError("there is no NVIDIA driver here", hint="run it on the GPU's machine")
        self.call("cuDeviceGet", byref(self.device), c_int(self.index))
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), self.device)
        self.call("cuCtxSetCurrent", self.context)
        self.call("cuStreamCreate", byref(self.stream), c_uint(1))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for graph, made in self.graphs:
            self.api.cuGraphExecDestroy(made)
            self.api.cuGraphDestroy(graph)
        for pointer in self.memory:
            self.api.cuMemFree_v2(c_uint64(pointer))
        self.api.cuStreamDestroy_v2(self.stream)
        self.api.cuDevicePrimaryCtxRelease_v2(self.device)
        self.memory, self.graphs = [], []

    def call(self, name: str, *arguments: Any) -> None:
        """Call the driver; DeviceError with its own words where it fails."""
        status = getattr(self.api, name)(*arguments)
        if status == 0:
            return
        text = ctypes.c_char_p()
        self.api.cuGetErrorString(c_int(status), byref(text))
        reason = (text.value or b"no reason given").decode(errors="replace")
        raise DeviceError(f"the GPU's driver fails in {name}: {reason} (error {status})")

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        pointer = c_uint64()
        self.call("cuMemAlloc_v2", byref(pointer), c_size_t(max(size, 1)))
        self.memory.append(pointer.value)
        return pointer.value

    def upload(self, pointer: int, array: Array) -> None:
        """Copy a contiguous array to the GPU, in the stream."""
        source = c_void_p(array.ctypes.data)
        self.call(
            "cuMemcpyHtoDAsync_v2", c_uint64(pointer), source, c_size_t(array.nbytes), self.stream
        )

    def download(self, array: Array, pointer: int) -> None:
        """Copy from the GPU into a contiguous array, in the stream."""
        to = c_void_p(array.ctypes.data)
        self.call(
            "cuMemcpyDtoHAsync_v2", to, c_uint64(pointer), c_size_t(array.nbytes), self.stream
        )

    def wait(self) -> None:
        """Until the stream has done everything."""
        self.call("cuStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts into the stream as one CUDA graph; the result launches it."""
        graph, made = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", self.stream, c_int(_THREAD_LOCAL))
        try:
            enqueue()
        finally:
            self.call("cuStreamEndCapture", self.stream, byref(graph))
        self.call("cuGraphInstantiateWithFlags", byref(made), graph, c_uint64(0))
        self.graphs.append((graph, made))
        return lambda: self.call("cuGraphLaunch", made, self.stream)

    def timed(self, work: Callable[[], None], repeats: int) -> Sequence[float]:
        """Seconds on the GPU of each of `repeats` runs of `work`, between two events."""
        events = [(self._event(), self._event()) for _ in range(repeats)]
        for begin, end in events:
            self.call("cuEventRecord", begin, self.stream)
            work()
            self.call("cuEventRecord", end, self.stream)
        self.wait()
        seconds = []
        for begin, end in events:
            elapsed = c_float()
            self.call("cuEventElapsedTime", byref(elapsed), begin, end)
            seconds.append(elapsed.value / 1e3)
            self.api.cuEventDestroy_v2(begin)
            self.api.cuEventDestroy_v2(end)
        return seconds

    def _event(self) -> c_void_p:
        event = c_void_p()
        self.call("cuEventCreate", byref(event), c_uint(0))
        return event
