"""Resizing against torch, onnxruntime, and the examples in Apple's documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import helper

from effc.backends.coreml.interpret.ops.resizing import grid
from effc.core.errors import EffcError


def onnx_node(op: str, inputs: list[Any], **attributes: Any) -> np.ndarray:
    names = [f"i{n}" if v is not None else "" for n, v in enumerate(inputs)]
    given = {n: v for n, v in zip(names, inputs, strict=True) if n}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in given.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes)],
        "g",
        infos,
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, given)[0]
    return result


# "Xin = 2": the examples of resize_bilinear's documentation
EXAMPLES = {
    ("UNALIGN_CORNERS", 5): [0.0, 0.1, 0.5, 0.9, 1.0],
    ("STRICT_ALIGN_CORNERS", 5): [0.0, 0.25, 0.5, 0.75, 1.0],
    ("ALIGN_CORNERS", 5): [0.0, 0.25, 0.5, 0.75, 1.0],
    ("DEFAULT", 5): [0.0, 0.4, 0.8, 1.0, 1.0],
    ("OFFSET_CORNERS", 5): [0.1, 0.3, 0.5, 0.7, 0.9],
    ("UNALIGN_CORNERS", 6): [0.0, 0.0, 0.33, 0.67, 1.0, 1.0],
    ("STRICT_ALIGN_CORNERS", 6): [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
    ("DEFAULT", 6): [0.0, 0.33, 0.67, 1.0, 1.0, 1.0],
    ("OFFSET_CORNERS", 6): [0.08, 0.25, 0.42, 0.58, 0.75, 0.92],
    ("ALIGN_CORNERS", 1): [0.5],
    ("STRICT_ALIGN_CORNERS", 1): [0.0],
}


@pytest.mark.parametrize(("mode", "out"), EXAMPLES)
def test_documented_grids(mode: str, out: int) -> None:
    np.testing.assert_allclose(grid(2, out, mode), EXAMPLES[mode, out], atol=0.005)


SIZES = [(9, 14), (3, 4), (5, 13)]


def image(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, 3, 5, 7)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_bilinear(mil: Any, rng: np.random.Generator, size: tuple[int, int]) -> None:
    x = image(rng)
    modes = ["STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS", "DEFAULT"]

    def build(mb: Any, x: Any) -> list[Any]:
        h, w = size
        return [
            *(
                mb.resize_bilinear(x=x, target_size_height=h, target_size_width=w, sampling_mode=m)
                for m in modes
            ),
            *(
                mb.resize(x=x, shape=[h, w], resized_dims=np.uint32(2), sampling_mode=m)
                for m in modes
            ),
        ]

    got = mil.run(build, {"x": x})
    t = torch.from_numpy(x)
    sizes = np.array([2, 3, *size], np.int64)
    wants = [
        F.interpolate(t, size, mode="bilinear", align_corners=True).numpy(),
        F.interpolate(t, size, mode="bilinear", align_corners=False).numpy(),
        onnx_node(
            "Resize", [x, None, None, sizes], mode="linear",
            coordinate_transformation_mode="asymmetric",
        ),
    ]  # fmt: skip
    for g, w in zip(got, wants * 2, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [(3, 2), (2.5, 1.7), (0.6, 0.5)])
def test_upsample_bilinear(mil: Any, rng: np.random.Generator, scale: tuple[float, float]) -> None:
    x = image(rng)

    def build(mb: Any, x: Any) -> list[Any]:
        common = {"x": x, "scale_factor_height": scale[0], "scale_factor_width": scale[1]}
        if isinstance(scale[0], float):
            common = {k: np.float32(v) if k != "x" else v for k, v in common.items()}
        return [
            mb.upsample_bilinear(**common, align_corners=True),
            mb.upsample_bilinear(**common, align_corners=False),
            mb.upsample_bilinear(**common, align_corners=False, half_pixel_centers=False),
        ]

    aligned, half, plain = mil.run(build, {"x": x})
    t = torch.from_numpy(x)
    for got, align in ((aligned, True), (half, False)):
        want = F.interpolate(
            t, scale_factor=scale, mode="bilinear", align_corners=align, recompute_scale_factor=True
        )
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
    want = onnx_node(
        "Resize", [x, None, None, np.array(plain.shape, np.int64)], mode="linear",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    np.testing.assert_allclose(plain, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_nearest(mil: Any, rng: np.random.Generator, size: tuple[int, int]) -> None:
    x = image(rng)
    h, w = size

    def build(mb: Any, x: Any) -> list[Any]:
        return [
            mb.resize_nearest_neighbor(x=x, target_size_height=h, target_size_width=w),
            mb.resize(
                x=x, shape=[h, w], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
            ),
            # as coremltools' frontends write fractions
            mb.upsample_nearest_neighbor(
                x=x,
                scale_factor_height=np.float32((h + 1e-4) / 5),
                scale_factor_width=np.float32((w + 1e-4) / 7),
            ),
        ]

    first, second, upsampled = mil.run(build, {"x": x})
    t = torch.from_numpy(x)
    exact = F.interpolate(t, size, mode="nearest-exact").numpy()
    np.testing.assert_array_equal(first, exact)
    np.testing.assert_array_equal(second, exact)
    np.testing.assert_array_equal(upsampled, F.interpolate(t, size, mode="nearest").numpy())


def test_resize_of_apples_tests(mil: Any) -> None:
    """The expectation of coremltools' test on macOS."""
    x = np.array([-6.174, 9.371], np.float32).reshape(1, 1, 1, 2, 1)
    got = mil.one(
        lambda mb, x: mb.resize(
            x=x,
            shape=[1, 1, 3, 2],
            resized_dims=np.uint32(2),
            interpolation_mode="NEAREST_NEIGHBOR",
        ),
        x,
    )
    assert got.shape == (1, 1, 1, 3, 2)
    np.testing.assert_allclose(got.ravel(), [-6.174, -6.174, 9.371, 9.371, 9.371, 9.371])


def test_nearest_with_an_undocumented_grid_is_refused(mil: Any) -> None:
    with pytest.raises(EffcError, match=r"resize.*NEAREST_NEIGHBOR.*'ALIGN_CORNERS'"):
        mil.one(
            lambda mb, x: mb.resize(
                x=x, shape=[4, 4], resized_dims=np.uint32(2),
                interpolation_mode="NEAREST_NEIGHBOR", sampling_mode="ALIGN_CORNERS",
            ),
            np.zeros((1, 1, 2, 2), np.float32),
        )  # fmt: skip


def test_crop(mil: Any, rng: np.random.Generator) -> None:
    x = image(rng)
    got = mil.one(lambda mb, x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]), x)
    np.testing.assert_array_equal(got, x[:, :, 1:3, :4])


BOXES = np.array([[0.5, 1.2, 3.1, 5.0], [1.0, 0.0, 4.0, 6.0], [2.0, 2.5, 2.4, 2.6]], np.float32)


def test_crop_resize_offset_corners_is_roi_align(mil: Any, rng: np.random.Generator) -> None:
    """One sample in the middle of each bin, bins of a box of at least one pixel."""
    x = image(rng)
    indices = np.array([1, 0, 1])
    got = mil.one(
        lambda mb, x: mb.crop_resize(
            x=x, boxes=BOXES, box_indices=indices.astype(np.int32), target_height=3,
            target_width=2, sampling_mode="OFFSET_CORNERS",
        ),
        x,
    )  # fmt: skip
    want = onnx_node(
        "RoiAlign", [x, BOXES[:, [1, 0, 3, 2]], indices], output_height=3, output_width=2,
        sampling_ratio=1, coordinate_transformation_mode="output_half_pixel",
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_crop_resize_forms(mil: Any, rng: np.random.Generator) -> None:
    """All notations of the same boxes, old and new, give the same crops."""
    x = image(rng)
    y0, x0, y1, x1 = BOXES.T
    forms = {
        "CORNERS_HEIGHT_FIRST": BOXES,
        "CORNERS_WIDTH_FIRST": np.stack([x0, y0, x1, y1], 1),
        "CENTER_SIZE_HEIGHT_FIRST": np.stack([(y0 + y1) / 2, (x0 + x1) / 2, y1 - y0, x1 - x0], 1),
        "CENTER_SIZE_WIDTH_FIRST": np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1),
    }
    size = {"target_height": 4, "target_width": 3, "sampling_mode": "ALIGN_CORNERS"}

    def new(mb: Any, x: Any) -> list[Any]:
        zero = np.zeros(3, np.int32)
        whole = BOXES / np.array([4, 6, 4, 6], np.float32)
        return [
            *(
                mb.crop_resize(x=x, boxes=b, box_indices=zero, box_coordinate_mode=m, **size)
                for m, b in forms.items()
            ),
            mb.crop_resize(x=x, boxes=whole, box_indices=zero, normalized_coordinates=True, **size),
            mb.crop_resize(x=x, boxes=BOXES * 2, box_indices=zero, spatial_scale=0.5, **size),
        ]

    first, *others = mil.run(new, {"x": x})
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)
    rows = np.linspace(y0[1], y1[1], 4)
    assert np.allclose(first[1, :, :, 0], x[0][:, rows.astype(int), 0])

    roi = BOXES.reshape(3, 1, 4, 1, 1)
    every = mil.one(lambda mb, x: mb.crop_resize(x=x, roi=roi, **size), x, opset=16)
    assert every.shape == (3, 2, 3, 4, 3)
    np.testing.assert_allclose(every[:, 0], first, rtol=1e-5, atol=1e-6)
    # coremltools' types and its documentation agree on one image only
    indexed = np.concatenate([np.zeros((3, 1), np.float32), BOXES], 1).reshape(3, 1, 5, 1, 1)
    one = mil.one(lambda mb, x: mb.crop_resize(x=x, roi=indexed, **size), x[1:], opset=15)
    np.testing.assert_array_equal(one[:, 0], every[:, 1])


def test_crop_resize_beyond_the_image(mil: Any) -> None:
    """The expectation of coremltools' test on macOS."""
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    boxes = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], np.float32)
    got = mil.one(
        lambda mb, x: mb.crop_resize(
            x=x, boxes=boxes, box_indices=np.zeros(3, np.int32), target_width=2, target_height=2,
            normalized_coordinates=True, sampling_mode="ALIGN_CORNERS", pad_value=10.0,
        ),
        x,
    )  # fmt: skip
    want = [3.1, 5.2, 10.0, 10.0, 10.0, 7.899, 10.0, 13.9, 2.2, 3.1, 9.4, 10.3]
    np.testing.assert_allclose(got.ravel(), want, rtol=1e-3)


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize(("mode", "align"), [("constant", True), ("constant", False)] + [
    ("border", True), ("border", False), ("reflection", True), ("symmetric", False),
])  # fmt: skip
def test_resample(
    mil: Any, rng: np.random.Generator, sampling: str, mode: str, align: bool
) -> None:
    """torch reflects about centres where corners are aligned, about edges where not."""
    x = image(rng)
    at = rng.uniform(-1.9, 1.9, (2, 4, 3, 2)).astype(np.float32)
    common = {"sampling_mode": sampling, "padding_mode": mode, "padding_value": 0.0}

    def build(mb: Any, x: Any, at: Any) -> list[Any]:
        zero_to_one = mb.mul(x=mb.add(x=at, y=1.0), y=0.5)
        return [
            mb.resample(
                x=x, coordinates=at, coordinates_mode="normalized_minus_one_to_one",
                align_corners=align, **common,
            ),
            mb.resample(
                x=x, coordinates=zero_to_one, coordinates_mode="normalized_zero_to_one",
                align_corners=align, **common,
            ),
        ]  # fmt: skip

    names = {"constant": "zeros", "symmetric": "reflection"}
    want = F.grid_sample(
        *map(torch.from_numpy, (x, at)), sampling, names.get(mode, mode), align_corners=align
    ).numpy()
    for got in mil.run(build, {"x": x, "at": at}):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def test_resample_unnormalized(mil: Any, rng: np.random.Generator) -> None:
    x = image(rng)
    at = np.array([[[[2.5, 1.25]]], [[[6.0, -0.5]]]], np.float32)
    got = mil.one(
        lambda mb, x, at: mb.resample(
            x=x, coordinates=at, sampling_mode="bilinear", padding_mode="constant",
            padding_value=8.0, coordinates_mode="unnormalized", align_corners=True,
        ),
        x, at,
    )  # fmt: skip
    middle = (x[0, :, 1, 2] + x[0, :, 1, 3]) / 2 * 0.75 + (x[0, :, 2, 2] + x[0, :, 2, 3]) / 2 * 0.25
    np.testing.assert_allclose(got[0, :, 0, 0], middle, rtol=1e-5)
    np.testing.assert_allclose(got[1, :, 0, 0], (x[1, :, 0, 6] + 8) / 2, rtol=1e-5)


def test_affine(mil: Any, rng: np.random.Generator) -> None:
    x = image(rng)
    matrix = np.array(
        [[0.8, 0.3, 0.1, -0.2, 1.1, 0.4], [1.0, 0.0, 0.2, 0.1, 0.5, -0.3]], np.float32
    )
    got = mil.one(
        lambda mb, x: mb.affine(
            x=x, transform_matrix=matrix, output_height=4, output_width=6, sampling_mode="bilinear",
            padding_mode="constant", padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one", align_corners=True,
        ),
        x,
    )  # fmt: skip
    where = F.affine_grid(torch.from_numpy(matrix.reshape(2, 2, 3)), [2, 3, 4, 6], True)
    want = F.grid_sample(torch.from_numpy(x), where, align_corners=True).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
