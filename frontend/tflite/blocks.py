"""Operators that trade space for channels or for the batch, block by block."""

from __future__ import annotations

import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.frontend.tflite.graph import NATIVE, NCHW, Graph, Unsupported
from effc.frontend.tflite.read import DAMAGED, Operator
from effc.frontend.tflite.windows import need_rank, positive


def _blocks(op_type: str, g: Graph, operator: Operator) -> None:
    x = operator.input(0)
    need_rank(g, operator, x, 4)
    (block,) = positive(operator, "BlockSize")
    g.put_real(operator.output(), g.emit(op_type, g.real(x, NCHW), blocksize=block), NCHW)


def depth_to_space(g: Graph, operator: Operator) -> None:
    _blocks("DepthToSpace", g, operator)


def space_to_depth(g: Graph, operator: Operator) -> None:
    _blocks("SpaceToDepth", g, operator)


def space_to_batch(g: Graph, operator: Operator) -> None:
    """Pad, then the offsets within a block become the slow part of the batch."""
    x, o = operator.input(0), operator.output()
    block, edges = g.ints(operator, 1), g.ints(operator, 2)
    n, *space, c = _spatial(g, operator, x, block, edges)
    m = len(block)
    if any(e < 0 for e in edges):
        raise FrontendError(f"{operator.place} pads by {edges}", hint=DAMAGED)
    padded = [s + edges[2 * k] + edges[2 * k + 1] for k, s in enumerate(space)]
    split = [v for s, b in zip(padded, block, strict=True) for v in (s // b, b)]
    order = [2 + 2 * k for k in range(m)] + [0] + [1 + 2 * k for k in range(m)] + [2 * m + 1]

    def build(value: ir.Value) -> ir.Value:
        if any(edges):
            value = g.emit(
                "Pad",
                value,
                g.int64(0, *edges[::2], 0, 0, *edges[1::2], 0),
            )
        value = g.reshape(value, (n, *split, c))
        return g.reshape(g.emit("Transpose", value, perm=order), g.shape(o))

    # the padding is a real zero, which Pad can only write among real numbers
    g.put_real(o, build(g.real(x)), NATIVE)


def batch_to_space(g: Graph, operator: Operator) -> None:
    """The inverse of space_to_batch, then crops."""
    x, o = operator.input(0), operator.output()
    block, crops = g.ints(operator, 1), g.ints(operator, 2)
    n, *space, c = _spatial(g, operator, x, block, crops)
    m, out = len(block), g.shape(o)
    batch = n
    for b in block:
        batch //= b
    order = [m]
    for k in range(m):
        order += [m + 1 + k, k]
    order.append(2 * m + 1)
    whole = [s * b for s, b in zip(space, block, strict=True)]

    def build(value: ir.Value) -> ir.Value:
        value = g.reshape(value, (*block, batch, *space, c))
        value = g.reshape(g.emit("Transpose", value, perm=order), (batch, *whole, c))
        if any(crops):
            value = g.emit(
                "Slice",
                value,
                g.int64(*crops[::2]),
                g.int64(*(s - e for s, e in zip(whole, crops[1::2], strict=True))),
                g.int64(*range(1, m + 1)),
            )
        return value

    if len(out) != m + 2:
        raise FrontendError(f"{operator.place} has an output of rank {len(out)}", hint=DAMAGED)
    g.move(x, o, build)


def _spatial(
    g: Graph, operator: Operator, x: int, block: list[int], edges: list[int]
) -> tuple[int, ...]:
    shape = g.shape(x)
    if len(shape) != len(block) + 2 or len(edges) != 2 * len(block) or min(block, default=0) < 1:
        raise Unsupported(f"blocks {block} of a tensor of shape {list(shape)}")
    return shape


CONVERTERS = {
    "DEPTH_TO_SPACE": depth_to_space,
    "SPACE_TO_DEPTH": space_to_depth,
    "SPACE_TO_BATCH_ND": space_to_batch,
    "BATCH_TO_SPACE_ND": batch_to_space,
}
