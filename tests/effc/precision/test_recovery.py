"""Which weights keep 8 bits in w4a8, and what a build says about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from effc.precision.recipe import load_recipe
from effc.precision.recovery import _learning


def test_w4a8_keeps_the_first_and_the_depthwise_weights_at_8_bits(
    tmp_path: Path, command: Any
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(8, 3, 32, 32)).astype(np.float32))
    text = """net (float[1,3,32,32] x, float[8,3,3,3] w1, float[8,1,3,3] w2, float[16,8,1,1] w3,
        float[10,16] w4) => (float[1,10] y) {
    c1 = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w1)
    r1 = Relu(c1)
    c2 = Conv <group = 8, pads = [1,1,1,1]> (r1, w2)
    r2 = Relu(c2)
    c3 = Conv(r2, w3)
    r3 = Relu(c3)
    g = GlobalAveragePool(r3)
    f = Flatten(g)
    y = Gemm <transB = 1> (f, w4)
}"""
    made = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    for value in list(made.graph.input)[1:]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        made.graph.initializer.append(
            onnx.numpy_helper.from_array(array.astype(np.float32), value.name)
        )
        made.graph.input.remove(value)
    for node, name in zip(
        made.graph.node, "first r1 depth r2 point r3 g f last".split(), strict=True
    ):
        node.name = name
    onnx.save(made, tmp_path / "net.onnx")
    out = tmp_path / "out"
    code, found = command("build", tmp_path / "net.onnx", "--precision", "w4a8", "--backend", "ort",
                          "--no-measure", "--skip", "adaround", "--skip", "train-quantized",
                          "--samples", tmp_path / "x.npz", "-o", out)  # fmt: skip
    assert code == 0, found
    assert "narrow-weights{nodes=point+last}" in load_recipe(out).compress
    stored = {
        i.name: i.data_type
        for i in onnx.load(out / "model.onnx").graph.initializer
        if len(i.dims) > 1
    }
    kinds = sorted(onnx.TensorProto.DataType.Name(t) for t in stored.values())
    assert kinds == ["INT4", "INT4", "INT8", "INT8"]
    notes = json.loads((out / "manifest.json").read_text())["details"]["precision"]["notes"]
    wide, whole = 216 + 72, 216 + 72 + 128 + 160
    assert any(
        f"4-bit weights but in first, depth ({100 * wide / whole:.1f} % of the weights" in n
        for n in notes
    )


@pytest.mark.parametrize(
    ("side", "samples", "bits", "epochs"),
    [(8, 128, 8, 24), (8, 128, 4, 20), (1024, 128, 8, 0), (1024, 128, 4, 5), (1024, 10**6, 4, 5)],
)
def test_training_is_shorter_for_more_work(side: int, samples: int, bits: int, epochs: int) -> None:
    """A convolution of 1024 x 1024 positions, 1024 multiply-adds each, on at most 128 samples."""
    made = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]> net (float[1,32,{side},{side}] x,
        float[32,32,1,1] w) => (float[1,32,{side},{side}] y) {{ y = Conv(x, w) }}"""
    )
    learning = _learning(ir.from_proto(made), samples, bits)
    assert learning[0].startswith("adaround")
    assert [t.split(",")[0] for t in learning[1:]] == (
        [f"train-quantized{{epochs={epochs}"] if epochs else []
    )
