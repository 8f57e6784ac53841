"""What every loaded model is brought to before anything looks at it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from effc.core.check import normalize


def test_absent_inputs_at_the_end_are_cut_off() -> None:
    """onnxruntime fuses no Conv whose absent bias is written as "": the baseline would be too slow."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]>'
        " g (float[1,3,8,8] x, float[4,3,3,3] w, float lo) => (float[1,4,6,6] y)"
        " { c = Conv(x, w) y = Clip(c) }"
    )
    proto.graph.node[0].input.append("")
    proto.graph.node[1].input.extend(["lo", ""])
    model = ir.from_proto(proto)
    normalize(model)
    assert [[v.name if v else "" for v in n.inputs] for n in model.graph] == [
        ["x", "w"],
        ["c", "lo"],
    ]


def test_absent_inputs_in_the_middle_stay() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]>'
        " g (float[4] x, float hi) => (float[4] y) { y = Clip(x) }"
    )
    proto.graph.node[0].input.extend(["", "hi"])
    model = ir.from_proto(proto)
    normalize(model)
    assert [v.name if v else "" for v in model.graph.node(0).inputs] == ["x", "", "hi"]
