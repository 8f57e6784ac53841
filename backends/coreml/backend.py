"""Core ML as a backend: an .mlpackage for iPhone, iPad and Mac, made and checked on any machine."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from effc.backends.coreml.convert.open_shapes import Opened
from effc.backends.coreml.convert.program import Converted, convert
from effc.backends.coreml.interface import Picture, picture_of, scores_port
from effc.backends.coreml.options import Options, options_of
from effc.backends.coreml.package import quiet, write_package
from effc.backends.coreml.sizes import Sizes
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
    others: tuple[Converted, ...] = ()  # at other sizes of the input


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
        name = target.profile.name
        opened = None
        if options.sizes is not None:
            opened = _opened(model, options.sizes, picture, target)

        def converted(model: ir.Model) -> Converted:
            return convert(
                model,
                options.ios,
                name,
                picture=picture,
                scores=(lambda ports: scores_port(ports, options)) if options.labels else None,
                open_axes=opened.open if opened is not None else None,
            )

        with quiet():
            usual = converted(model)
            others = []
            if opened is not None and options.sizes is not None:
                shape = opened.usual[options.sizes.name] or ()
                others = [converted(opened.at(s)) for s in options.sizes.cases(shape)]
                usual = _with_sizes(usual, options.sizes, opened.open)
        return Lowered(usual, options, dict(target.about), tuple(others))

    def further_shapes(self, target: Target) -> Sequence[Mapping[str, tuple[int, ...]]]:
        sizes = options_of(target).sizes
        if sizes is None or sizes.name not in target.shapes:
            return ()
        return [{sizes.name: shape} for shape in sizes.cases(target.shapes[sizes.name])]

    def compile(self, lowered: Lowered, target: Target, out: Path) -> Mapping[str, Path]:
        package = out / PACKAGE
        write_package(lowered.converted, lowered.options, package, lowered.about)
        if lowered.others:
            self._merge(package, lowered, target)
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

    def _merge(self, package: Path, lowered: Lowered, target: Target) -> None:
        from effc.backends.coreml.flexible import merge

        port = next(p for p in lowered.converted.inputs if p.sizes is not None)
        with tempfile.TemporaryDirectory(prefix="effc-") as folder:
            paths = []
            for number, other in enumerate(lowered.others):
                paths.append(Path(folder) / str(number) / PACKAGE)
                write_package(other, lowered.options, paths[-1], lowered.about)
            merge(package, paths, port, target.profile.name)

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


def _opened(model: ir.Model, sizes: Sizes, picture: Picture | None, target: Target) -> Opened:
    """The model with the axes open that `sizes` names; ConfigError where it names no input."""
    given = {str(v.name): shape_of(v) for v in model.graph.inputs}
    usual = given.get(sizes.name)
    if usual is None:
        raise ConfigError(
            f"--backend-option sizes names {sizes.name!r}, which is no input of the model",
            hint=f"its inputs: {', '.join(given)}",
        )
    if sizes.name not in target.shapes:
        wanted = ",".join(map(str, usual))
        raise ConfigError(
            f"--backend-option sizes: the usual shape of {sizes.name!r} is not given",
            hint=f"add --shape {sizes.name}={wanted} (the model's dimensions have to be dynamic)",
        )
    axes = sizes.axes(usual)
    if picture is not None and not set(axes) <= ({1, 2} if picture.layout == "NHWC" else {2, 3}):
        raise ConfigError(
            "--backend-option sizes: a picture has a height and a width, and nothing else is open",
            hint="add --backend-option input=tensor for other axes",
        )
    return Opened(model, sizes.name, axes, target.profile.name)


def _with_sizes(
    converted: Converted, sizes: Sizes, flags: Mapping[str, tuple[bool, ...]]
) -> Converted:
    """The interface says which shapes are taken, and which axes follow them."""

    def axes(name: str) -> tuple[int, ...]:
        return tuple(i for i, depends in enumerate(flags.get(name, ())) if depends)

    inputs = tuple(
        replace(p, sizes=sizes, open=axes(p.name)) if p.name == sizes.name else p
        for p in converted.inputs
    )
    return replace(
        converted,
        inputs=inputs,
        outputs=tuple(replace(p, open=axes(p.name)) for p in converted.outputs),
    )
