"""Slices of a Q/DQ graph that are reconstructed one after the other: single layers, or blocks."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from effc.core.ir import attr, const, is_op, shape_of
from effc.core.quant import QuantParams, quant_params
from effc.core.quant_units import FLOAT_WEIGHTS, Array

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# blocks hold this many layers if the graph can be cut so, and single layers where it can't by far
_BLOCK_LAYERS = 2
_BLOCK_MOST = 8


@dataclass(frozen=True)
class Layer:
    """A node with integer weights: `weight` is the DequantizeLinear of them."""

    node: ir.Node
    weight: ir.Node
    params: QuantParams
    real: Array  # the float weights
    stored: Array  # the integers

    @property
    def value(self) -> str:
        """The name of the dequantized weight."""
        return str(self.weight.outputs[0].name)


@dataclass(frozen=True)
class Unit:
    """Neighbouring nodes in the graph's order: what they read of earlier ones, what later ones read."""

    nodes: tuple[ir.Node, ...]
    layers: tuple[Layer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The names of its layers."""
        return " + ".join(str(layer.node.name) for layer in self.layers)


def layers_of(model: ir.Model) -> list[Layer]:
    """Every Conv, ConvTranspose, Gemm and MatMul whose weights are integers with a known float original."""
    originals = model.meta.get(FLOAT_WEIGHTS, {})
    found: list[Layer] = []
    for node in model.graph:
        if not is_op(node, *LAYERS):
            continue
        for value in node.inputs[:2]:
            made = value.producer() if value is not None else None
            if made is None or not is_op(made, "DequantizeLinear") or value is None:
                continue
            params, real = quant_params(made), originals.get(str(value.name))
            shared = any(layer.weight is made for layer in found)
            stored = const(made.inputs[0])
            if params is not None and real is not None and stored is not None and not shared:
                found.append(Layer(node, made, params, real, stored))
    return found


def units_of(model: ir.Model, *, blocks: bool) -> list[Unit]:
    """The graph in slices that hold at most one layer each, or about two with `blocks`."""
    constant: set[ir.Value] = set()
    nodes = []
    for node in model.graph:
        if all(_is_constant(v, constant) for v in node.inputs):
            constant.update(node.outputs)
        else:
            nodes.append(node)
    layers = {layer.node: layer for layer in layers_of(model)}
    cuts = _cuts(nodes, constant)
    bounds = _bounds(nodes, layers, cuts, blocks=blocks)
    units = [
        _unit(nodes[a:b], layers, constant)
        for a, b in zip(bounds, [*bounds[1:], len(nodes)], strict=True)
    ]
    return [u for u in units if u.outputs]


def _is_constant(value: ir.Value | None, constant: set[ir.Value]) -> bool:
    if value is None or value in constant:
        return True
    return value.is_initializer() and not value.is_graph_input()


def _cuts(nodes: list[ir.Node], constant: set[ir.Value]) -> set[int]:
    """Places before which a single value is all that later nodes read of earlier ones."""
    last: dict[ir.Value, int] = {}
    for i, node in enumerate(nodes):
        for value in node.inputs:
            if not _is_constant(value, constant) and value is not None:
                last[value] = i
        for value in node.outputs:
            if value.is_graph_output():
                last[value] = len(nodes)
    ends = [0] * (len(nodes) + 2)
    live, cuts = 0, set()
    for value in last:
        if value.producer() is None:
            live += 1
            ends[last[value] + 1] += 1
    for i, node in enumerate(nodes):
        live -= ends[i]
        if live == 1:
            cuts.add(i)
        for value in node.outputs:
            if value in last:
                live += 1
                ends[last[value] + 1] += 1
    return cuts


def _before_pair(nodes: list[ir.Node], place: int) -> int:
    """`place`, or the place before the Q/DQ in front of it: what is quantized is quantized by its reader."""
    while place > 0 and is_op(nodes[place - 1], "QuantizeLinear", "DequantizeLinear"):
        place -= 1
    return place


def _bounds(
    nodes: list[ir.Node], layers: dict[ir.Node, Layer], cuts: set[int], *, blocks: bool
) -> list[int]:
    places = [i for i, n in enumerate(nodes) if n in layers]
    singles = {_before_pair(nodes, p) for p in places}
    if not blocks:
        return sorted({0, *singles})
    chosen = [0]
    for cut in sorted({_before_pair(nodes, c) for c in cuts if c > 0} & cuts):
        within = [nodes[p] for p in places if chosen[-1] <= p < cut]
        inside = len(within)
        after = next((nodes[p] for p in places if p >= cut), None)
        if not _ends_here(within, after):
            continue
        if inside > _BLOCK_MOST:
            chosen += sorted(s for s in singles if chosen[-1] < s < cut)
        chosen.append(cut)
    rest = sum(p >= chosen[-1] for p in places)
    if rest > _BLOCK_MOST:
        chosen += sorted(s for s in singles if s > chosen[-1])
    return sorted(set(chosen))


def _ends_here(within: list[ir.Node], after: ir.Node | None) -> bool:
    """Whether a block of these layers ends before the layer `after`; a depthwise layer begins one."""
    if not within:
        return False
    if len(within) < _BLOCK_LAYERS:
        return after is not None and _is_depthwise(after)
    return len(within) > _BLOCK_LAYERS or not _is_depthwise(within[-1])


def _is_depthwise(node: ir.Node) -> bool:
    weight = shape_of(node.inputs[1]) if is_op(node, "Conv") else None
    return weight is not None and weight[1] == 1 and attr(node, "group", 1) == weight[0] > 1


def _unit(
    nodes: list[ir.Node],
    layers: dict[ir.Node, Layer],
    constant: set[ir.Value],
) -> Unit:
    inside = set(nodes)
    made = {v for n in nodes for v in n.outputs}
    read = {
        v: None
        for n in nodes
        for v in n.inputs
        if v is not None and v not in made and not _is_constant(v, constant)
    }
    shown = [
        v
        for n in nodes
        for v in n.outputs
        if v.is_graph_output() or any(use.node not in inside for use in v.uses())
    ]
    return Unit(
        tuple(nodes),
        tuple(layers[n] for n in nodes if n in layers),
        tuple(str(v.name) for v in read),
        tuple(str(v.name) for v in shown),
    )
