"""The reference runs models in memory and from files, and says in one line what it can't run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from effc.core.errors import FrontendError
from effc.core.reference import OnnxRuntimeRunner, random_feeds, record_goldens

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2, 3] x, int64[4] i, bool[5] b) => (float[2, 3] y, int64[4] j, bool[5] c)
{
  y = Relu(x)
  j = Neg(i)
  c = Not(b)
}
"""


def test_goldens_are_the_outputs_by_name() -> None:
    model = ir.from_onnx_text(TEXT)
    feeds = random_feeds(model, 3, seed=1)
    goldens = record_goldens(model, feeds)
    assert len(goldens) == 3
    for f, g in zip(feeds, goldens, strict=True):
        np.testing.assert_array_equal(g["y"], np.maximum(f["x"], 0))
        np.testing.assert_array_equal(g["j"], -f["i"])
        np.testing.assert_array_equal(g["c"], ~f["b"])


def test_random_feeds_depend_on_the_seed_alone_and_are_not_degenerate() -> None:
    model = ir.from_onnx_text(TEXT)
    one, two, other = (random_feeds(model, 2, seed=s) for s in (1, 1, 2))
    for a, b in zip(one, two, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert not np.array_equal(one[0]["x"], other[0]["x"])
    assert not np.array_equal(one[0]["x"], one[1]["x"])
    assert one[0]["x"].std() > 0.3


def test_a_dynamic_input_asks_for_its_shape() -> None:
    model = ir.from_onnx_text(TEXT.replace("float[2, 3] x", "float[N, 3] x"))
    with pytest.raises(FrontendError, match="input 'x'") as caught:
        random_feeds(model, 1)
    assert "--shape x=" in caught.value.hint


def test_from_a_file(tmp_path: Path) -> None:
    model = ir.from_onnx_text(TEXT)
    ir.save(model, tmp_path / "m.onnx")
    (feeds,) = random_feeds(model, 1)
    with OnnxRuntimeRunner(tmp_path / "m.onnx") as runner:
        assert set(runner.infer(feeds)) == {"y", "j", "c"}
        assert len(runner.time(feeds, 5).seconds) == 5


def test_what_onnxruntime_refuses_is_one_line() -> None:
    model = ir.from_onnx_text(TEXT.replace("Relu(x)", "NoSuchOperator(x)"))
    with pytest.raises(FrontendError, match="onnxruntime can't run the model") as caught:
        record_goldens(model, [])
    assert "\n" not in str(caught.value)
