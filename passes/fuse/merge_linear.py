"""Merge linear operators in a row into one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, attr, is_op, sole_use
from effc.core.passinfra import Effect
from effc.core.rewrite import Rule
from effc.passes.fuse.fold_bias import ARITHMETIC, Affine
from effc.passes.fuse.linear import Linear, cast, regroup, unpadded
from effc.passes.fuse.rewriting import (
    RewritePass,
    drop_value,
    graph_of,
    rank_of,
    result_name,
    substitute,
)


@dataclass(frozen=True)
class MergeLinear(RewritePass):
    """W2 (W1 x + b1) + b2 -> (W2 W1) x + (W2 b1 + b2), where that needs no more multiplications.

    Conv behind Conv where one of the two is 1x1 and unpadded and the first, if it is the 1x1 one,
    has stride 1; a bias between them only where the second reads no padding. Gemm or MatMul behind
    Gemm or MatMul. Arithmetic with constants behind arithmetic with constants, where one operator
    does. Transpose before a product of matrices becomes Gemm's transA or transB.

    Declines: an intermediate result that something else reads, computed weights, and products whose
    merged form costs more than `max-mac-ratio` times the two (a low-rank pair stays a pair).
    """

    id: ClassVar[str] = "merge-linear"
    effect: ClassVar[Effect] = Effect.EXACT

    max_mac_ratio: float = field(
        default=1.0, metadata={"help": "merge up to this many times the multiply-accumulates"}
    )

    def rules(self, opset: int) -> Iterable[Rule]:
        rules: list[Rule] = [
            _Convolutions(self.max_mac_ratio),
            _Products(self.max_mac_ratio),
            _Arithmetic(),
        ]
        if opset >= 11:  # before, Gemm needs its C
            rules.append(_TransposeIntoGemm())
        return rules


@dataclass(frozen=True)
class _Convolutions:
    roots: ClassVar[frozenset[str]] = frozenset({"Conv"})
    max_mac_ratio: float

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        h = node.inputs[0]
        before = h.producer() if h is not None else None
        if h is None or not is_op(before, "Conv") or sole_use(h) is not node:
            return None
        first, second = Linear.read(before), Linear.read(node)
        if before is None or first is None or second is None:
            return None
        explicit = attr(before, "auto_pad", "NOTSET") == "NOTSET"
        if _pointwise(second) and unpadded(node) and explicit:
            window, strides = before, _times(_strides(before), _strides(node))
        elif _pointwise(first) and unpadded(before) and set(_strides(before)) == {1}:
            window, strides = node, _strides(node)
            if first.bias is not None and first.bias.any() and not unpadded(node):
                return None
        else:
            return None
        pixels = math.prod(_strides(node))  # of the first, for each of the second
        cost = math.prod(first.shape) * pixels + math.prod(second.shape)
        groups = math.gcd(first.groups, second.groups)
        taps = max(math.prod(first.shape[2:]), math.prod(second.shape[2:]))
        if second.outputs * (first.inputs // groups) * taps > self.max_mac_ratio * cost:
            return None
        weight = _compose(first, second, groups)
        bias = second.bias
        if first.bias is not None:
            dense = regroup(second.weight, second.groups, 1)
            carried = dense.sum(axis=tuple(range(2, dense.ndim))) @ first.bias
            bias = carried if bias is None else bias + carried
        stored = cast(weight, first.dtype)
        stored_bias = None if bias is None else cast(bias, first.dtype)
        if stored is None or (bias is not None and stored_bias is None):
            return None
        graph, name = graph_of(node), result_name(node)
        inputs = [before.inputs[0], add_const(graph, f"{name}.weight", stored)]
        if stored_bias is not None:
            inputs.append(add_const(graph, f"{name}.bias", stored_bias))
        attributes = {k: v for k, v in window.attributes.items() if k not in ("group", "strides")}
        merged = ir.Node("", "Conv", inputs, attributes.values(), name=node.name)
        merged.attributes["group"] = ir.AttrInt64("group", groups)
        merged.attributes["strides"] = ir.AttrInt64s("strides", strides)
        substitute(node, merged)
        return (merged, *merged.outputs[0].consumers())


def _pointwise(conv: Linear) -> bool:
    return math.prod(conv.shape[2:]) == 1


def _strides(conv: ir.Node) -> tuple[int, ...]:
    weight = conv.inputs[1]
    assert weight is not None and weight.shape is not None  # read as a Linear before
    given: tuple[int, ...] = attr(conv, "strides", (1,) * (len(weight.shape) - 2))
    return given


def _times(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def _compose(first: Linear, second: Linear, groups: int) -> Array:
    """The weight [O, I/groups, k...] of `second` after `first`, one of which is pointwise."""
    w1, w2 = (
        regroup(first.weight, first.groups, groups),
        regroup(second.weight, second.groups, groups),
    )
    middle = first.outputs // groups
    a = w2.reshape(groups, -1, middle, *w2.shape[2:])
    b = w1.reshape(groups, middle, *w1.shape[1:])
    if _pointwise(second):
        product = np.einsum("gom,gmi...->goi...", a.reshape(*a.shape[:3]), b, optimize=True)
    else:
        product = np.einsum("gom...,gmi->goi...", a, b.reshape(*b.shape[:3]), optimize=True)
    composed: Array = product.reshape(-1, *product.shape[2:])
    return composed


@dataclass(frozen=True)
class _Products:
    roots: ClassVar[frozenset[str]] = frozenset({"Gemm", "MatMul"})
    max_mac_ratio: float

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        h = node.inputs[0]
        if h is None or sole_use(h) is not node or attr(node, "transA", 0):
            return None
        before = h.producer()
        if not is_op(before, "Gemm", "MatMul", "Add"):
            return None
        first = Linear.read(before)
        second = Linear.read(node) if first is not None else None
        if first is None or second is None or first.conv:
            return None
        (k, n1), n2 = first.shape, second.shape[1]
        if k * n2 > self.max_mac_ratio * (k * n1 + n1 * n2):
            return None
        if is_op(first.node, "Gemm") and rank_of(h) != 2:
            return None
        trans_a = attr(first.node, "transA", 0)
        if trans_a and not is_op(node, "Gemm"):
            return None
        alpha = attr(node, "alpha", 1.0) if is_op(node, "Gemm") else 1.0
        if first.bias is not None:
            second.shift_outputs(alpha * (first.bias @ second.weight))
        second.weight = attr(first.node, "alpha", 1.0) * (first.weight @ second.weight)
        x = first.node.inputs[0]
        if not second.commit():
            return None
        second.node.replace_input_with(0, x)
        if trans_a:
            second.node.attributes["transA"] = ir.AttrInt64("transA", 1)
        drop_value(h)
        return (second.node, *second.result.consumers())


class _Arithmetic:
    roots: ClassVar[frozenset[str]] = ARITHMETIC

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        outer = Affine.read(node)
        if outer is None or sole_use(outer.value) is not node:
            return None
        before = outer.value.producer()
        inner = Affine.read(before) if before is not None else None
        if inner is None:
            return None
        scale = outer.scale * inner.scale
        shift = outer.scale * inner.shift + outer.shift
        if (scale == 1).all():
            op, held = "Add", shift
        elif not shift.any():
            op, held = "Mul", scale
        elif (scale == -1).all():
            op, held = "Sub", shift
        else:
            return None
        sizes = [a.size for side in (outer, inner) for a in (side.scale, side.shift)]
        dtype = inner.value.dtype or outer.value.dtype
        if held.size > max(sizes) or dtype is None:
            return None
        stored = cast(held, dtype.numpy())
        if stored is None:
            return None
        constant = add_const(graph_of(node), f"{result_name(node)}.constant", stored)
        operands = [constant, inner.value] if op == "Sub" else [inner.value, constant]
        merged = ir.node(op, operands, name=node.name)
        substitute(node, merged)
        return (merged, *merged.outputs[0].consumers())


class _TransposeIntoGemm:
    roots: ClassVar[frozenset[str]] = frozenset({"Gemm", "MatMul"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        sources = []
        for value in node.inputs[:2]:
            before = value.producer() if value is not None else None
            turned = (
                is_op(before, "Transpose")
                and rank_of(value) == 2
                and value is not None
                and sole_use(value) is node
                and before is not None
                and attr(before, "perm", (1, 0)) == (1, 0)
            )
            sources.append(before.inputs[0] if turned and before is not None else None)
        if not any(sources) or any(rank_of(v) != 2 for v in node.inputs[:2]):
            return None
        dtype = node.outputs[0].dtype
        if dtype is None or not dtype.is_floating_point():
            return None  # kernels of Gemm for integers are rare
        gemm = ir.Node("", "Gemm", node.inputs, name=node.name)
        if is_op(node, "Gemm"):
            gemm.attributes.update(node.attributes)
        for i, (source, flag) in enumerate(zip(sources, ("transA", "transB"), strict=True)):
            if source is not None:
                gemm.replace_input_with(i, source)
                gemm.attributes[flag] = ir.AttrInt64(flag, 1 - attr(node, flag, 0))
        substitute(node, gemm)
        return (gemm,)
