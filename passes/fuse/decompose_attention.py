"""Spell Attention out, for backends without the operator."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, attr, const, shape_of
from effc.core.passinfra import Effect
from effc.core.rewrite import Rule
from effc.core.shapes import infer_node
from effc.passes.fuse.rewriting import RewritePass, graph_of, result_name, substitute


@dataclass(frozen=True)
class DecomposeAttention(RewritePass):
    """Attention(Q, K, V, mask; scale = k) -> MatMul(Softmax(MatMul(k Q, K^T) + mask), V).

    For backends that take MatMul and Softmax but not Attention (a legalize pass; the inverse of
    `recognize-attention`). [B, L, H D] operands get the Reshapes and Transposes that split and merge
    heads; shared key heads are repeated; a causal or boolean mask becomes an added one; softcap c
    becomes c tanh(x / c).

    Declines caches of past keys and values, the extra outputs, attributes that it does not know (a
    softmax of another precision, the windows of version 25), a boolean mask under which a query may see
    no key at all, and shapes that are not static.

    Source: ONNX operator Attention, version 23.
    """

    id: ClassVar[str] = "decompose-attention"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, opset: int) -> Iterable[Rule]:
        return (_Decompose(opset),)


class _Writer:
    """Appends nodes before one node, with shapes inferred."""

    def __init__(self, before: ir.Node, opset: int) -> None:
        self.before = before
        self.graph = graph_of(before)
        self.name = result_name(before)
        self.opset = opset
        self.made: list[ir.Node] = []

    def __call__(self, op: str, inputs: list[ir.Value], **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        node.metadata_props.update(self.before.metadata_props)
        self.graph.insert_before(self.before, node)
        infer_node(node, self.opset)
        self.made.append(node)
        return node.outputs[0]

    def constant(
        self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], what: str
    ) -> ir.Value:
        return add_const(self.graph, f"{self.name}.{what}", array)


_KNOWN = frozenset({"is_causal", "kv_num_heads", "q_num_heads", "scale", "softcap"})


@dataclass(frozen=True)
class _Decompose:
    roots: ClassVar[frozenset[str]] = frozenset({"Attention"})
    opset: int

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        if len(node.inputs) > 4 and any(v is not None for v in node.inputs[4:]):
            return None
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            return None
        if not set(node.attributes) <= _KNOWN:
            return None
        q, k, v = node.inputs[:3]
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        shapes = [shape_of(x) for x in (q, k, v)]
        if q is None or k is None or v is None or any(s is None for s in shapes):
            return None
        if q.dtype is None or (mask is not None and shape_of(mask) is None):
            return None
        if mask is not None and mask.dtype == ir.DataType.BOOL and not _sees_all(node, mask):
            return None
        write = _Writer(node, self.opset)
        flat = len(shapes[0] or ()) == 3
        if flat:
            q = _split(write, q, attr(node, "q_num_heads"))
            k = _split(write, k, attr(node, "kv_num_heads"))
            v = _split(write, v, attr(node, "kv_num_heads"))
        sq, sk, sv = shape_of(q), shape_of(k), shape_of(v)
        if sq is None or sk is None or sv is None:
            return None
        if sq[1] != sk[1]:
            k, v = _repeat(write, k, sk, sq[1]), _repeat(write, v, sv, sq[1])
        dtype = q.dtype.numpy() if q.dtype is not None else np.dtype(np.float32)
        scale = attr(node, "scale") or 1 / math.sqrt(sq[3])
        if scale != 1:
            q = write("Mul", [q, write.constant(np.array(scale, dtype), "scale")])
        scores = write("MatMul", [q, write("Transpose", [k], perm=[0, 1, 3, 2])])
        cap = attr(node, "softcap", 0.0)
        if cap:
            held = write.constant(np.array(cap, dtype), "softcap")
            scores = write("Mul", [write("Tanh", [write("Div", [scores, held])]), held])
        if mask is not None and mask.dtype == ir.DataType.BOOL:
            zero = write.constant(np.array(0, dtype), "zero")
            mask = write("Where", [mask, zero, write.constant(np.array(-np.inf, dtype), "inf")])
        for addend in (mask, _causal(write, node, sq[2], sk[2], dtype)):
            if addend is not None:
                scores = write("Add", [scores, addend])
        weights = write("Softmax", [scores], axis=-1)
        if flat:
            merged = write("Transpose", [write("MatMul", [weights, v])], perm=[0, 2, 1, 3])
            shape = write.constant(np.array([sq[0], sq[2], sq[1] * sv[3]]), "merged")
            last = ir.node("Reshape", [merged, shape], name=node.name)
        else:
            last = ir.node("MatMul", [weights, v], name=node.name)
        substitute(node, last)
        return (*write.made, last)


def _sees_all(node: ir.Node, mask: ir.Value) -> bool:
    """Whether every query sees some key for certain: else its row is 0, and a softmax gives nan."""
    held = const(mask)
    return held is not None and not attr(node, "is_causal", 0) and bool(held.any(-1).all())


def _split(write: _Writer, x: ir.Value, heads: int) -> ir.Value:
    """[B, L, H D] -> [B, H, L, D]."""
    batch, length, width = shape_of(x) or (0, 0, 0)
    shape = write.constant(np.array([batch, length, heads, width // heads]), "split")
    return write("Transpose", [write("Reshape", [x, shape])], perm=[0, 2, 1, 3])


def _repeat(write: _Writer, x: ir.Value, shape: tuple[int, ...], heads: int) -> ir.Value:
    """[B, h, S, D] -> [B, H, S, D], each key head H / h times in a row."""
    batch, own, length, width = shape
    apart = write("Unsqueeze", [x, write.constant(np.array([2]), "axis")])
    wide = write.constant(np.array([batch, own, heads // own, length, width]), "repeated")
    back = write.constant(np.array([batch, heads, length, width]), "heads")
    return write("Reshape", [write("Expand", [apart, wide]), back])


def _causal(
    write: _Writer, node: ir.Node, queries: int, keys: int, dtype: np.dtype[np.generic]
) -> ir.Value | None:
    """What is added so that query i sees the keys 0..i, or None."""
    if not attr(node, "is_causal", 0):
        return None
    hidden = np.triu(np.ones((queries, keys), bool), 1)
    return write.constant(np.where(hidden, -np.inf, 0.0).astype(dtype), "causal")
