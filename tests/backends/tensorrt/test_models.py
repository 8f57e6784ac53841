"""Real architectures: engines for two generations of cards, and half precision that keeps its promise.

The 38 of timm that tools/bench_tensorrt.py measures take minutes; here are timm's own small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")

from effc import passes  # noqa: E402
from effc.backends.tensorrt.backend import TensorRTBackend  # noqa: E402
from effc.backends.tensorrt.engine import Engine  # noqa: E402
from effc.core.data import SyntheticSamples  # noqa: E402
from effc.core.passinfra import Effect, PassContext  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, record_goldens  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402
from effc.core.specs import static_specs  # noqa: E402
from effc.core.target import Target  # noqa: E402
from effc.core.verify import judge  # noqa: E402
from effc.sources import load  # noqa: E402

Card = Callable[..., Target]
SLOW = pytest.mark.slow  # torch exports them for longer than everything else takes
TIMM = [
    "test_efficientnet", "test_vit",
    *(pytest.param(n, marks=SLOW) for n in ("test_resnet", "test_convnext", "test_nfnet", "test_byobnet")),
]  # fmt: skip


def holds(source: str, card: Card, folder: Path) -> None:
    """fp16 in onnxruntime is within ROUNDED of the untouched model, and both cards get an engine."""
    model = load(source, {}).model
    infer_shapes(model)
    samples = SyntheticSamples(static_specs(model.graph.inputs), count=2, seed=0)
    feeds = list(islice(samples, 2))
    goldens = record_goldens(model, feeds)
    backend, half = TensorRTBackend(), card(86, "fp16")
    text = f"{passes.CANONICALIZE},{passes.FUSE},convert-float16,{backend.legalize(half)}"
    passes.parse(text).run(model, PassContext(half, samples))
    with OnnxRuntimeRunner(model) as runner:
        verdict = judge(goldens, [runner.infer(f) for f in feeds], Effect.ROUNDED)
    assert verdict.status == "passed", verdict.reason
    for sm in (86, 120):
        engine = backend.lower(model, card(sm, "fp16"))
        assert isinstance(engine, Engine)
        files = backend.compile(engine, card(sm, "fp16"), folder)
        assert files["engine"].stat().st_size > 10_000
        heavy = {str(n.name) for n in model.graph if n.op_type in ("Conv", "MatMul", "Gemm")}
        assert heavy <= {n for x in engine.fusion.layers for n in x.nodes}


@pytest.mark.parametrize("name", TIMM)
def test_small_architectures_of_timm(name: str, card: Card, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    holds(f"zoo:timm/{name}", card, tmp_path)


@pytest.mark.parametrize("name", ["tiny-swin", "tiny-unet", "tiny-shufflenet", "tiny-densenet"])
def test_members_of_the_zoo(name: str, card: Card, tmp_path: Path) -> None:
    holds(f"zoo:{name}", card, tmp_path)
