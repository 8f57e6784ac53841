"""Graphs with integer operators, written node by node, for tests of this backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from effc.core.integers import DOMAIN

Array = np.ndarray[Any, Any]
BYTES = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}
TYPES = {**BYTES, "float32": onnx.TensorProto.FLOAT}


class Graph:
    """Values are names; `self.types` holds their element types and shapes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.types: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.constants: dict[str, Array] = {}

    def input(self, dtype: str, shape: tuple[int, ...]) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(name)
        self.types[name] = (dtype, shape)
        return name

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        self.types[name] = (array.dtype.name, array.shape)
        return name

    def node(
        self, op: str, inputs: list[str], dtype: str, shape: tuple[int, ...], **attributes: Any
    ) -> str:
        """A node of ONNX's."""
        return self._node(op, "", inputs, dtype, shape, attributes)

    def integer(
        self, op: str, inputs: list[str], dtype: str, shape: tuple[int, ...], **attributes: Any
    ) -> str:
        """A node of effc.integer."""
        return self._node(op, DOMAIN, inputs, dtype, shape, {"to": TYPES[dtype], **attributes})

    def _node(
        self,
        op: str,
        domain: str,
        inputs: list[str],
        dtype: str,
        shape: tuple[int, ...],
        attributes: dict[str, Any],
    ) -> str:
        name = f"v{len(self.nodes)}"
        node = helper.make_node(op, inputs, [name], f"{op}_{name}", domain=domain, **attributes)
        self.nodes.append(node)
        self.types[name] = (dtype, shape)
        return name

    def blocked(self, x: str) -> str:
        """`x` through a pooling of one element, whose kernel writes blocks of channels."""
        dtype, shape = self.types[x]
        return self.node("MaxPool", [x], dtype, shape, kernel_shape=[1] * (len(shape) - 2))

    def output(self, *names: str) -> None:
        self.outputs += names

    def model(self) -> ir.Model:
        def info(name: str) -> onnx.ValueInfoProto:
            dtype, shape = self.types[name]
            return helper.make_tensor_value_info(name, TYPES[dtype], shape)

        inner = [n.output[0] for n in self.nodes if n.output[0] not in self.outputs]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [info(n) for n in self.inputs],
            [info(n) for n in self.outputs],
            [onnx.numpy_helper.from_array(a, n) for n, a in self.constants.items()],
            value_info=[info(n) for n in inner],
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
        return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))

    def feeds(self) -> dict[str, Array]:
        return {n: draw(self.rng, *self.types[n]) for n in self.inputs}


def draw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Every value of a byte; reals around zero."""
    if dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)
