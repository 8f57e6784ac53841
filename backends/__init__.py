"""The backends, by id; a plug-in adds its own through the entry-point group `effc.backends`."""

from __future__ import annotations

from typing import Any

from effc.core.backend import Backend
from effc.core.errors import ConfigError
from effc.core.registry import Registry

BACKENDS = Registry(
    "backend",
    "effc.backends",
    {
        "ort": "effc.backends.ort.backend:OnnxRuntimeBackend",
        "coreml": "effc.backends.coreml.backend:CoreMLBackend",
        "tensorrt": "effc.backends.tensorrt.backend:TensorRTBackend",
        "tvm": "effc.backends.tvm.backend:TvmBackend",
    },
)


def make_backend(name: str) -> Backend[Any]:
    """An instance of the backend registered as `name`."""
    cls = BACKENDS.get(name)
    if not (isinstance(cls, type) and issubclass(cls, Backend)):
        raise ConfigError(f"backend {name!r} is not a subclass of effc.core.backend.Backend")
    return cls()
