"""The report of layers, read from the verbose log of the pinned version."""

from __future__ import annotations

import pytest

from effc.backends.tensorrt.layers import nodes_of, read_layers

# layers of squeezenet1.1 as TensorRT for RTX 1.7.1.116 printed them, some texts shortened
NHWC, LINEAR = "Format: (NHWC) Channel major format", "Format: (Linear) Row major linear format"
LOG = "\n".join([
    "Layers:",
    "Name: conv5_myl0_14, LayerType: correlation,"
    " Inputs: [ { Name: a[0], Dimensions: [1,16,55,55], Strides: [48400,1,880,16],"
    f" StrideOrder: [3,0,2,1], Datatype: Half, {NHWC} }}],"
    " Constants: [ { Name: w, Dimensions: [64,16,1,1], Strides: [16,1,16,16], StrideOrder: [3,0,2,1],"
    f" Datatype: Half, {NHWC} }}, {{ Name: one, Dimensions: [1], Strides: [1], StrideOrder: [0],"
    f" Datatype: Float, {LINEAR} }}],"
    " Outputs: [ { Name: b, Dimensions: [1,64,55,55], Strides: [387200,1,7040,128],"
    f" StrideOrder: [3,0,2,1], Datatype: Float, {NHWC} }}],"
    " TacticName: __myelin_CASK_STUB, StreamId: 1,"
    " Metadata: [ONNX Layer: conv5][ONNX Layer: relu_32, sic]",
    "Name: __mye1780_myl0_15, LayerType: signal, Inputs: [], Constants: [], Outputs: [],"
    " TacticName: , StreamId: 1, EventId: 4, Metadata: ",
    "Name: __myl_Move_myl0_0, LayerType: kgen,"
    f" Inputs: [ {{ Name: b, Dimensions: [], Strides: [], StrideOrder: [], Datatype: Float, {LINEAR} }}],"
    " Constants: [], Outputs: [ { Name: y, Dimensions: [-1,7], Strides: [7,1], StrideOrder: [1,0],"
    f" Datatype: Int64, {LINEAR} }}], TacticName: __myl_Move_0x73, StreamId: 0, Metadata: ",
    "",
    "I/O Tensors:",
    " Name: input, IOMode: Input, DataType: Float",
])  # fmt: skip


def test_a_line_is_a_layer() -> None:
    conv, signal, move = read_layers(LOG).layers
    assert (conv.name, conv.type, conv.tactic) == (
        "conv5_myl0_14",
        "correlation",
        "__myelin_CASK_STUB",
    )
    assert conv.nodes == ("conv5", "relu_32, sic")
    (x,) = conv.inputs
    assert (x.name, x.shape, x.dtype) == ("a[0]", (1, 16, 55, 55), "Half")
    assert x.format == "(NHWC) Channel major format"
    assert [c.name for c in conv.constants] == ["w", "one"] and conv.constants[1].shape == (1,)
    assert conv.outputs[0].dtype == "Float" and conv.computes
    assert signal.inputs == signal.nodes == () and not signal.computes
    assert move.inputs[0].shape == () and move.outputs[0].shape == (-1, 7)


def test_the_summary_counts_what_computes() -> None:
    report = read_layers(LOG, ["conv5", "relu_32, sic", "reshape"])
    assert report.summary() == {
        "layers": 2, "types": {"correlation": 1, "kgen": 1}, "dtypes": {"Float": 1, "Int64": 1},
        "nodes": 2, "fused": [["conv5", "relu_32, sic"]], "reformats": ["__myl_Move_myl0_0"],
        "folded": ["reshape"],
    }  # fmt: skip


def test_another_form_is_refused_rather_than_read_as_no_layers() -> None:
    with pytest.raises(ValueError, match="known form"):
        read_layers("Layers:\nconv5 (correlation)")
    with pytest.raises(ValueError, match="no layer"):
        read_layers("Name: x, Kind: conv")
    assert read_layers("").layers == ()


def test_nodes_are_named_once_and_without_those_around_them() -> None:
    text = "[ONNX Layer: if][ONNX Layer: inner | if][ONNX Layer: inner | if]"
    assert nodes_of(text) == ("if", "inner")
    assert nodes_of("ForeignNode {x} metadata: [ONNX Layer: a][ONNX Layer: b]") == ("a", "b")
