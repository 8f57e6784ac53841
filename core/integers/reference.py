"""The reference executor of models with integer operators, in numpy.

`effc.integer` nodes are computed as specified (`operators.py`), every other node by onnxruntime, each in a
session of its own without optimization; where onnxruntime has no kernel for the types (nearest Resize or
Pad of some integers), by onnx's reference implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from effc.core.errors import FrontendError
from effc.core.integers import DOMAIN
from effc.core.integers.operators import compute
from effc.core.ir import subgraphs

Array = npt.NDArray[Any]


# whose outputs are elements of their first input, where onnxruntime has no kernel for a type
_MOVES = frozenset(
    "DepthToSpace Expand Gather MaxPool Pad Reshape Resize Slice SpaceToDepth Tile Transpose".split()
)


def run(
    model: ir.Model, feeds: Mapping[str, Array], *, values: Collection[str] = ()
) -> dict[str, Array]:
    """The outputs of `model` on `feeds`, and the inner values named in `values`, by name.

    Raises FrontendError that names the node where one can't be computed.
    """
    graph = model.graph
    known: dict[ir.Value, Array] = {}
    for value in graph.inputs:
        if value.name in feeds:
            known[value] = np.asarray(feeds[str(value.name)])
        elif not value.is_initializer():
            raise FrontendError(f"input {value.name!r} is not fed")
    left = dict.fromkeys(graph.outputs, 1)
    for node in graph:
        for value in {v for v in node.inputs if v is not None}:
            left[value] = left.get(value, 0) + 1
    wanted = set(values)
    found = {str(v.name): a for v, a in known.items() if v.name in wanted}
    imports = dict(model.opset_imports)
    for node in graph:
        inputs = [None if v is None else _held(known, v) for v in node.inputs]
        for value, array in zip(node.outputs, _outputs(node, inputs, imports), strict=True):
            known[value] = array
            if value.name in wanted:
                found[str(value.name)] = array
        for value in {v for v in node.inputs if v is not None}:
            left[value] -= 1
            if not left[value]:
                known.pop(value, None)
    if lacking := wanted - set(found):
        raise FrontendError(f"no node makes {', '.join(sorted(lacking))}")
    return {**{str(o.name): _held(known, o) for o in graph.outputs}, **found}


def run_node(node: ir.Node, inputs: list[Array | None], imports: Mapping[str, int]) -> list[Array]:
    """The outputs of one node on these inputs; `imports` are the versions of the operator sets."""
    return _outputs(node, inputs, dict(imports))


def _held(known: dict[ir.Value, Array], value: ir.Value) -> Array:
    if value in known:
        return known[value]
    tensor = value.const_value
    if tensor is None:
        raise FrontendError(f"value {value.name!r} is read before it is made")
    return tensor.numpy()


def _outputs(node: ir.Node, inputs: list[Array | None], imports: dict[str, int]) -> list[Array]:
    try:
        if node.domain == DOMAIN:
            return [compute(node, inputs)]
        if subgraphs(node):
            raise FrontendError("it holds a graph", hint="unroll loops before")
        names = [f"i{k}" if a is not None else "" for k, a in enumerate(inputs)]
        outputs = [f"o{k}" if v.name != "" else "" for k, v in enumerate(node.outputs)]
        proto = onnx.helper.make_node(node.op_type, names, outputs, domain=node.domain)
        proto.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
        types = tuple(_element_type(a) for a in inputs if a is not None)
        made = _kernel(proto.SerializeToString(), types, tuple(imports.items())).run(
            {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
        )
        results = iter(made)
        return [next(results) if name else np.empty(0) for name in outputs]
    except FrontendError as error:
        raise FrontendError(f"node {node.name!r}: {error}", hint=error.hint) from error
    except Exception as error:  # onnxruntime raises a type of its own for every status code
        first = str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__
        raise FrontendError(f"node {node.name!r} ({node.op_type}): {first}") from error


def _element_type(array: Array) -> int:
    return int(ir.DataType.from_numpy(array.dtype))


class _Kernel:
    """One node, to be run on any shapes of its types."""

    def __init__(self, node: bytes, types: tuple[int, ...], imports: tuple[tuple[str, int], ...]):
        self.node = onnx.NodeProto.FromString(node)
        names = [n for n in self.node.input if n]
        self.imports = {d: v for d, v in imports if d != DOMAIN}
        self.imports.setdefault(self.node.domain, 1)
        proto = onnx.ModelProto(ir_version=10)
        for domain, version in self.imports.items():
            proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
        proto.graph.name = "one"
        proto.graph.node.append(self.node)
        for name, kind in zip(names, types, strict=True):
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
        for name in self.node.output:
            if name:
                proto.graph.output.add().name = name
        self.session: Any = None
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a type of its own for every status code
            self.why = error

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        if self.session is not None:
            made = self.session.run(
                None, {n: np.ascontiguousarray(a).reshape(a.shape) for n, a in feeds.items()}
            )
            return [np.asarray(a) for a in made]
        if self.node.op_type not in _MOVES:
            raise self.why
        made = [np.asarray(a) for a in ReferenceEvaluator(self._model()).run(None, feeds)]
        return [a.astype(feeds[self.node.input[0]].dtype) for a in made]

    def _model(self) -> onnx.ModelProto:
        graph = onnx.GraphProto(name="one")
        graph.node.append(self.node)
        for name in self.node.input:
            if name:
                graph.input.add().name = name
        for name in self.node.output:
            if name:
                graph.output.add().name = name
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in self.imports.items()]
        return onnx.helper.make_model(graph, opset_imports=opsets)


@lru_cache(maxsize=1024)
def _kernel(node: bytes, types: tuple[int, ...], imports: tuple[tuple[str, int], ...]) -> _Kernel:
    return _Kernel(node, types, imports)
