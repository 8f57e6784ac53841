"""The few functions of CUDA's runtime that running an engine needs, called in libcudart itself."""

from __future__ import annotations

import ctypes
import glob
from typing import Any

from .store import Refused

_NAMES = (
    "libcudart.so",
    "libcudart.so.13",
    "libcudart.so.12",
    "libcudart.so.11.0",
    "libcudart.so.10.2",
)
_PLACES = ("/usr/local/cuda/lib64/libcudart.so*", "/usr/local/cuda/targets/*/lib/libcudart.so*")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_MAJOR, _MINOR = 75, 76  # cudaDeviceAttr


class Cuda:
    """libcudart with one stream; every call is checked."""

    def __init__(self) -> None:
        self.library = _load()
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        self.stream = ctypes.c_void_p()
        self("cudaStreamCreate", ctypes.byref(self.stream))

    def __call__(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            text = self.library.cudaGetErrorString(code).decode(errors="replace")
            hint = "free memory: stop the desktop and other programs" if "memory" in text else ""
            raise Refused(f"CUDA: {name} failed: {text}", hint)

    def capability(self) -> str:
        """The compute capability of device 0 without the dot, like "87"."""
        found = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            found.append(str(value.value))
        return "".join(found)

    def free_bytes(self) -> int:
        """Device memory that is free; on a Jetson that is the board's memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_void_p()
        self("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return int(pointer.value or 0)

    def release(self, pointer: int) -> None:
        self("cudaFree", ctypes.c_void_p(pointer))

    def upload(self, pointer: int, data: Any) -> None:
        """Enqueue the copy of a ctypes buffer to the device."""
        size = ctypes.c_size_t(ctypes.sizeof(data))
        self("cudaMemcpyAsync", ctypes.c_void_p(pointer), data, size, _TO_DEVICE, self.stream)

    def download(self, data: Any, pointer: int) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(data))
        self("cudaMemcpyAsync", data, ctypes.c_void_p(pointer), size, _TO_HOST, self.stream)

    def synchronize(self) -> None:
        self("cudaStreamSynchronize", self.stream)

    def event(self) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        self("cudaEventCreate", ctypes.byref(found))
        return found

    def record(self, event: ctypes.c_void_p) -> None:
        self("cudaEventRecord", event, self.stream)

    def seconds_between(self, begin: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        milliseconds = ctypes.c_float()
        self("cudaEventElapsedTime", ctypes.byref(milliseconds), begin, end)
        return milliseconds.value / 1e3


def _load() -> ctypes.CDLL:
    for name in (*_NAMES, *sorted(found for place in _PLACES for found in glob.glob(place))):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Refused("libcudart, CUDA's runtime, is not found", "sudo apt install nvidia-jetpack")
