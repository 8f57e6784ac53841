"""Products in tiles, windows and pooling, over shapes that fit and shapes that don't, in all three types."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from effc.backends.tvm.cuda.gpu import gpu_of
from effc.backends.tvm.cuda.lower import lower
from effc.backends.tvm.cuda.product import _TILES, tile
from effc.core.profiles import load_profile
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import infer_shapes

from . import walk

Array = np.ndarray[Any, Any]
TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}


class Cases:
    """Independent nodes of one graph: one compilation for all of them."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype, self.rng = dtype, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.feeds: dict[str, Array] = {}

    def array(self, shape: tuple[int, ...], scale: float = 1.0) -> Array:
        return (self.rng.standard_normal(shape) * scale).astype(self.dtype)

    def input(self, *shape: int) -> str:
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.array(shape)
        return name

    def constant(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        scale = max(1.0, float(np.prod(shape[1:]))) ** -0.5
        self.constants.append(numpy_helper.from_array(self.array(shape, scale), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def model(self) -> ir.Model:
        kind = TYPES[self.dtype]
        read = {i for n in self.nodes for i in n.input}
        outputs = [n.output[0] for n in self.nodes if n.output[0] not in read]
        graph = helper.make_graph(
            self.nodes,
            "cases",
            [helper.make_tensor_value_info(n, kind, a.shape) for n, a in self.feeds.items()],
            [helper.make_tensor_value_info(n, kind, None) for n in outputs],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
        infer_shapes(model)
        return model


def conv(
    cases: Cases, channels: int, outputs: int, size: tuple[int, int], kernel: int = 3, groups: int = 1,
    batch: int = 1, bias: bool = True, **attributes: Any,
) -> None:  # fmt: skip
    """A Conv with what is usual behind it."""
    x = cases.input(batch, channels, *size)
    w = cases.constant(outputs, channels // groups, kernel, kernel)
    b = [cases.constant(outputs)] if bias else []
    cases.node("Relu", [cases.node("Conv", [x, w, *b], group=groups, **attributes)])


def gemm(cases: Cases, shape: tuple[int, int], weight: tuple[int, int], **attributes: Any) -> None:
    cases.node("Gemm", [cases.input(*shape), cases.constant(*weight)], **attributes)


def all_cases(dtype: str) -> Cases:
    c = Cases(dtype)
    conv(c, 3, 16, (9, 7), pads=[1, 1, 1, 1])  # gathered
    conv(c, 3, 20, (13, 12), 7, strides=[2, 2], pads=[3, 3, 3, 3])
    conv(c, 16, 24, (6, 5), pads=[1, 1, 1, 1], batch=2)
    conv(c, 20, 13, (7, 7), pads=[0, 1, 2, 1], strides=[2, 1])  # channels between blocks
    conv(c, 32, 70, (5, 5), 1, bias=False)
    conv(c, 24, 8, (9, 9), dilations=[2, 2], pads=[2, 2, 2, 2])
    conv(c, 17, 17, (6, 6), groups=17, pads=[1, 1, 1, 1])  # windows
    conv(c, 16, 24, (6, 6), groups=4, pads=[1, 1, 1, 1], strides=[2, 2])
    x, w = c.input(1, 6, 5, 4), c.constant(6, 5, 3, 3)
    c.node("ConvTranspose", [x, w], strides=[2, 2], pads=[1, 0, 1, 1], output_padding=[1, 0])
    y = c.node("Conv", [c.input(1, 8, 5, 5), c.constant(12, 8, 1, 1)])
    c.node("Add", [y, c.input(1, 12, 5, 5)])  # a residual in the epilogue
    c.node("MatMul", [c.input(5, 33), c.constant(33, 19)])
    c.node("MatMul", [c.input(2, 3, 7, 16), c.constant(16, 32)])
    c.node("MatMul", [c.input(2, 3, 9, 24), c.input(2, 3, 24, 11)])
    c.node("MatMul", [c.input(3, 9, 13), c.input(2, 1, 13, 5)])
    gemm(c, (3, 40), (10, 40), transB=1, alpha=0.5)
    c.node("Gemm", [c.input(4, 8), c.constant(8, 6), c.input(4, 1)], beta=2.0)
    c.node("MaxPool", [c.input(1, 9, 7, 8)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for include in (0, 1):
        c.node("AveragePool", [c.input(2, 5, 7, 7)], kernel_shape=[3, 2], pads=[1, 0, 1, 1],
               count_include_pad=include, ceil_mode=1 - include, strides=[2, 2])  # fmt: skip
    c.node("GlobalAveragePool", [c.input(2, 13, 5, 6)])
    c.node("Softmax", [c.input(3, 37)])
    c.node("LayerNormalization", [c.input(4, 21), c.constant(21), c.constant(21)], axis=-1)
    return c


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 4e-3)])
def test_the_same_as_onnxruntime(dtype: str, tolerance: float, tmp_path: Path) -> None:
    cases = all_cases(dtype)
    model = cases.model()
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        wanted = runner.infer(cases.feeds)
    program = lower(model, gpu_of(load_profile("rtx-4090")), 2)
    found = walk.run(walk.together([program], tmp_path), 0, program, cases.feeds)
    for i, (name, value) in enumerate(wanted.items()):
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(
            found[name].astype(np.float64),
            value,
            rtol=0,
            atol=tolerance * scale,
            err_msg=f"{i} {name}",
        )


@pytest.mark.parametrize("cores", [1, 1000])
def test_every_tile(cores: int, tmp_path: Path) -> None:
    """The largest tiles and the smallest: whole ones, and ones that hang over the edges."""
    cases = Cases("float16")
    for m, n in ((130, 66), (64, 40), (128, 64)):
        cases.node("MatMul", [cases.input(m, 72), cases.constant(72, n)])
    chosen = {tile(m, n, 1, cores) for m, n in ((130, 66), (64, 40), (128, 64))}
    assert chosen <= set(_TILES) and (cores == 1000) == (chosen == {_TILES[-1]})
    model = cases.model()
    program = lower(model, gpu_of(load_profile("h200")), cores)
    found = walk.run(walk.together([program], tmp_path), 0, program, cases.feeds)
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        wanted = runner.infer(cases.feeds)
    for name, value in wanted.items():
        np.testing.assert_allclose(
            found[name].astype(np.float64), value, rtol=0, atol=4e-3 * float(np.abs(value).max())
        )


def test_a_tile_for_everybody() -> None:
    for m, n, cores in itertools.product((1, 49, 3136, 50176), (8, 64, 1000), (16, 132)):
        rows, columns = tile(m, n, 1, cores)
        assert (rows, columns) in _TILES
