"""Tiny zoo models, whole, in the code of this machine and in that of half as wide registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import Isa, host_isa, isa_of, runs_on  # noqa: E402
from effc.backends.tvm.library import write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.pipeline import cpu  # noqa: E402
from effc.core.native import Model  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, random_feeds  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402
from effc.core.target import Target  # noqa: E402
from effc.passes import CANONICALIZE, FUSE, parse  # noqa: E402
from effc.zoo import build  # noqa: E402

MODELS = (
    "tiny-conv", "tiny-convnext", "tiny-mobilenetv3", "tiny-resnet", "tiny-shufflenet", "tiny-swin",
    "tiny-unet", "tiny-vit", "tiny-yolo",
)  # fmt: skip


def _isa(target: str) -> Isa:
    isa = isa_of(load_profile(target))
    if not runs_on(isa, host_isa()):
        pytest.skip(f"{target} needs {', '.join(isa.features)}, which this machine lacks")
    return isa


@pytest.mark.parametrize("target", ["host", "x86-avx2"])
@pytest.mark.parametrize("name", MODELS)
def test_tiny_model(name: str, target: str, tmp_path: Path) -> None:
    isa = _isa(target)
    model: Any = build(name)
    infer_shapes(model)
    feeds = random_feeds(model, 1)[0]
    with OnnxRuntimeRunner(model, optimize=False) as reference:
        wanted = reference.infer(feeds)
    context = PassContext(Target(load_profile(target)), None, 0)
    parse(f"{CANONICALIZE},{FUSE},{cpu()}").run(model, context)
    program = lower(model, isa)
    blocks = {t.layout.block for t in program.tensors.values()} - {0}
    assert blocks <= {isa.lanes}
    write_library(program, tmp_path)
    with Model(tmp_path) as compiled:
        found = compiled.run(feeds)
    for key, expected in wanted.items():
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=2e-5 * scale)
