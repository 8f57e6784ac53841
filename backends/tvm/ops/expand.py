"""Operators that ONNX defines as functions of others, taken apart where no kernel is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import onnx_ir as ir
from onnx import helper, inliner

from effc.backends.tvm.ops import all as _all  # noqa: F401  registers what has a kernel
from effc.backends.tvm.ops.contract import KERNELS, RULES
from effc.core.passinfra import Effect, Pass, PassContext

EXPANDED = frozenset(
    "Attention NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss SwiGLU LinearAttention "
    "CausalConvWithState".split()
)


@dataclass(frozen=True)
class ExpandFunctions(Pass):
    """f(x) -> the body that the ONNX text gives for f, for functions that have no kernel of their own.

    Declines where the body can't be made (attributes or types that the text leaves open): the lowering
    then names the node. Source: the operators' function bodies in the onnx package.
    """

    id: ClassVar[str] = "effc.backends.tvm.ops.expand:ExpandFunctions"  # so its text can be parsed
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return expand_functions(model)


def expand_functions(model: ir.Model) -> int:
    """Replace the nodes of `EXPANDED` in the main graph, bodies of bodies too; how many there were."""
    done = 0
    wanted = EXPANDED - set(RULES) - set(KERNELS)
    for _ in range(4):  # a body's own functions; none nests deeper
        found = [n for n in model.graph if n.domain in ("", "ai.onnx") and n.op_type in wanted]
        replaced = sum(_splice(model, node) for node in found)
        done += replaced
        if not replaced:
            break
    return done


def _value_info(value: ir.Value) -> Any:
    assert value.dtype is not None and value.shape is not None
    shape = [d if isinstance(d, int) else d.value for d in value.shape]
    return helper.make_tensor_value_info(value.name or "", int(value.dtype), shape)


def _splice(model: ir.Model, node: ir.Node) -> bool:
    """The body of one node in its place; whether there is one."""
    opset = model.opset_imports.get("", 0)
    given = list(dict.fromkeys(v for v in node.inputs if v is not None))
    if any(v.dtype is None or v.shape is None for v in (*given, *node.outputs)):
        return False
    proto = helper.make_model(
        helper.make_graph(
            [ir.to_proto(node)],
            node.op_type,
            [_value_info(v) for v in given],
            [_value_info(v) for v in node.outputs if v.name],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    try:
        inlined = inliner.inline_selected_functions(
            proto, [("", node.op_type)], exclude=False, inline_schema_functions=True
        )
    except RuntimeError:  # the text gives no body for these types or attributes
        return False
    inlined = onnx.shape_inference.infer_shapes(inlined, data_prop=True)
    body = ir.from_proto(inlined)
    if any(n.op_type == node.op_type for n in body.graph):
        return False
    mapped = dict(zip([v.name for v in body.graph.inputs], given, strict=True))
    for inner in body.graph.inputs:
        ir.convenience.replace_all_uses_with(inner, mapped[inner.name])
    outputs = {v.name: v for v in body.graph.outputs}
    nodes = list(body.graph)
    prefix = node.name or node.op_type
    body.graph.outputs.clear()
    for new in nodes:
        body.graph.remove(new, safe=False)
        new.name = f"{prefix}/{new.name or new.op_type}"
        for value in new.outputs:
            if value.name and value.name not in outputs:
                value.name = f"{prefix}/{value.name}"
    model.graph.insert_before(node, nodes)
    for old in node.outputs:
        if old.name in outputs:
            new_value = outputs[old.name]
            new_value.shape, new_value.type = old.shape, old.type
            ir.convenience.replace_all_uses_with(old, new_value, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    return True
