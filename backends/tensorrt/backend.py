"""TensorRT as a backend: engines compiled here, engines of this machine's TensorRT, bundles for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from effc.core.artifact import Artifact
from effc.core.backend import Availability, Backend
from effc.core.errors import Problem, UnsupportedOpError
from effc.core.measure import Device
from effc.core.target import Target


@dataclass(slots=True)
class Bundle:
    """A legalized model on its way into a bundle."""

    model: ir.Model
    target: Target


Lowered = Engine | Bundle


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

    def check(self, model: ir.Model, target: Target) -> Sequence[Problem]:
        try:
            self.lower(model, target)
        except UnsupportedOpError as error:
            return error.problems
        return ()

    def lower(self, model: ir.Model, target: Target) -> Lowered:
        product, sm, options = product_of(target), compute_capability(target), options_of(target)
        problems = engines.static_problems(model, product, sm, options)
        if problems:
            raise UnsupportedOpError(target.profile.name, problems)
        if product == "bundle":
            return Bundle(model, target)
        engine = Engine(product, model, target.profile.name, sm, options)
        engines.parse(engine)
        return engine

    def compile(self, lowered: Lowered, target: Target, out: Path) -> Mapping[str, Path]:
        if isinstance(lowered, Bundle):
            from effc.backends.tensorrt.bundle import write_bundle

            return write_bundle(lowered.model, target, out)
        return engines.build(lowered, out)

    def devices(self, target: Target) -> Iterable[Device]:
        return ()

    def why_no_device(self, target: Target) -> str:
        if product_of(target) == "bundle":
            return f"a bundle is built on {target.profile.name} itself: `effc finish` there"
        sm = compute_capability(target)
        if not gpus():
            return "built, not executed: no GPU here"
        return f"built, not executed: no GPU of SM{sm} here ({gpus()[0].name} is SM{gpus()[0].sm})"

    def describe(self, lowered: Lowered) -> dict[str, Any]:
        if isinstance(lowered, Bundle):
            return {"product": "bundle", "sm": compute_capability(lowered.target)}
        return engines.describe(lowered)
