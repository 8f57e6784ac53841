"""The NVIDIA GPUs of this machine, asked of the driver itself: no CUDA toolkit and no torch is needed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_DRIVERS = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
# CUdevice_attribute, CUDA Driver API
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; `sm` is its compute capability without the dot, as profiles write it."""

    index: int
    name: str
    sm: str
    bus: str = ""  # its PCI address, by which NVML knows it


@cache
def driver() -> ctypes.CDLL | None:
    """The CUDA driver, initialized; None where there is none, or it has no GPU to drive."""
    for name in _DRIVERS:
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        return found if found.cuInit(0) == 0 else None
    return None


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every GPU that the driver knows, in its order. Never raises."""
    cuda = driver()
    count = ctypes.c_int()
    if cuda is None or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    found = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        if cuda.cuDeviceGet(ctypes.byref(device), index) != 0:
            continue
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        bus = ctypes.create_string_buffer(16)
        cuda.cuDeviceGetPCIBusId(bus, len(bus), device)
        sm = f"{major.value}{minor.value}"
        found.append(Gpu(index, name.value.decode(errors="replace"), sm, bus.value.decode()))
    return tuple(found)


def gpu_for(sm: str) -> Gpu | None:
    """The first GPU here with this compute capability."""
    return next((g for g in gpus() if g.sm == sm), None)
