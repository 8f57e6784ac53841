"""A function of an ML Program, made ready to run: constants read, operations found, types declared.

Half precision is emulated: a tensor of fp16 is held in float32, and every operation's result is rounded
to the nearest half, after sums in float32 or wider. A device may round within an operation too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops import find
from effc.backends.coreml.interpret.package import Package
from effc.backends.coreml.interpret.values import TensorType, constant, tensor_type
from effc.core.errors import EffcError, FrontendError, LoweringError
from effc.core.measure import Array

# parameters that hold a tuple, also of one element
TUPLES = frozenset({"values", "ref_tensors", "begins", "ends", "end_masks", "loop_vars"})
CONTROL = frozenset({"cond", "while_loop", "read_state", "write_state"})
# these only move values or pick among them: halves stay halves
ROUNDING_FREE = frozenset(
    "identity reshape transpose expand_dims squeeze concat split stack slice_by_index slice_by_size relu"
    " gather tile pad max_pool maximum minimum reduce_max pixel_shuffle select reverse".split()
)
OPSETS = {f"CoreML{n}": n + 10 for n in range(5, 9)}  # CoreML5 is iOS 15
# what an operation may raise on arguments it has no meaning for
FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, AttributeError)


@dataclass(frozen=True, slots=True)
class Name:
    """A reference to a value that is computed or fed."""

    name: str


@dataclass(slots=True)
class State:
    """What a state holds between predictions."""

    value: Array


@dataclass(frozen=True, slots=True)
class Step:
    """One operation; `arguments` are names, constants, or lists of both."""

    kind: str
    name: str
    function: Any
    arguments: dict[str, Any]
    outputs: tuple[tuple[str, TensorType | None], ...]
    blocks: tuple[Block, ...] = ()
    frees: list[str] = field(default_factory=list)

    def uses(self) -> Iterator[str]:
        for argument in self.arguments.values():
            for part in argument if isinstance(argument, list) else [argument]:
                if isinstance(part, Name):
                    yield part.name
        for block in self.blocks:
            yield from block.outputs
            for step in block.steps:
                yield from step.uses()


@dataclass(frozen=True, slots=True)
class Block:
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


def declared(value: Any, kind: TensorType | None, rounding: bool = True) -> Any:
    """`value` in its declared type; raises ValueError where it is of another kind or shape."""
    if kind is None or kind.name == "string" or not isinstance(value, np.ndarray | np.generic):
        return value
    value = np.asarray(value)
    if not kind.accepts(value.shape):
        raise ValueError(f"gives the shape {value.shape}, declared is {kind}")
    family = {"b": "b", "f": "f"}.get(value.dtype.kind, "i")
    if family != {"b": "b", "f": "f"}.get(np.dtype(kind.dtype).kind, "i"):
        raise ValueError(f"gives {value.dtype}, declared is {kind}")
    if kind.name != "fp16":
        return value.astype(kind.dtype, copy=False)
    if rounding:
        value = value.astype(np.float16)
    return value.astype(np.float32, copy=False)


class Program:
    """One function of a package."""

    def __init__(self, package: Package, function: str) -> None:
        self.where = f"{package.path}"
        self._package = package
        functions = package.program.functions
        if function not in functions:
            raise FrontendError(f"{self.where}: the program has no function {function!r}")
        proto = functions[function]
        if proto.opset not in proto.block_specializations:
            raise FrontendError(f"{self.where}: function {function!r} has no block {proto.opset!r}")
        if proto.opset not in OPSETS:
            raise LoweringError(
                f"{self.where}: opset {proto.opset!r}; known are {', '.join(OPSETS)}",
                hint="set an older deployment target",
            )
        self.opset = OPSETS[proto.opset]
        self.constants: dict[str, Any] = {}
        self.half = False  # whether fp16 is emulated anywhere
        self.operations = 0
        self.inputs = {i.name: self._type(i.type, i.name) for i in proto.inputs}
        self._unknown: list[tuple[str, str]] = []
        self.types: dict[str, TensorType | None] = dict(self.inputs)
        self.block = self._block(proto.block_specializations[proto.opset], set(self.inputs))
        if self._unknown:
            kind, name = self._unknown[0]
            more = f" (and {len(self._unknown) - 1} more)" if len(self._unknown) > 1 else ""
            raise LoweringError(
                f"{self.where}: operation {kind!r} ({name}) can't be interpreted"
                f" for iOS {self.opset}{more}"
            )

    def _type(self, proto: Any, name: str) -> TensorType | None:
        kind = tensor_type(proto, f"{self.where}: {name}")
        self.half |= kind is not None and kind.name == "fp16"
        return kind

    def _constant(self, proto: Any, name: str) -> Any:
        value = constant(proto, self._package.read_blob, f"{self.where}: constant {name!r}")
        if isinstance(value, np.ndarray) and value.dtype == np.float16:
            self.half = True
            return value.astype(np.float32)
        return value

    def _argument(self, name: str, proto: Any, where: str, known: set[str]) -> Any:
        parts: list[Any] = []
        for binding in proto.arguments:
            if binding.WhichOneof("binding") == "name":
                if binding.name in self.constants:
                    parts.append(self.constants[binding.name])
                elif binding.name in known:
                    parts.append(Name(binding.name))
                else:
                    raise FrontendError(f"{where}: {name} is {binding.name!r}, which nothing gives")
            else:
                parts.append(self._constant(binding.value, f"{where}.{name}"))
        return parts if name in TUPLES or len(parts) != 1 else parts[0]

    def _block(self, proto: Any, known: set[str]) -> Block:
        known = known | {i.name for i in proto.inputs}
        for i in proto.inputs:
            self.types[i.name] = self._type(i.type, i.name)
        steps = []
        for operation in proto.operations:
            step = self._step(operation, known)
            if step is not None:
                steps.append(step)
            known |= {o.name for o in operation.outputs}
        for name in proto.outputs:
            if name not in known:
                raise FrontendError(f"{self.where}: output {name!r} is given by nothing")
        block = Block(tuple(i.name for i in proto.inputs), tuple(steps), tuple(proto.outputs))
        _plan_frees(block)
        return block

    def _step(self, proto: Any, known: set[str]) -> Step | None:
        """The operation as a step; None if it is constant, which is worked out here."""
        outputs = tuple((o.name, self._type(o.type, o.name)) for o in proto.outputs)
        self.types.update(outputs)
        name = outputs[0][0] if outputs else proto.type
        where = f"{self.where}: operation {proto.type!r} ({name})"
        if proto.type == "const":
            if not outputs or "val" not in proto.attributes:
                raise FrontendError(f"{where}: has no value")
            self.constants[name] = self._constant(proto.attributes["val"], name)
            return None
        arguments = {k: self._argument(k, v, where, known) for k, v in proto.inputs.items()}
        for key, value in proto.attributes.items():  # iOS 16's constexpr_* have nothing but those
            if key not in ("name", "val") and key not in arguments:
                arguments[key] = self._constant(value, f"{name}.{key}")
        function = None if proto.type in CONTROL else find(proto.type, self.opset)
        blocks = tuple(self._block(b, known) for b in proto.blocks)
        step = Step(proto.type, name, function, arguments, outputs, blocks)
        if function is None and proto.type not in CONTROL:
            self._unknown.append((proto.type, name))
        elif proto.type.startswith("constexpr_"):
            if any(step.uses()):
                raise FrontendError(f"{where}: needs constants only")
            self.constants.update(self.apply(step, arguments))
            return None
        self.operations += 1
        return step

    def apply(self, step: Step, arguments: dict[str, Any]) -> dict[str, Any]:
        """The outputs of one operation by name."""
        try:
            with np.errstate(all="ignore"):
                result = step.function(**arguments)
                results = result if isinstance(result, tuple) else (result,)
                if len(results) != len(step.outputs):
                    raise ValueError(f"gives {len(results)} outputs, declared {len(step.outputs)}")
                rounding = step.kind not in ROUNDING_FREE
                return {
                    name: declared(value, kind, rounding)
                    for (name, kind), value in zip(step.outputs, results, strict=True)
                }
        except FAILURES as error:
            raise self.failed(step, str(error) or type(error).__name__) from error

    def failed(self, step: Step, reason: str) -> EffcError:
        return EffcError(f"{self.where}: operation {step.kind!r} ({step.name}): {reason}")

    def run(self, values: dict[str, Any]) -> list[Any]:
        """The outputs of the function for `values` of its inputs."""
        return self._run(self.block, values)

    def _run(self, block: Block, values: dict[str, Any]) -> list[Any]:
        for step in block.steps:
            arguments = {k: _resolved(v, values) for k, v in step.arguments.items()}
            if step.function is not None:
                values.update(self.apply(step, arguments))
            else:
                values.update(self._control(step, arguments, values))
            for name in step.frees:
                values.pop(name, None)
        return [self.constants[n] if n in self.constants else values[n] for n in block.outputs]

    def _control(
        self, step: Step, arguments: dict[str, Any], values: dict[str, Any]
    ) -> dict[str, Any]:
        names = [name for name, _ in step.outputs]
        try:
            if step.kind == "read_state":
                return {names[0]: arguments["input"].value.copy()}
            if step.kind == "write_state":
                state, data = arguments["input"], arguments["data"]
                if state.value.shape != data.shape:
                    raise self.failed(step, f"{data.shape} into a state of {state.value.shape}")
                state.value = data
                return {}
            if step.kind == "cond":
                chosen = step.blocks[0 if bool(arguments["pred"]) else 1]
                return dict(zip(names, self._run(chosen, dict(values)), strict=True))
            test, body = step.blocks
            loop = arguments["loop_vars"]
            while bool(self._inner(test, loop, values)[0]):
                loop = self._inner(body, loop, values)
            return dict(zip(names, loop, strict=True))
        except FAILURES as error:
            raise self.failed(step, str(error) or type(error).__name__) from error

    def _inner(self, block: Block, loop: list[Any], values: dict[str, Any]) -> list[Any]:
        return self._run(block, {**values, **dict(zip(block.inputs, loop, strict=True))})


def _resolved(argument: Any, values: dict[str, Any]) -> Any:
    if isinstance(argument, list):
        return [values[p.name] if isinstance(p, Name) else p for p in argument]
    return values[argument.name] if isinstance(argument, Name) else argument


def _plan_frees(block: Block) -> None:
    """Let every step drop the values that no later step of its block needs."""
    needed: set[str] = set(block.outputs)
    for step in reversed(block.steps):
        used: Iterable[str] = {*step.uses(), *(name for name, _ in step.outputs)}
        step.frees.extend(name for name in used if name not in needed)
        needed.update(used)
