"""TensorRT as a backend: engines compiled here, engines of this machine's TensorRT, bundles for others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from effc.backends.tensorrt import engine as engines
from effc.backends.tensorrt.engine import Engine
from effc.backends.tensorrt.gpu import gpu_for, gpus
from effc.backends.tensorrt.options import options_of
from effc.backends.tensorrt.products import (
    availability,
    compute_capability,
    installed,
    product_of,
)
from effc.backends.tensorrt.surgery import use_nms_plugin
from effc.core.artifact import Artifact
from effc.core.backend import Availability, Backend
from effc.core.errors import DeviceError, Problem, UnsupportedOpError
from effc.core.measure import Device
from effc.core.profiles import load_profile
from effc.core.target import Target


@dataclass(slots=True)
class Bundle:
    """A legalized model on its way into a bundle."""

    model: ir.Model
    target: Target
    forms: Mapping[str, ir.Model] = field(
        default_factory=dict
    )  # beside it, like the fp16 of an int8


Lowered = Engine | Bundle


def timing_cache(engine: Engine) -> Path | None:
    """Where the timings of this GPU and this TensorRT are kept; nowhere for what is built elsewhere."""
    if engine.product != "full":
        return None
    gpu = gpu_for(engine.sm)
    folder = (
        engine.options.cache
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "effc/tensorrt"
    )
    name = f"{gpu.name if gpu is not None else 'gpu'}-{installed('tensorrt')}"
    return folder / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}.timing"


class TensorRTBackend(Backend[Lowered]):
    """Lowers to what TensorRT's parser takes; see products.py for what becomes of it."""

    id: ClassVar[str] = "tensorrt"
    keeps_goldens: ClassVar[bool] = True

    @classmethod
    def probe(cls) -> Availability:
        """Bundles need no toolchain; `accepts` says what a target's product needs."""
        names = ("tensorrt", "tensorrt_rtx", "onnx_graphsurgeon")
        return Availability(True, versions={n: v for n in names if (v := installed(n))})

    def accepts(self, target: Target) -> Availability:
        return availability(target)

    def quantization(self, target: Target) -> str:
        return "" if product_of(target) == "rtx" else "tensorrt"

    def legalize(self, target: Target) -> str:
        from effc.backends.tensorrt.legalize import pipeline

        return pipeline(target, product_of(target))

    def other_forms(self, target: Target) -> Mapping[str, str]:
        from effc.backends.tensorrt.bundle import form_pipelines

        return form_pipelines(target) if product_of(target) == "bundle" else {}

    def attach(self, lowered: Lowered, forms: Mapping[str, ir.Model]) -> Lowered:
        return replace(lowered, forms=forms) if isinstance(lowered, Bundle) else lowered

    def needs_samples(self, target: Target) -> str:
        from effc.backends.tensorrt.bundle import needs_samples

        return needs_samples(target) if product_of(target) == "bundle" else ""

    def check(self, model: ir.Model, target: Target) -> Sequence[Problem]:
        try:
            self.lower(model, target)
        except UnsupportedOpError as error:
            return error.problems
        return ()

    def lower(self, model: ir.Model, target: Target) -> Lowered:
        product, sm, options = product_of(target), compute_capability(target), options_of(target)
        problems = engines.static_problems(model, product, sm, options, target.precision)
        if product == "bundle":
            from effc.backends.tensorrt.bundle import problems as bundle_problems

            problems += bundle_problems(model)
        if problems:
            raise UnsupportedOpError(target.profile.name, problems)
        if product == "bundle":
            return Bundle(model, target)
        model = engines.opened(model, options)
        if options.nms == "plugin":
            model = use_nms_plugin(model, installed(engines.MODULES[product]), target.profile.name)
        engine = Engine(product, model, target.profile.name, sm, options)
        engines.parse(engine)
        return engine

    def compile(self, lowered: Lowered, target: Target, out: Path) -> Mapping[str, Path]:
        if isinstance(lowered, Bundle):
            from effc.backends.tensorrt.bundle import write_bundle

            return write_bundle(lowered.model, target, out, lowered.forms)
        return engines.build(lowered, out, timing_cache(lowered))

    def devices(self, target: Target) -> Iterable[Device]:
        product = product_of(target)
        if product == "bundle":
            from effc.backends.tensorrt.bundle import Bundled

            yield Bundled()
        gpu = gpu_for(compute_capability(target))
        module = engines.MODULES.get(product, "")
        if gpu is not None and module and installed(module):
            from effc.backends.tensorrt.runner import GpuDevice

            yield GpuDevice(gpu, module)

    def times(self, device: Device) -> bool:
        return device.source == "device"

    def why_no_device(self, target: Target) -> str:
        if product_of(target) == "bundle":
            return f"a bundle is built on {target.profile.name} itself: `effc finish` there"
        sm = compute_capability(target)
        if not gpus():
            return "built, not executed: no GPU here"
        return f"built, not executed: no GPU of SM{sm} here ({gpus()[0].name} is SM{gpus()[0].sm})"

    def finish(self, artifact: Artifact) -> Artifact:
        from effc.backends.tensorrt.finish import finish

        if artifact.manifest.details.get("product") == "bundle":
            from effc.backends.tensorrt.bundle import finish as finish_bundle

            return finish_bundle(artifact)
        product = str(artifact.manifest.details.get("product", "rtx"))
        target = Target(load_profile(artifact.manifest.target), options={"product": product})
        device = next(iter(self.devices(target)), None)
        if device is None:
            raise DeviceError(
                f"this machine can't run the engine: {self._missing(target)}",
                hint="copy the artifact to the GPU's machine and run effc finish there",
            )
        return finish(artifact, device)

    def finish_on(self, artifact: Artifact, address: str, config: Path | None = None) -> Artifact:
        if artifact.manifest.details.get("product") != "bundle":
            return super().finish_on(artifact, address, config)
        from effc.backends.tensorrt.bundle import finish_on

        return finish_on(artifact, address, config)

    def _missing(self, target: Target) -> str:
        sm, module = compute_capability(target), engines.MODULES[product_of(target)]
        if gpu_for(sm) is None:
            return f"no GPU of SM{sm} is here"
        return f"{module} is not installed"

    def describe(self, lowered: Lowered) -> dict[str, Any]:
        if isinstance(lowered, Bundle):
            return {"product": "bundle", "sm": compute_capability(lowered.target)}
        return engines.describe(lowered)
