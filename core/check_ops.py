"""What single operators demand of their weights and geometry, beyond their schemas."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.core.ir import attr, const, shape_of


def quoted(name: object) -> str:
    """A name for a one-line message: quoted, escaped, at most 80 characters long."""
    text = repr(str(name))
    return text if len(text) <= 80 else f"{text[:76]}...{text[0]}"


def where(node: ir.Node) -> str:
    """`node 'conv1' (Conv)`, or the node's place in its graph where it has no name."""
    name = quoted(node.name) if node.name else None
    if name is None and node.graph is not None:
        name = next((f"#{i}" for i, n in enumerate(node.graph) if n is node), None)
    op_type = node.op_type if node.op_type.isidentifier() else quoted(node.op_type)
    return f"node {name or '?'} ({op_type})"


def check_op(node: ir.Node, place: str) -> None:
    """Raise FrontendError where `node` contradicts its operator's definition."""
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain not in ("", "ai.onnx"):
        return
    reason = rule(node)
    if reason:
        raise FrontendError(
            f"{where(node)}{place} {reason}",
            hint="the model contradicts the definition of the operator: export it again",
        )


def _extent(value: ir.Value | None, axis: int) -> int | None:
    """The size of `value` along `axis` where that is known."""
    if value is None or value.shape is None or len(value.shape) <= axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _conv(node: ir.Node) -> str:
    group = attr(node, "group", 1)
    if not isinstance(group, int):  # a reference to an attribute of the function
        return ""
    if group < 1:
        return f"has group={group}"
    weight = shape_of(node.inputs[1])
    if weight is None:
        return _window(node, None)
    if len(weight) < 3:
        return f"has a weight of shape {list(weight)}, which has no spatial dimension"
    if node.op_type == "Conv":
        outputs, inputs = weight[0], weight[1] * group
        if outputs % group:
            return f"has group={group}, which doesn't divide its {outputs} output channels"
    else:
        outputs, inputs = weight[1] * group, weight[0]
        if inputs % group:
            return f"has group={group}, which doesn't divide its {inputs} input channels"
    data = node.inputs[0]
    if data is not None and data.shape is not None and len(data.shape) != len(weight):
        return f"has a weight of {len(weight)} dimensions but an input of {len(data.shape)}"
    channels = _extent(data, 1)
    if channels is not None and channels != inputs:
        return (
            f"has a weight of shape {list(weight)} and group={group}, made for {inputs} channels, "
            f"but its input has {channels}"
        )
    bias = shape_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and bias != (outputs,):
        return f"has a bias of shape {list(bias)} for {outputs} output channels"
    kernel = attr(node, "kernel_shape")
    if kernel is not None and tuple(kernel) != weight[2:]:
        return f"has kernel_shape={list(kernel)} but a weight of shape {list(weight)}"
    return _window(node, len(weight) - 2)


def _window(node: ir.Node, rank: int | None) -> str:
    for name, least, per in (
        ("kernel_shape", 1, 1),
        ("strides", 1, 1),
        ("dilations", 1, 1),
        ("pads", 0 if node.op_type in ("MaxPool", "AveragePool", "LpPool") else None, 2),
    ):
        values = attr(node, name)
        if not isinstance(values, tuple):
            continue
        if rank is None:
            rank = len(values) // per
        if len(values) != rank * per:
            return f"has {name}={list(values)}, which should have {rank * per} entries"
        if least is not None and any(v < least for v in values):
            return f"has {name}={list(values)}"
        if any(abs(v) > 1 << 30 for v in values):
            return f"has {name}={list(values)}"
    return ""


def _pool(node: ir.Node) -> str:
    data = node.inputs[0]
    rank = len(data.shape) - 2 if data is not None and data.shape is not None else None
    if rank is not None and rank < 1:
        return f"has an input of {rank + 2} dimensions, none of them spatial"
    return _window(node, rank)


def _batch_norm(node: ir.Node) -> str:
    channels = _extent(node.inputs[0], 1)
    for name, value in zip(("scale", "bias", "mean", "variance"), node.inputs[1:5], strict=False):
        shape = shape_of(value)
        if shape is None:
            continue
        if len(shape) != 1:
            return f"has a {name} of shape {list(shape)}"
        channels = shape[0] if channels is None else channels
        if shape[0] != channels:
            return f"has {shape[0]} numbers of {name} for {channels} channels"
    epsilon = attr(node, "epsilon", 1e-5)
    variance = const(node.inputs[4])
    if variance is None or variance.size == 0 or not isinstance(epsilon, float):
        return ""
    # NaN passes here: whether it may is the caller's choice
    low = int(np.argmin(np.where(np.isnan(variance), np.inf, variance)))
    worst = float(variance[low])
    if worst < 0:
        return f"has the negative variance {worst:g} in channel {low}"
    if worst + epsilon <= 0:
        return f"divides by zero: channel {low} has variance {worst:g} and epsilon is {epsilon:g}"
    return ""


def _gemm(node: ir.Node) -> str:
    a, b = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    if a is None or b is None:
        return ""
    if len(a) != 2 or len(b) != 2:
        return f"multiplies shapes {list(a)} and {list(b)}; it takes matrices"
    if attr(node, "transA", 0):
        a = a[::-1]
    if attr(node, "transB", 0):
        b = b[::-1]
    if a[1] != b[0]:
        return f"multiplies {list(a)} by {list(b)}"
    return ""


def _constant(node: ir.Node) -> str:
    given = [n for n in node.attributes if not n.startswith("__")]
    if len(given) != 1:
        return f"has {len(given)} values; it takes exactly one"
    return ""


def _constant_of_shape(node: ir.Node) -> str:
    shape = const(node.inputs[0], 1 << 16)
    if shape is None:
        return ""
    dims = [int(d) for d in shape.reshape(-1)]
    if any(d < 0 for d in dims):
        return f"makes a tensor of the negative shape {dims}"
    if math.prod(dims) > 1 << 31:
        return f"makes a tensor of shape {dims}, over 2^31 elements"
    return ""


def _broadcast(node: ir.Node) -> str:
    if "broadcast" in node.attributes:  # before opset 7 it had an axis
        return ""
    shapes = [v.shape for v in node.inputs if v is not None]
    known = [s for s in shapes if s is not None]
    if len(known) != len(shapes) or len({tuple(s) for s in known}) < 2:
        return ""
    for sizes in zip_longest(*(reversed(tuple(s)) for s in known), fillvalue=1):
        # a symbolic size may turn out to be 1
        if len({d for d in sizes if isinstance(d, int) and d != 1}) > 1:
            return f"combines the shapes {' and '.join(map(str, known))}, which can't be broadcast"
    return ""


_ELEMENTWISE = (
    "Add Sub Mul Div Pow Mod And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual Min Max Mean Sum "
    "Where BitwiseAnd BitwiseOr BitwiseXor"
).split()
_RULES: dict[str, Callable[[ir.Node], str]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "BatchNormalization": _batch_norm,
    "Gemm": _gemm,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    **dict.fromkeys(_ELEMENTWISE, _broadcast),
}
