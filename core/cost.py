"""What a model costs on paper: multiply-accumulates, parameters, live memory, and a roofline.

Counting rules: one multiply-accumulate (MAC) is one multiplication and one addition of a linear operator;
`flops` are the operations of everything else, one for each element and step of the op's definition (exp
and the like count as one). An `If` costs what its dearer branch costs; a loop's body counts once for each
trip where the trip count is a constant, otherwise once. Parameters are the elements of constants that are
floating-point or at most 8 bits wide: shapes and axes, which are int64, are none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from effc.core.ir import attr, elements, is_op, scalar, shape_of
from effc.core.target import HardwareProfile, Memory


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One node: MACs and other operations, elements of its own weights, bytes read and written."""

    name: str
    op: str
    dtype: str  # of its first output, by numpy's name
    shape: tuple[int, ...] | None  # of its first output
    macs: int
    flops: int
    parameters: int
    read_bytes: int
    written_bytes: int
    known: bool  # False: a shape is dynamic, so the numbers are a lower bound


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The sums over a model; `activation_peak_bytes` is the most that is live at once, weights apart."""

    nodes: tuple[NodeCost, ...]
    macs: int
    flops: int
    parameters: int
    weight_bytes: int
    activation_peak_bytes: int
    activation_peak_node: str


@dataclass(frozen=True, slots=True)
class Roof:
    """The time of one node on a profile, an estimate: the larger of computing and moving."""

    node: str
    seconds: float
    bound: str  # "compute", or the name of the memory


def model_cost(model: ir.Model) -> ModelCost:
    """Count `model`, whose shapes are inferred."""
    nodes = tuple(node_cost(node) for node in model.graph)
    weights = {}
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                weights[id(value)] = value.const_value
        for node in graph:
            if is_op(node, "Constant") and (tensor := _constant(node)) is not None:
                weights[id(node)] = tensor
    peak, where = activation_peak(model.graph)
    return ModelCost(
        nodes,
        sum(n.macs for n in nodes),
        sum(n.flops for n in nodes),
        sum(
            int(t.size)
            for t in weights.values()
            if t.dtype.is_floating_point() or t.dtype.bitwidth <= 8
        ),
        sum(int(t.nbytes) for t in weights.values()),
        peak,
        where,
    )


def node_cost(node: ir.Node) -> NodeCost:
    """Count one node, with the nodes of its subgraphs."""
    out = node.outputs[0] if node.outputs else None
    shape = shape_of(out)
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
    known = all(shape_of(v) is not None for v in values)
    own = {id(v): v for v in node.inputs if v is not None and _weight(v) is not None}
    macs, flops = _operations(node)
    for inner_macs, inner_flops in _inner(node):
        macs, flops = macs + inner_macs, flops + inner_flops
    views = node.op_type in _VIEWS
    return NodeCost(
        node.name or (out.name if out is not None else None) or node.op_type,
        node.op_type,
        out.dtype.numpy().name if out is not None and out.dtype is not None else "",
        shape,
        macs,
        flops,
        sum(elements(shape_of(v) or (0,)) for v in own.values()),
        0 if views else sum(value_bytes(v) for v in {id(v): v for v in node.inputs if v}.values()),
        0 if views else sum(value_bytes(v) for v in node.outputs),
        known,
    )


def activation_peak(graph: ir.Graph) -> tuple[int, str]:
    """The most bytes of activations live at once in the graph's order, and the node where that is."""
    inputs = sum(value_bytes(v) for v in graph.inputs if not v.is_initializer())
    where, peak = max(live_bytes(graph), key=lambda point: point[1], default=("", 0))
    return (peak, where) if peak > inputs else (inputs, where)


def live_bytes(graph: ir.Graph) -> list[tuple[str, int]]:
    """The bytes of activations that are live while each node runs, weights apart.

    A value lives from its producer to its last reader, an input from the start, an output to the end.
    Reshapes and the like share their input's memory. No padding, no scratch, no in-place operation.
    """
    storage: dict[ir.Value, ir.Value] = {}
    last: dict[ir.Value, int] = {}
    order = list(graph)
    for i, node in enumerate(order):
        for v in (*node.inputs, *_captured(node)):
            if v is not None and v.graph is graph and not v.is_initializer():
                last[storage.get(v, v)] = i
        first = node.inputs[0] if node.inputs else None
        if node.op_type in _VIEWS and first is not None and not first.is_initializer():
            storage[node.outputs[0]] = storage.get(first, first)
    for v in graph.outputs:
        last[storage.get(v, v)] = len(order)
    ends: dict[int, list[ir.Value]] = {}
    for v, i in last.items():
        ends.setdefault(i, []).append(v)
    live = sum(value_bytes(v) for v in graph.inputs if v in last and not v.is_initializer())
    found = []
    for i, node in enumerate(order):
        made = [v for v in node.outputs if v not in storage]
        live += sum(value_bytes(v) for v in made)
        found.append((node.name or node.op_type, live))
        live -= sum(value_bytes(v) for v in ends.get(i, ()))
        live -= sum(value_bytes(v) for v in made if v not in last)
    return found


def roofline(cost: ModelCost, profile: HardwareProfile, threads: int = 0) -> tuple[Roof, ...]:
    """What each node would take on `profile` at its roof: an estimate, empty where figures are missing.

    time = max(MACs / peak, bytes / bandwidth) with `threads` of the cores (0: all). Two flops count as
    one MAC. Bytes move at the rate of the smallest memory with a known bandwidth that holds all that the
    node touches, or of the largest one: where a profile knows no cache's bandwidth, nodes that live in the
    cache are faster than this. A bandwidth is that of all cores together; of private caches each core has
    its share.
    Source: Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009.
    """
    share = min(threads or profile.cores, profile.cores) / profile.cores
    memories = sorted(
        (m for m in profile.memories if m.bandwidth is not None), key=lambda m: m.bytes.value
    )
    if not memories or not profile.peak:
        return ()
    roofs = []
    for n in cost.nodes:
        peak = _peak(profile, n.dtype)
        moved = n.read_bytes + n.written_bytes
        memory = next((m for m in memories if _holds(m, profile.cores, moved)), memories[-1])
        computing = (n.macs + n.flops / 2) / (peak * share)
        shared = memory is memories[-1] or memory.shared_by >= profile.cores
        moving = moved / (_rate(memory) * (1.0 if shared else share))
        bound = "compute" if computing >= moving else memory.name
        roofs.append(Roof(n.name, max(computing, moving), bound))
    return tuple(roofs)


def value_bytes(value: ir.Value | None) -> int:
    """The bytes of a value of static shape; 0 if it is absent or its shape unknown."""
    shape = shape_of(value)
    if value is None or shape is None or value.dtype is None:
        return 0
    bits = value.dtype.bitwidth if value.dtype != ir.DataType.STRING else 0
    return -(-elements(shape) * bits // 8)


# outputs are the input's bytes under another shape
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
# data moves, nothing is computed
_MOVES = _VIEWS | {
    "Concat", "Split", "Slice", "Transpose", "Pad", "Gather", "GatherElements", "GatherND", "Expand", "Tile",
    "DepthToSpace", "SpaceToDepth", "Constant", "ConstantOfShape", "Shape", "Size", "Range", "ScatterND",
    "ScatterElements", "OneHot", "EyeLike", "If", "Loop", "Scan", "NonZero", "Compress", "Cast", "CastLike",
}  # fmt: skip
# operations for each element of the output
_PER_OUTPUT: Mapping[str, int] = {
    "BatchNormalization": 2, "Gelu": 4, "HardSwish": 4, "HardSigmoid": 3, "Sigmoid": 3, "Softplus": 3,
    "Mish": 5, "Swish": 4, "Selu": 3, "Elu": 3, "Celu": 3, "Clip": 2, "QuantizeLinear": 3,
    "DequantizeLinear": 2, "Resize": 1,
}  # fmt: skip
# operations for each element of the input
_PER_INPUT: Mapping[str, int] = {
    "Softmax": 3, "LogSoftmax": 4, "LayerNormalization": 7, "RMSNormalization": 4, "GroupNormalization": 7,
    "InstanceNormalization": 7, "GlobalAveragePool": 1, "GlobalMaxPool": 1, "ReduceMean": 1, "ReduceSum": 1,
    "ReduceMax": 1, "ReduceMin": 1, "ReduceProd": 1, "ReduceL1": 2, "ReduceL2": 2, "ReduceSumSquare": 2,
    "ReduceLogSum": 1, "ReduceLogSumExp": 2, "ArgMax": 1, "ArgMin": 1, "CumSum": 1, "LpNormalization": 3,
    "MeanVarianceNormalization": 5, "TopK": 1,
}  # fmt: skip


def _operations(node: ir.Node) -> tuple[int, int]:
    """MACs and other operations of a node without its subgraphs."""
    op = node.op_type
    out = elements(shape_of(node.outputs[0]) or (0,)) if node.outputs else 0
    shapes = [shape_of(v) for v in node.inputs]
    a = shapes[0] if shapes else None
    size = elements(a or (0,))
    if op in ("Conv", "ConvInteger", "QLinearConv"):
        at = 3 if op == "QLinearConv" else 1
        w = shapes[at] if len(shapes) > at else None
        bias = len(node.inputs) > 2 and node.inputs[2] is not None and op == "Conv"
        return out * elements(w[1:]) if w else 0, out if bias else 0
    if op == "ConvTranspose":
        w = shapes[1]
        return size * elements(w[1:]) if w else 0, out if len(node.inputs) > 2 else 0
    if op in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return (out * a[-1] if a else 0), 0
    if op == "Gemm":
        depth = a[0 if attr(node, "transA", 0) else 1] if a else 0
        return out * depth, out if len(node.inputs) > 2 and node.inputs[2] is not None else 0
    if op == "Einsum":
        return _einsum(node, shapes), 0
    if op == "Attention":
        return _attention(node, shapes), 0
    if op in ("LSTM", "GRU", "RNN") and a and len(shapes) > 2 and shapes[1] and shapes[2]:
        return a[0] * a[1] * (elements(shapes[1]) + elements(shapes[2])), 0
    if op in ("MaxPool", "AveragePool", "LpPool"):
        return 0, out * math.prod(attr(node, "kernel_shape", (1,)))
    if op in _MOVES:
        return 0, 0
    if op in _PER_INPUT:
        return 0, _PER_INPUT[op] * size
    if op == "Resize":
        return 0, out * (1 if attr(node, "mode", "nearest") in ("nearest", b"nearest") else 7)
    count = max(len([v for v in node.inputs if v is not None]) - 1, 1)
    return 0, out * _PER_OUTPUT.get(op, count if op in ("Sum", "Mean", "Max", "Min") else 1)


def _einsum(node: ir.Node, shapes: list[tuple[int, ...] | None]) -> int:
    equation = attr(node, "equation", "")
    extents: dict[str, int] = {}
    for term, shape in zip(equation.split("->")[0].split(","), shapes, strict=False):
        if shape is None:
            return 0
        letters = term.strip().replace("...", "")
        for letter, extent in zip(reversed(letters), reversed(shape), strict=False):
            extents[letter] = max(extents.get(letter, 1), extent)
    return math.prod(extents.values()) if len(shapes) > 1 else 0


def _attention(node: ir.Node, shapes: list[tuple[int, ...] | None]) -> int:
    """Both products of ai.onnx Attention, [batch, heads, tokens, size] or [batch, tokens, heads * size]."""
    q, k, v = (*shapes, None, None, None)[:3]
    if q is None or k is None or v is None:
        return 0
    past = shapes[4] if len(shapes) > 4 else None
    keys = k[-2] + (past[2] if past else 0)
    if len(q) == 4:
        return q[0] * q[1] * q[2] * keys * (q[3] + v[3])
    heads = attr(node, "q_num_heads", 1)
    kv_heads = attr(node, "kv_num_heads", heads)
    return int(q[0] * q[1] * keys * (q[2] + v[2] * heads // max(kv_heads, 1)))


def _inner(node: ir.Node) -> Iterator[tuple[int, int]]:
    costs = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = [node_cost(n) for n in attribute.as_graph()]
            costs.append((sum(n.macs for n in inner), sum(n.flops for n in inner)))
    if not costs:
        return
    if node.op_type == "If":
        yield max(costs)
        return
    trips = 1
    if node.op_type == "Loop" and node.inputs:
        trips = max(int(scalar(node.inputs[0]) or 1), 1)
    for macs, flops in costs:
        yield macs * trips, flops * trips


def _captured(node: ir.Node) -> Iterator[ir.Value | None]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from inner.inputs


def _weight(value: ir.Value) -> ir.TensorProtocol | None:
    if value.is_graph_input():
        return None
    found: ir.TensorProtocol | None = ir.convenience.get_const_tensor(value)
    return found


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    return _weight(node.outputs[0])


def _peak(profile: HardwareProfile, dtype: str) -> float:
    found = profile.peak.get(dtype) or profile.peak.get("float32")
    return found.value if found is not None else max(p.value for p in profile.peak.values())


def _rate(memory: Memory) -> float:
    return memory.bandwidth.value if memory.bandwidth is not None else math.inf


def _holds(memory: Memory, cores: int, size: int) -> bool:
    return memory.bytes.value * max(cores // memory.shared_by, 1) >= size
