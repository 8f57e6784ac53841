"""Recognize activation functions that are spelt out in arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, attr, is_op, scalar, sole_use
from effc.core.passinfra import Effect
from effc.core.rewrite import Rule
from effc.passes.fuse.expressions import (
    affine,
    bounds,
    close,
    inner,
    number,
    product,
    summands,
)
from effc.passes.fuse.rewriting import RewritePass, graph_of, result_name, substitute


@dataclass(frozen=True)
class RecognizeActivations(RewritePass):
    """Formulas of activations, in any order of operands and constants -> one operator each.

    Relu, Max, Min, Clip in a row                 -> Relu or Clip(x, low, high)
    k Clip(a x + b, 0, 1 / k)                     -> HardSigmoid(x), alpha = k a, beta = k b
    x HardSigmoid(x) with alpha 1/6, beta 1/2     -> HardSwish(x)
    1 / (1 + exp(-x)), 0.5 (1 + tanh(x / 2))      -> Sigmoid(x)
    x Sigmoid(a x), x / (1 + exp(-a x))           -> Swish(x) from opset 24; before, x Sigmoid(a x)
    log(1 + exp(x))                               -> Softplus(x)
    x tanh(Softplus(x))                           -> Mish(x)
    0.5 x (1 + erf(x / sqrt(2)))                  -> Gelu(x)
    0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) -> Gelu(x), tanh approximation
    max(x, a x), Where(x > 0, x, a x), 0 < a < 1  -> LeakyRelu(x)

    Constants may be off by the digits that people write (3e-5, more for half precision). Declines
    where something else reads an intermediate result, and operators that the opset does not have.

    Sources: GELU arXiv 1606.08415, SiLU 1702.03118, Mish 1908.08681, hard-swish 1905.02244.
    """

    id: ClassVar[str] = "recognize-activations"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, opset: int) -> Iterable[Rule]:
        if opset < 12:  # Clip takes its bounds as attributes, Max and Min no integers
            return ()
        return (
            _Clamp(), _HardSigmoid(), _Sigmoid(), _Softplus(), _LeakyRelu(), _Gated(opset),
        )  # fmt: skip


def _call(node: ir.Node, op: str, x: ir.Value, **attributes: float | str) -> Iterable[ir.Node]:
    """Put `op`(x) in the place of `node`; the nodes to look at again."""
    new = ir.node(op, [x], attributes, name=node.name)
    substitute(node, new)
    return (new, *new.outputs[0].consumers())


class _Clamp:
    roots: ClassVar[frozenset[str]] = frozenset({"Clip", "Relu", "Max", "Min"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        found = bounds(node)
        if found is None or found[0].dtype is None or not found[0].dtype.is_floating_point():
            return None
        x, low, high = found
        before = inner(x, "Clip", "Relu", "Max", "Min")
        nested = bounds(before) if before is not None else None
        if nested is not None:
            # clamp(clamp(v, a, b), c, d) = clamp(v, clamp(a, c, d), clamp(b, c, d))
            x, a, b = nested
            low, high = min(max(a, low), high), min(max(b, low), high)
        elif is_op(node, "Relu") or (is_op(node, "Clip") and not (low == 0 and high == math.inf)):
            return None
        if not low <= high:
            return None
        if (low, high) == (0.0, math.inf):
            return _call(node, "Relu", x)
        graph, name = graph_of(node), result_name(node)
        dtype = (x.dtype or ir.DataType.FLOAT).numpy()
        limits = [
            add_const(graph, f"{name}.{end}", np.array(limit, dtype))
            if abs(limit) != math.inf
            else None
            for end, limit in (("min", low), ("max", high))
        ]
        inputs = [x, *limits] if limits[1] is not None else [x, limits[0]]
        new = ir.node("Clip", inputs, name=node.name)
        substitute(node, new)
        return (new, *new.outputs[0].consumers())


class _HardSigmoid:
    roots: ClassVar[frozenset[str]] = frozenset({"Clip", "Mul", "Div"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        found = _hard_sigmoid(node.outputs[0], root=True)
        if found is None:
            return None
        x, alpha, beta = found
        if is_op(node, "Clip") and (alpha, beta) == (1.0, 0.0):
            return None  # Clip(x, 0, 1) is the simpler form
        return _call(node, "HardSigmoid", x, alpha=alpha, beta=beta)


def _hard_sigmoid(value: ir.Value, root: bool = False) -> tuple[ir.Value, float, float] | None:
    """x, alpha, beta of a HardSigmoid, spelt out as k * Clip(a x + b, 0, 1 / k) or not."""
    factor = product(value) if root or sole_use(value) is not None else None
    if factor is None or len(factor.values) != 1:
        return None
    clip = factor.values[0].producer()
    if clip is None or (clip.outputs[0] is not value and sole_use(clip.outputs[0]) is None):
        return None
    if is_op(clip, "HardSigmoid") and factor.factor == 1.0 and not root:
        x = clip.inputs[0]
        return None if x is None else (x, attr(clip, "alpha", 0.2), attr(clip, "beta", 0.5))
    found = bounds(clip) if is_op(clip, "Clip") else None
    if found is None or found[0].dtype is None or not found[0].dtype.is_floating_point():
        return None
    x, low, high = found
    if low != 0 or not close(high * factor.factor, 1.0, x.dtype):
        return None
    scale, shift, x = affine(x)
    return x, scale / high, shift / high


class _Sigmoid:
    roots: ClassVar[frozenset[str]] = frozenset({"Div", "Reciprocal", "Mul", "Add"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        if is_op(node, "Reciprocal") or (is_op(node, "Div") and number(node.inputs[0]) == 1.0):
            x = _logistic(node.inputs[-1])
            if x is not None:
                return _scaled_sigmoid(node, *x)
        # 0.5 * tanh(x / 2) + 0.5
        scale, shift, t = _root_affine(node)
        tanh = inner(t, "Tanh") if t is not None else None
        if tanh is None or tanh.inputs[0] is None:
            return None
        dtype = tanh.inputs[0].dtype
        half, zero, x0 = affine(tanh.inputs[0])
        if zero != 0 or not (close(scale, 0.5, dtype) and close(shift, 0.5, dtype)):
            return None
        if not close(half, 0.5, dtype):
            return None
        return _call(node, "Sigmoid", x0)


def _root_affine(node: ir.Node) -> tuple[float, float, ir.Value | None]:
    """`affine` of a node that may have any readers, one step unrolled."""
    if len(node.inputs) != 2 or not is_op(node, "Add", "Mul"):
        return 1.0, 0.0, None
    a, b = node.inputs
    constant, x = number(b), a
    if constant is None:
        constant, x = number(a), b
    if constant is None or x is None:
        return 1.0, 0.0, None
    scale, shift, base = affine(x)
    if is_op(node, "Add"):
        return scale, shift + constant, base
    return constant * scale, constant * shift, base


def _logistic(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """x, a of 1 + exp(-a x)."""
    if value is None:
        return None
    scale, shift, e = affine(value)
    node = inner(e, "Exp")
    if node is None or scale != 1 or shift != 1 or node.inputs[0] is None:
        return None
    minus, zero, x = affine(node.inputs[0])
    return (x, -minus) if zero == 0 and minus < 0 else None


def _scaled_sigmoid(node: ir.Node, x: ir.Value, a: float) -> Iterable[ir.Node]:
    if a == 1:
        return _call(node, "Sigmoid", x)
    scaled = _times(node, x, a)
    return _call(node, "Sigmoid", scaled.outputs[0])


def _times(before: ir.Node, x: ir.Value, factor: float) -> ir.Node:
    """A new node factor * x, put before `before`."""
    graph = graph_of(before)
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    held = add_const(graph, f"{result_name(before)}.factor", np.array(factor, dtype))
    new = ir.node("Mul", [x, held])
    new.outputs[0].type, new.outputs[0].shape = x.type, x.shape
    graph.insert_before(before, new)
    return new


class _Softplus:
    roots: ClassVar[frozenset[str]] = frozenset({"Log"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        if node.inputs[0] is None:
            return None
        scale, shift, e = affine(node.inputs[0])
        exp = inner(e, "Exp")
        if exp is None or scale != 1 or shift != 1 or exp.inputs[0] is None:
            return None
        return _call(node, "Softplus", exp.inputs[0])


class _LeakyRelu:
    roots: ClassVar[frozenset[str]] = frozenset({"Max", "Where"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        if is_op(node, "Max") and len(node.inputs) == 2:
            for x, other in (node.inputs, node.inputs[::-1]):
                if x is None or other is None:
                    continue
                slope, zero, base = affine(other)
                if base is x and zero == 0 and 0 < slope < 1:
                    return _call(node, "LeakyRelu", x, alpha=slope)
            return None
        if not is_op(node, "Where"):
            return None
        test = inner(node.inputs[0], "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
        if test is None or scalar(test.inputs[1]) != 0:
            return None
        x = test.inputs[0]
        positive, negative = node.inputs[1], node.inputs[2]
        if is_op(test, "Less", "LessOrEqual"):
            positive, negative = negative, positive
        if x is None or positive is not x or negative is None:
            return None
        slope, zero, base = affine(negative)
        if base is not x or zero != 0 or slope == 1:
            return None
        return _call(node, "LeakyRelu", x, alpha=slope)


@dataclass(frozen=True)
class _Gated:
    """Products of x and a function of x."""

    roots: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})
    opset: int

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        out = node.outputs[0]
        if out.dtype is not None and not out.dtype.is_floating_point():
            return None
        if is_op(node, "Div"):
            found = self._silu_by_division(node)
            if found is not None:
                return found
        terms = product(out)
        if len(terms.values) != 2:
            return None
        for x, gate in (terms.values, terms.values[::-1]):
            if gate is x or sole_use(gate) is None:
                continue
            again = self._match(node, terms.factor, x, gate)
            if again is not None:
                return again
        return None

    def _match(
        self, node: ir.Node, factor: float, x: ir.Value, gate: ir.Value
    ) -> Iterable[ir.Node] | None:
        dtype = x.dtype
        if self.opset >= 14:
            hard = _scaled_hard_sigmoid(factor, gate)
            if hard is not None and hard[0] is x:
                if close(hard[1], 1 / 6, dtype) and close(hard[2], 0.5, dtype):
                    return _call(node, "HardSwish", x)
        if self.opset >= 20:
            if _is_erf_gate(factor, x, gate):
                return _call(node, "Gelu", x)
            if _is_tanh_gate(factor, x, gate):
                return _call(node, "Gelu", x, approximate="tanh")
        if factor != 1:
            return None
        tanh = inner(gate, "Tanh")
        if tanh is not None and self.opset >= 18:
            softplus = inner(tanh.inputs[0], "Softplus")
            if softplus is not None and softplus.inputs[0] is x:
                return _call(node, "Mish", x)
        sigmoid = inner(gate, "Sigmoid")
        if sigmoid is None or sigmoid.inputs[0] is None:
            return None
        a, zero, base = affine(sigmoid.inputs[0])
        if sigmoid.inputs[0] is x:
            a, zero, base = 1.0, 0.0, x
        if base is not x or zero != 0:
            return None
        if self.opset >= 24:
            return _call(node, "Swish", x, **({"alpha": a} if a != 1 else {}))
        if node.inputs[0] is x and node.inputs[1] is gate:
            return None  # the canonical order already
        new = ir.node("Mul", [x, gate], name=node.name)
        substitute(node, new)
        return (new, *new.outputs[0].consumers())

    def _silu_by_division(self, node: ir.Node) -> Iterable[ir.Node] | None:
        x, denominator = node.inputs
        found = _logistic(denominator)
        if x is None or found is None or found[0] is not x:
            return None
        inside = x if found[1] == 1 else _times(node, x, found[1]).outputs[0]
        graph = graph_of(node)
        gate = ir.node("Sigmoid", [inside])
        gate.outputs[0].type, gate.outputs[0].shape = x.type, x.shape
        graph.insert_before(node, gate)
        new = ir.node("Mul", [x, gate.outputs[0]], name=node.name)
        substitute(node, new)
        return (new, *new.outputs[0].consumers())


def _scaled_hard_sigmoid(factor: float, gate: ir.Value) -> tuple[ir.Value, float, float] | None:
    """x, alpha, beta where factor * gate is a HardSigmoid of x."""
    node = inner(gate, "Clip", "HardSigmoid")
    if node is None or node.inputs[0] is None:
        return None
    if is_op(node, "HardSigmoid"):
        if factor != 1:
            return None
        return node.inputs[0], attr(node, "alpha", 0.2), attr(node, "beta", 0.5)
    found = bounds(node)
    if found is None or found[1] != 0 or not close(found[2] * factor, 1.0, found[0].dtype):
        return None
    scale, shift, x = affine(found[0])
    return x, scale / found[2], shift / found[2]


def _is_erf_gate(factor: float, x: ir.Value, gate: ir.Value) -> bool:
    """factor * gate = 0.5 * (1 + erf(x / sqrt(2)))."""
    scale, shift, e = affine(gate)
    erf = inner(e, "Erf")
    if erf is None or erf.inputs[0] is None:
        return False
    if not (close(factor * scale, 0.5, x.dtype) and close(factor * shift, 0.5, x.dtype)):
        return False
    inside, zero, base = affine(erf.inputs[0])
    return base is x and zero == 0 and close(inside, math.sqrt(0.5), x.dtype)


def _is_tanh_gate(factor: float, x: ir.Value, gate: ir.Value) -> bool:
    """factor * gate = 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    scale, shift, t = affine(gate)
    tanh = inner(t, "Tanh")
    if tanh is None or tanh.inputs[0] is None or sole_use(tanh.inputs[0]) is None:
        return False
    if not (close(factor * scale, 0.5, x.dtype) and close(factor * shift, 0.5, x.dtype)):
        return False
    inside = product(tanh.inputs[0])
    if not close(inside.factor, math.sqrt(2 / math.pi), x.dtype):
        return False
    if len(inside.values) == 1:  # x + 0.044715 x^3
        pair, power = summands(inside.values[0]), 3
    else:  # x * (1 + 0.044715 x^2)
        rest = inside.other(x)
        pair, power = (summands(rest) if rest is not None else None), 2
    if pair is None:
        return False
    for first, cubic in (pair, pair[::-1]):
        if power == 3 and first is not x:
            continue
        if power == 2 and number(first) != 1.0:
            continue
        if sole_use(cubic) is None:
            continue
        terms = product(cubic)
        if terms.values == [x] * power and close(terms.factor, 0.044715, x.dtype):
            return True
    return False
