"""An IR model as a torch.nn.Module, and its weights back into the IR."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from effc.core.errors import ConfigError, LoweringError, Problem, UnsupportedOpError
from effc.core.ir import attr, constant_tensor, is_op, shape_of, subgraphs
from effc.core.torch_module.op import TORCH_TYPES, Function, Op, Run
from effc.core.torch_module.quantization import stored_type
from effc.core.torch_module.table import FIXED_INPUTS, OPS, REFUSALS

_OLDEST_OPSET = 7  # numpy's broadcasting


@dataclass(frozen=True)
class _Step:
    """One node, ready to be called: names of its inputs ("" for an absent one) and outputs."""

    op: Op
    function: Function
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """The steps that lead from some values to others, and what can be forgotten after each."""

    steps: tuple[_Step, ...]
    dead: tuple[tuple[str, ...], ...]


class TorchModule(nn.Module):
    """A float IR model that torch runs and differentiates, on the CPU.

    `forward(feeds)` gives the graph's outputs; with `fetch` the values of those names instead, inner
    ones too. Feeds may name inner values as well: only what lies between feeds and `fetch` is computed,
    so any slice of the graph can be run alone. Tensors have the IR's shapes, apart from the first extent,
    which may be a multiple of the model's own batch (as far as the graph allows that).

    Parameters are the float initializers, by their IR names in `weights`; those that describe an operator
    (scales of Q/DQ, bounds of Clip, running statistics) and other constants are buffers. Batch norms
    keep their statistics. `quantized = False` makes QuantizeLinear and DequantizeLinear pass their input on.
    """

    def __init__(self, steps: Sequence[_Step], outputs: Sequence[str], run: Run) -> None:
        super().__init__()
        self.output_names = tuple(outputs)
        self.weights: dict[str, nn.Parameter] = {}
        self.constants: dict[str, Tensor] = {}
        self.dtypes: dict[str, ir.DataType] = {}
        self.batches: dict[str, int] = {}
        self.substitutes: dict[str, nn.Module] = {}
        self._steps = tuple(steps)
        self._run = run
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], _Plan] = {}

    @classmethod
    def from_ir(cls, model: ir.Model) -> Self:
        """The module of `model`'s main graph, opset 7 or newer.

        UnsupportedOpError lists every node that has no torch function, control flow included.
        """
        opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
        _check(model.graph, opset)
        run = Run()
        steps, constants = [], {}
        for node in model.graph:
            if is_op(node, "Constant"):
                constants[str(node.outputs[0].name)] = constant_tensor(node)
                continue
            steps.append(_step(node, opset, run))
        module = cls(steps, [str(o.name) for o in model.graph.outputs], run)
        for value in _values(model.graph):
            name = str(value.name)
            if value.dtype is not None:
                module.dtypes[name] = value.dtype
            shape = value.shape
            if shape is not None and len(shape) > 0 and isinstance(shape[0], int):
                module.batches[name] = shape[0]
        for node in model.graph:
            if is_op(node, "QuantizeLinear"):
                module.dtypes[str(node.outputs[0].name)] = stored_type(node)
        for name, tensor in constants.items():
            module._keep(name, to_torch(tensor), False)
        for name, value in model.graph.initializers.items():
            if value.const_value is not None and (value.uses() or value.is_graph_output()):
                module._keep(name, to_torch(value.const_value), _trainable(value))
        return module

    @property
    def quantized(self) -> bool:
        """Whether QuantizeLinear and DequantizeLinear quantize."""
        return self._run.quantized

    @quantized.setter
    def quantized(self, on: bool) -> None:
        self._run.quantized = on

    def substitute(self, name: str, module: nn.Module | None) -> None:
        """Let `module()` compute the value `name` (a weight, say, from weights of its own).

        None lets the graph compute it again.
        """
        key = f"={_key(name)}"  # apart from the parameter or buffer of that name
        if name in self.substitutes:
            del self._modules[key]
            del self.substitutes[name]
        if module is not None:
            self.substitutes[name] = module
            self.add_module(key, module)
        self._plans.clear()

    def forward(
        self, feeds: Mapping[str, Any], fetch: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The values `fetch` (default: the outputs) by name; `feeds` are tensors or numpy arrays."""
        wanted = tuple(self.output_names if fetch is None else fetch)
        values = {name: _tensor(value) for name, value in feeds.items()}
        self._run.times = self._times(values)
        key = (frozenset(values), wanted)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(frozenset(values), wanted)
        for step, dead in zip(plan.steps, plan.dead, strict=True):
            inputs = [self._value(values, name) for name in step.inputs]
            for name, result in zip(step.outputs, _call(step, inputs), strict=False):
                if name and result is not None and name not in self.substitutes:
                    values[name] = result
            for name in dead:
                values.pop(name, None)
        return {name: self._typed(name, self._value(values, name)) for name in wanted}

    def _value(self, values: dict[str, Tensor], name: str) -> Tensor | None:
        if not name:
            return None
        if name not in values:
            if name in self.substitutes:
                values[name] = self.substitutes[name]()
            elif name in self.weights:
                return self.weights[name]
            else:
                return self.constants[name]
        return values[name]

    def _times(self, values: Mapping[str, Tensor]) -> int:
        for name, value in values.items():
            own = self.batches.get(name)
            if own and value.ndim and value.shape[0] != own and value.shape[0] % own == 0:
                return value.shape[0] // own
        return 1

    def _typed(self, name: str, value: Tensor | None) -> Tensor:
        """The value in the IR's type: integers between Q and DQ are held as floats."""
        assert value is not None
        dtype = self.dtypes.get(name)
        wanted = TORCH_TYPES.get(dtype) if dtype is not None else None
        if wanted is None or not self.quantized:
            return value
        if dtype in (ir.DataType.UINT16, ir.DataType.UINT32):  # arithmetic modulo their range
            return value.long() & ((1 << (16 if dtype == ir.DataType.UINT16 else 32)) - 1)
        return value.to(wanted)

    def _plan(self, fed: frozenset[str], wanted: tuple[str, ...]) -> _Plan:
        known = fed | self.weights.keys() | self.constants.keys() | self.substitutes.keys()
        needed = set(wanted)
        chosen: list[_Step] = []
        for step in reversed(self._steps):
            if not needed.isdisjoint(n for n in step.outputs if n and n not in known):
                chosen.append(step)
                needed.update(step.inputs)
        chosen.reverse()
        made = {name for step in chosen for name in step.outputs}
        missing = sorted(n for n in needed if n and n not in known and n not in made)
        if missing:
            raise ConfigError(
                f"value {missing[0]!r} is neither fed nor made by the graph",
                hint=f"feed {', '.join(missing)}, or values that they are not needed for",
            )
        last: dict[str, int] = {}
        for i, step in enumerate(chosen):
            last.update(dict.fromkeys((*step.inputs, *step.outputs), i))
        dead: list[list[str]] = [[] for _ in chosen]
        for name, i in last.items():
            if name and name not in wanted:
                dead[i].append(name)
        return _Plan(tuple(chosen), tuple(tuple(d) for d in dead))

    def _keep(self, name: str, tensor: Tensor, trainable: bool) -> None:
        if trainable:
            self.weights[name] = nn.Parameter(tensor)
            self.register_parameter(_key(name), self.weights[name])
        else:
            self.constants[name] = tensor
            self.register_buffer(_key(name), tensor, persistent=False)


def write_back(module: TorchModule, model: ir.Model, names: Collection[str] | None = None) -> int:
    """Put the weights of `module` (those called `names`) into `model`; how many changed.

    An initializer gets a new tensor of its own type: tensors that other models share stay as they are.
    ConfigError where the model has no such initializer of this shape.
    """
    changed = 0
    for name, weight in module.weights.items():
        if names is not None and name not in names:
            continue
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None or shape_of(value) != tuple(weight.shape):
            raise ConfigError(
                f"the model has no initializer {name!r} of shape {list(weight.shape)}",
                hint="write back into the model that the module was made of, or a clone of it",
            )
        old = value.const_value.numpy()
        new = weight.detach().to(torch.float64).numpy().astype(old.dtype)
        if not np.array_equal(old, new):
            value.const_value = ir.Tensor(new, name=name)
            changed += 1
    return changed


def to_torch(tensor: ir.TensorProtocol | None) -> Tensor:
    """A constant as a torch tensor of its own memory."""
    if tensor is None or tensor.dtype not in TORCH_TYPES:
        raise LoweringError(
            f"a constant of type {tensor.dtype.name if tensor else 'sparse'} has no torch tensor"
        )
    array = tensor.numpy()
    wide: dict[ir.DataType, Any] = {
        ir.DataType.BFLOAT16: np.float32,
        ir.DataType.UINT16: np.int32,
        ir.DataType.UINT32: np.int64,
        **dict.fromkeys((ir.DataType.INT4, ir.DataType.INT2), np.int8),
        **dict.fromkeys((ir.DataType.UINT4, ir.DataType.UINT2), np.uint8),
    }
    array = np.array(array, dtype=wide.get(tensor.dtype, array.dtype), order="C")
    return torch.from_numpy(array).to(TORCH_TYPES[tensor.dtype])


def _tensor(value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind == "V":  # numpy has no bfloat16
        return to_torch(ir.tensor(value))
    tensor = torch.as_tensor(value)
    wider = {torch.uint16: torch.int32, torch.uint32: torch.int64}.get(tensor.dtype)
    return tensor if wider is None else tensor.to(wider)


def _call(step: _Step, inputs: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    try:
        result = step.function(step.op, *inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        node = step.op.node
        raise LoweringError(
            f"torch can't run node {node.name or node.outputs[0].name!r} ({node.op_type}): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="keep this node out of what is trained, or rewrite it with other operators",
        ) from error
    return result if isinstance(result, tuple) else (result,)


def _step(node: ir.Node, opset: int, run: Run) -> _Step:
    outputs = tuple(str(o.name) if o.name else "" for o in node.outputs)
    attributes = {name: attr(node, name) for name in node.attributes}
    op = Op(node, opset, attributes, tuple(bool(o) for o in outputs), run)
    inputs = tuple("" if v is None else str(v.name) for v in node.inputs)
    return _Step(op, OPS[node.op_type], inputs, outputs)


def _key(name: str) -> str:
    """An IR name as torch allows it: no dots, and apart from the module's own attributes."""
    return ":" + name.replace("%", "%25").replace(".", "%2E")


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [o for node in graph for o in node.outputs if o.name]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _trainable(value: ir.Value) -> bool:
    if value.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16):
        return False
    return any(index not in FIXED_INPUTS.get(node.op_type, ()) for node, index in value.uses())


def _check(graph: ir.Graph, opset: int) -> None:
    if opset < _OLDEST_OPSET:
        raise ConfigError(
            f"the model is of opset {opset}, older than {_OLDEST_OPSET}",
            hint="run the pass convert-opset first",
        )
    problems = [p for node in graph if (p := _problem(node)) is not None]
    if problems:
        raise UnsupportedOpError("torch", problems)


def _problem(node: ir.Node) -> Problem | None:
    name = str(node.name or next((o.name for o in node.outputs if o.name), "?"))
    if subgraphs(node):
        reason = "control flow has no derivative here"
        remedy = "fix the shapes (--shape), so that fold-constants and inline-if can remove it"
    elif node.domain not in ("", "ai.onnx"):
        reason = f"its domain {node.domain!r} is unknown here"
        remedy = "write it with operators of ONNX"
    elif node.op_type != "Constant" and node.op_type not in OPS:
        reason = "no torch function computes this operator"
        remedy = "rewrite it with other operators, or keep it out of the part that is trained"
    elif node.op_type in REFUSALS and REFUSALS[node.op_type](node):
        reason = REFUSALS[node.op_type](node)
        remedy = "keep it out of the part that is trained"
    else:
        return None
    return Problem(name, node.op_type, reason, remedy)
