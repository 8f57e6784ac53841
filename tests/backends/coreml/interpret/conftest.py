"""Builds MIL programs with coremltools, saves them, and runs the saved packages."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")


class Mil:
    """`run` gives the outputs of a program in order; `save` leaves it at a path."""

    def __init__(self, folder: Path) -> None:
        logging.getLogger("coremltools").setLevel(logging.ERROR)
        import coremltools as ct
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil import Function, Program, types

        self.ct, self.mb, self.types = ct, Builder, types
        self._function, self._program = Function, Program
        self._folder = folder
        self._count = 0
        # every conversion collects garbage, which is slow beside torch's objects
        gc.collect()
        gc.freeze()

    def save(
        self,
        build: Callable[..., Any],
        arrays: Mapping[str, Any],
        opset: int = 18,
        **options: Any,
    ) -> Path:
        ct, mb, types = self.ct, self.mb, self.types
        target = getattr(ct.target, f"iOS{opset}")
        placeholders = {
            k: mb.placeholder(shape=v.shape, dtype=types.numpy_type_to_builtin_type(v.dtype))
            for k, v in arrays.items()
        }
        with self._function(placeholders, opset_version=target) as function:
            results = build(mb, *(function.inputs[k] for k in arrays))
            outputs = []
            for i, r in enumerate(results if isinstance(results, list | tuple) else [results]):
                if r.dtype not in (types.fp32, types.fp16, types.int32):
                    wide = types.is_float(r.dtype)
                    r = mb.cast(x=r, dtype="fp32" if wide else "int32")
                outputs.append(mb.identity(x=r, name=f"out_{i}"))
            function.set_outputs(outputs)
        program = self._program()
        program.add_function("main", function)
        options.setdefault("pass_pipeline", ct.PassPipeline.EMPTY)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=target,
            skip_model_load=True,
            **options,
        )
        self._count += 1
        path = self._folder / f"m{self._count}.mlpackage"
        model.save(str(path))
        return path

    def run(
        self, build: Callable[..., Any], inputs: Mapping[str, Any], opset: int = 18
    ) -> list[Any]:
        from effc.backends.coreml.interpret import Interpreter

        interpreter = Interpreter(self.save(build, inputs, opset))
        found = interpreter.predict(inputs)
        return [found[f"out_{i}"] for i in range(len(found))]

    def one(self, build: Callable[..., Any], *inputs: Any, opset: int = 18) -> Any:
        """The only output, of inputs in order."""
        (result,) = self.run(build, {f"in_{i}": v for i, v in enumerate(inputs)}, opset)
        return result


@pytest.fixture(scope="session")
def mil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mil]:
    yield Mil(tmp_path_factory.mktemp("mil"))
    gc.unfreeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
