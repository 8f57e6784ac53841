"""A model at an older opset, for the parsers of older TensorRTs.

TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) read ONNX up to opset 17, 10.0 and later at least up to 19; the
working form of effc is newer. What differs is rewritten by the operators' own definitions in ONNX; a node
without an equal there is refused with all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from effc.core.errors import Problem, UnsupportedOpError
from effc.core.ir import Array, add_const, attr, const, is_op, replace, subgraphs
from effc.core.source import place_of

IR_VERSIONS = {17: 8, 19: 9}  # opset -> the format of files of its time


_Step = tuple[str, list[Any], dict[str, Any]]  # op, inputs (numbers are earlier steps), attributes


class Refusal(Exception):
    """A node has no equal in the older opset; the reason."""


def opset_problems(model: ir.Model, opset: int) -> list[Problem]:
    """Every node of `model`, which is left alone, without an equal at `opset`."""
    problems: list[Problem] = []
    _lower(model.clone().graph, opset, problems)
    return problems


def lower_opset(model: ir.Model, opset: int, target: str) -> ir.Model:
    """A copy of `model` at `opset`; UnsupportedOpError lists every node that can't follow."""
    made = model.clone()
    problems: list[Problem] = []
    _lower(made.graph, opset, problems)
    if problems:
        raise UnsupportedOpError(target, problems)
    for name, value in list(made.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del made.graph.initializers[name]
    made.opset_imports[""] = opset
    made.ir_version = IR_VERSIONS[opset]
    return made


def _lower(graph: ir.Graph, opset: int, problems: list[Problem]) -> None:
    for node in list(graph):
        for inner in subgraphs(node):
            _lower(inner, opset, problems)
        if node.domain:
            continue
        node.version = None
        try:
            rewrite = _REWRITES.get(node.op_type)
            if rewrite is None or opset >= rewrite[0]:
                _fit(node, opset)
            else:
                rewrite[1](node, opset)
        except Refusal as reason:
            remedy = (
                f"it needs opset over {opset}, which older boards do not read: cut the model there"
            )
            problems.append(
                Problem(str(node.name), node.op_type, str(reason), remedy, place_of(node))
            )


def _fit(node: ir.Node, opset: int) -> None:
    """Drop what the older operator does not know where that is its default; Refusal where it is not."""
    try:
        old = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise Refusal(f"opset {opset} has no {node.op_type}") from error
    now = onnx.defs.get_schema(node.op_type, 23, "") if onnx.defs.has(node.op_type) else old
    for name in list(node.attributes):
        if name in old.attributes:
            continue
        value, default = attr(node, name), _default(now, name)
        neutral = value == default or (isinstance(value, tuple) and set(value) <= {1})
        if not neutral:
            raise Refusal(f"{node.op_type} of opset {opset} has no attribute {name}")
        del node.attributes[name]
    used = max((i + 1 for i, v in enumerate(node.inputs) if v is not None), default=0)
    if used > old.max_input:
        raise Refusal(f"{node.op_type} of opset {opset} has {old.max_input} inputs, this {used}")


def _default(schema: Any, name: str) -> Any:
    stated = schema.attributes.get(name)
    if stated is None or not stated.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(stated.default_value)
    return value.decode() if isinstance(value, bytes) else value


def _reduce(node: ir.Node, opset: int) -> None:
    """Axes were an attribute before opset 18."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    empty = bool(attr(node, "noop_with_empty_axes", 0))
    listed = const(axes) if axes is not None else None
    if axes is not None and listed is None:
        raise Refusal("its axes are computed")
    node.attributes.pop("noop_with_empty_axes", None)
    if listed is not None and listed.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in listed.ravel()])
    elif empty and node.op_type not in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
        raise Refusal("it reduces no axis")  # the function around the sum is left, on every element
    elif empty:
        _put(node, [("Identity", [node.inputs[0]], {})])
        return
    node.resize_inputs(1)


def _split(node: ir.Node, opset: int) -> None:
    """`num_outputs` came with opset 18: the sizes say the same."""
    count = attr(node, "num_outputs")
    node.attributes.pop("num_outputs", None)
    if count is None or (len(node.inputs) > 1 and node.inputs[1] is not None):
        return
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    extent = shape[attr(node, "axis", 0)] if shape is not None else None
    if not isinstance(extent, int):
        raise Refusal("it splits an unknown extent")
    each = -(-extent // count)
    sizes = [each] * (count - 1) + [extent - each * (count - 1)]
    node.resize_inputs(2)
    node.replace_input_with(1, _constant(node, "split", np.array(sizes, np.int64)))


def _pad(node: ir.Node, opset: int) -> None:
    """`axes` came with opset 18: zeros on the others say the same."""
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if attr(node, "mode", "constant") == "wrap":
        raise Refusal(f"Pad of opset {opset} does not wrap")
    if axes is None:
        node.resize_inputs(min(len(node.inputs), 3))
        return
    listed, pads, shape = const(axes), const(node.inputs[1]), node.inputs[0]
    rank = shape.shape.rank() if shape is not None and shape.shape is not None else 0
    if listed is None or pads is None or not rank:
        raise Refusal("its axes or pads are computed")
    count = listed.size
    full = np.zeros(2 * rank, np.int64)
    for i, axis in enumerate(int(a) % rank for a in listed.ravel()):
        full[axis], full[rank + axis] = pads[i], pads[count + i]
    node.replace_input_with(1, _constant(node, "pads", full))
    node.resize_inputs(3)


def _gelu(node: ir.Node, opset: int) -> None:
    """x * (1 + erf(x / sqrt 2)) / 2, or with tanh, as ONNX defines Gelu (opset 20)."""
    x = node.inputs[0]
    half, one = _like(node, "half", 0.5), _like(node, "one", 1.0)
    if attr(node, "approximate", "none") == "tanh":
        cubic, scale = _like(node, "cubic", 0.044715), _like(node, "scale", np.sqrt(2 / np.pi))
        # x + c x^3 = x (1 + c x^2): no Pow, which halves its range in float16
        steps: list[_Step] = [
            ("Mul", [x, x], {}), ("Mul", [0, cubic], {}), ("Add", [1, one], {}), ("Mul", [x, 2], {}),
            ("Mul", [3, scale], {}), ("Tanh", [4], {}), ("Add", [5, one], {}), ("Mul", [6, half], {}),
            ("Mul", [x, 7], {}),
        ]  # fmt: skip
    else:
        root = _like(node, "root", np.sqrt(0.5))
        steps = [
            ("Mul", [x, root], {}), ("Erf", [0], {}), ("Add", [1, one], {}), ("Mul", [2, half], {}),
            ("Mul", [x, 3], {}),
        ]  # fmt: skip
    _put(node, steps)


def _mish(node: ir.Node, opset: int) -> None:
    """x * tanh(ln(1 + e^x)) (ONNX, opset 18)."""
    x = node.inputs[0]
    _put(node, [("Softplus", [x], {}), ("Tanh", [0], {}), ("Mul", [x, 1], {})])


def _group_normalization(node: ir.Node, opset: int) -> None:
    """InstanceNormalization of [N, G, -1], then scale and bias of every channel (ONNX, opset 21)."""
    x, scale, bias = node.inputs[0], const(node.inputs[1]), const(node.inputs[2])
    shape, groups = x.shape if x is not None else None, int(attr(node, "num_groups", 1))
    channels = shape[1] if shape is not None else None
    if shape is None or not isinstance(channels, int) or scale is None or bias is None:
        raise Refusal("its channels, scale or bias are computed")
    if scale.size != channels:  # opset 18 had one of a group
        scale, bias = (np.repeat(a, channels // groups) for a in (scale, bias))
    spread = (1, channels, *[1] * (len(shape) - 2))
    split = _constant(node, "split", np.array([0, groups, -1], np.int64))  # 0: the batch, as it is
    ones = _constant(node, "ones", np.ones(groups, scale.dtype))
    zeros = _constant(node, "zeros", np.zeros(groups, scale.dtype))
    epsilon = {"epsilon": float(attr(node, "epsilon", 1e-5))}
    steps: list[_Step] = [
        ("Reshape", [x, split], {}), ("InstanceNormalization", [0, ones, zeros], epsilon),
        ("Shape", [x], {}),
        ("Reshape", [1, 2], {}),
        ("Mul", [3, _constant(node, "scale", scale.reshape(spread))], {}),
        ("Add", [4, _constant(node, "bias", bias.reshape(spread))], {}),
    ]  # fmt: skip
    _put(node, steps)


def _grid_sample(node: ir.Node, opset: int) -> None:
    """Modes were called otherwise before opset 20."""
    mode = attr(node, "mode", "linear")
    names = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
    node.attributes["mode"] = ir.AttrString("mode", names[mode])


_REDUCTIONS = (
    "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp"
)
# op -> the opset that brought the change, and how to do without it
_REWRITES: dict[str, tuple[int, Callable[[ir.Node, int], None]]] = {
    **dict.fromkeys((*_REDUCTIONS.split(), "ReduceSumSquare"), (18, _reduce)),
    "Split": (18, _split),
    "Pad": (18, _pad),
    "Gelu": (20, _gelu),
    "Mish": (18, _mish),
    "GroupNormalization": (21, _group_normalization),
    "GridSample": (20, _grid_sample),
}


def _put(node: ir.Node, steps: Sequence[_Step]) -> None:
    """These nodes in place of `node`; the last gives its output."""
    graph, out = node.graph, node.outputs[0]
    if graph is None:
        raise Refusal("it stands in no graph")
    made: list[ir.Node] = []
    for at, (op, inputs, attributes) in enumerate(steps):
        fed = [made[i].outputs[0] if isinstance(i, int) else i for i in inputs]
        new = ir.node(op, fed, attributes, name=f"{node.name}/{op.lower()}_{at}")
        value = new.outputs[0]
        value.name = f"{out.name}/{op.lower()}_{at}"
        value.type = ir.TensorType(ir.DataType.INT64) if op == "Shape" else out.type
        made.append(new)
    made[-1].outputs[0].shape = out.shape
    graph.insert_before(node, made)
    replace(out, made[-1].outputs[0])
    graph.remove(node, safe=True)


def _constant(node: ir.Node, name: str, array: Array) -> ir.Value:
    if node.graph is None:
        raise Refusal("it stands in no graph")
    return add_const(node.graph, f"{node.outputs[0].name}/{name}", array)


def _like(node: ir.Node, name: str, number: float) -> ir.Value:
    """A scalar in the type of the node's output."""
    kind = node.outputs[0].dtype or ir.DataType.FLOAT
    return _constant(node, name, np.array(number, kind.numpy()))


def is_quantized(model: ir.Model) -> bool:
    """Whether there is any Q or DQ."""
    return any(is_op(n, "QuantizeLinear", "DequantizeLinear") for n in model.graph)
