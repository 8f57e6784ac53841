"""convert-float16: half precision where its range and its bits are enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from effc.core.data import SyntheticSamples
from effc.core.errors import ConfigError
from effc.core.ir import add_const, const, is_op
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.shapes import infer_shapes
from effc.core.specs import static_specs
from effc.passes.compress.half_ranges import measure, reason_to_stay
from effc.passes.compress.report import note
from effc.passes.compress.weights import find_weights, insert

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class ConvertFloat16(Pass):
    """f(x) -> Cast(f16(Cast(x))) for every operator that float16 is enough for, casts where the type changes.

    The float model runs on the samples (made-up ones where there are none), and an operator stays float32
    where a tensor, or a bound of the sums inside, comes within `margin` of 65,504; where a tensor is
    so small that float16 has few bits left, or a constant loses 0.2 %; where it takes exponentials,
    logarithms or sums of squares; and where the standard has no float16. Operators without arithmetic worth
    the name follow their neighbours, so that casts are few. With `integers=free` casts beside
    QuantizeLinear and DequantizeLinear do not count, because the backend makes them part of those: a sum
    between two quantized layers then is of half precision, too. Inputs and outputs stay float32 (`io=half`
    changes them too). What stayed and why stands in the report.

    `compute=single` stores weights in 16 bits behind a Cast, and everything computes in float32: for
    processors without half-precision arithmetic, or backends without such kernels (tvm's; `auto`
    knows). `dtype=bfloat16` is always that, since onnxruntime's CPU has few bfloat16 kernels.
    """

    id: ClassVar[str] = "convert-float16"
    effect: ClassVar[Effect] = Effect.ROUNDED

    dtype: str = field(default="float16", metadata={"help": "float16 or bfloat16"})
    io: str = field(default="keep", metadata={"help": "types of inputs and outputs: keep or half"})
    compute: str = field(
        default="auto",
        metadata={
            "help": "half, single (only weights are stored so), or auto: what the target can"
        },
    )
    integers: str = field(
        default="cast", metadata={"help": "casts beside quantized values: cast or free"}
    )
    margin: float = field(
        default=2.0, metadata={"help": "room left to the largest number, for other inputs"}
    )
    samples: int = field(default=16, metadata={"help": "how many are used", "unit": "samples"})
    keep: tuple[str, ...] = field(default=(), metadata={"help": "names of nodes that stay float32"})

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        if self.dtype not in ("float16", "bfloat16") or self.io not in ("keep", "half"):
            raise ConfigError(f"{self}: dtype is float16 or bfloat16, io is keep or half")
        if self.integers not in ("cast", "free"):
            raise ConfigError(f"{self}: integers is cast or free")
        if self.margin < 1 or self.samples < 1:
            raise ConfigError(f"{self}: margin and samples are at least 1")
        if self.compute not in ("half", "single", "auto"):
            raise ConfigError(f"{self}: compute is half, single or auto")
        if self.dtype == "bfloat16" or not self._computes(ctx):
            if self.io == "half":
                raise ConfigError(f"{self}: with weights alone in 16 bits, inputs stay float32")
            return self._weights(model)
        infer_shapes(model)
        samples = ctx.samples or SyntheticSamples(
            static_specs(model.graph.inputs), count=4, seed=ctx.seed
        )
        ranges = measure(model, samples, self.samples)
        stays = {
            n: "it is named in keep"
            if n.name in self.keep
            else reason_to_stay(n, ranges, self.margin)
            for n in model.graph
            if _floats(n)
        }
        half = {n for n, why in stays.items() if not why}
        _settle(half, self.integers == "free")
        facts = {
            "dtype": self.dtype,
            "half": len(half),
            "kept": {_name(n): why for n, why in stays.items() if why},
            "followed": sorted(_name(n) for n, w in stays.items() if not w and n not in half),
            "synthetic": samples.synthetic,
        }
        if stays:
            casts = _rewrite(model.graph, half, self.io == "half") if half else 0
            infer_shapes(model)
            note(model, self.id, {**facts, "casts": casts})
        return len(half)

    def _computes(self, ctx: PassContext) -> bool:
        if self.compute != "auto":
            return self.compute == "half"
        return ctx.target is None or ctx.target.profile.backend != "tvm"

    def _weights(self, model: ir.Model) -> int:
        """Constants of linear operators in 16 bits, each behind a Cast."""
        short = np.dtype(np.float16 if self.dtype == "float16" else ml_dtypes.bfloat16)
        kept: dict[str, str] = {}
        count = 0
        for weight in find_weights(model, keep=self.keep):
            with np.errstate(over="ignore"):
                stored = weight.array.astype(short)
            back = stored.astype(np.float64)
            energy = float(np.square(weight.array, dtype=np.float64).sum())
            lost = float(np.square(back - weight.array).sum())
            if not lost <= 1e-4 * energy:
                kept[weight.name] = "16 bits lose over 1 % of it"
                continue
            graph = weight.users[0].graph
            assert isinstance(graph, ir.Graph)
            constant = add_const(graph, f"{weight.name}/{self.dtype}", stored)
            node = ir.node("Cast", [constant], {"to": ir.DataType.FLOAT})
            node.name = f"{weight.name}/widened"
            insert(weight, [node])
            count += 1
        if count:
            note(model, self.id, {"dtype": self.dtype, "weights": count, "kept": kept})
        return count


def _name(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)


def _floats(node: ir.Node) -> bool:
    return any(
        v is not None and v.dtype == ir.DataType.FLOAT for v in (*node.inputs, *node.outputs)
    )


def _settle(half: set[ir.Node], integers_free: bool = False) -> None:
    """Let operators that cost little follow their neighbours, one or whole regions, while casts get fewer."""
    free = {n for n in half if n.op_type not in HEAVY}
    regions = _regions(free)
    for _ in range(8):
        changed = False
        for group in (*([n] for n in free), *regions):
            values = {v for n in group for v in (*n.inputs, *n.outputs) if v is not None}
            before = sum(_casts(v, half, integers_free) for v in values)
            inside = half & set(group)
            flipped = set(group) - inside if len(inside) < len(group) else set()
            trial = (half - inside) | (flipped if not inside else set())
            if sum(_casts(v, trial, integers_free) for v in values) < before:
                half.clear()
                half.update(trial)
                changed = True
        if not changed:
            break


def _regions(free: set[ir.Node]) -> list[list[ir.Node]]:
    seen: set[ir.Node] = set()
    regions = []
    for start in free:
        if start in seen:
            continue
        seen.add(start)
        work = [start]
        for node in work:
            near = [v.producer() for v in node.inputs if v is not None]
            near += [u.node for o in node.outputs for u in o.uses()]
            for other in near:
                if other is not None and other in free and other not in seen:
                    seen.add(other)
                    work.append(other)
        regions.append(work)
    return regions


def _casts(value: ir.Value, half: set[ir.Node], integers_free: bool) -> int:
    """How many casts `value` needs: one where it is read in the other type than it is made in."""
    if value.dtype != ir.DataType.FLOAT or const(value) is not None:
        return 0
    if integers_free and is_op(value.producer(), "DequantizeLinear"):
        return 0
    made = value.producer() in half
    readers = {
        use.node in half
        for use in value.uses()
        if not (integers_free and is_op(use.node, "QuantizeLinear"))
    }
    if value.is_graph_output():
        readers.add(False)
    return int((not made) in readers)


def _rewrite(graph: ir.Graph, half: set[ir.Node], io: bool) -> int:
    """Change types, put casts where they differ; how many casts."""
    halves: dict[ir.Value, ir.Value] = {}
    count = 0

    def cast(value: ir.Value, to: ir.DataType, before: ir.Node | None) -> ir.Value:
        nonlocal count
        suffix = "half" if to == ir.DataType.FLOAT16 else "single"
        node = ir.node("Cast", [value], {"to": to}, name=f"{value.name}/{suffix}")
        out: ir.Value = node.outputs[0]
        out.name, out.shape, out.dtype = f"{value.name}/{suffix}", value.shape, to
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, [node])
        elif before is not None:
            graph.insert_before(before, [node])
        else:
            graph.append(node)
        count += 1
        return out

    def in_half(value: ir.Value) -> ir.Value:
        if value not in halves:
            array = const(value)
            if array is not None:
                name = f"{value.name}/half"
                halves[value] = add_const(graph, name, array.astype(np.float16))
            else:
                halves[value] = cast(value, ir.DataType.FLOAT16, graph[0])
        return halves[value]

    if io:
        for given in graph.inputs:
            if given.dtype == ir.DataType.FLOAT and const(given) is None:
                given.type = ir.TensorType(ir.DataType.FLOAT16)
    nodes = list(graph)
    made_half = {o for n in half for o in n.outputs if o.dtype == ir.DataType.FLOAT}
    if io:
        made_half.update(v for v in graph.inputs if v.dtype == ir.DataType.FLOAT16)
    singles: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        for i, value in enumerate(node.inputs):
            if value is None:
                continue
            is_float = value.dtype == ir.DataType.FLOAT or value in made_half
            if not is_float or (node in half and _fixed(node, i)):
                continue
            if node in half and value not in made_half:
                node.replace_input_with(i, in_half(value))
            elif node not in half and value in made_half:
                if value not in singles:
                    singles[value] = cast(value, ir.DataType.FLOAT, graph[0])
                node.replace_input_with(i, singles[value])
    for value in made_half:  # types are shared with clones of the model, and no place to write
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    for i, output in enumerate(graph.outputs):
        single = output.dtype == ir.DataType.FLOAT
        if (output in made_half and not io) or (io and single and output.producer() is not None):
            name, to = output.name, ir.DataType.FLOAT if not io else ir.DataType.FLOAT16
            known = singles if not io else halves
            new = known[output] if output in known else cast(output, to, None)
            output.name = f"{name}/inner"
            graph.outputs[i] = new
            new.name = name
    _drop_unread(graph)
    return count


def _fixed(node: ir.Node, index: int) -> bool:
    """Whether the standard wants this input in float32 in any case."""
    formals = onnx.defs.get_schema(node.op_type, 23).inputs
    return bool(formals[min(index, len(formals) - 1)].type_str.startswith("tensor("))


def _drop_unread(graph: ir.Graph) -> None:
    unread: Iterable[str] = [
        name
        for name, value in graph.initializers.items()
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input()
    ]
    for name in list(unread):
        del graph.initializers[name]
