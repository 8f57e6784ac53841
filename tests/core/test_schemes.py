"""Schemes: what they say about single nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from effc.core.errors import ConfigError
from effc.core.ir import add_const
from effc.core.schemes import SCHEMES, Kind, bounds, scheme, weight_axis
from effc.core.shapes import infer_shapes


def node(call: str, shape: str = "1,4,8,8", **arrays: np.ndarray) -> ir.Node:
    """`y = call` on a float x; free names are the arrays."""
    text = f'<ir_version: 10, opset_import: ["": 23]> g (float[{shape}] x) => (y) {{ y = {call} }}'
    model = ir.from_onnx_text(text)
    for name, array in arrays.items():
        value = add_const(model.graph, name, array)
        for user in model.graph:
            for index, old in enumerate(user.inputs):
                if old is not None and old.name == name and old is not value:
                    user.replace_input_with(index, value)
    infer_shapes(model)
    return model.graph[-1]


F = np.float32
W = np.ones((6, 4, 1, 1), F)


@pytest.mark.parametrize(
    ("call", "shape", "arrays", "word"),
    [
        ("Gemm <alpha=2.0> (x, w)", "3,4", {"w": np.ones((4, 2), F)}, "alpha"),
        ("Gemm <transA=1> (x, w)", "4,3", {"w": np.ones((4, 2), F)}, "transA"),
        ("Gemm (x, x)", "4,4", {}, "weight is computed"),
        ("Conv (x, x)", "1,4,8,8", {}, "weight is computed"),
        ("MatMul (x, w)", "3,4", {"w": np.ones(4, F)}, "vector"),
        ('Resize <mode="linear"> (x, , s)', "1,4,8,8", {"s": np.array([1, 1, 2, 2], F)}, "nearest"),
        ("Pad (x, p, v)", "4", {"p": np.array([1, 1]), "v": np.array(3, F)}, "another constant"),
        (
            "Clip (x, low, high)",
            "4",
            {"low": np.array(1, F), "high": np.array(6, F)},
            "leave out 0",
        ),
        ("PRelu (x, s)", "1,4,8,8", {"s": np.ones((4, 1, 1), F)}, "differ by channel"),
        ("Softmax (x)", "4", {}, "not quantized by the scheme"),
    ],
)
def test_nodes_that_stay_float_say_why(
    call: str, shape: str, arrays: dict[str, np.ndarray], word: str
) -> None:
    found = node(call, shape, **arrays)
    for name in ("vnni", "integer"):
        assert scheme(name).rule(found) is None
        assert word in scheme(name).why_float(found)


@pytest.mark.parametrize(
    ("call", "shape", "arrays", "kind"),
    [
        ("Conv (x, w)", "1,4,8,8", {"w": W}, Kind.MULTIPLY),
        ("Gemm <transB=1> (x, w)", "3,4", {"w": np.ones((2, 4), F)}, Kind.MULTIPLY),
        ("MatMul (x, x)", "4,4", {}, Kind.MULTIPLY),
        ("Pad (x, p)", "4", {"p": np.array([1, 1])}, Kind.MOVE),
        ('Pad <mode="reflect"> (x, p)', "4", {"p": np.array([1, 1])}, Kind.MOVE),
        ("Resize (x, , s)", "1,4,8,8", {"s": np.array([1, 1, 2, 2], F)}, Kind.MOVE),
        ("Clip (x, low)", "4", {"low": np.array(-1, F)}, Kind.CLAMP),
        ("PRelu (x, s)", "1,4,8,8", {"s": np.full(1, 0.1, F)}, Kind.FUNCTION),
    ],
)
def test_nodes_that_are_quantized(
    call: str, shape: str, arrays: dict[str, np.ndarray], kind: Kind
) -> None:
    rule = scheme("vnni").rule(node(call, shape, **arrays))
    assert rule is not None and rule.kind is kind
    assert scheme("vnni").why_float(node(call, shape, **arrays)) == ""


@pytest.mark.parametrize(
    ("call", "shape", "arrays", "axis"),
    [
        ("Conv (x, w)", "1,4,8,8", {"w": W}, 0),
        ("ConvTranspose (x, w)", "1,6,8,8", {"w": W}, 1),
        ("Gemm (x, w)", "3,4", {"w": np.ones((4, 2), F)}, 1),
        ("Gemm <transB=1> (x, w)", "3,4", {"w": np.ones((2, 4), F)}, 0),
        ("MatMul (x, w)", "3,4", {"w": np.ones((4, 2), F)}, 1),
        ("MatMul (x, w)", "5,3,4", {"w": np.ones((5, 4, 2), F)}, 2),
    ],
)
def test_the_weight_axis_counts_output_channels(
    call: str, shape: str, arrays: dict[str, np.ndarray], axis: int
) -> None:
    assert weight_axis(node(call, shape, **arrays)) == axis


def test_bounds() -> None:
    clip = node("Clip (x, low, high)", "4", low=np.array(0, F), high=np.array(6, F))
    assert bounds(clip.outputs[0]) == (0, 6)
    for call, wanted in {"Relu (x)": (0, np.inf), "Sigmoid (x)": (0, 1), "Tanh (x)": (-1, 1),
                         "Clip (x)": (-np.inf, np.inf), "Abs (x)": (-np.inf, np.inf)}.items():  # fmt: skip
        assert bounds(node(call, "4").outputs[0]) == wanted


def test_types_of_every_scheme() -> None:
    for found in SCHEMES.values():
        assert (
            found.weight.symmetric and found.weight.per_channel and not found.activation.per_channel
        )
        assert {"Conv", "Gemm", "MatMul"} <= set(found.ops)
    assert not any(SCHEMES[s].ops.get("Concat") for s in ("tensorrt",))
    with pytest.raises(ConfigError, match="'gpu'"):
        scheme("gpu")
