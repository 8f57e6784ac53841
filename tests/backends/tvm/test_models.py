"""Real models through canonicalize, fuse, lowering and compilation: the numbers of onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.library import write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.core.native import Model  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, random_feeds  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402
from effc.core.target import Target  # noqa: E402
from effc.frontend.onnx import load  # noqa: E402
from effc.passes import CANONICALIZE, FUSE, parse  # noqa: E402

ROOT = Path(__file__).parents[3]
MODELS = Path(os.environ.get("EFFC_TESTDATA", ROOT.parent / "shared/testdata")) / "models"
NAMES = (
    "mobilenet_v1_0.75", "resnet20_cifar10", "squeezenet1.1", "mobilenet_v2_1.0_dq", "face_rfb320",
    "nanodet_m", "portrait_sinet", "mlperf_tiny_kws_dq", "mlperf_tiny_resnet8", "mlperf_tiny_vww96",
)  # fmt: skip
SMALL = ("resnet20_cifar10", "mlperf_tiny_kws_dq")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SMALL else [pytest.mark.slow]) for n in NAMES]
)
def test_model(name: str, tmp_path: Path) -> None:
    path = MODELS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the test data")
    model = load(path)
    infer_shapes(model)
    feeds = random_feeds(model, 1)[0]
    with OnnxRuntimeRunner(model, optimize=False) as reference:
        wanted = reference.infer(feeds)
    context = PassContext(Target(load_profile("host")), None, 0)
    parse(f"{CANONICALIZE},{FUSE}").run(model, context)
    program = lower(model, host_isa())
    assert not [c.template for c in program.calls if c.template.startswith("tvm:")]
    assert program.arena_bytes <= 1.1 * program.arena_bound
    write_library(program, tmp_path)
    with Model(tmp_path) as compiled:
        alone = compiled.run(feeds)
        compiled.threads = 2
        together = compiled.run(feeds)
    for key, expected in wanted.items():
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(alone[key], expected, rtol=0, atol=2e-5 * scale)
        assert (alone[key] == together[key]).all()
