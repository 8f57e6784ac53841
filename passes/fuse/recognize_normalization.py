"""Recognize normalizations that are spelt out in arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, attr, const, is_op, replaceable, shape_of, sole_use
from effc.core.passinfra import Effect
from effc.core.rewrite import Rule, bypass
from effc.passes.fuse.expressions import inner, number
from effc.passes.fuse.linear import cast
from effc.passes.fuse.rewriting import (
    RewritePass,
    graph_of,
    known,
    rank_of,
    result_name,
    set_const,
    split_const,
    substitute,
)


@dataclass(frozen=True)
class RecognizeNormalization(RewritePass):
    """(x - mean x) / sqrt(var x + eps) * g + b -> LayerNormalization or InstanceNormalization.

    x / sqrt(mean x^2 + eps) * g -> RMSNormalization (opset 23). The mean may be spelt ReduceMean with
    axes as input or attribute; the square Mul or Pow; the division Div, Mul by Reciprocal or Pow
    -0.5; the difference computed once or twice. Over the last axes it is a layer norm (opset 17),
    over all axes behind the channels an instance norm. g and b are taken in where constant, also
    behind a norm that was one operator already. Reshape to groups, InstanceNormalization, Reshape
    back and a per-channel affine -> GroupNormalization (opset 21).

    Declines where something else reads an intermediate result, the normalized extents are not
    static, or the axes are others: a norm over the channels of NCHW stays arithmetic, because
    LayerNormalization would need transposes around it.

    Sources: arXiv 1607.06450, 1607.08022, 1803.08494, 1910.07467.
    """

    id: ClassVar[str] = "recognize-normalization"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, opset: int) -> Iterable[Rule]:
        rules: list[Rule] = []
        if opset >= 17:
            rules.append(_Bare(opset))
        if opset >= 21:
            rules.append(_Groups())
        return (*rules, _TakeAffine())


@dataclass(frozen=True)
class _Statistics:
    """numerator / sqrt(mean(square(numerator)) + eps), the mean over `axes` (not negative)."""

    numerator: ir.Value
    axes: tuple[int, ...]
    epsilon: float


@dataclass(frozen=True)
class _Bare:
    roots: ClassVar[frozenset[str]] = frozenset({"Div", "Mul"})
    opset: int

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        found = _normalized(node)
        if found is None:
            return None
        x = _centred(found.numerator, found.axes)
        if x is None:
            return self._write_rms(node, found)
        rank, shape = rank_of(x), shape_of(x)
        if rank is None or x.dtype is None:
            return None
        dtype, name = x.dtype.numpy(), result_name(node)
        if found.axes == tuple(range(rank - len(found.axes), rank)):
            extents = _static(x, found.axes)
            if extents is not None and not _is_instance(shape, found.axes):
                scale = add_const(graph_of(node), f"{name}.scale", np.ones(extents, dtype))
                new = ir.node(
                    "LayerNormalization",
                    [x, scale],
                    {"axis": -len(found.axes), "epsilon": found.epsilon},
                    name=node.name,
                )
                substitute(node, new)
                return (new, *new.outputs[0].consumers())
        if rank >= 3 and found.axes == tuple(range(2, rank)):
            channels = _static(x, (1,))
            if channels is None:
                return None
            graph = graph_of(node)
            scale = add_const(graph, f"{name}.scale", np.ones(channels, dtype))
            shift = add_const(graph, f"{name}.bias", np.zeros(channels, dtype))
            new = ir.node(
                "InstanceNormalization",
                [x, scale, shift],
                {"epsilon": found.epsilon},
                name=node.name,
            )
            substitute(node, new)
            return (new, *new.outputs[0].consumers())
        return None

    def _write_rms(self, node: ir.Node, found: _Statistics) -> Iterable[ir.Node] | None:
        x = found.numerator
        rank = rank_of(x)
        if self.opset < 23 or rank is None or x.dtype is None:
            return None
        if found.axes != tuple(range(rank - len(found.axes), rank)):
            return None
        extents = _static(x, found.axes)
        if extents is None:
            return None
        ones = np.ones(extents, x.dtype.numpy())
        scale = add_const(graph_of(node), f"{result_name(node)}.scale", ones)
        new = ir.node(
            "RMSNormalization",
            [x, scale],
            {"axis": -len(found.axes), "epsilon": found.epsilon},
            name=node.name,
        )
        substitute(node, new)
        return (new, *new.outputs[0].consumers())


def _is_instance(shape: tuple[int, ...] | None, axes: tuple[int, ...]) -> bool:
    """Whether the norm is over exactly the spatial axes of a picture: InstanceNormalization."""
    return shape is not None and len(shape) >= 4 and axes == tuple(range(2, len(shape)))


def _static(x: ir.Value, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    if x.shape is None:
        return None
    extents = [x.shape[a] for a in axes]
    return tuple(e for e in extents if isinstance(e, int)) if all(
        isinstance(e, int) for e in extents
    ) else None  # fmt: skip


def _normalized(node: ir.Node) -> _Statistics | None:
    """`node` as a value over the root of its mean square, or None."""
    if len(node.inputs) != 2:
        return None
    a, b = node.inputs
    orders = [(a, b)] if is_op(node, "Div") else [(a, b), (b, a)]
    for numerator, other in orders:
        if numerator is None:
            continue
        total = _root(other) if is_op(node, "Div") else _inverse_root(other)
        if total is None:
            continue
        split = split_const(total)
        epsilon = number(total.inputs[split[2]]) if split is not None else None
        if split is None or epsilon is None or epsilon < 0:
            continue
        mean = _mean(split[1])
        if mean is None or sole_use(split[1]) is None:
            continue
        squared, axes = mean
        base = _square(squared)
        if base is None or not _same(base, numerator):
            continue
        return _Statistics(numerator, axes, epsilon)
    return None


def _root(value: ir.Value | None) -> ir.Node | None:
    """The Add under a square root: Sqrt(a + e) or Pow(a + e, 0.5)."""
    node = inner(value, "Sqrt", "Pow")
    if node is None or (is_op(node, "Pow") and number(node.inputs[1]) != 0.5):
        return None
    return inner(node.inputs[0], "Add")


def _inverse_root(value: ir.Value | None) -> ir.Node | None:
    """The Add under an inverse square root."""
    node = inner(value, "Reciprocal", "Div", "Pow")
    if is_op(node, "Pow") and node is not None:
        return inner(node.inputs[0], "Add") if number(node.inputs[1]) == -0.5 else None
    if node is None or (is_op(node, "Div") and number(node.inputs[0]) != 1.0):
        return None
    return _root(node.inputs[-1])


def _mean(value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...]] | None:
    """What `value` is the kept-dimension mean of, and the axes, sorted and not negative."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "ReduceMean") or not attr(node, "keepdims", 1):
        return None
    x = node.inputs[0]
    rank = rank_of(x)
    axes = attr(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        held = const(node.inputs[1])
        if held is None:
            return None
        axes = tuple(int(a) for a in held)
    if x is None or rank is None or not axes:
        return None
    return x, tuple(sorted(a % rank for a in axes))


def _square(value: ir.Value) -> ir.Value | None:
    """The base of a square that only the mean reads."""
    node = inner(value, "Mul", "Pow")
    if node is None:
        return None
    if is_op(node, "Pow"):
        return node.inputs[0] if number(node.inputs[1]) == 2 else None
    return node.inputs[0] if node.inputs[0] is node.inputs[1] else None


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values are the same, or the same difference computed twice."""
    if a is None or b is None or a is b:
        return a is b
    p, q = a.producer(), b.producer()
    if p is None or q is None or not is_op(p, "Sub") or not is_op(q, "Sub"):
        return False
    if p.inputs[0] is not q.inputs[0]:
        return False
    left, right = _mean(p.inputs[1]), _mean(q.inputs[1])
    return left is not None and left == right


def _centred(value: ir.Value, axes: tuple[int, ...]) -> ir.Value | None:
    """x, where `value` is x - mean(x) over `axes`; None else."""
    node = value.producer()
    if node is None or not is_op(node, "Sub"):
        return None
    found = _mean(node.inputs[1])
    x = node.inputs[0]
    return x if found is not None and found[0] is x and found[1] == axes else None


NORMS = ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")


class _TakeAffine:
    """norm(x; g, b) * s + t -> norm(x; g s, b s + t)."""

    roots: ClassVar[frozenset[str]] = frozenset({"Mul", "Add"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        split = split_const(node)
        if split is None:
            return None
        held, value, _ = split
        norm = inner(value, *NORMS)
        if norm is None or len(norm.outputs) > 1 or not replaceable(node.outputs[0], value):
            return None
        scale = const(norm.inputs[1])
        shift = const(norm.inputs[2]) if len(norm.inputs) > 2 and norm.inputs[2] else None
        if scale is None or (len(norm.inputs) > 2 and norm.inputs[2] and shift is None):
            return None
        if is_op(norm, "RMSNormalization") and is_op(node, "Add"):
            return None
        rank = rank_of(value)
        if rank is None or scale.ndim > rank:
            return None
        operand = self._on_parameters(norm, held, scale.shape, rank)
        if operand is None:
            return None
        g = scale.astype(np.float64)
        b: Array = np.zeros_like(g) if shift is None else shift.astype(np.float64)
        if is_op(node, "Mul"):
            g, b = g * operand, b * operand
        else:
            b = b + operand
        new_scale, new_shift = cast(g, scale.dtype), cast(b, scale.dtype)
        if new_scale is None or new_shift is None:
            return None
        name = result_name(norm)
        if is_op(node, "Mul"):
            set_const(norm, 1, new_scale, f"{name}.scale")
        if not is_op(norm, "RMSNormalization") and (shift is not None or is_op(node, "Add")):
            set_const(norm, 2, new_shift, f"{name}.bias")
        return bypass(node, value)

    def _on_parameters(
        self, norm: ir.Node, held: Array, shape: tuple[int, ...], rank: int
    ) -> Array | None:
        """`held` broadcast to the shape of the norm's parameters, if it varies along nothing else."""
        array = held.astype(np.float64)
        if array.ndim > rank:
            return None
        full = array.reshape((1,) * (rank - array.ndim) + array.shape)
        axes: tuple[int, ...]
        if is_op(norm, "InstanceNormalization", "GroupNormalization"):
            axes = (1,)
        else:
            axes = tuple(range(rank - len(shape), rank))
        if any(n != 1 for i, n in enumerate(full.shape) if i not in axes):
            return None
        parameters = full.reshape([full.shape[i] for i in axes])
        if any(a not in (1, b) for a, b in zip(parameters.shape, shape, strict=True)):
            return None
        return np.broadcast_to(parameters, shape)


class _Groups:
    """Reshape(InstanceNorm(Reshape(x, [N, groups, -1]))) -> GroupNormalization(x)."""

    roots: ClassVar[frozenset[str]] = frozenset({"Reshape"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        norm = inner(node.inputs[0], "InstanceNormalization")
        before = inner(norm.inputs[0], "Reshape") if norm is not None else None
        if norm is None or before is None:
            return None
        x = before.inputs[0]
        # rows stay rows in a Reshape, so it does not matter what shape x has
        grouped, shape = shape_of(before.outputs[0]), shape_of(node.outputs[0])
        scale, shift = known(norm.inputs[1]), known(norm.inputs[2])
        if x is None or shape is None or grouped is None or min(len(shape), len(grouped)) < 3:
            return None
        if scale is None or shift is None or grouped[0] != shape[0] or shape[1] % grouped[1]:
            return None
        if grouped[1] == shape[1]:
            return None  # a group a channel: an instance norm of a picture that was flattened
        if (scale != scale.flat[0]).any() or (shift != shift.flat[0]).any():
            return None  # a scale a group, which is no scale a channel that exporters write
        graph, name = graph_of(node), result_name(node)
        channels = shape[1]
        g = add_const(graph, f"{name}.scale", np.full(channels, scale.flat[0], scale.dtype))
        b = add_const(graph, f"{name}.bias", np.full(channels, shift.flat[0], shift.dtype))
        made: list[ir.Node] = []
        if shape_of(x) != shape:
            target = add_const(graph, f"{name}.shape", np.array(shape, np.int64))
            made.append(ir.node("Reshape", [x, target]))
            graph.insert_before(node, made[0])
            x = made[0].outputs[0]
            x.type, x.shape = node.outputs[0].type, ir.Shape(shape)
        new = ir.node(
            "GroupNormalization",
            [x, g, b],
            {"num_groups": grouped[1], "epsilon": attr(norm, "epsilon", 1e-5)},
            name=node.name,
        )
        substitute(node, new)
        return (new, *new.outputs[0].consumers())
