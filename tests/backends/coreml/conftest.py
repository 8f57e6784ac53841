"""From an IR model through a saved package: what its users get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

Packaged = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def packaged(tmp_path: Path) -> Packaged:
    """`packaged(model, feeds, ios=17)`: converted, saved, reloaded and interpreted."""
    pytest.importorskip("coremltools")
    from effc.backends.coreml.convert.program import convert
    from effc.backends.coreml.interpret import Interpreter
    from effc.backends.coreml.options import Options
    from effc.backends.coreml.package import quiet, write_package
    from effc.backends.coreml.runner import packed, unpacked

    def run(model: ir.Model, feeds: dict[str, Any], ios: int = 17) -> dict[str, np.ndarray]:
        with quiet():
            converted = convert(model, ios, "test")
        path = tmp_path / f"m{len(list(tmp_path.iterdir()))}.mlpackage"
        write_package(converted, Options(f"iOS{ios}", ios), path, {})
        given = {p.mil: packed(p, feeds[p.name]) for p in converted.inputs}
        found = Interpreter(path).predict(given)
        run.package = path  # type: ignore[attr-defined]
        run.converted = converted  # type: ignore[attr-defined]
        return {p.name: unpacked(p, found[p.mil]) for p in converted.outputs}

    return run
