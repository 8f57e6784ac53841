"""Sums of convolutions of one input become one convolution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, const, is_op, shape_of, sole_use
from effc.core.shapes import infer_node
from effc.passes.fuse.branches import Branch, make_conv, merged_macs, overlay
from effc.passes.fuse.fold_batch_norm import affine as norm_affine
from effc.passes.fuse.fold_bias import ARITHMETIC, Affine
from effc.passes.fuse.linear import cast
from effc.passes.fuse.rewriting import (
    graph_of,
    known,
    rank_of,
    result_name,
    substitute,
)


@dataclass(frozen=True, eq=False)
class _Term:
    """`scale` [1] or [C] times `value`."""

    value: ir.Value
    scale: Array


@dataclass(frozen=True, eq=False)
class _Step:
    """One interior node: a sum of terms plus `shift` [1] or [C]."""

    terms: tuple[_Term, ...]
    shift: Array


ONE, ZERO = np.ones(1), np.zeros(1)


def _step(node: ir.Node | None, rank: int) -> _Step | None:
    """`node` as a linear combination with channels on axis 1 of a value of this rank, or None."""
    if node is None:
        return None
    if is_op(node, "BatchNormalization"):
        numbers = norm_affine(node)
        if numbers is None or node.inputs[0] is None:
            return None
        return _Step((_Term(node.inputs[0], numbers[0]),), numbers[1])
    if not is_op(node, *ARITHMETIC, "Sum"):
        return None
    affine = Affine.read(node)
    if affine is not None:
        scale, shift = _on_channels(affine.scale, rank), _on_channels(affine.shift, rank)
        if scale is None or shift is None:
            return None
        return _Step((_Term(affine.value, scale),), shift)
    if not is_op(node, "Add", "Sub", "Sum"):
        return None
    values = [v for v in node.inputs if v is not None and known(v) is None]
    if len(values) != len(node.inputs) or any(rank_of(v) != rank for v in values):
        return None
    signs = [ONE, -ONE] if is_op(node, "Sub") else [ONE] * len(values)
    return _Step(tuple(_Term(v, s) for v, s in zip(values, signs, strict=True)), ZERO)


def _on_channels(array: Array, rank: int) -> Array | None:
    shape = (1,) * (rank - array.ndim) + array.shape
    if array.ndim > rank or any(n != 1 for i, n in enumerate(shape) if i != 1):
        return None
    return array.astype(np.float64).reshape(-1)


def _expand(root: ir.Node, rank: int) -> tuple[list[_Term], Array, int] | None:
    """The leaves of the tree of sums that ends in `root`, its constant, and its number of nodes."""
    top = _step(root, rank)
    if top is None:
        return None
    leaves: list[_Term] = []
    shift, nodes = top.shift, 1
    work = list(reversed(top.terms))
    readers = {id(t.value): root for t in top.terms}
    while work:
        term = work.pop()
        inner = term.value.producer()
        reads_once = sole_use(term.value) is readers[id(term.value)]
        step = _step(inner, rank) if reads_once and inner and inner.graph is root.graph else None
        if step is None or inner is None:
            leaves.append(term)
            continue
        nodes += 1
        try:
            shift = shift + term.scale * step.shift
            deeper = [_Term(t.value, t.scale * term.scale) for t in step.terms]
        except ValueError:  # constants for different numbers of channels: something broadcasts
            return None
        readers |= {id(t.value): inner for t in deeper}
        work.extend(reversed(deeper))
    return leaves, shift, nodes


def _uniform(scale: Array) -> bool:
    """Whether a term is only added or subtracted."""
    return bool((scale == 1).all() or (scale == -1).all())


@dataclass(frozen=True)
class SumOfBranches:
    """sum_i s_i * conv_i(x) + t -> conv(x), where that costs no more."""

    roots: ClassVar[frozenset[str]] = ARITHMETIC | {"Sum", "BatchNormalization"}
    max_mac_ratio: float
    opset: int

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        rank = rank_of(node.outputs[0])
        if rank is None or rank < 3:
            return None
        reader = sole_use(node.outputs[0])
        if reader is not None and reader.graph is node.graph and _step(reader, rank) is not None:
            return None  # part of a larger sum
        tree = _expand(node, rank)
        if tree is None or len(tree[0]) < 2:
            return None
        leaves, shift, nodes = tree
        by_input: defaultdict[ir.Value, list[_Term]] = defaultdict(list)
        for term in leaves:
            by_input[_source(term.value, node)].append(term)
        for x, terms in by_input.items():
            if len(terms) < 2 or not any(is_op(_branch_node(t.value, node), "Conv") for t in terms):
                continue
            chosen = self._choose(x, terms, node, rank)
            if chosen is None:
                continue
            picked, merged = chosen
            rest = [t for t in leaves if all(t is not p for p in picked)]
            convs = sum(1 for t in picked if _branch_node(t.value, node) is not None)
            made = self._write(node, x, merged, rest, shift, nodes + convs)
            if made is not None:
                return made
        return None

    def _choose(
        self, x: ir.Value, terms: Sequence[_Term], root: ir.Node, rank: int
    ) -> tuple[list[_Term], Branch] | None:
        """The terms to merge and what they become."""
        read: list[tuple[_Term, Branch]] = []
        later: list[_Term] = []
        for term in terms:
            conv = _branch_node(term.value, root)
            branch = Branch.of_conv(conv) if conv is not None and is_op(conv, "Conv") else None
            if branch is not None:
                read.append((term, branch))
            elif not is_op(conv, "Conv"):
                later.append(term)
        if not read:
            return None
        channels = read[0][1].inputs
        for term in later:
            pool = _branch_node(term.value, root)
            branch = (
                Branch.identity(channels, rank - 2)
                if pool is None
                else Branch.of_average_pool(pool, channels)
            )
            if branch is not None:
                read.append((term, branch))
        shape = shape_of(x)
        extents = shape[2:] if shape is not None else None
        read.sort(key=lambda pair: -pair[1].macs)
        largest = read[0][1]
        fits = [
            (t, b) for t, b in read
            if b.aligned(largest, extents)
            and b.outputs == largest.outputs
            and t.scale.size in (1, largest.outputs)
        ]  # fmt: skip
        if not self._cheap([b for _, b in fits]):
            kept = fits[:1]
            for pair in fits[1:]:
                if self._cheap([b for _, b in (*kept, pair)]):
                    kept.append(pair)
            fits = kept
        if len(fits) < 2:
            return None
        merged = overlay([b for _, b in fits], [t.scale for t, _ in fits])
        return [t for t, _ in fits], merged

    def _cheap(self, branches: Sequence[Branch]) -> bool:
        return merged_macs(branches) <= self.max_mac_ratio * sum(b.macs for b in branches)

    def _write(
        self,
        root: ir.Node,
        x: ir.Value,
        merged: Branch,
        rest: Sequence[_Term],
        shift: Array,
        nodes: int,
    ) -> Iterable[ir.Node] | None:
        """Replace `root` by the merged convolution plus the `rest`; None if that is no gain."""
        if shift.size not in (1, merged.outputs):
            return None
        scaled = sum(1 for t in rest if not _uniform(t.scale))
        if 1 + len(rest) + scaled >= nodes:
            return None
        if any(t.scale.size not in (1, merged.outputs) for t in rest):
            return None
        bias = merged.bias
        if shift.any():
            bias = np.broadcast_to(shift, merged.outputs) + (0 if bias is None else bias)
        dtype = (x.dtype or ir.DataType.FLOAT).numpy()
        graph, name = graph_of(root), result_name(root)
        conv = make_conv(graph, name, x, merged, bias, dtype)
        if conv is None:
            return None
        made: list[ir.Node] = [conv]
        last: ir.Node = conv
        for i, term in enumerate(rest):
            value, positive = term.value, bool((term.scale > 0).all())
            if not _uniform(term.scale):
                held = cast(term.scale, dtype)
                if held is None:
                    return None
                positive = True
                shape = (-1, *[1] * (merged.weight.ndim - 2))
                factor = add_const(graph, f"{name}.scale{i}", held.reshape(shape))
                made.append(ir.node("Mul", [value, factor]))
                value = made[-1].outputs[0]
            last = ir.node("Add" if positive else "Sub", [last.outputs[0], value])
            made.append(last)
        for new in made[:-1]:
            graph.insert_before(root, new)
            new.metadata_props.update(root.metadata_props)
            infer_node(new, self.opset)
        substitute(root, made[-1])
        return (*made, *made[-1].outputs[0].consumers())


def _branch_node(value: ir.Value, root: ir.Node) -> ir.Node | None:
    """The Conv or AveragePool that makes `value`, if nothing but the sum reads it."""
    node = value.producer()
    if not is_op(node, "Conv", "AveragePool") or sole_use(value) is None:
        return None
    if node is None or node.graph is not root.graph:
        return None
    if is_op(node, "Conv") and const(node.inputs[1]) is None:
        return None
    return node


def _source(value: ir.Value, root: ir.Node) -> ir.Value:
    """What the branch that makes `value` reads; `value` itself for an identity."""
    node = _branch_node(value, root)
    source = node.inputs[0] if node is not None else value
    return source if source is not None else value
