"""Operations that make, join, order and select tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.core.measure import Array


@op("identity")
def identity(x: Any) -> Any:
    return x


@op("shape")
def shape_of(x: Array) -> Array:
    return np.array(x.shape, np.int32)


@op("fill")
def fill(shape: Array, value: Array | float = 0.0) -> Array:
    filling = value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
    return np.full([int(n) for n in shape], filling)


@op("fill_like", since=16)
def fill_like(ref_tensor: Array, value: Array | float = 0.0) -> Array:
    return fill(np.array(ref_tensor.shape), value)


@op("range_1d")
def range_1d(start: Array, end: Array, step: Array) -> Array:
    count = max(0, int(np.ceil((np.float64(end) - np.float64(start)) / np.float64(step))))
    return (start + np.arange(count) * step).astype(start.dtype)


@op("tile")
def tile(x: Array, reps: Array) -> Array:
    if len(reps) != x.ndim:
        raise Undefined(f"{len(reps)} repetitions for rank {x.ndim}")
    return np.tile(x, [int(r) for r in reps])


@op("concat")
def concat(values: list[Array], axis: Array, interleave: Array | bool = False) -> Array:
    at = int(axis) % values[0].ndim
    if not interleave:
        return np.concatenate(values, axis=at)
    stacked = np.stack(values, axis=at + 1)
    return stacked.reshape(*values[0].shape[:at], -1, *values[0].shape[at + 1 :])


@op("stack")
def stack(values: list[Array], axis: Array) -> Array:
    return np.stack(values, axis=int(axis))


@op("split")
def split(
    x: Array, axis: Array, num_splits: Array | None = None, split_sizes: Array | None = None
) -> tuple[Array, ...]:
    size = x.shape[int(axis)]
    if split_sizes is not None:
        sizes = [int(s) for s in split_sizes]
    elif num_splits is not None and size % int(num_splits) == 0:
        sizes = [size // int(num_splits)] * int(num_splits)
    else:
        raise Undefined(f"{size} elements in {num_splits} equal parts")
    if sum(sizes) != size:
        raise Undefined(f"parts {sizes} of {size} elements")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=int(axis)))


@op("select")
def select(cond: Array, a: Array | None = None, b: Array | None = None) -> Array:
    if a is None or b is None:
        raise Undefined("without a and b")
    return np.where(cond, a, b)


@op("band_part")
def band_part(x: Array, lower: Array | int = -1, upper: Array | int = -1) -> Array:
    low, up = int(lower), int(upper)
    m, n = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])
    keep = ((low < 0) | (m - n <= low)) & ((up < 0) | (n - m <= up))
    return np.where(keep, x, np.zeros((), x.dtype))


@op("cumsum")
def cumsum(
    x: Array, axis: Array | int = 0, exclusive: Array | bool = False, reverse: Array | bool = False
) -> Array:
    at = int(axis)
    if reverse:
        x = np.flip(x, at)
    total = np.cumsum(x, axis=at, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)
    if exclusive:
        total = total - x
    return (np.flip(total, at) if reverse else total).astype(x.dtype)


@op("non_zero")
def non_zero(x: Array) -> Array:
    return np.argwhere(x).astype(np.int32)


@op("one_hot")
def one_hot(
    indices: Array,
    one_hot_vector_size: Array,
    axis: Array | int = -1,
    on_value: Array | int = 1,
    off_value: Array | int = 0,
) -> Array:
    size = int(one_hot_vector_size)
    if indices.size and not ((indices >= 0) & (indices < size)).all():
        raise Undefined(f"an index outside [0, {size})")
    on, off = (
        v if isinstance(v, np.ndarray) else np.asarray(v, np.int32) for v in (on_value, off_value)
    )
    hot = indices[..., None] == np.arange(size)
    return np.where(np.moveaxis(hot, -1, int(axis)), on, off)


@op("pad")
def pad(x: Array, pad: Array, mode: str = "constant", constant_val: Array | float = 0.0) -> Array:
    """`pad` holds before and after of the last dimensions."""
    amounts = [int(p) for p in np.asarray(pad).reshape(-1)]
    if len(amounts) % 2 or len(amounts) > 2 * x.ndim or min(amounts, default=0) < 0:
        raise Undefined(f"pad {amounts} for rank {x.ndim}")
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    if mode == "constant":
        value = np.asarray(constant_val).astype(x.dtype)
        return np.pad(x, pairs, constant_values=value)
    if mode == "reflect":
        if any(max(p) > n - 1 for p, n in zip(pairs, x.shape, strict=True)):
            raise Undefined(f"reflect: pad {amounts} for {x.shape}")
        return np.pad(x, pairs, mode="reflect")
    if mode == "replicate":
        return np.pad(x, pairs, mode="edge")
    raise Undefined(f"mode {mode!r}")


def sorted_indices(x: Array, axis: int, ascending: bool) -> Array:
    """Equal values keep their order."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    order = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(order, axis)


@op("argsort")
def argsort(x: Array, axis: Array | int = -1, ascending: Array | bool = False) -> Array:
    return sorted_indices(x, int(axis), bool(ascending)).astype(np.int32)


@op("topk")
def topk(
    x: Array,
    k: Array | int = 1,
    axis: Array | int = -1,
    ascending: Array | bool = False,
    sort: Array | bool = True,
    return_indices: Array | bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Array, ...]:
    """The order among `k` is always kept, which `sort=False` leaves open. k = -1: all (iOS 17)."""
    at = int(axis)
    count = x.shape[at] if int(k) == -1 else int(k)
    if not 0 <= count <= x.shape[at]:
        raise Undefined(f"{count} of {x.shape[at]}")
    indices = np.take(sorted_indices(x, at, bool(ascending)), np.arange(count), axis=at)
    values = np.take_along_axis(x, indices, at)
    return (values, indices.astype(output_indices_dtype)) if return_indices else (values,)


def _overlap(boxes: Array) -> Array:
    """Intersection over union of boxes [b, 4] given as centre x, y, width, height."""
    low = boxes[:, :2] - boxes[:, 2:] / 2
    high = boxes[:, :2] + boxes[:, 2:] / 2
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    common = np.maximum(sides, 0).prod(axis=-1)
    area = boxes[:, 2:].prod(axis=-1)
    union = area[:, None] + area - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _survivors(
    boxes: Array, scores: Array, iou: float, least: float | None, most: int, per_class: bool
) -> list[int]:
    """A box's score and class are those of its best class; without a survivor, the best box stays."""
    best, classes = scores.max(axis=-1), scores.argmax(axis=-1)
    overlap = _overlap(boxes)
    chosen: list[int] = []
    for i in sorted_indices(best, 0, ascending=False):
        if len(chosen) == most:
            break
        if least is not None and best[i] < least:
            break
        rivals = [j for j in chosen if not per_class or classes[j] == classes[i]]
        if not (overlap[i, rivals] > iou).any():
            chosen.append(int(i))
    return chosen or [int(best.argmax())][:most]


def _suppress(
    boxes: Array, scores: Array, iou: float, least: float | None, most: int, per_class: bool
) -> tuple[Array, Array, Array, Array]:
    """boxes [n, b, 4], scores [n, b, k]; rows beyond the survivors hold 0, and -1 as index."""
    count = boxes.shape[0]
    kept_boxes = np.zeros((count, most, 4), boxes.dtype)
    kept_scores = np.zeros((count, most, scores.shape[-1]), scores.dtype)
    kept = np.full((count, most), -1, np.int32)
    numbers = np.zeros(count, np.int32)
    for n in range(count):
        chosen = _survivors(boxes[n], scores[n], iou, least, most, per_class)
        size = len(chosen)
        kept_boxes[n, :size], kept_scores[n, :size] = boxes[n, chosen], scores[n, chosen]
        kept[n, :size], numbers[n] = chosen, size
    return kept_boxes, kept_scores, kept, numbers


@op("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Array,
    scores: Array,
    iou_threshold: Array,
    score_threshold: Array,
    max_boxes: Array,
    per_class_suppression: Array | bool = False,
) -> tuple[Array, Array, Array, Array]:
    """Padding and the case without survivors: NeuralNetwork.proto, NonMaximumSuppressionLayerParams."""
    options = (float(iou_threshold), float(score_threshold), int(max_boxes))
    return _suppress(boxes, scores, *options, bool(per_class_suppression))


@op("non_maximum_suppression", since=17)
def non_maximum_suppression_transposed(
    boxes: Array,
    scores: Array,
    iou_threshold: Array,
    max_boxes: Array,
    per_class_suppression: Array | bool = False,
) -> tuple[Array, Array, Array]:
    """boxes [n, 4, b], scores [n, k, b]; the padding is that of iOS 15, the documentation names none."""
    threshold, most = float(iou_threshold), int(max_boxes)
    kept_boxes, kept_scores, kept, _ = _suppress(
        boxes.swapaxes(1, 2),
        scores.swapaxes(1, 2),
        threshold,
        None,
        most,
        bool(per_class_suppression),
    )
    return kept_boxes.swapaxes(1, 2), kept_scores.swapaxes(1, 2), kept


@op("classify")
def classify(probabilities: Array, classes: list[Any]) -> tuple[Array, Array]:
    """The best class (0-d, text or int64), and the probabilities in the order of `classes`."""
    flat = probabilities.reshape(-1)
    if flat.size != len(classes):
        raise Undefined(f"{flat.size} probabilities for {len(classes)} classes")
    return np.array(classes[int(flat.argmax())]), flat
