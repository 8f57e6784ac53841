"""The forms of a model that a bundle holds: which ONNX file each generation of TensorRT gets."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, attr, const, graphs, is_op, replace
from effc.core.quant import quant_params

_HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def single(model: ir.Model) -> ir.Model:
    """`model` with float32 for every half: where types are flags of the builder, casts only hinder it."""
    made = model.clone()
    for graph in graphs(made):
        for value in list(graph.initializers.values()):
            array = const(value)
            if value.dtype in _HALVES and array is not None:
                wide = add_const(graph, f"{value.name}/single", array.astype(np.float32))
                replace(value, wide)
                if not value.uses() and not value.is_graph_output():
                    del graph.initializers[str(value.name)]
        for node in list(graph):
            _widen(node)
    for node in list(made.graph):
        if is_op(node, "Cast") and node.inputs[0] is not None and _same(node):
            out, source = node.outputs[0], node.inputs[0]
            # an input that is an output has to pass through a node
            if out.is_graph_output() and (source.producer() is None or source.is_graph_output()):
                continue
            replace(out, source)
            made.graph.remove(node, safe=True)
    return made


def _widen(node: ir.Node) -> None:
    if is_op(node, "Cast", "QuantizeLinear", "DequantizeLinear", "EyeLike"):
        key = {"Cast": "to", "EyeLike": "dtype"}.get(node.op_type, "output_dtype")
        if attr(node, key, 0) in {int(h) for h in _HALVES}:
            node.attributes[key] = ir.AttrInt64(key, int(ir.DataType.FLOAT))
    for name, stored in list(node.attributes.items()):
        if stored.type == ir.AttributeType.TENSOR:
            tensor = stored.as_tensor()
            if tensor.dtype in _HALVES:
                wide = ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
                node.attributes[name] = ir.AttrTensor(name, wide)
    for value in node.outputs:
        if value.dtype in _HALVES:
            value.type = ir.TensorType(ir.DataType.FLOAT)  # clones share the type


def _same(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType(attr(node, "to", 0))


def weights_in_pairs(model: ir.Model) -> int:
    """DQ(constant integers) -> DQ(Q(constant reals)), in place: TensorRT 8 reads no constant of int8.

    The reals are those that the integers stand for, so Q gives the same integers. Returns how many.
    """
    count = 0
    for node in list(model.graph):
        params = quant_params(node) if is_op(node, "DequantizeLinear") else None
        stored = const(node.inputs[0]) if params is not None else None
        if params is None or stored is None or node.inputs[0] is None:
            continue
        old = node.inputs[0]
        reals = params.dequantize(stored).astype(np.float32)
        value = add_const(model.graph, f"{old.name}/reals", reals)
        if len(node.inputs) < 3 or node.inputs[2] is None:
            # without it Q makes uint8
            zero = add_const(model.graph, f"{old.name}/zero", params.zero_point)
            node.resize_inputs(3)
            node.replace_input_with(2, zero)
        attributes = {"axis": attr(node, "axis", 1)} if not params.per_tensor else {}
        q = ir.node(
            "QuantizeLinear", [value, *node.inputs[1:]], attributes, name=f"{node.name}/pair"
        )
        q.outputs[0].name = f"{old.name}/again"
        q.outputs[0].type, q.outputs[0].shape = ir.TensorType(params.dtype), old.shape
        model.graph.insert_before(node, q)
        node.replace_input_with(0, q.outputs[0])
        if not old.uses():
            del model.graph.initializers[str(old.name)]
        count += 1
    return count


def activation_scales(model: ir.Model) -> dict[str, float]:
    """Tensor -> the scale that it is quantized with, from the Q nodes on activations."""
    found: dict[str, float] = {}
    for node in model.graph:
        params = quant_params(node) if is_op(node, "QuantizeLinear") else None
        if params is not None and params.per_tensor and const(node.inputs[0]) is None:
            name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
            found[name] = float(np.asarray(params.scale, np.float32).ravel()[0])
    return found


def calibration_cache(scales: Mapping[str, float], model: ir.Model) -> str:
    """The text of TensorRT's EntropyCalibrator2 cache for the tensors of `model` that have a scale.

    A line a tensor: its name and the bits of its float32 scale in hexadecimal, big-endian. The first line
    names the TensorRT that wrote it; the build script puts in the one that reads it.
    """
    names = {str(v.name) for v in model.graph.inputs}
    names |= {str(v.name) for node in model.graph for v in node.outputs}
    lines = [f"{n}: {struct.pack('!f', s).hex()}" for n, s in sorted(scales.items()) if n in names]
    return "\n".join(["TRT-8502-EntropyCalibration2", *lines]) + "\n"


def narrow_integers(model: ir.Model) -> list[str]:
    """Names of the DQ nodes whose integers have fewer than 8 bits."""
    small = {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2}
    return [
        str(n.name)
        for n in model.graph
        if is_op(n, "DequantizeLinear") and n.inputs[0] is not None and n.inputs[0].dtype in small
    ]
