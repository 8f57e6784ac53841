"""Making, joining, ordering, padding, moving."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import helper

from effc.backends.coreml.interpret.ops.tensor import topk
from effc.core.errors import EffcError

X = np.random.default_rng(3).normal(size=(2, 3, 4)).astype(np.float32)
IMAGE = np.random.default_rng(4).normal(size=(2, 8, 4, 6)).astype(np.float32)
T, PICTURE = torch.from_numpy(X), torch.from_numpy(IMAGE)
INTS = np.array([[3, 1, 2], [-5, 7, 0]], np.int32)


def blocks(x: torch.Tensor, b: int) -> torch.Tensor:
    """onnx's DepthToSpace in its DCR mode, which is the definition of depth_to_space."""
    n, c, h, w = x.shape
    return x.reshape(n, b * b, c // (b * b), h, w).transpose(1, 2).reshape(n, c, h, w)


MOVES: dict[str, tuple[Any, Any]] = {
    "identity": (lambda mb, x: mb.identity(x=x), T),
    "shape": (lambda mb, x: mb.shape(x=x), torch.tensor([2, 3, 4])),
    "tile": (lambda mb, x: mb.tile(x=x, reps=[2, 1, 3]), T.tile(2, 1, 3)),
    "concat": (
        lambda mb, x: mb.concat(values=[x, mb.abs(x=x)], axis=-2),
        torch.cat([T, T.abs()], 1),
    ),
    "concat/one": (lambda mb, x: mb.concat(values=[x], axis=0), T),
    "concat/interleave": (
        lambda mb, x: mb.concat(values=[x, mb.abs(x=x)], axis=1, interleave=True),
        torch.stack([T, T.abs()], 2).flatten(1, 2),
    ),
    "stack": (lambda mb, x: mb.stack(values=[x, mb.abs(x=x)], axis=1), torch.stack([T, T.abs()], 1)),
    "split": (lambda mb, x: mb.split(x=x, num_splits=2, axis=-1)[1], T.chunk(2, -1)[1]),
    "split/sizes": (
        lambda mb, x: mb.split(x=x, split_sizes=[1, 2], axis=1)[1],
        T.split([1, 2], 1)[1],
    ),
    "select": (
        lambda mb, x: mb.select(cond=mb.greater(x=x, y=0.2), a=x, b=mb.square(x=x)),
        torch.where(T > 0.2, T, T.square()),
    ),
    "band_part": (lambda mb, x: mb.band_part(x=x, lower=1, upper=0), T.tril() - T.tril(-2)),
    "band_part/upper": (lambda mb, x: mb.band_part(x=x, lower=-1, upper=1), T.tril(1)),
    "cumsum": (lambda mb, x: mb.cumsum(x=x, axis=1), T.cumsum(1)),
    "cumsum/both": (
        lambda mb, x: mb.cumsum(x=x, axis=2, exclusive=True, reverse=True),
        T.flip(2).cumsum(2).flip(2) - T,
    ),
    "fill": (lambda mb, x: mb.fill(shape=mb.shape(x=x), value=2.5), torch.full((2, 3, 4), 2.5)),
    "fill_like": (lambda mb, x: mb.fill_like(ref_tensor=x, value=7), torch.full((2, 3, 4), 7)),
    "argsort": (lambda mb, x: mb.argsort(x=x, axis=1), T.argsort(1, descending=True)),
    "argsort/ascending": (lambda mb, x: mb.argsort(x=x, ascending=True), T.argsort(-1)),
    "topk": (lambda mb, x: mb.topk(x=x, k=2, axis=2)[0], T.topk(2, 2)[0]),
    "topk/indices": (
        lambda mb, x: mb.topk(x=x, k=2, axis=1, ascending=True, output_indices_dtype="uint16")[1],
        T.topk(2, 1, largest=False)[1],
    ),
    "topk/values": (
        lambda mb, x: mb.topk(x=x, k=4, axis=2, return_indices=False),
        T.sort(2, descending=True)[0],
    ),
    "flatten2d": (lambda mb, x: mb.flatten2d(x=x, axis=-1), T.reshape(6, 4)),
    "expand_dims": (lambda mb, x: mb.expand_dims(x=x, axes=[1, -1]), T[:, None, ..., None]),
    "squeeze": (
        lambda mb, x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2]), axes=[-3, 1]),
        T[None],
    ),
    "squeeze/all": (lambda mb, x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2])), T),
    "transpose": (lambda mb, x: mb.transpose(x=x, perm=[2, 0, -2]), T.permute(2, 0, 1)),
    "reverse": (lambda mb, x: mb.reverse(x=x, axes=[0, -1]), T.flip(0, 2)),
    "reverse/all": (lambda mb, x: mb.reverse(x=x), T.flip(0, 1, 2)),
    "reverse_sequence": (
        lambda mb, x: mb.reverse_sequence(x=x, lengths=[3, 2], seq_axis=2, batch_axis=0),
        torch.stack([T[0][:, [2, 1, 0, 3]], T[1][:, [1, 0, 2, 3]]]),
    ),
    "sliding_windows": (
        lambda mb, x: mb.sliding_windows(x=x, axis=1, size=2),
        T.unfold(1, 2, 1).movedim(-1, 2),
    ),
    "sliding_windows/stride": (
        lambda mb, x: mb.sliding_windows(x=x, axis=-1, size=2, stride=2),
        T.unfold(2, 2, 2),
    ),
    "reshape": (lambda mb, x: mb.reshape(x=x, shape=[4, -1]), T.reshape(4, -1)),
    "reshape_like": (
        lambda mb, x: mb.reshape_like(
            x=x, ref_tensors=[mb.transpose(x=x, perm=[2, 0, 1]), x], begins=[0, 1], ends=[2, 2],
            end_masks=[False, False],
        ),
        T.reshape(4, 2, 3),
    ),
    "slice_by_index": (
        lambda mb, x: mb.slice_by_index(
            x=x, begin=[1, -1, 3], end=[0, 0, -4], stride=[1, -1, -2],
            squeeze_mask=[True, False, False],
        ),
        T[1].flip(0)[:-1].flip(1)[:, ::2][:, :2],
    ),
    "slice_by_index/masks": (
        lambda mb, x: mb.slice_by_index(
            x=x, begin=[1, 1, 2], end=[1, 2, 3], begin_mask=[True, False, True],
            end_mask=[False, True, False],
        ),
        T[:1, 1:, :3],
    ),
    "slice_by_size": (
        lambda mb, x: mb.slice_by_size(x=x, begin=[0, 1, 2], size=[1, -1, 2]),
        T[:1, 1:, 2:4],
    ),
    "slice_update": (
        lambda mb, x: mb.slice_update(
            x=x, update=-X[:, :2, :1], begin=[0, 1, 3], end=[2, 3, 4], stride=[1, 1, 2]
        ),
        torch.cat([T[..., :3], torch.cat([T[:, :1, 3:], -T[:, :2, :1]], 1)], 2),
    ),
    "pad": (
        lambda mb, x: mb.pad(x=x, pad=[1, 2, 0, 3], constant_val=9.0),
        F.pad(T, (0, 3, 1, 2), value=9.0),
    ),
    "pad/reflect": (
        lambda mb, x: mb.pad(x=x, pad=[3, 1], mode="reflect"),
        F.pad(T, (3, 1), mode="reflect"),
    ),
    "pad/replicate": (
        lambda mb, x: mb.pad(x=x, pad=[2, 1], mode="replicate"),
        F.pad(T, (2, 1), mode="replicate"),
    ),
    "non_zero": (
        lambda mb, x: mb.non_zero(x=mb.relu(x=x)),
        torch.nonzero(T.relu()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVES)
def test_tensor_operation(mil: Any, case: str) -> None:
    build, want = MOVES[case]
    got = mil.one(build, X)
    assert got.shape == tuple(want.shape)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-6)


IMAGES: dict[str, tuple[Any, Any]] = {
    "depth_to_space": (
        lambda mb, x: mb.depth_to_space(x=x, block_size=2),
        F.pixel_shuffle(blocks(PICTURE, 2), 2),
    ),
    "space_to_depth": (
        lambda mb, x: mb.depth_to_space(x=mb.space_to_depth(x=x, block_size=2), block_size=2),
        PICTURE,
    ),
    "pixel_shuffle": (
        lambda mb, x: mb.pixel_shuffle(x=x, upscale_factor=2),
        F.pixel_shuffle(PICTURE, 2),
    ),
    "pixel_unshuffle": (
        lambda mb, x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
        F.pixel_unshuffle(PICTURE, 2),
    ),
    "space_to_batch": (
        lambda mb, x: mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 1], [2, 1]]),
        torch.cat(
            [
                F.pad(PICTURE, (2, 1, 1, 1))[:, :, r::2, c::3]
                for r in range(2)
                for c in range(3)
            ]
        ),
    ),
    "batch_to_space": (
        lambda mb, x: mb.batch_to_space(
            x=mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 1], [2, 1]]),
            block_shape=[2, 3], crops=[[1, 1], [2, 1]],
        ),
        PICTURE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGES)
def test_blocks_of_images(mil: Any, case: str) -> None:
    build, want = IMAGES[case]
    np.testing.assert_array_equal(mil.one(build, IMAGE), want.numpy())


def test_integers_keep_their_order(mil: Any) -> None:
    got = mil.run(
        lambda mb, x: [
            mb.argsort(x=x, axis=1),
            mb.topk(x=x, k=2)[0],
            mb.cumsum(x=x, axis=1),
            mb.reduce_sum(x=x, axes=[0]),
            mb.one_hot(
                indices=mb.abs(x=x), one_hot_vector_size=8, axis=1, on_value=5, off_value=-2
            ),
        ],
        {"x": INTS},
    )
    assert got[0].tolist() == [[0, 2, 1], [1, 2, 0]]
    assert got[1].tolist() == [[3, 2], [7, 0]]
    assert got[2].tolist() == [[3, 4, 6], [-5, 2, 2]]
    assert got[3].tolist() == [-2, 8, 2]
    hot = F.one_hot(torch.from_numpy(np.abs(INTS)).long(), 8).movedim(-1, 1) * 7 - 2
    assert np.array_equal(got[4], hot.numpy())


def test_range_1d(mil: Any) -> None:
    def build(mb: Any, x: Any) -> list[Any]:
        first = mb.slice_by_index(x=x, begin=[0, 1], end=[0, 0], squeeze_mask=[True, True])
        last = mb.slice_by_index(x=x, begin=[1, 1], end=[0, 0], squeeze_mask=[True, True])
        return [
            mb.range_1d(start=first, end=last, step=2),
            mb.range_1d(start=last, end=first, step=-3),
        ]

    up, down = mil.run(build, {"x": INTS})
    assert (up.tolist(), down.tolist()) == ([1, 3, 5], [7, 4])


def test_reshape_with_zeros(mil: Any) -> None:
    """The example of iOS 17's documentation; before it, a zero needs the same rank."""
    x = np.arange(100, dtype=np.float32).reshape(2, 50)
    shape = np.array([1, 0, -1, 0], np.int32)
    got = mil.one(lambda mb, x, s: mb.reshape(x=x, shape=s), x, shape)
    assert got.shape == (1, 1, 2, 50)
    got = mil.one(
        lambda mb, x, s: mb.reshape(x=x, shape=s), X, np.array([0, -1, 0], np.int32), opset=16
    )
    assert got.shape == (2, 3, 4)
    with pytest.raises(EffcError, match="before iOS 17"):
        mil.one(lambda mb, x, s: mb.reshape(x=x, shape=s), x, shape, opset=16)


def suppress(
    boxes: np.ndarray, scores: np.ndarray, iou: float, least: float, most: int
) -> list[int]:
    """Boxes [b, 4], scores [b]: what onnxruntime selects, in its order."""
    feeds = {
        "b": boxes[None],
        "s": scores[None, None],
        "m": np.array(most),
        "i": np.array(iou, np.float32),
        "t": np.array(least, np.float32),
    }
    kinds = {"m": onnx.TensorProto.INT64}
    infos = [helper.make_tensor_value_info(k, kinds.get(k, 1), v.shape) for k, v in feeds.items()]
    node = helper.make_node("NonMaxSuppression", list(feeds), ["y"], center_point_box=1)
    out = helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None)
    model = helper.make_model(
        helper.make_graph([node], "g", infos, [out]),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [int(r[2]) for r in session.run(None, feeds)[0]]


@pytest.mark.parametrize("per_class", [False, True])
def test_non_maximum_suppression(mil: Any, rng: np.random.Generator, per_class: bool) -> None:
    boxes = rng.uniform(2, 8, (2, 12, 4)).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 12, 3)).astype(np.float32)
    scores[1, :, :] *= 0.2  # nothing survives in the second image
    most = 6
    new, old = (
        mil.run(
            lambda mb, b, s, extra=extra: mb.non_maximum_suppression(
                boxes=b, scores=s, iou_threshold=np.float32(0.3), max_boxes=most,
                per_class_suppression=per_class, **extra,
            ),
            {"b": b, "s": s}, opset=opset,
        )
        for b, s, opset, extra in (
            (boxes.swapaxes(1, 2).copy(), scores.swapaxes(1, 2).copy(), 18, {}),
            (boxes, scores, 16, {"score_threshold": np.float32(0.35)}),
        )
    )  # fmt: skip

    def expected(n: int, least: float) -> list[int]:
        best, classes = scores[n].max(1), scores[n].argmax(1)
        groups = (
            [np.arange(12)] if not per_class else [np.nonzero(classes == c)[0] for c in range(3)]
        )
        found = [
            int(g[i]) for g in groups if len(g)
            for i in suppress(boxes[n][g], best[g], 0.3, least, most)
        ]  # fmt: skip
        return sorted(found, key=lambda i: -best[i])[:most] or [int(best.argmax())]

    for n in range(2):
        chosen = expected(n, 0.0)
        assert new[2][n].tolist() == chosen + [-1] * (most - len(chosen))
        np.testing.assert_array_equal(new[0][n, :, : len(chosen)], boxes[n, chosen].T)
        np.testing.assert_array_equal(new[1][n, :, : len(chosen)], scores[n, chosen].T)
        chosen = expected(n, 0.35)
        assert old[3][n] == len(chosen)
        assert old[2][n].tolist() == chosen + [-1] * (most - len(chosen))
        np.testing.assert_array_equal(old[0][n, : len(chosen)], boxes[n, chosen])
        assert not old[0][n, len(chosen) :].any() and not old[1][n, len(chosen) :].any()


def test_topk_of_all() -> None:
    """k = -1 is documented from iOS 17 on; coremltools can't serialize it."""
    values, indices = topk(X, np.int32(-1), 1)
    np.testing.assert_array_equal(values, T.sort(1, descending=True)[0].numpy())
    np.testing.assert_array_equal(np.take_along_axis(X, indices, 1), values)
