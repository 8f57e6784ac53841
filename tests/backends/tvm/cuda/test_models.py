"""Whole models for a GPU, executed on the CPU by the launcher, a fake driver and the kernels' own source."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc.backends.tvm.backend import TvmBackend
from effc.core.integers import reference
from effc.core.passinfra import PassContext
from effc.core.profiles import load_profile
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import infer_shapes
from effc.core.target import Target
from effc.passes import CANONICALIZE, FUSE, parse
from effc.zoo import build

CASES = (
    ("tiny-resnet", "fp32", 1e-5),
    ("tiny-mobilenetv2", "fp16", 4e-3),
    ("tiny-vit", "fp16", 4e-3),
    ("tiny-mobilenetv2", "int8", 0.0),
)


def legal(name: str, precision: str) -> tuple[ir.Model, ir.Model]:
    """The model as it is built for an H200, and what it is compared with."""
    target = Target(load_profile("h200"), precision=precision)
    model: ir.Model = build(name)
    infer_shapes(model)
    original = model.clone()
    narrow = {"fp16": ",convert-float16", "int8": ",quantize"}.get(precision, "")
    context = PassContext(target, None, 0)
    parse(f"{CANONICALIZE},{FUSE}{narrow}").run(model, context)
    parse(TvmBackend().legalize(target)).run(model, context)
    return model, original


@pytest.mark.parametrize(("name", "precision", "tolerance"), CASES)
def test_the_models_answers(name: str, precision: str, tolerance: float, execute: Any) -> None:
    model, original = legal(name, precision)
    feeds = random_feeds(original, 1)[0]
    if precision == "int8":
        wanted = reference.run(model, feeds)
    else:
        with OnnxRuntimeRunner(original, optimize=False) as runner:
            wanted = runner.infer(feeds)
    executed = execute(model)
    found = executed.run(feeds)
    backwards = executed.run(feeds, reverse=True)
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance * scale)
        # the order in which threads come to their barriers changes nothing
        np.testing.assert_array_equal(found[key], backwards[key])
    kinds = {c.template for c in executed.program.calls}
    assert not any(k.startswith("tvm:") for k in kinds)


def test_reals_are_multiplied_on_tensor_cores_in_half_precision(execute: Any) -> None:
    from effc.backends.tvm.cuda.gpu import gpu_of
    from effc.backends.tvm.cuda.lower import lower

    model, _ = legal("tiny-resnet", "fp16")
    program = lower(model, gpu_of(load_profile("h200")), 132)
    products = [program.kernels[c.kernel].func for c in program.calls if c.template == "conv"]
    assert len(products) == 9
    assert all("m16n8k16" in p.multiply and p.product for p in products)
    blocked = [t for t in program.tensors.values() if t.layout.block]
    assert blocked and all(t.layout.block == 8 for t in blocked)
