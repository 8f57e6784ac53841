"""Convolutions of one input that are neighbours in a Concat of channels become one convolution."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import attr, const, is_op, shape_of, sole_use
from effc.core.shapes import infer_node
from effc.passes.fuse.branches import Branch, make_conv, merged_macs, stack
from effc.passes.fuse.rewriting import (
    drop_value,
    graph_of,
    known,
    rank_of,
    result_name,
    substitute,
)

ACTIVATIONS = (
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu",
    "Mish", "Softplus", "Softsign",
)  # fmt: skip


@dataclass(frozen=True)
class ConcatOfBranches:
    """Concat(f(conv_1(x)), f(conv_2(x))) -> f(conv(x)), where that costs no more."""

    roots: ClassVar[frozenset[str]] = frozenset({"Concat"})
    max_mac_ratio: float
    opset: int

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        rank = rank_of(node.outputs[0])
        if rank is None or rank < 3 or attr(node, "axis") % rank != 1:
            return None
        at = 0
        while at < len(node.inputs):
            run = self._run(node, at)
            if len(run) > 1:
                made = self._write(node, at, run)
                if made is not None:
                    return made
            at += max(len(run), 1)
        return None

    def _run(self, concat: ir.Node, start: int) -> list[tuple[ir.Node, ir.Node | None]]:
        """The longest run of mergeable inputs from `start`: each a Conv and its activation, if any."""
        found: list[tuple[ir.Node, ir.Node | None]] = []
        for value in concat.inputs[start:]:
            node = value.producer() if value is not None else None
            if value is None or sole_use(value) is not concat or node is None:
                break
            activation = node if is_op(node, *ACTIVATIONS) else None
            if activation is not None:
                inner = activation.inputs[0]
                node = inner.producer() if inner is not None else None
                if inner is None or sole_use(inner) is not activation:
                    break
            if node is None or not is_op(node, "Conv") or node.graph is not concat.graph:
                break
            if attr(node, "group", 1) != 1 or const(node.inputs[1]) is None:
                break
            if found and (
                node.inputs[0] is not found[0][0].inputs[0]
                or not _same_function(activation, found[0][1])
            ):
                break
            found.append((node, activation))
        return found

    def _write(
        self, concat: ir.Node, start: int, run: list[tuple[ir.Node, ir.Node | None]]
    ) -> Iterable[ir.Node] | None:
        x = run[0][0].inputs[0]
        shape = shape_of(x)
        extents = shape[2:] if shape is not None else None
        branches: list[Branch] = []
        for source, _ in run:  # as many as fit, from the first
            branch = Branch.of_conv(source)
            if branch is None or not branch.aligned((*branches, branch)[0], extents):
                break
            cost = sum(b.macs for b in (*branches, branch))
            if merged_macs([*branches, branch], stacked=True) > self.max_mac_ratio * cost:
                break
            branches.append(branch)
        if len(branches) < 2 or x is None:
            return None
        merged = stack(branches)
        graph, name = graph_of(concat), result_name(concat)
        conv = make_conv(
            graph, name, x, merged, merged.bias, (x.dtype or ir.DataType.FLOAT).numpy()
        )
        if conv is None:
            return None
        made: list[ir.Node] = [conv]
        last: ir.Node = conv
        activation = run[0][1]
        if activation is not None:
            last = ir.Node(
                "", activation.op_type, [conv.outputs[0], *activation.inputs[1:]],
                activation.attributes.values(), name=activation.name,
            )  # fmt: skip
            made.append(last)
        for new in made:
            new.metadata_props.update(concat.metadata_props)
        if len(branches) == len(concat.inputs):
            if activation is not None:
                graph.insert_before(concat, conv)
                infer_node(conv, self.opset)
            substitute(concat, last)
        else:
            graph.insert_before(concat, made)
            for new in made:
                infer_node(new, self.opset)
            old = list(concat.inputs)
            kept = [*old[:start], last.outputs[0], *old[start + len(branches) :]]
            for i, value in enumerate(kept):
                concat.replace_input_with(i, value)
            concat.resize_inputs(len(kept))
            for value in old[start : start + len(branches)]:
                if value is not None:
                    drop_value(value)
        return (*made, concat)


def _same_function(a: ir.Node | None, b: ir.Node | None) -> bool:
    """Whether two activations are the same function of their first input."""
    if a is None or b is None:
        return a is b
    if a.op_type != b.op_type or len(a.inputs) != len(b.inputs):
        return False
    if {k: v.value for k, v in a.attributes.items()} != {
        k: v.value for k, v in b.attributes.items()
    }:
        return False
    for v, w in zip(a.inputs[1:], b.inputs[1:], strict=True):
        if v is not w:
            left, right = known(v), known(w)
            if left is None or right is None or not np.array_equal(left, right):
                return False
    return True
