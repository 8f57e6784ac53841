"""The verdict follows the promise; what is missing, misshapen or not finite never passes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from effc.core.passinfra import Effect
from effc.core.verify import compare_outputs, judge, quantized_outputs

GOLDEN = {"y": np.linspace(-2, 2, 101, dtype=np.float32)}


def shifted(by: float) -> dict[str, np.ndarray]:
    return {"y": GOLDEN["y"] + np.float32(by)}


@pytest.mark.parametrize(
    ("by", "effect", "status"),
    [
        (0.0, Effect.EXACT, "passed"),
        (1e-4, Effect.EXACT, "passed"),
        (1e-3, Effect.EXACT, "failed"),
        (1e-3, Effect.ROUNDED, "passed"),
        (0.5, Effect.ROUNDED, "failed"),
        (0.5, Effect.LOSSY, "passed"),
        (float("nan"), Effect.LOSSY, "failed"),
        (float("nan"), Effect.ROUNDED, "failed"),
        (float("nan"), Effect.EXACT, "failed"),
        (float("inf"), Effect.EXACT, "failed"),
    ],
)
def test_judge(by: float, effect: Effect, status: str) -> None:
    assert judge([GOLDEN], [shifted(by)], effect).status == status


@pytest.mark.parametrize("effect", list(Effect))
def test_a_missing_or_misshapen_output_fails(effect: Effect) -> None:
    assert judge([GOLDEN], [{}], effect).status == "failed"
    assert judge([GOLDEN], [{"y": GOLDEN["y"][:50]}], effect).status == "failed"


@pytest.mark.parametrize(
    ("by", "noise", "status"),
    [
        (1e-3, 6e-4, "passed"),  # within twice the control
        (1e-3, 4e-4, "failed"),
        (0.1, 0.1, "failed"),  # no control excuses more than 1e-2
        (float("nan"), 1e-2, "failed"),
    ],
)
def test_the_control_says_how_much_is_noise(by: float, noise: float, status: str) -> None:
    scale = 2.0  # GOLDEN's range
    verdict = judge([GOLDEN], [shifted(by * scale)], Effect.EXACT, lambda: [shifted(noise * scale)])
    assert verdict.status == status
    assert ("amplifies rounding" in verdict.reason) == (status == "passed")


def test_the_control_is_asked_only_in_need_and_never_excuses_integers() -> None:
    def control():
        raise AssertionError("asked without need")

    assert judge([GOLDEN], [shifted(0)], Effect.EXACT, control).status == "passed"
    golden, wrong = {"i": np.arange(9)}, {"i": np.arange(1, 10)}
    assert judge([golden], [wrong], Effect.EXACT, lambda: [wrong]).status == "failed"
    golden, unit = {"q": np.arange(-128, 128)}, {"q": np.arange(-128, 128)}
    unit["q"][7] += 1
    assert judge([golden], [unit], Effect.EXACT, lambda: [unit]).status == "failed"


def test_integers_must_be_equal() -> None:
    golden = {"i": np.arange(1000)}
    wrong = {"i": np.arange(1000)}
    wrong["i"][3] += 1
    assert judge([golden], [golden], Effect.EXACT).status == "passed"
    assert judge([golden], [wrong], Effect.EXACT).status == "failed"


def test_quantized_outputs_may_fall_on_the_other_side_of_a_rounding() -> None:
    golden, unit, two = ({"q": np.arange(-128, 128)} for _ in range(3))
    unit["q"][7] += 1
    two["q"][7] += 2
    assert judge([golden], [unit], Effect.EXACT, quantized={"q"}).status == "passed"
    assert judge([golden], [unit], Effect.EXACT, quantized={"other"}).status == "failed"
    assert judge([golden], [two], Effect.EXACT, quantized={"q"}).status == "failed"


def test_which_outputs_are_quantized() -> None:
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 3] x, float s, int8 z) => (int8[3, 2] q, float[2, 3] r, int64[2] i)
        {
          a = QuantizeLinear(x, s, z)
          q = Transpose(a)
          r = DequantizeLinear(a, s, z)
          i = ArgMax<axis = 1, keepdims = 0>(a)
        }
        """
    )
    assert quantized_outputs(model) == {"q"}


def test_nan_and_inf_where_the_golden_has_them_are_right() -> None:
    golden = {"y": np.array([1.0, np.nan, np.inf, -np.inf], np.float32)}
    assert judge([golden], [golden], Effect.EXACT).status == "passed"
    assert (
        judge([golden], [{"y": np.array([1, 2, np.inf, -np.inf])}], Effect.EXACT).status == "failed"
    )


def test_errors_are_taken_over_all_samples_and_by_the_range_of_the_output() -> None:
    (error,) = compare_outputs([GOLDEN, GOLDEN], [shifted(0), shifted(0.2)])
    assert error.max_abs == pytest.approx(0.2, rel=1e-5)
    assert error.max_rel == pytest.approx(0.1, rel=1e-5)
    signal, noise = float((GOLDEN["y"].astype(float) ** 2).sum() * 2), 0.04 * 101
    assert error.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
