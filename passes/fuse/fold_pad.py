"""Fold a Pad into the padding of the window operator behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import attr, const, is_op, scalar, sole_use
from effc.core.passinfra import Effect
from effc.core.rewrite import Rule, bypass
from effc.passes.fuse.rewriting import (
    RewritePass,
    known,
    rank_of,
    result_name,
    set_const,
    set_input,
)


@dataclass(frozen=True)
class FoldPad(RewritePass):
    """Conv<p>(Pad(x, q, 0)) -> Conv<p + q>(x), and the same for AveragePool and MaxPool where exact.

    Pad must be constant, non-negative and spatial only. AveragePool takes zeros only as
    `count_include_pad`, so its own padding must be counted already or be zero. MaxPool pads with
    minus infinity: it takes a Pad of minus infinity (or the lowest number of its type), and one of
    zeros where its input is known to be non-negative and every window holds a real element.
    Pools also decline rounding up (`ceil_mode`: which windows exist depends on who pads), dilation
    with padding, and padding as wide as the window (not valid ONNX). `auto_pad` SAME declines: it
    depends on the padded size. Pad(Pad(x, p, c), q, c) -> Pad(x, p + q, c).
    """

    id: ClassVar[str] = "fold-pad"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, opset: int) -> Iterable[Rule]:
        return (_IntoConsumer(), *((_MergePads(),) if opset >= 11 else ()))


def constant_pads(pad: ir.Node) -> tuple[tuple[int, ...], float] | None:
    """The pads (begins, then ends, one an axis) and the value of a constant Pad; None if it is not one.

    The value is 0 for a Pad without one; pads may be negative.
    """
    if attr(pad, "mode", "constant") != "constant":
        return None
    if "pads" in pad.attributes:  # before opset 11
        return attr(pad, "pads"), float(attr(pad, "value", 0.0))
    if len(pad.inputs) < 2 or (stored := const(pad.inputs[1])) is None:
        return None
    given = [int(p) for p in stored]
    value = 0.0
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        held = known(pad.inputs[2])
        if held is None or held.size != 1:
            return None
        value = float(held.reshape(()))
    if len(pad.inputs) < 4 or pad.inputs[3] is None:
        return tuple(given), value
    axes, rank = const(pad.inputs[3]), rank_of(pad.inputs[0])
    if axes is None or rank is None:
        return None
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        full[int(axis) % rank] = given[i]
        full[int(axis) % rank + rank] = given[i + len(axes)]
    return tuple(full), value


class _IntoConsumer:
    roots: ClassVar[frozenset[str]] = frozenset({"Pad"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        reader = sole_use(node.outputs[0])
        x = node.inputs[0]
        if not is_op(reader, "Conv", "AveragePool", "MaxPool") or x is None:
            return None
        assert reader is not None  # is_op refuses None
        found = constant_pads(node)
        if found is None or reader.inputs[0] is not node.outputs[0]:
            return None
        pads, value = found
        rank = len(pads) // 2
        if rank < 3 or any(p < 0 for p in pads) or any(pads[:2]) or any(pads[rank : rank + 2]):
            return None
        mode = attr(reader, "auto_pad", "NOTSET")
        if mode not in ("NOTSET", "VALID"):
            return None
        spatial = rank - 2
        own = (
            attr(reader, "pads", (0,) * (2 * spatial)) if mode == "NOTSET" else (0,) * (2 * spatial)
        )
        new = [a + b for a, b in zip(own, (*pads[2:rank], *pads[rank + 2 :]), strict=True)]
        if not _takes(reader, x, value, own, new):
            return None
        if is_op(reader, "AveragePool"):
            reader.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        reader.attributes.pop("auto_pad", None)
        reader.attributes["pads"] = ir.AttrInt64s("pads", new)
        return bypass(node, x)


def _takes(
    reader: ir.Node, x: ir.Value, value: float, own: tuple[int, ...], new: list[int]
) -> bool:
    """Whether `reader` with padding `new` computes what it did with `own` behind the Pad."""
    if is_op(reader, "Conv"):
        return value == 0
    kernel = attr(reader, "kernel_shape")
    dilations = attr(reader, "dilations", (1,) * len(kernel))
    if attr(reader, "ceil_mode", 0) or any(d != 1 for d in dilations):
        return False
    if any(p >= k for p, k in zip(new, (*kernel, *kernel), strict=True)):
        return False
    if is_op(reader, "AveragePool"):
        return value == 0 and (not any(own) or bool(attr(reader, "count_include_pad", 0)))
    if len(reader.outputs) > 1:  # indices count the padded elements
        return False
    lowest = -np.inf
    if x.dtype is not None and x.dtype.is_floating_point():
        lowest = float(x.dtype.min)
    return value <= lowest or (value == 0 and not_negative(x))


def not_negative(value: ir.Value | None) -> bool:
    """Whether no element of `value` can be negative."""
    node = value.producer() if value is not None else None
    if is_op(node, "Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Softplus", "Sqrt"):
        return True
    if node is None:
        return False
    if is_op(node, "Clip"):
        low = scalar(node.inputs[1]) if len(node.inputs) > 1 else attr(node, "min")
        return low is not None and low >= 0
    if is_op(
        node, "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Transpose", "Reshape"
    ):
        return not_negative(node.inputs[0])
    if is_op(node, "Concat", "Add", "Mul"):
        return all(not_negative(v) for v in node.inputs)
    return False


class _MergePads:
    roots: ClassVar[frozenset[str]] = frozenset({"Pad"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        x = node.inputs[0]
        inner = x.producer() if x is not None else None
        if x is None or not is_op(inner, "Pad") or sole_use(x) is not node:
            return None
        assert inner is not None  # is_op refuses None
        outer_pads, inner_pads = constant_pads(node), constant_pads(inner)
        if outer_pads is None or inner_pads is None or outer_pads[1] != inner_pads[1]:
            return None
        if min(outer_pads[0] + inner_pads[0]) < 0 or inner.inputs[0] is None:
            return None
        total = np.array([a + b for a, b in zip(outer_pads[0], inner_pads[0], strict=True)])
        set_const(node, 1, total, f"{result_name(node)}.pads")
        if len(node.inputs) > 3:
            set_input(node, 3, None)
        again = bypass(inner, inner.inputs[0])
        return (*again, node)
