"""The walk over the graph: an IR model becomes a MIL program, or every node that can't is named at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.backends.coreml.convert.call import (
    MAX_RANK,
    Call,
    Refusal,
    Scope,
    Var,
    carrier,
    kind_of,
    mil_name,
)
from effc.backends.coreml.convert.table import load_all
from effc.backends.coreml.interface import Picture, Port
from effc.core.errors import Problem, UnsupportedOpError
from effc.core.ir import const, is_op, shape_of

PROBABILITIES = "class_scores"
_NO_OP = "cut the model there, or write it with other operators"


@dataclass(frozen=True)
class Converted:
    """A MIL program and its interface."""

    program: Any  # coremltools.converters.mil.mil.Program
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ios: int
    scores: str = ""  # the value that `classify` reads: a copy of an output, which is one itself
    facts: Mapping[str, int] = field(default_factory=dict)


def convert(
    model: ir.Model,
    ios: int,
    target: str,
    *,
    picture: Picture | None = None,
    scores: Callable[[Sequence[Port]], Port] | None = None,
    open_axes: Mapping[str, tuple[bool, ...]] | None = None,
) -> Converted:
    """Lower `model` to a MIL program with the operators of iOS `ios` (16, 17, 18).

    `open_axes` says of values by name which axes have other extents at other sizes of the input: what
    is lowered then is the same there, where MIL allows it. With `picture` the input is pixels; with
    `scores` the output that this chooses feeds a classifier, too. UnsupportedOpError lists every node that
    can't be lowered; a node behind one is not looked at twice.
    """
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program

    problems = _interface_problems(model)
    if problems:
        raise UnsupportedOpError(target, problems)
    ports = _ports(_fed(model))
    if picture is not None:
        ports = [_pictured(ports[0], picture)]
    outs = _ports(model.graph.outputs, taken={p.mil for p in ports})
    chosen = None if scores is None else scores(outs)
    placeholders = {
        p.mil: mb.placeholder(shape=p.mil_shape, dtype=_mil_type(p.kind)) for p in ports
    }
    facts: dict[str, int] = {}
    version = getattr(ct.target, f"iOS{ios}")
    with Function(placeholders, opset_version=version) as function:
        scope = Scope(mb, ios, {}, facts, open=open_axes or {})
        walk = _Walk()
        scope.run = walk.graph
        for value, port in zip(_fed(model), ports, strict=True):
            scope.vars[value] = _received(mb, function.inputs[port.mil], value, port)
        walk.nodes(scope, model.graph)
        if walk.problems:
            raise UnsupportedOpError(target, walk.problems)
        results = [
            _sent(scope, value, port) for value, port in zip(model.graph.outputs, outs, strict=True)
        ]
        if chosen is not None:
            results.append(_probabilities(mb, results[outs.index(chosen)]))
        function.set_outputs(results)
    program = Program()
    program.add_function("main", function)
    copied = "" if chosen is None else PROBABILITIES
    return Converted(program, tuple(ports), tuple(outs), ios, copied, facts)


class _Walk:
    """Lowers graphs node by node and gathers what can't be lowered."""

    def __init__(self) -> None:
        self.table = load_all()
        self.problems: list[Problem] = []
        self.broken: set[ir.Value] = set()  # made by a node that could not be lowered

    def graph(self, scope: Scope, graph: ir.Graph) -> Sequence[Var]:
        """The outputs of a subgraph."""
        before = len(self.problems)
        self.nodes(scope, graph)
        if len(self.problems) > before:
            raise Refusal("a node of its branch can't be lowered")
        call = Call(ir.node("Identity", list(graph.outputs)), scope)
        return [call.raw(i) for i in range(len(graph.outputs))]

    def nodes(self, scope: Scope, graph: ir.Graph) -> None:
        for node in graph:
            if any(v in self.broken for v in node.inputs if v is not None):
                self.broken.update(node.outputs)
                if node.op_type not in self.table or node.domain:
                    self.refuse(
                        node, Refusal(f"there is no MIL operator for {node.op_type}", _NO_OP)
                    )
                continue
            try:
                self.node(scope, node)
            except Refusal as refusal:
                self.refuse(node, refusal)
            except (
                ValueError,
                TypeError,
                NotImplementedError,
                AssertionError,
                IndexError,
                KeyError,
            ) as e:
                # coremltools' own checks of a parameter
                reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
                self.refuse(node, Refusal(f"coremltools does not take it: {reason[:200]}"))

    def refuse(self, node: ir.Node, refusal: Refusal) -> None:
        self.broken.update(node.outputs)
        source = str(node.metadata_props.get("source", ""))
        self.problems.append(
            Problem(str(node.name), node.op_type, refusal.reason, refusal.remedy, source)
        )

    def node(self, scope: Scope, node: ir.Node) -> None:
        if node.domain not in ("", "ai.onnx") or node.op_type not in self.table:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise Refusal(f"there is no MIL operator for {name}", _NO_OP)
        for value in node.outputs:
            if value.name and value.dtype is not None and value.uses():
                carrier(value)
        call = Call(node, scope)
        found = None
        if is_op(node, "Gather"):
            from effc.backends.coreml.convert.compressed import palette

            found = palette(call)
        if found is None:
            found = self.table[node.op_type](call)
        results = found if isinstance(found, (tuple, list)) else (found,)
        for value, var in zip(node.outputs, results, strict=False):
            if var is None or not value.name:
                continue
            self.check(value, var)
            scope.vars[value] = var
            if var.op is not None and var.op.op_type != "const":
                var.name = mil_name(str(value.name))
                if len(results) == 1:
                    var.op.name = mil_name(str(value.name))

    def check(self, value: ir.Value, var: Var) -> None:
        """What coremltools infers has to be what the IR says."""
        shape = shape_of(value)
        if shape is None:
            return
        flat = (int(np.prod(shape, dtype=np.int64)),) if len(shape) > MAX_RANK else shape
        found = tuple(int(d) if not hasattr(d, "is_symbol") else -1 for d in var.shape)
        if found != flat:
            raise Refusal(f"coremltools infers the shape {list(found)} instead of {list(flat)}")


def _fed(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def _interface_problems(model: ir.Model) -> list[Problem]:
    found = []
    for role, values in (("input", _fed(model)), ("output", list(model.graph.outputs))):
        for v in values:
            try:
                shape = shape_of(v)
                if shape is None:
                    raise Refusal(
                        f"it has the dynamic shape {v.shape}",
                        f"fix it, like --shape {v.name}=1,3,224,224",
                    )
                if len(shape) > MAX_RANK:
                    raise Refusal(f"it has rank {len(shape)}, and Core ML takes at most {MAX_RANK}")
                if 0 in shape:
                    raise Refusal("it is empty, which Core ML does not have")
                carrier(v)
                if v.dtype in (ir.DataType.UINT32, ir.DataType.UINT64):
                    raise Refusal(f"it is of {v.dtype.name.lower()}, which int32 does not hold")
                if v.dtype is not None and v.dtype.bitwidth < 8:
                    raise Refusal(f"it is of {v.dtype.name.lower()}, which no model interface has")
            except Refusal as refusal:
                found.append(Problem(str(v.name), role, refusal.reason, refusal.remedy))
    return found


def _ports(values: Sequence[ir.Value], taken: set[str] | None = None) -> list[Port]:
    """Names that are readable and unique; a type that a model's interface has; at least one dimension."""
    used, found = set(taken or ()), []
    for v in values:
        name = mil_name(str(v.name))
        name = _readable(name)
        unique, n = name, 1
        while unique in used:
            n += 1
            unique = f"{name}_{n}"
        used.add(unique)
        kind = {"bool": "int32"}.get(carrier(v), carrier(v))
        shape = tuple(int(d) for d in shape_of(v) or ())
        dtype = (v.dtype or ir.DataType.FLOAT).numpy().name
        found.append(Port(str(v.name), dtype, shape, unique, kind, shape or (1,)))
    return found


def _readable(name: str) -> str:
    """`_model_fc_Gemm_output_0` is what exporters write for an unnamed value: `fc` says as much."""
    text = name.strip("_") or name
    return f"_{text}" if text[0].isdigit() else text


def _pictured(port: Port, picture: Picture) -> Port:
    shape = port.shape
    if picture.layout == "NHWC":
        shape = (shape[0], shape[3], shape[1], shape[2])
    return replace(port, mil_shape=shape, image=picture)


def _probabilities(mb: Any, scores: Var) -> Var:
    """A copy for the classifier, which takes its input out of the outputs."""
    flat = mb.reshape(x=scores, shape=np.array([1, -1], np.int32))
    return (
        mb.cast(x=flat, dtype="fp32", name=PROBABILITIES)
        if kind_of(flat) != "fp32"
        else (mb.identity(x=flat, name=PROBABILITIES))
    )


def _received(mb: Any, var: Var, value: ir.Value, port: Port) -> Var:
    shape = shape_of(value)
    if port.image is not None:
        number, place = (np.float16 if port.kind == "fp16" else np.float32), (1, -1, 1, 1)
        var = mb.mul(x=var, y=np.array(port.image.factor, number).reshape(place))
        if any(port.image.offset):
            var = mb.add(x=var, y=np.array(port.image.offset, number).reshape(place))
        if port.image.layout == "NHWC":
            var = mb.transpose(x=var, perm=[0, 2, 3, 1])
        return var
    if shape == ():
        var = mb.squeeze(x=var, axes=[0])
    if value.dtype == ir.DataType.BOOL:
        var = mb.not_equal(x=var, y=np.int32(0))
    return var


def _sent(scope: Scope, value: ir.Value, port: Port) -> Var:
    """The value as the interface has it, under the port's name."""
    mb = scope.mb
    call = Call(ir.node("Identity", [value]), scope)
    var = call.raw(0)
    if kind_of(var) != port.kind:
        var = mb.cast(x=var, dtype=port.kind)
    if port.shape == () and len(var.shape) == 0:
        var = mb.expand_dims(x=var, axes=[0])
    if const(value) is not None and var.op is not None and var.op.op_type == "const":
        raise UnsupportedOpError("coreml", [Problem(
            port.name, "output", "it is a constant, and Core ML's outputs are computed",
            "leave the output out")])  # fmt: skip
    return mb.identity(x=var, name=port.mil)


def _mil_type(kind: str) -> Any:
    from coremltools.converters.mil.mil import types

    return types.string_to_builtin(kind)
