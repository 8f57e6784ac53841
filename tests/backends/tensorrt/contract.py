"""The Python API of a TensorRT version as a module that records calls, and refuses what the version lacks.

api/*.json hold the names and arguments of every method, property and enumerator, read off the sources of the
bindings of TensorRT 10.3 (JetPack 6), 10.16 and 11.1. A call of a method that the version lacks, with a
wrong number of arguments or an unknown name of one, or a property written that is read-only, fails as the
real module would. What methods return is in `RETURNS`, or is said by the test.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

API = Path(__file__).parent / "api"
VERSIONS = tuple(sorted(p.stem.removeprefix("tensorrt-") for p in API.glob("*.json")))

# the class of what a method gives
RETURNS = {
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "IBuilderConfig.get_timing_cache": "ITimingCache",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.create_execution_context": "IExecutionContext",
    "OnnxParser.get_error": "ParserError",
    "INetworkDefinition.get_layer": "ILayer",
}

Answer = Any | Callable[..., Any]


class Recorded(ModuleType):
    """A module `tensorrt` of one version; `calls` are in order, as (class.method, arguments)."""

    def __init__(self, version: str, answers: dict[str, Answer]) -> None:
        super().__init__("tensorrt")
        api = json.loads((API / f"tensorrt-{version}.json").read_text())
        self.__version__ = f"{version}.0"
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.written: dict[str, Any] = {}
        self.answers = answers
        for name, values in api["enums"].items():
            setattr(self, name, enum.IntEnum(name, {v: i for i, v in enumerate(values)}))  # type: ignore[misc]
        for name, members in api["classes"].items():
            setattr(self, name, _class(self, name, members))
        severity = enum.IntEnum(
            "Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3}
        )
        self.ILogger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})
        self.nptype = lambda dtype: {"FLOAT": np.float32, "HALF": np.float16}[dtype.name]

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of a method."""
        return [arguments for method, arguments in self.calls if method == name]

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name in self.answers:
            found = self.answers[name]
            return found(*arguments) if callable(found) else found
        made = RETURNS.get(name)
        return _bare(getattr(self, made)) if made else True


def _bare(cls: type) -> Any:
    """An instance that no caller has constructed: the module makes it."""
    return object.__new__(cls)


def _class(module: Recorded, name: str, members: dict[str, Any]) -> type:
    body: dict[str, Any] = {"__slots__": ("__dict__",)}
    for method, signatures in members["methods"].items():
        body[method] = _method(module, f"{name}.{method}", signatures)
    for prop, access in members["properties"].items():
        body[prop] = _property(module, f"{name}.{prop}", access == "write")
    if "__init__" not in members["methods"]:
        body["__init__"] = lambda self: None

    def refuse(self: Any, key: str, value: Any) -> None:
        if not isinstance(getattr(type(self), key, None), property):
            raise AttributeError(f"{name} of TensorRT {module.__version__} has no {key!r}")
        object.__setattr__(self, key, value)

    body["__setattr__"] = refuse
    return type(name, (), body)


def _method(module: Recorded, name: str, signatures: list[str]) -> Callable[..., Any]:
    def method(self: Any, *given: Any, **named: Any) -> Any:
        for signature in signatures:
            formals = [a for a in signature.split(", ") if a]
            least = sum(not a.endswith("=") for a in formals)
            names = [a.rstrip("=") for a in formals]
            fits = least <= len(given) + len(named) <= len(formals)
            if fits and set(named) <= set(names[len(given) :]):
                break
        else:
            raise TypeError(
                f"{name} of TensorRT {module.__version__} takes {' or '.join(map(repr, signatures))}"
            )
        arguments = (*given, *named.values())
        module.calls.append((name, arguments))
        return None if name.endswith("__init__") else module.answer(name, arguments)

    return method


def _property(module: Recorded, name: str, writable: bool) -> property:
    def read(self: Any) -> Any:
        return module.written.get(name, module.answers.get(name, 0))

    def write(self: Any, value: Any) -> None:
        module.written[name] = value

    return property(read, write if writable else None)
