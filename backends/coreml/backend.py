"""Core ML as a backend: an .mlpackage for iPhone, iPad and Mac, made and checked on any machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from effc.backends.coreml.convert.program import Converted, convert
from effc.backends.coreml.interface import picture_of, scores_port
from effc.backends.coreml.options import Options, options_of
from effc.backends.coreml.package import quiet, write_package
from effc.backends.coreml.usage import usage
from effc.core.artifact import Artifact
from effc.core.backend import Availability, Backend
from effc.core.errors import ConfigError, DeviceError, Problem, UnsupportedOpError
from effc.core.ir import shape_of
from effc.core.measure import Device
from effc.core.target import Target

PACKAGE = "model.mlpackage"
_HINT = "pip install 'effc[coreml]'"


@dataclass(frozen=True)
class Lowered:
    """A MIL program, and what stands around it in the package."""

    converted: Converted
    options: Options
    about: Mapping[str, str]


class CoreMLBackend(Backend[Lowered]):
    """Lowers to an ML Program by coremltools' Builder."""

    id: ClassVar[str] = "coreml"
    keeps_goldens: ClassVar[bool] = True

    @classmethod
    def probe(cls) -> Availability:
        if importlib.util.find_spec("coremltools") is None:
            return Availability(False, "coremltools is not installed", _HINT)
        return Availability(True, versions={"coremltools": version("coremltools")})

    def accepts(self, target: Target) -> Availability:
        try:
            options_of(target)
        except ConfigError as error:
            return Availability(False, str(error), error.hint)
        return Availability(True)

    def quantization(self, target: Target) -> str:
        """MIL has quantize and dequantize since iOS 17."""
        return "coreml" if options_of(target).ios >= 17 else ""

    def legalize(self, target: Target) -> str:
        # the Neural Engine computes in half precision what is not quantized; casts beside Q/DQ become
        # the type of quantize and dequantize (convert/quantized.py)
        half = target.precision in ("int8", "w4a8", "auto")
        return "decompose-attention" + (
            ",convert-float16{integers=free},eliminate-dead-code" if half else ""
        )

    def check(self, model: ir.Model, target: Target) -> Sequence[Problem]:
        try:
            self.lower(model, target)
        except UnsupportedOpError as error:
            return error.problems
        return ()

    def lower(self, model: ir.Model, target: Target) -> Lowered:
        options = options_of(target)
        fed = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
        floats = all(v.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) for v in fed)
        shapes = [shape_of(v) or () for v in fed]
        picture = picture_of(options, target.preprocess, shapes, floats)
        with quiet():
            converted = convert(
                model,
                options.ios,
                target.profile.name,
                picture=picture,
                scores=(lambda ports: scores_port(ports, options)) if options.labels else None,
            )
        return Lowered(converted, options, dict(target.about))

    def compile(self, lowered: Lowered, target: Target, out: Path) -> Mapping[str, Path]:
        package = out / PACKAGE
        write_package(lowered.converted, lowered.options, package, lowered.about)
        if lowered.options.join or lowered.options.function != "main":
            from effc.backends.coreml.functions import join, others_of

            join(package, lowered.options.function, others_of(lowered.options.join))
        files = [p for p in sorted(package.rglob("*")) if p.is_file()]
        page = out / "USAGE.md"
        converted = lowered.converted
        page.write_text(
            usage(PACKAGE, converted.inputs, converted.outputs, lowered.options), encoding="utf-8"
        )
        return {**{p.relative_to(out).as_posix(): p for p in files}, "usage": page}

    def devices(self, target: Target) -> Iterable[Device]:
        from effc.backends.coreml.runner import Interpreted, Mac, interpreter_here, on_macos

        if on_macos():
            yield Mac()
        if interpreter_here():
            yield Interpreted()

    def why_no_device(self, target: Target) -> str:
        return "Core ML runs on macOS: `effc finish` there"

    def times(self, device: Device) -> bool:
        return device.source == "device"

    def finish(self, artifact: Artifact) -> Artifact:
        from effc.backends.coreml.finish import finish
        from effc.backends.coreml.runner import on_macos

        if not on_macos():
            raise DeviceError(
                "Core ML runs on macOS only: this machine can't finish a package",
                hint="copy the artifact to a Mac and run effc finish there",
            )
        return finish(artifact)

    def describe(self, lowered: Lowered) -> dict[str, Any]:
        converted = lowered.converted
        return {
            "package": PACKAGE,
            "deployment": lowered.options.deployment,
            "interface": {
                "inputs": [p.describe() for p in converted.inputs],
                "outputs": [p.describe() for p in converted.outputs],
            },
            **(
                {"functions": [lowered.options.function, *lowered.options.join]}
                if lowered.options.join
                else {}
            ),
            **({"weights": dict(converted.facts)} if converted.facts else {}),
            **({"labels": len(lowered.options.labels)} if lowered.options.labels else {}),
        }
