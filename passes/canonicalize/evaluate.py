"""Runs a piece of a graph whose inputs are constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from effc.core.ir import Array
from effc.core.shapes import Names, write_node, write_value

_NUMPY_TYPES = frozenset(np.dtype(c) for c in "?bBhHiIlLqQefdFDUSO")


def evaluate(
    nodes: Sequence[ir.Node],
    feeds: Mapping[ir.Value, Array],
    wanted: Sequence[ir.Value],
    opset: int,
) -> dict[ir.Value, Array]:
    """The values `wanted` of the `nodes` (in topological order), as onnxruntime computes them unoptimized.

    The same kernels that made the goldens, so folding changes no bit. Nodes that onnxruntime can't
    run are left out, and with them what depends on them: their values are missing in the result.
    """
    if not nodes or not wanted:
        return {}
    try:
        return _run(nodes, feeds, wanted, opset)
    except Exception:  # onnxruntime raises a type of its own for every status code
        if len(nodes) == 1:
            return {}
    done: dict[ir.Value, Array] = {}
    middle = len(nodes) // 2
    for part in (nodes[:middle], nodes[middle:]):
        known = {**feeds, **done}
        ready: list[ir.Node] = []
        made = set(known)
        for node in part:
            if all(v is None or v in made for v in node.inputs):
                ready.append(node)
                made.update(node.outputs)
        outputs = [v for n in ready for v in n.outputs if v.name != ""]
        done.update(evaluate(ready, known, outputs, opset))
    return {v: done[v] for v in wanted if v in done}


def _run(
    nodes: Sequence[ir.Node],
    feeds: Mapping[ir.Value, Array],
    wanted: Sequence[ir.Value],
    opset: int,
) -> dict[ir.Value, Array]:
    names = Names()
    proto = onnx.ModelProto(ir_version=10)
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    proto.graph.name = "constants"
    inputs = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v in feeds)
    for value in inputs:
        array = feeds[value]
        if array.dtype not in _NUMPY_TYPES:  # four-bit integers: no array of them can be fed
            tensor = ir.tensor(array, name=names[value])
            proto.graph.initializer.append(ir.serde.serialize_tensor(tensor))
            continue
        dtype = int(ir.DataType.from_numpy(array.dtype))
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(names[value], dtype, array.shape)
        )
    for node in nodes:
        write_node(node, proto.graph.node.add(), names)
    for value in wanted:
        write_value(value, proto.graph.output.add(), names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    fed = [v for v in inputs if feeds[v].dtype in _NUMPY_TYPES]
    arrays = {names[v]: np.asarray(feeds[v], order="C") for v in fed}
    results = session.run([names[v] for v in wanted], arrays)
    return {v: np.asarray(r) for v, r in zip(wanted, results, strict=True)}
