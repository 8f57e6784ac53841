"""convert-opset: every model speaks one version of the standard operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from effc.core.errors import FrontendError
from effc.core.ir import WORKING_IR_VERSION, WORKING_OPSET, graphs
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.shapes import infer_shapes
from effc.passes.canonicalize.opset_adapters import ADAPTERS, SAME, Refusal, lower_node

# onnxruntime 1.31 has kernels of these for opset 21, and none for 22, where they only got more types
_HELD = frozenset(
    {
        *("RoiAlign", "MaxRoiPool", "GlobalLpPool", "Bernoulli", "Multinomial"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    }
)
_HELD_OPSET = 21
_NEEDS_SHAPES = frozenset({"Softmax", "LogSoftmax", "Hardmax", "GroupNormalization", "Scan"})


@dataclass(frozen=True, slots=True)
class ConvertOpset(Pass):
    """Brings the standard operators to the working opset (`effc.core.ir.WORKING_OPSET`).

        Squeeze<axes=[1]>(x) at 11             ->   Squeeze(x, [1])
        Softmax<axis=1>(x) at 11, rank 4       ->   Reshape(Softmax<axis=1>(Flatten<axis=1>(x)), Shape(x))
        Upsample<mode="nearest">(x, s) at 9    ->   Resize<asymmetric, floor>(x, , s)        and so on

    Model-local functions are inlined first. Raises FrontendError, with the node, where a node of an
    older opset has no equal at the working one. A newer model is brought down; if one of its nodes
    uses what only a newer opset has, the model stays at its own opset (passes ask for operators by
    what the working opset says, and later ones only add to that). A model with RoiAlign, MaxRoiPool,
    GlobalLpPool or random operators stops at 21: onnxruntime, the reference, runs them no further.
    Other domains are left alone.
    Source: the operator changelog of the ONNX specification. Own adapters, because onnx's version
    converter works on a protobuf (2 GB at most), loads every weight, and has gaps.
    """

    id: ClassVar[str] = "convert-opset"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        count = 0
        if model.functions:
            count += len(model.functions)
            InlinePass()(model)
        imports = model.graph.opset_imports
        if "ai.onnx" in imports:
            imports.setdefault("", imports.pop("ai.onnx"))
        source = imports.get("")
        if source == WORKING_OPSET:
            return count
        nodes = [n for g in graphs(model) for n in g if n.domain == ""]
        if source is not None and source <= _HELD_OPSET and any(n.op_type in _HELD for n in nodes):
            return count + (
                _raise(model, nodes, source, _HELD_OPSET) if source < _HELD_OPSET else 0
            )
        if source is None:
            if nodes:
                raise FrontendError(
                    f"node {nodes[0].name!r} ({nodes[0].op_type}): the model imports no opset of ai.onnx",
                    hint="export it again: opset_import lacks the domain ''",
                )
            _stamp(model)
            return count
        if source > WORKING_OPSET:
            return count + _lower(model, nodes, source)
        return count + _raise(model, nodes, source, WORKING_OPSET)


def _raise(model: ir.Model, nodes: list[ir.Node], source: int, to: int) -> int:
    if any(n.op_type in _NEEDS_SHAPES and _unknown(n) for n in nodes):
        infer_shapes(model)
    count = 0
    for node in nodes:
        for version in bumps(node.op_type, source, to):
            adapter = ADAPTERS.get((node.op_type, version))
            if adapter is None:
                if version not in SAME.get(node.op_type, ()):
                    raise _refused(node, source, f"effc has no adapter to version {version}")
                continue
            try:
                current = adapter(node)
            except Refusal as reason:
                raise _refused(node, source, str(reason)) from reason
            count += 1
            if current is None or current is not node:  # replaced: what it became is up to date
                break
    _stamp(model, to)
    return count + 1


def _lower(model: ir.Model, nodes: list[ir.Node], source: int) -> int:
    if source > onnx.defs.onnx_opset_version():
        raise FrontendError(
            f"the model has opset {source}; the newest that the installed onnx knows is "
            f"{onnx.defs.onnx_opset_version()}",
            hint=f"export it again with opset {WORKING_OPSET}, or install a newer onnx",
        )
    plans = [lower_node(n, bumps(n.op_type, WORKING_OPSET, source)) for n in nodes]
    if any(p is None for p in plans):
        return 0
    for plan in plans:
        if plan is not None:
            plan()
    _stamp(model)
    return 1


def bumps(op_type: str, source: int, to: int) -> list[int]:
    """The opset versions in (source, to] at which the operator changed, ascending."""
    return [v for v in _history().get(op_type, ()) if source < v <= to]


_HISTORY: dict[str, tuple[int, ...]] = {}


def _history() -> dict[str, tuple[int, ...]]:
    if not _HISTORY:
        versions: dict[str, set[int]] = {}
        for schema in onnx.defs.get_all_schemas_with_history():
            if schema.domain == "":
                versions.setdefault(schema.name, set()).add(schema.since_version)
        _HISTORY.update((name, tuple(sorted(v))) for name, v in versions.items())
    return _HISTORY


def _unknown(node: ir.Node) -> bool:
    return not node.inputs or node.inputs[0] is None or node.inputs[0].shape is None


def _refused(node: ir.Node, source: int, reason: str) -> FrontendError:
    return FrontendError(
        f"node {node.name!r} ({node.op_type}, opset {source}) can't be brought to opset "
        f"{WORKING_OPSET}: {reason}",
        hint=f"export the model again with opset {WORKING_OPSET}, or the newest your exporter has",
    )


def _stamp(model: ir.Model, to: int = WORKING_OPSET) -> None:
    model.graph.opset_imports[""] = to
    model.ir_version = max(model.ir_version, WORKING_IR_VERSION)
