"""Flexible shapes: one program for all sizes, right at each of them, or a reason why there is none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("coremltools")

from effc.artifacts import load_artifact  # noqa: E402
from effc.backends.coreml.backend import PACKAGE  # noqa: E402
from effc.backends.coreml.convert.open_shapes import Opened, _rule  # noqa: E402
from effc.backends.coreml.interpret import Interpreter  # noqa: E402
from effc.backends.coreml.runner import Interpreted  # noqa: E402
from effc.backends.coreml.sizes import Sizes, parse_sizes  # noqa: E402
from effc.build import build  # noqa: E402
from effc.choices import BuildOptions  # noqa: E402
from effc.core.errors import (  # noqa: E402
    ConfigError,
    EffcError,
    UnsupportedOpError,
    VerificationError,
)
from effc.core.preprocess import Preprocess  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402

HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[1,3,h,w] image) => '
# shuffled channels by computed shapes, bilinear upsampling, a slice to the end, a flat head
BODY = """(float[1,n,2] rows, float[1,4] pooled)
    <int64[2] cut = {1, 1}, int64[2] end = {9223372036854775807, 9223372036854775807},
     int64[2] axes = {2, 3}, int64[1] two = {2}, int64[1] c = {4}, int64[1] b = {1}, int64[1] s2 = {2},
     int64[1] s4 = {4}, int64[3] flat = {1, -1, 2}, float[4]
     scales = {1.0, 1.0, 2.0, 2.0}, float[0] roi = {}> {
    x = Conv <pads=[1,1,1,1], strides=[2,2]> (image, weight)
    shape = Shape (x)
    hw = Slice (shape, s2, s4)
    five = Concat <axis=0> (b, two, two, hw)
    wide = Reshape (x, five)
    turned = Transpose <perm=[0,2,1,3,4]> (wide)
    four = Concat <axis=0> (b, c, hw)
    mixed = Reshape (turned, four)
    big = Resize <mode="linear"> (mixed, roi, scales)
    part = Slice (big, cut, end, axes)
    last = Transpose <perm=[0,2,3,1]> (part)
    rows = Reshape (last, flat)
    mean = GlobalAveragePool (part)
    pooled = Flatten (mean)
}"""


def saved(path: Path, body: str) -> str:
    proto = onnx.parser.parse_model(HEAD + body)
    if "weight" in body:
        weight = np.random.default_rng(3).standard_normal((4, 3, 3, 3)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save(proto, path)
    return str(path)


def made(source: str, out: Path, sizes: str, **more: object) -> Path:
    options = BuildOptions(
        backend_options={"sizes": sizes}, shapes={"image": (1, 3, 8, 10)}, measure=False, **more
    )
    build(source, "iphone-15", out, options)
    return out


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("flexible")
    source = saved(folder / "m.onnx", BODY)
    return made(source, folder / "m", "image=1,3,6..20,8..12"), source


def test_a_range_is_right_at_sizes_that_nobody_named(ranged: tuple[Path, str]) -> None:
    path, source = ranged
    artifact = load_artifact(path)
    assert artifact.manifest.verdict.status == "passed"
    assert "6 other shapes" in artifact.manifest.verdict.reason
    rng = np.random.default_rng(0)
    with Interpreted().runner(artifact) as runner, OnnxRuntimeRunner(Path(source)) as reference:
        for h, w in ((8, 10), (6, 8), (20, 12), (13, 11), (7, 12)):
            feeds = {"image": rng.standard_normal((1, 3, h, w)).astype(np.float32)}
            found, wanted = runner.infer(feeds), reference.infer(feeds)
            for name, array in wanted.items():
                assert found[name].shape == array.shape
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
        with pytest.raises(ConfigError, match=r"\[1, 3, 5, 10\] instead of \[1, 3, 6..20, 8..12\]"):
            runner.infer({"image": np.zeros((1, 3, 5, 10), np.float32)})


def test_the_package_says_its_range(ranged: tuple[Path, str]) -> None:
    (given_,) = Interpreter(ranged[0] / PACKAGE).inputs
    assert given_.shape == (1, 3, 8, 10) and given_.ranges == ((1, 1), (3, 3), (6, 20), (8, 12))
    assert "6..20" in (ranged[0] / "USAGE.md").read_text()


def test_a_picture_of_several_sizes(tmp_path: Path) -> None:
    body = "(float[1,4,i,j] y) { c = Conv <pads=[1,1,1,1]> (image, weight) y = Relu (c) }"
    source = saved(tmp_path / "m.onnx", body)
    path = made(
        source, tmp_path / "m", "image=1,3,12,10;1,3,6,14", preprocess=Preprocess.parse("imagenet")
    )
    (picture,) = Interpreter(path / PACKAGE).inputs
    assert picture.kind == "image" and picture.allowed == ((8, 10), (12, 10), (6, 14))
    assert "2 other shapes" in load_artifact(path).manifest.verdict.reason


def test_a_constant_that_holds_the_size_is_noticed(tmp_path: Path) -> None:
    """A quotient by a number of elements, folded: it fits every shape, and is wrong at all but one."""
    body = """(float[1,3,1,1] y) <int64[2] axes = {2, 3}, int64[1] one = {1}> {
        n = Size (image)
        more = Add (n, one)
        f = Cast <to=1> (more)
        s = ReduceSum <keepdims=1> (image, axes)
        y = Div (s, f)
    }"""
    source = saved(tmp_path / "m.onnx", body)
    with pytest.raises(VerificationError, match=r"at image \[1, 3, 16, 10\]"):
        made(source, tmp_path / "m", "image=1,3,16,10;1,3,8,20")


# -- reasons ---------------------------------------------------------------------------------------


def opened(body: str, shape: tuple[int, ...] = (1, 3, 8, 10)) -> Opened:
    model = ir.from_proto(onnx.parser.parse_model(HEAD + body))
    model.graph.inputs[0].shape = ir.Shape(shape)
    infer_shapes(model)
    return Opened(model, "image", (2, 3), "phone")


def test_a_constant_for_one_size_is_named() -> None:
    with pytest.raises(UnsupportedOpError, match="node 'at' .*'grid'.*made for one size") as error:
        opened("(float[1,3,8,10] y) <float[1,1,8,1] grid = {1,2,3,4,5,6,7,8}> "
               "{ [at] y = Add (image, grid) }")  # fmt: skip
    assert "join" in error.value.hint


def test_a_reshape_that_mixes_open_and_fixed_extents_is_named() -> None:
    with pytest.raises(UnsupportedOpError, match="node 'at' .*mixes"):
        opened("(float[1,12,20] y) <int64[3] t = {1,12,20}> { [at] y = Reshape (image, t) }")


def test_a_size_that_the_model_does_not_take_is_named() -> None:
    body = """(float[1,6,8,10] y) <float[4] scales = {1.0, 1.0, 2.0, 2.0}, float[0] roi = {}> {
        small = MaxPool <kernel_shape=[2,2], strides=[2,2]> (image)
        big = Resize <mode="nearest"> (small, roi, scales)
        [at] y = Concat <axis=1> (big, image)
    }"""
    ready = opened(body)
    ready.at((1, 3, 12, 14))
    with pytest.raises(UnsupportedOpError, match=r"node 'at' .*at image \[1, 3, 9, 10\]") as error:
        ready.at((1, 3, 9, 10))
    assert "range" in error.value.hint


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ("image=1,3,8", "4 dimensions"),
        ("image=1,3,20..40,20..40", "outside the range"),
        ("image=1,3,8,10", "only the shape"),
        ("pixels=1,3,8..9,10", "no input"),
        ("image=1,3,8..9,10;1,3,8,12", "exclude"),
        ("image=1,3,9..8,10", "no extent"),
        ("1,3,8,10", "no shapes"),
        ("image=1,3..4,8,10", "contradicts"),
    ],
)
def test_sizes_that_make_no_sense(tmp_path: Path, sizes: str, words: str) -> None:
    source = saved(tmp_path / "m.onnx", "(float[1,3,i,j] y) { y = Relu (image) }")
    with pytest.raises(EffcError, match=words):
        made(source, tmp_path / "m", sizes)
    assert not (tmp_path / "m").exists()


def test_a_range_is_tried_at_its_corners_and_inside() -> None:
    sizes = parse_sizes("x=1,3,32..96,64..128")
    cases = sizes.cases((1, 3, 32, 64))
    assert {(32, 128), (96, 64), (96, 128)} < {c[2:] for c in cases}
    assert any(c[2] % 2 and c[3] % 2 for c in cases) and all(sizes.accepts(c) for c in cases)
    assert Sizes.from_description(sizes.describe()) == sizes


@given(st.data())
def test_the_rule_of_a_reshape_holds_at_other_sizes(data: st.DataObject) -> None:
    source = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    out = list(source)
    for _ in range(data.draw(st.integers(0, 3))):  # merge neighbours, split off factors
        i = data.draw(st.integers(0, len(out) - 1))
        if data.draw(st.booleans()) and i + 1 < len(out):
            out[i : i + 2] = [out[i] * out[i + 1]]
        else:
            factor = data.draw(
                st.sampled_from([d for d in range(1, out[i] + 1) if out[i] % d == 0])
            )
            out[i : i + 1] = [factor, out[i] // factor]
    flags = data.draw(st.lists(st.booleans(), min_size=len(source), max_size=len(source)))
    rule = _rule(source, out, flags)
    if rule is None:
        return
    grown = [
        d * data.draw(st.integers(1, 3)) if f else d for d, f in zip(source, flags, strict=True)
    ]
    for now in (source, grown):
        target = [
            math.prod(now[a:b]) // math.prod(rest) if depends else d
            for d, (depends, (a, b), rest) in zip(out, rule, strict=True)
        ]
        assert math.prod(target) == math.prod(now)
        assert now != source or target == out
