"""onnxruntime as a backend: for comparison, and as the floor that every other backend has to beat.

The artifact is the optimized model as an ONNX file, at the opset the passes left.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from effc.core.artifact import Artifact
from effc.core.backend import Availability, Backend
from effc.core.errors import FrontendError, Problem
from effc.core.measure import Device, Runner
from effc.core.reference import OnnxRuntimeRunner, first_line
from effc.core.target import Target

# over this size weights go to a file of their own: protobuf stops at 2 GB
_EXTERNAL_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Host:
    """This machine's CPU, through onnxruntime."""

    name: str = "host"
    source: Literal["device", "emulator"] = "device"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        return OnnxRuntimeRunner(artifact.path / "model.onnx", threads=threads)


class OnnxRuntimeBackend(Backend[ir.Model]):
    """Lowers to an ONNX model for onnxruntime's CPU provider."""

    id: ClassVar[str] = "ort"

    @classmethod
    def probe(cls) -> Availability:
        if importlib.util.find_spec("onnxruntime") is None:
            return Availability(False, "onnxruntime is not installed", "pip install onnxruntime")
        return Availability(True, versions={"onnxruntime": version("onnxruntime")})

    def quantization(self, target: Target) -> str:
        return "ort"

    def legalize(self, target: Target) -> str:
        return ""

    def check(self, model: ir.Model, target: Target) -> Sequence[Problem]:
        """onnxruntime reports one node at a time, so at most one problem is listed."""
        try:
            with OnnxRuntimeRunner(model):
                return ()
        except FrontendError as error:
            return [
                Problem(
                    "", "", first_line(error), "see the operators of onnxruntime's CPU provider"
                )
            ]

    def lower(self, model: ir.Model, target: Target) -> ir.Model:
        return model

    def compile(self, lowered: ir.Model, target: Target, out: Path) -> Mapping[str, Path]:
        path = out / "model.onnx"
        weights = sum(
            v.const_value.nbytes for v in lowered.graph.initializers.values() if v.const_value
        )
        if weights > _EXTERNAL_BYTES:
            ir.save(lowered, path, external_data="model.data")
            return {"model": path, "weights": out / "model.data"}
        path.write_bytes(ir.to_proto(lowered).SerializeToString(deterministic=True))
        return {"model": path}

    def devices(self, target: Target) -> Iterable[Device]:
        return (Host(),)

    def describe(self, lowered: ir.Model) -> dict[str, Any]:
        return {"nodes": len(lowered.graph)}
