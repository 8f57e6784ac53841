"""What is lost, in the points of the task."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from effc.core.measure import Feeds
from effc.core.shapes import infer_shapes
from effc.precision.score import Judge

TEXT = """
<ir_version: 10, opset_import: ["": 23]>
g (float[1,{n}] x) => (float[{shape}] y) {{ y = {op} }}"""


def model(op: str = "Identity(x)", n: int = 4, shape: str = "1,4") -> ir.Model:
    made = ir.from_proto(onnx.parser.parse_model(TEXT.format(op=op, n=n, shape=shape)))
    infer_shapes(made)
    return made


class Rows:
    """One sample a row, with or without labels."""

    synthetic = False
    fingerprint = "rows"

    def __init__(self, rows: np.ndarray, labels: list[int | None]) -> None:
        self.rows, self.labels = rows.astype(np.float32), labels

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Feeds]:
        return ({"x": row[None]} for row in self.rows)

    def labelled(self) -> Iterator[tuple[Feeds, int | None]]:
        return zip(self, self.labels, strict=True)


ROWS = np.eye(4) * 3 + np.arange(4) / 8  # the best class of row i is i


def test_top1_in_points_where_labels_are_known() -> None:
    judge = Judge.record(model(), Rows(ROWS, [0, 1, 1, None]))
    assert judge.metric == "top-1"
    same = judge.score(model())
    assert (same.drop, same.agreement, same.sqnr_db) == (0.0, 100.0, float("inf"))
    worse = judge.score(model("Neg(x)"))  # no row keeps its best class
    assert worse.drop == pytest.approx(200 / 3, abs=1e-3)
    assert (worse.agreement, worse.top1, worse.samples) == (0.0, 0.0, 4)


def test_agreement_without_labels() -> None:
    judge = Judge.record(model(), Rows(ROWS, [None] * 4))
    assert judge.metric == "agreement"
    assert judge.score(model("Neg(x)")).drop == 100.0


def test_noise_in_percent_where_no_output_is_scores() -> None:
    judge = Judge.record(model("Reshape(x, s)", shape="2,2"), Rows(ROWS, [None] * 4)) if 0 else None
    assert judge is None
    plain = model("Abs(x)", n=4, shape="1,4")
    judge = Judge.record(plain, Rows(ROWS, [None] * 4))
    judge = Judge(judge.feeds, judge.labels, judge.answers, "")
    found = judge.compare([{"y": 1.01 * a["y"]} for a in judge.answers])
    assert found.metric == "noise"
    assert found.drop == pytest.approx(1.0, rel=1e-4)  # an error of 1 % of the signal
    assert found.sqnr_db == pytest.approx(40.0, rel=1e-3)


def test_a_nan_is_infinitely_wrong() -> None:
    judge = Judge.record(model(), Rows(ROWS, [0, 1, 2, 3]))
    found = judge.compare([{"y": a["y"] * np.nan} for a in judge.answers])
    assert found.sqnr_db == float("-inf") and found.agreement == 0.0
