"""Recognize scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, attr, is_op, shape_of, sole_use
from effc.core.passinfra import Effect
from effc.core.rewrite import Rule
from effc.core.shapes import infer_node
from effc.passes.fuse.expressions import inner, product
from effc.passes.fuse.rewriting import RewritePass, graph_of, rank_of, result_name, substitute

HEADS_FIRST = (0, 2, 1, 3)  # [B, L, H, D] <-> [B, H, L, D]


@dataclass(frozen=True)
class RecognizeAttention(RewritePass):
    """MatMul(Softmax(k MatMul(Q, K^T) + mask), V) -> Attention(Q, K, V, mask; scale = k), opset 23.

    Q, K, V are [B, H, L, D], or [B, L, D] as one head. k is the product of the scalars around the
    first MatMul; K^T is a Transpose of K, also between two Reshapes as torch writes it. With `heads`
    the splitting Reshape and Transpose of all three inputs and the merging ones of the output go
    into Attention's form with [B, L, H D] operands.

    Declines where something else reads an intermediate result, where shapes are not static or
    batch and heads broadcast, k <= 0, a mask that is not added or whose last extents broadcast,
    and K^T that no Transpose makes (a Transpose would have to be added). `decompose-attention` is the
    inverse, for backends without the operator.

    Source: arXiv 1706.03762; ONNX operator Attention, version 23.
    """

    id: ClassVar[str] = "recognize-attention"
    effect: ClassVar[Effect] = Effect.EXACT

    heads: bool = field(
        default=True, metadata={"help": "take in the splitting and merging of heads"}
    )

    def rules(self, opset: int) -> Iterable[Rule]:
        if opset < 23:
            return ()
        return (_Core(opset), *((_Heads(),) if self.heads else ()))


@dataclass(frozen=True)
class _Core:
    roots: ClassVar[frozenset[str]] = frozenset({"MatMul"})
    opset: int

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        softmax = inner(node.inputs[0], "Softmax")
        v = node.inputs[1]
        scores = softmax.inputs[0] if softmax is not None else None
        if softmax is None or v is None or scores is None:
            return None
        rank = rank_of(scores)
        if rank not in (3, 4) or attr(softmax, "axis", -1) % rank != rank - 1:
            return None
        for unmasked, mask in _masks(scores):
            scale, base = _scaled(unmasked)
            product_node = inner(base, "MatMul")
            if product_node is None or product_node.inputs[0] is None:
                continue
            q_scale, q = _scaled(product_node.inputs[0])
            k_scale, turned = _scaled(product_node.inputs[1])
            total = scale * q_scale * k_scale
            if turned is None or q is None or not total > 0:
                continue
            k = _untransposed(turned, node, self.opset)
            if k is None or not _fits(q, k, v, turned, mask):
                continue
            inputs = [q, k() if callable(k) else k, v, *([mask] if mask is not None else [])]
            attributes: dict[str, float | int] = {"scale": total}
            if rank == 3:
                attributes |= {"q_num_heads": 1, "kv_num_heads": 1}
                if mask is not None and rank_of(mask) == 3:
                    continue  # [B, L, S] would be read as [heads, L, S]
            new = ir.node("Attention", inputs, attributes, name=node.name)
            substitute(node, new)
            return (new, *new.outputs[0].consumers())
        return None


def _masks(scores: ir.Value) -> list[tuple[ir.Value, ir.Value | None]]:
    """The ways to read `scores` as scores + mask."""
    add = inner(scores, "Add")
    ways: list[tuple[ir.Value, ir.Value | None]] = []
    if add is not None:
        a, b = add.inputs
        if a is not None and b is not None:
            ways += [(a, b), (b, a)]
    ways.append((scores, None))
    return ways


def _scaled(value: ir.Value | None) -> tuple[float, ir.Value | None]:
    """k and x with `value` = k x, k a scalar constant applied where only this reads it."""
    if value is None or sole_use(value) is None:
        return 1.0, value
    found = product(value)
    return (found.factor, found.values[0]) if len(found.values) == 1 else (1.0, value)


def _untransposed(turned: ir.Value, root: ir.Node, opset: int) -> ir.Value | _Replacement | None:
    """K, where `turned` is K with its last two axes swapped; or what makes it, at the same cost."""
    node = inner(turned, "Transpose", "Reshape")
    rank = rank_of(turned)
    if node is None or rank is None or node.inputs[0] is None:
        return None
    swap = (*range(rank - 2), rank - 1, rank - 2)
    if is_op(node, "Transpose"):
        perm = attr(node, "perm", tuple(reversed(range(rank))))
        if perm == swap:
            return node.inputs[0]
        return _Replacement(
            node.inputs[0], "Transpose", (*perm[:-2], perm[-1], perm[-2]), root, opset
        )
    # Reshape(Transpose(Reshape(K, [B H, S, D]), [0, 2, 1]), [B, H, D, S])
    flat = inner(node.inputs[0], "Transpose")
    before = inner(flat.inputs[0], "Reshape") if flat is not None else None
    if flat is None or before is None or attr(flat, "perm") != (0, 2, 1):
        return None
    k = before.inputs[0]
    out, middle = shape_of(turned), shape_of(before.outputs[0])
    if k is None or out is None or middle is None or len(out) != 4:
        return None
    full = (*out[:2], out[3], out[2])
    if middle != (full[0] * full[1], *full[2:]):
        return None
    if shape_of(k) == full:
        return k
    return _Replacement(k, "Reshape", full, root, opset)  # in the place of the one before


@dataclass(frozen=True)
class _Replacement:
    """A Transpose or Reshape that takes the place of another one; made when called."""

    source: ir.Value
    op: str
    operand: tuple[int, ...]  # the permutation or the shape
    before: ir.Node
    opset: int

    def __call__(self) -> ir.Value:
        graph = graph_of(self.before)
        if self.op == "Transpose":
            new = ir.node("Transpose", [self.source], {"perm": list(self.operand)})
        else:
            name = f"{result_name(self.before)}.shape"
            shape = add_const(graph, name, np.array(self.operand, np.int64))
            new = ir.node("Reshape", [self.source, shape])
        graph.insert_before(self.before, new)
        infer_node(new, self.opset)
        return new.outputs[0]


def _fits(
    q: ir.Value,
    k: ir.Value | _Replacement,
    v: ir.Value,
    turned: ir.Value,
    mask: ir.Value | None,
) -> bool:
    """Whether shapes and types are what Attention takes, nothing broadcast."""
    shapes = [shape_of(x) for x in (q, turned, v)]
    if any(s is None for s in shapes):
        return False
    sq, st, sv = (s for s in shapes if s is not None)
    if not (len(sq) == len(st) == len(sv) and sq[:-2] == st[:-2] == sv[:-2]):
        return False
    if sq[-1] != st[-2] or st[-1] != sv[-2]:
        return False
    if not (q.dtype == v.dtype == turned.dtype) or q.dtype is None:
        return False
    if mask is None:
        return True
    sm = shape_of(mask)
    if sm is None or mask.dtype != q.dtype or not 2 <= len(sm) <= len(sq):
        return False
    if sm[-2:] != (sq[-2], st[-1]):
        return False
    lead = (1,) * (len(sq) - len(sm)) + sm[:-2]
    return all(a in (1, b) for a, b in zip(lead, sq[:-2], strict=False))


class _Heads:
    roots: ClassVar[frozenset[str]] = frozenset({"Attention"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        if len(node.outputs) > 1 or len(node.inputs) > 4 or "q_num_heads" in node.attributes:
            return None
        sources = [_split_heads(v) for v in node.inputs[:3]]
        turned = sole_use(node.outputs[0])
        if any(s is None for s in sources) or turned is None or not is_op(turned, "Transpose"):
            return None
        merge = sole_use(turned.outputs[0])
        if attr(turned, "perm") != HEADS_FIRST or merge is None or not is_op(merge, "Reshape"):
            return None
        q, v = shape_of(node.inputs[0]), shape_of(node.inputs[2])
        out = shape_of(merge.outputs[0])
        if q is None or v is None or out != (q[0], q[2], q[1] * v[3]):
            return None
        heads = {"q_num_heads": q[1], "kv_num_heads": q[1], "scale": attr(node, "scale")}
        kept = {k: a for k, a in heads.items() if a is not None}
        new = ir.node("Attention", [*sources, *node.inputs[3:]], kept, name=node.name)
        if "is_causal" in node.attributes or "softcap" in node.attributes:
            return None
        substitute(merge, new)
        return (new, *new.outputs[0].consumers())


def _split_heads(value: ir.Value | None) -> ir.Value | None:
    """X [B, L, H D], where `value` [B, H, L, D] is its heads, split for this reader alone."""
    turned = inner(value, "Transpose")
    split = inner(turned.inputs[0], "Reshape") if turned is not None else None
    if turned is None or split is None or attr(turned, "perm") != HEADS_FIRST:
        return None
    x = split.inputs[0]
    flat, full = shape_of(x), shape_of(split.outputs[0])
    if flat is None or full is None or len(flat) != 3 or len(full) != 4:
        return None
    return x if flat == (full[0], full[1], full[2] * full[3]) else None
