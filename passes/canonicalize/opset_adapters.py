"""What changed in the standard operators between opset 7 and 26, and how a node follows.

An adapter brings one node from the version before to the version of its key, in place; it returns the
node where that goes on, None where the node was replaced by others that are up to date already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from effc.core.ir import WORKING_OPSET, Array, add_const, attr, const, replace
from effc.core.rewrite import erase

Adapter = Callable[[ir.Node], ir.Node | None]


class Refusal(Exception):
    """A node has no equal at the newer version; the reason."""


def _const_input(node: ir.Node, name: str, array: Array) -> ir.Value:
    graph = node.graph
    if graph is None:
        raise Refusal("it stands in no graph")
    return add_const(graph, f"{node.outputs[0].name or node.name}_{name}", array)


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _dtype(value: ir.Value | None) -> np.dtype[Any]:
    if value is None or value.dtype is None:
        return np.dtype(np.float32)
    return np.dtype(value.dtype.numpy())


def _ints_to_input(name: str, index: int, *, scalar: bool = False) -> Adapter:
    """The attribute `name` becomes the int64 input number `index`; absent stays absent."""

    def adapt(node: ir.Node) -> ir.Node:
        ints = attr(node, name)
        if ints is not None:
            array = np.array(ints, np.int64).reshape([] if scalar else [-1])
            _set_input(node, index, _const_input(node, name, array))
            del node.attributes[name]
        return node

    return adapt


def _top_k(node: ir.Node) -> ir.Node:
    _set_input(node, 1, _const_input(node, "k", np.array([attr(node, "k")], np.int64)))
    del node.attributes["k"]
    return node


def _dft(node: ir.Node) -> ir.Node:
    axis = np.array(attr(node, "axis", 1), np.int64)
    _set_input(node, 2, _const_input(node, "axis", axis))
    node.attributes.pop("axis", None)
    return node


def _slice(node: ir.Node) -> ir.Node:
    for index, name in enumerate(("starts", "ends", "axes"), 1):
        _ints_to_input(name, index)(node)
    return node


def _clip(node: ir.Node) -> ir.Node:
    dtype = _dtype(node.inputs[0])
    for index, name in enumerate(("min", "max"), 1):
        limit = attr(node, name)
        if limit is not None:
            _set_input(node, index, _const_input(node, name, np.array(limit, dtype)))
            del node.attributes[name]
    return node


def _pad(node: ir.Node) -> ir.Node:
    fill = attr(node, "value", 0.0)
    _ints_to_input("pads", 1)(node)
    if fill != 0.0:
        array = np.array(fill, _dtype(node.inputs[0]))
        _set_input(node, 2, _const_input(node, "value", array))
    node.attributes.pop("value", None)
    return node


def _split_18(node: ir.Node) -> ir.Node:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    return node


def _batch_norm_9(node: ir.Node) -> ir.Node:
    if attr(node, "spatial", 1) != 1:
        raise Refusal("spatial=0 (one mean per element) was removed from ONNX")
    node.attributes.pop("spatial", None)
    return node


def _batch_norm_14(node: ir.Node) -> ir.Node:
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Refusal("it is in training mode: something reads its batch statistics")
    node.resize_outputs(1)
    return node


def _dropout_10(node: ir.Node) -> ir.Node:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise Refusal("something reads its mask, which was no boolean then")
    node.resize_outputs(1)
    return node


def _dropout_12(node: ir.Node) -> ir.Node:
    node.attributes.pop("ratio", None)  # an inference does not look at it
    return node


def _softmax(node: ir.Node) -> ir.Node | None:
    """Before 13, Softmax, LogSoftmax and Hardmax worked on the input flattened to two dimensions."""
    x, graph = node.inputs[0], node.graph
    axis = attr(node, "axis", 1)
    if x is None or graph is None:
        raise Refusal("it has no input")
    if x.shape is not None:
        rank = len(x.shape)
        axis += rank if axis < 0 else 0
        if rank == 0 or all(d == 1 for d in x.shape[axis + 1 :]):
            node.attributes["axis"] = ir.AttrInt64("axis", axis)
            return node
    flat = ir.node("Flatten", [x], {"axis": axis})
    soft = ir.node(node.op_type, [flat.outputs[0]], {"axis": 1}, name=node.name)
    shape = ir.node("Shape", [x])
    back = ir.node("Reshape", [soft.outputs[0], shape.outputs[0]])
    graph.insert_before(node, [flat, soft, shape, back])
    _put(node, back)
    return None


def _put(node: ir.Node, by: ir.Node) -> None:
    """`by`, already in the graph, takes the place of `node`."""
    old, new = node.outputs[0], by.outputs[0]
    new.type, new.shape = old.type, old.shape
    replace(old, new)
    erase(node)


def _nearest(node: ir.Node, scales: Array | None) -> str:
    """Before opset 11 nearest meant floor where the picture grows, ceil where it shrinks."""
    if scales is None:
        raise Refusal("its scales are computed, so whether it shrinks is not known")
    if (scales >= 1).all():
        return "floor"
    if (scales <= 1).all():
        return "ceil"
    raise Refusal("it grows along one axis and shrinks along another")


def _resize_11(node: ir.Node) -> ir.Node:
    mode = attr(node, "mode", "nearest")
    scales = node.inputs[1]
    if mode == "nearest":
        rounding = _nearest(node, const(scales))
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", rounding)
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    node.resize_inputs(3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, scales)
    return node


def _resize_13(node: ir.Node) -> ir.Node:
    if attr(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise Refusal("tf_half_pixel_for_nn was removed from ONNX")
    return node


def _upsample_9(node: ir.Node) -> ir.Node:
    scales = np.array(attr(node, "scales"), np.float32)
    _set_input(node, 1, _const_input(node, "scales", scales))
    del node.attributes["scales"]
    return node


def _upsample_10(node: ir.Node) -> ir.Node | None:
    """Upsample only grows (its scales are at least 1), so nearest is floor."""
    graph = node.graph
    if graph is None:
        raise Refusal("it stands in no graph")
    mode = attr(node, "mode", "nearest")
    attributes = {
        "mode": "linear" if mode in ("linear", "bilinear") else mode,
        "coordinate_transformation_mode": "asymmetric",
    }
    if mode == "nearest":
        attributes["nearest_mode"] = "floor"
    resize = ir.node("Resize", [node.inputs[0], None, node.inputs[1]], attributes, name=node.name)
    graph.insert_before(node, [resize])
    _put(node, resize)
    return None


def _scatter(node: ir.Node) -> ir.Node:
    node.op_type = "ScatterElements"
    return node


def _roi_align(node: ir.Node) -> ir.Node:
    key = "coordinate_transformation_mode"
    node.attributes[key] = ir.AttrString(key, "output_half_pixel")
    return node


def _grid_sample(node: ir.Node) -> ir.Node:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(attr(node, "mode", "bilinear"))
    if mode is not None:
        node.attributes["mode"] = ir.AttrString("mode", mode)
    return node


def _group_norm(node: ir.Node) -> ir.Node:
    """Before 21, scale and bias had one element a group; since then, one a channel."""
    graph, groups, x = node.graph, attr(node, "num_groups"), node.inputs[0]
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    if graph is None or not isinstance(channels, int) or not groups or channels % groups:
        raise Refusal("its number of channels is not known")
    for index, name in ((1, "scale"), (2, "bias")):
        value = node.inputs[index]
        array = const(value)
        if array is not None:
            repeated = np.repeat(array, channels // groups)
            node.replace_input_with(index, _const_input(node, name, repeated))
            continue
        column = _const_input(node, f"{name}_column", np.array([groups, 1], np.int64))
        grid = _const_input(node, f"{name}_grid", np.array([groups, channels // groups], np.int64))
        flat = _const_input(node, f"{name}_flat", np.array([channels], np.int64))
        a = ir.node("Reshape", [value, column])
        b = ir.node("Expand", [a.outputs[0], grid])
        c = ir.node("Reshape", [b.outputs[0], flat])
        graph.insert_before(node, [a, b, c])
        node.replace_input_with(index, c.outputs[0])
    return node


def _scan_9(node: ir.Node) -> ir.Node:
    """Scan of opset 8 had a batch axis in front of all; for a batch of 1 it is taken off and put back."""
    graph = node.graph
    if graph is None or node.inputs[0] is not None:
        raise Refusal("Scan of opset 8 with sequence lengths was removed from ONNX")
    data = list(node.inputs[1:])
    if any(v is None or v.shape is None or not len(v.shape) or v.shape[0] != 1 for v in data):
        raise Refusal("Scan of opset 8 has a batch axis, and the batch is not known to be 1")
    axis = _const_input(node, "batch_axis", np.array([0], np.int64))
    node.resize_inputs(len(data))
    for i, value in enumerate(data):
        squeeze = ir.node("Squeeze", [value, axis])
        graph.insert_before(node, [squeeze])
        node.replace_input_with(i, squeeze.outputs[0])
    for old in node.outputs:
        unsqueeze = ir.node("Unsqueeze", [old, axis])
        new = unsqueeze.outputs[0]
        new.type, new.shape = old.type, old.shape
        old.type, old.shape = None, None
        for user, index in list(old.uses()):
            if user is not unsqueeze:
                user.replace_input_with(index, new)
        if old.is_graph_output():
            new.name, old.name = old.name, f"{old.name}_batch"
            for i, value in enumerate(graph.outputs):
                if value is old:
                    graph.outputs[i] = new
        graph.insert_after(node, [unsqueeze])
    directions = node.attributes.pop("directions", None)
    if directions is not None:
        key = "scan_input_directions"
        node.attributes[key] = ir.AttrInt64s(key, directions.as_ints())
    return node


_AXES_TO_INPUT = _ints_to_input("axes", 1)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("BatchNormalization", 9): _batch_norm_9,
    ("BatchNormalization", 14): _batch_norm_14,
    ("Clip", 11): _clip,
    ("DFT", 20): _dft,
    ("Dropout", 10): _dropout_10,
    ("Dropout", 12): _dropout_12,
    ("GridSample", 20): _grid_sample,
    ("GroupNormalization", 21): _group_norm,
    ("Hardmax", 13): _softmax,
    ("LogSoftmax", 13): _softmax,
    ("Pad", 11): _pad,
    ("ReduceSum", 13): _AXES_TO_INPUT,
    ("Resize", 11): _resize_11,
    ("Resize", 13): _resize_13,
    ("RoiAlign", 16): _roi_align,
    ("Scan", 9): _scan_9,
    ("Scatter", 11): _scatter,
    ("Slice", 10): _slice,
    ("Softmax", 13): _softmax,
    ("Split", 13): _ints_to_input("split", 1),
    ("Split", 18): _split_18,
    ("Squeeze", 13): _AXES_TO_INPUT,
    ("TopK", 10): _top_k,
    ("Unsqueeze", 13): _AXES_TO_INPUT,
    ("Upsample", 9): _upsample_9,
    ("Upsample", 10): _upsample_10,
    **{(f"Reduce{r}", 18): _AXES_TO_INPUT for r in _REDUCTIONS},
}

# The versions at which an operator only got more types, new attributes whose default is the old
# behaviour, or a clearer text. A version that is in neither table is refused (a test holds both
# against the schemas of onnx).
SAME: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Acos", "Asin", "Atan", "Cos", "Sin", "Tan", "Cosh", "Sinh"), (22,)),
    **dict.fromkeys(("Acosh", "Asinh", "Atanh", "Elu", "HardSigmoid", "HardSwish", "Mish"), (22,)),
    **dict.fromkeys(("Softplus", "Softsign", "ThresholdedRelu", "Selu", "Round", "Det"), (22,)),
    **dict.fromkeys(("Abs", "Ceil", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Sqrt"), (13,)),
    **dict.fromkeys(("Erf", "Expand", "LRN", "Sigmoid", "Sign", "Tanh", "Tile"), (13,)),
    **dict.fromkeys(("Concat", "ArgMax", "ArgMin", "Gather"), (11, 12, 13)),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Relu", "CumSum"), (13, 14)),
    **dict.fromkeys(("Max", "Min"), (8, 12, 13)),
    **dict.fromkeys(("Sum", "Mean"), (8, 13)),
    **dict.fromkeys(("Less", "Greater", "MatMul"), (9, 13)),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "MaxRoiPool"), (22,)),
    **dict.fromkeys(("Conv", "ConvTranspose"), (11, 22)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), (11,)),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), (14, 22)),
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform"), (22,)),
    **dict.fromkeys(("RandomUniformLike", "Multinomial", "Bernoulli"), (22,)),
    **dict.fromkeys(("If", "Loop", "Scan"), (11, 13, 16, 19, 21, 23)),
    **dict.fromkeys((f"Reduce{r}" for r in _REDUCTIONS), (11, 12, 13, 20)),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), (11, 21, 23)),
    **dict.fromkeys(("LessOrEqual", "GreaterOrEqual", "Where", "LeakyRelu"), (16,)),
    **dict.fromkeys(("InstanceNormalization", "LpNormalization", "EyeLike", "DeformConv"), (22,)),
    **dict.fromkeys(("GatherElements", "NonZero", "MeanVarianceNormalization", "Mod"), (13,)),
    **dict.fromkeys(("NonMaxSuppression", "OneHot", "Compress"), (11,)),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), (11, 13)),
    **dict.fromkeys(("ScatterElements", "ScatterND"), (13, 16, 18)),
    **dict.fromkeys(("OptionalGetElement", "OptionalHasElement"), (18,)),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), (13, 22)),
    **dict.fromkeys(("Shape", "Size"), (13, 15, 19, 21, 23)),
    "AveragePool": (10, 11, 19, 22),
    "BatchNormalization": (15,),
    "Cast": (9, 13, 19, 21, 23),
    "CastLike": (19, 21, 23),
    "Clip": (12, 13),
    "Constant": (9, 11, 12, 13, 19, 21, 23),
    "ConstantOfShape": (20, 21, 23),
    "DequantizeLinear": (13, 19, 21, 23),
    "Dropout": (13, 22),
    "Equal": (11, 13, 19),
    "Flatten": (9, 11, 13, 21, 23),
    "GatherND": (12, 13),
    "Gemm": (9, 11, 13),
    "GridSample": (22,),
    "Identity": (13, 14, 16, 19, 21, 23),
    "IsInf": (20,),
    "IsNaN": (13, 20),
    "LpPool": (11, 18, 22),
    "MaxPool": (8, 10, 11, 12, 22),
    "MaxUnpool": (11, 22),
    "PRelu": (9, 16),
    "Pad": (13, 18, 19, 21, 23),
    "Pow": (12, 13, 15),
    "QLinearMatMul": (21,),
    "QuantizeLinear": (13, 19, 21, 23),
    "ReduceSum": (11,),
    "Reshape": (13, 14, 19, 21, 23),
    "Resize": (18, 19),
    "RoiAlign": (22,),
    "Scatter": (),
    "Slice": (11, 13),
    "Split": (11,),
    "TopK": (11,),
    "Transpose": (13, 21, 23),
}

# new attributes of opsets 24 to 26, with the value that means what opset 23 does
_NEW_ATTRIBUTES: dict[str, dict[str, object]] = {
    "Cast": {"round_mode": "up"},
    "CastLike": {"round_mode": "up"},
    "Range": {"stash_type": 1},
}
# changed by more than types and attributes: they stay where they are
_STAYS = frozenset({"Attention", "SplitToSequence"})


def lower_node(node: ir.Node, bumps: Sequence[int]) -> Callable[[], None] | None:
    """What brings a node of a newer opset down to the working one; None if it must stay.

    `bumps` are the versions above the working opset at which its operator changed.
    """
    if not onnx.defs.has(node.op_type, ""):
        return _nothing  # some other check names unknown operators
    try:
        schema = onnx.defs.get_schema(node.op_type, WORKING_OPSET, "")
    except onnx.defs.SchemaError:
        return None  # younger than the working opset
    if not bumps:
        return _nothing
    if node.op_type in _STAYS or _is_floored_mod(node) or not _types_fit(node, schema):
        return None
    new = _NEW_ATTRIBUTES.get(node.op_type, {})
    drop = [name for name in node.attributes if name not in schema.attributes]
    if any(name not in new or attr(node, name) != new[name] for name in drop):
        return None

    def plan() -> None:
        for name in drop:
            del node.attributes[name]

    return plan


def _is_floored_mod(node: ir.Node) -> bool:
    """Mod of reals with the sign of the divisor: before opset 28 they only had that of the dividend."""
    if node.op_type != "Mod" or attr(node, "fmod", 0):
        return False
    first = node.inputs[0]
    return first is None or first.dtype is None or first.dtype.is_floating_point()


def _nothing() -> None:
    return None


def _types_fit(node: ir.Node, schema: onnx.defs.OpSchema) -> bool:
    """Whether every type is known and one that the older schema takes."""
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for i, value in enumerate(values):
            if value is None or not formals:
                continue
            formal = formals[min(i, len(formals) - 1)]
            if not isinstance(value.type, ir.TensorType):
                return False
            if f"tensor({_TYPE_NAMES.get(value.type.dtype, '')})" not in formal.types:
                return False
    return True


_TYPE_NAMES = {
    dtype: {"FLOAT": "float", "DOUBLE": "double"}.get(dtype.name, dtype.name.lower())
    for dtype in ir.DataType
}
