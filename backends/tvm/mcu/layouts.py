"""Orders of axes: how a tensor of ONNX lies in memory."""

from __future__ import annotations

from collections.abc import Sequence

Order = tuple[int, ...]


def channels_last(rank: int) -> Order:
    """[N, C, *spatial] stored as [N, *spatial, C]; tensors of less than three axes as they are."""
    return row_major(rank) if rank < 3 else (0, *range(2, rank), 1)


def row_major(rank: int) -> Order:
    return tuple(range(rank))


def same_bytes(shape: Sequence[int], a: Order, b: Order) -> bool:
    """Whether a tensor of `shape` lies in memory the same by both orders: axes of extent 1 don't matter."""
    return [x for x in a if shape[x] != 1] == [x for x in b if shape[x] != 1]
