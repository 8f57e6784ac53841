"""Quantized models as integer programs: bit for bit what the numpy reference of core/integers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.backend import TvmBackend  # noqa: E402
from effc.backends.tvm.isa import Isa, host_isa, isa_of, runs_on  # noqa: E402
from effc.backends.tvm.library import write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.core.integers import DOMAIN, reference  # noqa: E402
from effc.core.ir import const  # noqa: E402
from effc.core.native import Model  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402
from effc.core.reference import random_feeds  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402
from effc.core.target import Target  # noqa: E402
from effc.passes import CANONICALIZE, FUSE, parse  # noqa: E402
from effc.zoo import build  # noqa: E402

Array = np.ndarray[Any, Any]
EIGHT = (ir.DataType.UINT8, ir.DataType.INT8)
MIXED = ("tiny-convnext", "tiny-shufflenet", "tiny-unet", "tiny-vit")


def integer_model(name: str, target: Target) -> ir.Model:
    """A tiny model of the zoo, quantized on made-up samples, with integer operators."""
    model: ir.Model = build(name)
    infer_shapes(model)
    context = PassContext(target, None, 0)
    parse(f"{CANONICALIZE},{FUSE},quantize").run(model, context)
    parse(TvmBackend().legalize(target)).run(model, context)
    return model


def built(model: ir.Model, isa: Isa, folder: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """What the library answers; one thread and two give the same."""
    write_library(lower(model, isa), folder)
    with Model(folder) as compiled:
        found = compiled.run(feeds)
        compiled.threads = 2
        for key, value in compiled.run(feeds).items():
            np.testing.assert_array_equal(value, found[key])
    return found


def _target(name: str) -> tuple[Target, Isa]:
    profile = load_profile(name)
    isa = isa_of(profile)
    if not runs_on(isa, host_isa()):
        pytest.skip(f"{name} needs {', '.join(isa.features)}, which this machine lacks")
    return Target(profile), isa


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("tiny-conv", "host"), ("tiny-conv", "x86-avx2"), ("tiny-resnet", "host"),
        pytest.param("tiny-resnet", "x86-avx2", marks=pytest.mark.slow),
        pytest.param("tiny-mobilenetv3", "host", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_whole_model(name: str, target: str, tmp_path: Path) -> None:
    """Without an operator on reals inside: one wrong bit anywhere shows at the end."""
    chosen, isa = _target(target)
    model = integer_model(name, chosen)
    assert sum(n.domain == DOMAIN for n in model.graph) > len(model.graph) // 2
    feeds = random_feeds(model, 1)[0]
    found = built(model, isa, tmp_path, feeds)
    for key, expected in reference.run(model, feeds).items():
        np.testing.assert_array_equal(found[key], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXED)
def test_every_integer_of_a_mixed_model(name: str, tmp_path: Path) -> None:
    """Each operator on bytes, on the very bytes that the library computed before it."""
    chosen, isa = _target("host")
    model = integer_model(name, chosen)
    shown = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if (value.dtype in EIGHT or node.domain == DOMAIN) and value not in shown:
                model.graph.outputs.append(value)
                shown.add(value)
    feeds = random_feeds(model, 1)[0]
    found = built(model, isa, tmp_path, feeds)
    known: dict[ir.Value, Array] = {
        v: feeds[str(v.name)] for v in model.graph.inputs if v.name in feeds
    }
    known.update((v, found[str(v.name)]) for v in shown)
    compared = 0
    for node in model.graph:
        inputs = [None if v is None else known.get(v, const(v)) for v in node.inputs]
        present = all(a is not None or v is None for a, v in zip(inputs, node.inputs, strict=True))
        if not present or not all(v in known for v in node.outputs):
            continue
        expected = reference.run_node(node, inputs, model.opset_imports)
        for value, array in zip(node.outputs, expected, strict=True):
            if node.domain == DOMAIN or value.dtype in EIGHT:
                np.testing.assert_array_equal(known[value], array, err_msg=node.name or "")
                compared += 1
    assert compared >= sum(n.domain == DOMAIN for n in model.graph)
