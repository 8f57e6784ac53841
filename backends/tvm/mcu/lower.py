"""A legalized graph as a `Program`; what has no kernel is refused, all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from effc.backends.tvm.mcu import memory
from effc.backends.tvm.mcu.cores import Core
from effc.backends.tvm.mcu.layouts import channels_last, row_major
from effc.backends.tvm.mcu.lowering import Lowering, Refusal, static
from effc.backends.tvm.mcu.ops import elementwise, moves, pools, products, softmax
from effc.backends.tvm.mcu.program import Border, Call, Program, Tensor
from effc.core.errors import Problem, UnsupportedOpError
from effc.core.integers import DOMAIN
from effc.core.ir import is_op, sole_use
from effc.core.quant import QuantParams, quant_params
from effc.core.schemes import scheme

Operator = Callable[[Lowering, ir.Node], None]

INTEGER: dict[str, Operator] = {
    "Conv": products.conv,
    "ConvTranspose": products.conv_transpose,
    "MatMul": products.matmul,
    "Add": elementwise.add,
    "Mul": elementwise.mul,
    "AveragePool": pools.average_pool,
    "GlobalAveragePool": pools.average_pool,
    "Requantize": elementwise.requantize,
    "Lookup": elementwise.lookup,
}
STANDARD: dict[str, Operator] = {
    "QuantizeLinear": elementwise.quantize,
    "DequantizeLinear": elementwise.dequantize,
    "Softmax": softmax.softmax,
    "Clip": elementwise.clip,
    "Relu": elementwise.clip,
    "MaxPool": pools.max_pool,
    "Concat": moves.concat,
    "Transpose": moves.transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), moves.reshape),
    **dict.fromkeys(
        "DepthToSpace Expand Gather Pad Resize Slice SpaceToDepth Split Tile".split(), moves.moved
    ),
    **dict.fromkeys(("Sigmoid", "Tanh", "Exp", "Neg", "Abs", "Sqrt"), elementwise.real_function),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), elementwise.real_operator),
}
_WINDOWED = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"}
_ORDERED = frozenset(
    {"Slice", "Split", "Concat", "Pad", "Add", "Mul", "Lookup", "Requantize", "Clip"}
)
_QUANTIZE = "build with --precision int8: microcontrollers compute with integers"

_REPLACE = "train the model without it, or build for a board that runs Linux"


def lower(model: ir.Model, core: Core, name: str = "model", *, tries: int = 300) -> Program:
    """Lower the legalized `model`, which stays as it is; `tries` is of the memory planner.

    UnsupportedOpError lists what has no kernel.
    """
    graph = model.graph
    low = Lowering(core)
    problems: list[Problem] = []
    inputs: list[Border] = []
    skipped: set[ir.Node] = set()
    for value in graph.inputs:
        if value.is_initializer():
            continue
        try:
            inputs.append(_input(low, value, skipped))
        except Refusal as refusal:
            problems.append(Problem(str(value.name), "input", refusal.reason, refusal.remedy))
    outputs_of = {v: _dequantized(v) for v in graph.outputs}
    skipped |= {n for n in outputs_of.values() if n is not None}
    unknown: set[ir.Value] = set()
    for node in graph:
        if node in skipped or softmax.absorbs(node):
            continue
        if any(v in unknown for v in node.inputs):
            unknown.update(node.outputs)  # its cause stands among the problems
        table = INTEGER if node.domain == DOMAIN else STANDARD if node.domain == "" else {}
        operator = table.get(node.op_type)
        try:
            if operator is None:
                remedy = _QUANTIZE if node.op_type in scheme("integer").ops else _REPLACE
                raise Refusal(f"microcontrollers have no kernel for {node.op_type}", remedy)
            if any(v in unknown for v in node.inputs):
                continue
            operator(low, node)
        except Refusal as refusal:
            problems.append(Problem(str(node.name), node.op_type, refusal.reason, refusal.remedy))
            unknown.update(node.outputs)
    if problems:
        raise UnsupportedOpError(f"the target {core.name}", problems)
    outputs = tuple(_output(low, v, outputs_of[v]) for v in graph.outputs)
    return _planned(low, name, tuple(inputs), outputs, tries)


def _input(low: Lowering, value: ir.Value, skipped: set[ir.Node]) -> Border:
    """An input, channels last where windows slide over it, as integers where it is quantized at once."""
    shape, dtype = static(value)
    quantize = sole_use(value)
    stored, params = value, None
    if dtype == "float32" and quantize is not None and is_op(quantize, "QuantizeLinear"):
        params = quant_params(quantize)
        if params is not None and params.per_tensor:
            skipped.add(quantize)
            stored = quantize.outputs[0]
    order = channels_last(len(shape)) if _slid_over(stored) else row_major(len(shape))
    tensor = low.define(stored, order)
    if stored is value:
        for user, index in value.uses():
            found = quant_params(user) if is_op(user, "DequantizeLinear") and index == 0 else None
            params = params or found
    return _border(str(value.name), dtype, tensor, params)


def _slid_over(value: ir.Value) -> bool:
    """Whether windows slide over `value`, or over what is made of it in the same order of axes."""
    if len(value.shape or ()) < 3:
        return False
    seen: set[ir.Node] = set()
    work = [value]
    for found in work:
        for node in {n for n, _ in found.uses()} - seen:
            seen.add(node)
            if node.op_type in _WINDOWED:
                return True
            if node.op_type in _ORDERED:
                work += node.outputs
    return False


def _dequantized(value: ir.Value) -> ir.Node | None:
    """The DequantizeLinear that makes the output `value`, where only the caller reads it."""
    node = value.producer()
    if node is None or not is_op(node, "DequantizeLinear") or value.uses():
        return None
    stored, params = node.inputs[0], quant_params(node)
    if stored is None or params is None or not params.per_tensor or stored.producer() is None:
        return None
    return node


def _output(low: Lowering, value: ir.Value, node: ir.Node | None) -> Border:
    stored = value if node is None else node.inputs[0]
    assert stored is not None
    dtype = static(value)[1]
    params = None if node is None else quant_params(node)
    producer = value.producer()
    if params is None and is_op(producer, "QuantizeLinear"):
        assert producer is not None
        params = quant_params(producer)
    return _border(str(value.name), dtype, low.known(stored), params)


def _border(name: str, dtype: str, tensor: Tensor, params: QuantParams | None) -> Border:
    if params is None or not params.per_tensor:
        return Border(name, dtype, tensor)
    return Border(name, dtype, tensor, float(params.scale), int(params.zero_point))


def _planned(
    low: Lowering,
    name: str,
    inputs: tuple[Border, ...],
    outputs: tuple[Border, ...],
    tries: int,
) -> Program:
    calls: Sequence[Call] = joined_in_place(low, {b.tensor.name for b in (*inputs, *outputs)})
    program = Program(
        name, low.core.name, inputs, outputs, low.tensors, low.views, calls, memory.NOTHING
    )
    return replace(program, plan=plan(program, tries))


def joined_in_place(low: Lowering, borders: set[str]) -> list[Call]:
    """The calls without those of Concat that copy one stretch: what makes it writes to its place at once."""
    kept: list[Call] = []
    owners = {c.output for c in low.calls}
    for call in low.calls:
        at = call.stretch
        source = call.arguments[0]
        if (
            at is None
            or not isinstance(source, str)
            or source in low.views
            or source in borders
            or source not in owners
            or call.op != "Concat"
        ):
            kept.append(call)
            continue
        low.views[source] = (call.output, at)
    return kept


def plan(program: Program, tries: int = 300) -> memory.MemoryPlan:
    """Places of all tensors that own memory, and of every call's scratch (`scratch <call> <argument>`)."""
    calls = program.calls
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for border in program.inputs:
        first[program.root(border.tensor.name)] = 0
        last[program.root(border.tensor.name)] = 0
    for i, call in enumerate(calls):
        for used in (*call.inputs, call.output):
            root = program.root(used)
            first.setdefault(root, i)
            last[root] = i
    for border in program.outputs:
        root = program.root(border.tensor.name)
        first.setdefault(root, 0)
        last[root] = len(calls)
    blocks = [memory.Block(n, program.tensors[n].bytes, first[n], last[n]) for n in first]
    ahead: dict[tuple[str, str], int] = {}
    for i, call in enumerate(calls):
        output, into = program.place(call.output)
        for used, distance in call.ahead.items():
            root, begin = program.place(used)
            alone = [program.root(n) for n in call.inputs].count(root) == 1
            if last[root] == i and first[output] == i and root != output and alone:
                ahead[output, root] = max(0, distance + into - begin)
        for k, size in call.scratches:
            blocks.append(memory.Block(f"scratch {i} {k}", size, i, i))
    for pair, distance in _written_in_parts(program, first, last).items():
        ahead.setdefault(pair, distance)
    return memory.place(blocks, ahead, tries)


def _written_in_parts(
    program: Program, first: Mapping[str, int], last: Mapping[str, int]
) -> dict[tuple[str, str], int]:
    """Distances of tensors that several calls write from those that these calls read from, front to back.

    What a call writes has to end before the first byte that it or a later one reads.
    """
    writes: dict[str, list[tuple[int, int]]] = {}  # root -> call, end
    reads: dict[str, list[tuple[int, int]]] = {}  # root -> call, begin
    for i, call in enumerate(program.calls):
        root, at = program.place(call.output)
        writes.setdefault(root, []).append((i, at + program.tensors[call.output].bytes))
        for name in call.inputs:
            source, begin = program.place(name)
            reads.setdefault(source, []).append((i, begin))
    found = {}
    for output, ends in writes.items():
        if len(ends) < 2:
            continue
        for source, begins in reads.items():
            if (
                source == output
                or not first[source] <= first[output] <= last[source] < last[output]
            ):
                continue
            if any(i >= first[output] for i, _ in writes.get(source, ())):
                continue
            distances = [
                end - min(b for j, b in begins if j >= i) for i, end in ends if i <= last[source]
            ]
            found[output, source] = max(0, *distances)
    return found
