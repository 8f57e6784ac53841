"""A backend: ONNX's textual form, which onnxruntime runs after it is parsed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx
import onnx_ir as ir

from effc.core.artifact import Artifact
from effc.core.backend import Availability, Backend
from effc.core.errors import Problem, UnsupportedOpError
from effc.core.measure import Device, Runner
from effc.core.reference import OnnxRuntimeRunner
from effc.core.target import Target

TAKEN = frozenset({"Abs", "Neg", "Relu"})


@dataclass(frozen=True, slots=True)
class Host:
    """This machine, through onnxruntime."""

    name: str = "host"
    source: Literal["device", "emulator"] = "device"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        text = (artifact.path / "model.onnxtxt").read_text()
        return OnnxRuntimeRunner(ir.from_proto(onnx.parser.parse_model(text)), threads=threads)


class OnnxText(Backend[str]):
    """Takes three operators, so that a refusal can be tested too."""

    id: ClassVar[str] = "onnx-text"

    @classmethod
    def probe(cls) -> Availability:
        return Availability(True, versions={"onnx": onnx.__version__})

    def legalize(self, target: Target) -> str:
        return ""

    def check(self, model: ir.Model, target: Target) -> Sequence[Problem]:
        return [
            Problem(node.name or "", node.op_type, "onnx-text takes Abs, Neg and Relu", "use these")
            for node in model.graph
            if node.op_type not in TAKEN
        ]

    def lower(self, model: ir.Model, target: Target) -> str:
        if problems := self.check(model, target):
            raise UnsupportedOpError(target.profile.name, problems)
        return onnx.printer.to_text(ir.to_proto(model))

    def compile(self, lowered: str, target: Target, out: Path) -> Mapping[str, Path]:
        path = out / "model.onnxtxt"
        path.write_text(lowered)
        return {"model": path}

    def devices(self, target: Target) -> Iterable[Device]:
        return (Host(),)
