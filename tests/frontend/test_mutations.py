"""Mutated models: whatever a flipped bit or a careless editor makes of a model, nothing but EffcError."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effc import passes, zoo
from effc.core.check import check_model
from effc.core.errors import EffcError, PassError
from effc.core.passinfra import PassContext
from effc.core.shapes import infer_shapes
from effc.frontend.onnx import load

MEMBERS = ("tiny-mlp", "tiny-conv", "tiny-shufflenet", "tiny-vit", "tiny-yolo", "tiny-dynamic")


@cache
def message(name: str) -> bytes:
    return bytes(ir.to_proto(zoo.build(name)).SerializeToString())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutations") / "m.onnx"


def survive(data: bytes, path: Path) -> None:
    """Load, check, infer and canonicalize; any error must be an EffcError, and not a crash of a pass."""
    path.write_bytes(data)
    try:
        model = load(path)
        check_model(model)
        infer_shapes(model)
    except EffcError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return
    try:
        passes.parse(passes.CANONICALIZE).run(model, PassContext())
    except PassError:  # how the pipeline names what a pass did not foresee
        raise
    except EffcError as error:
        assert "\n" not in str(error)
        return
    check_model(model)


@settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(st.sampled_from(MEMBERS), st.integers(0, 1 << 30))
def test_flipped_bits(path: Path, name: str, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(message(name))
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    survive(bytes(data), path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from(MEMBERS), st.integers(0, 1 << 30))
def test_moved_bytes(path: Path, name: str, seed: int) -> None:
    rng = random.Random(seed)
    data = message(name)
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    mutated = rng.choice(
        (data[:a], data[:a] + data[b:], data[:b] + data[a:], data[b:] + data[:b], data[a:b])
    )
    survive(mutated, path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(st.sampled_from(MEMBERS), st.integers(0, 1 << 30))
def test_edited_graphs(path: Path, name: str, seed: int) -> None:
    rng = random.Random(seed)
    model = onnx.ModelProto.FromString(message(name))
    for _ in range(rng.choice((1, 1, 2, 4))):
        _edit(model, rng)
    survive(model.SerializeToString(), path)


_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 1 << 16, 1 << 31, (1 << 63) - 1, -(1 << 63))
_OPERATORS = (
    "Conv",
    "Relu",
    "Reshape",
    "Concat",
    "Split",
    "If",
    "Gemm",
    "Resize",
    "Transpose",
    "Nope",
)


def _edit(model: onnx.ModelProto, rng: random.Random) -> None:
    """One careless change to a random place of the model."""
    graph = model.graph
    node = rng.choice(graph.node)
    kind = rng.randrange(12)
    names = [
        *(o for n in graph.node for o in n.output),
        *(t.name for t in graph.initializer),
        "",
        "?",
    ]
    if kind == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == 1 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(names)
    elif kind == 2:
        node.op_type = rng.choice(_OPERATORS)
    elif kind == 3 and node.attribute:
        attribute = rng.choice(node.attribute)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_NUMBERS)
        elif attribute.type == onnx.AttributeProto.INT:
            attribute.i = rng.choice(_NUMBERS)
        elif attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = rng.choice((0.0, float("nan"), float("inf"), -1.0, 1e30))
        else:
            attribute.type = rng.randrange(15)
    elif kind == 4 and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif kind == 5:
        graph.node.remove(node)
    elif kind == 6:
        tensor = rng.choice(graph.initializer)
        if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_NUMBERS)
    elif kind == 7:
        rng.choice(graph.initializer).data_type = rng.randrange(30)
    elif kind == 8:
        tensor = rng.choice(graph.initializer)
        data = bytearray(tensor.raw_data)
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
            tensor.raw_data = bytes(data)
    elif kind == 9:
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[rng.randrange(len(dims))].dim_value = rng.choice(_NUMBERS)
    elif kind == 10:
        model.opset_import[0].version = rng.choice((0, 1, 6, 7, 11, 13, 17, 28, 99))
    elif kind == 11:
        node.input.append(rng.choice(names))
