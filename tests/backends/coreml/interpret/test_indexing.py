"""Gathering and scattering against plain loops and torch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from effc.core.errors import EffcError

X = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", [15, 16, 18])
def test_gather(mil: Any, axis: int, opset: int) -> None:
    indices = np.array([[1, 0], [0, 1], [1, 1]], np.int32)
    if opset < 17:
        indices[0, 0] = -1
    got = mil.one(lambda mb, x, i: mb.gather(x=x, indices=i, axis=axis), X, indices, opset=opset)
    at = axis % 3
    want = np.empty((*X.shape[:at], 3, 2, *X.shape[at + 1 :]), np.float32)
    for i, j in np.ndindex(3, 2):
        where = (slice(None),) * at
        want[(*where, i, j)] = X[(*where, indices[i, j])]
    np.testing.assert_array_equal(got, want)


def test_gather_with_batch_dims(mil: Any) -> None:
    indices = np.array([[2, 0], [1, 1]], np.int32)
    got = mil.one(lambda mb, x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=1), X, indices)
    want = [[[X[b, r, indices[b, k]] for k in range(2)] for r in range(3)] for b in range(2)]
    np.testing.assert_array_equal(got, np.array(want))


@pytest.mark.parametrize("opset", [15, 18])
def test_an_index_out_of_bounds_is_refused(mil: Any, opset: int) -> None:
    for value in (4, -1 if opset > 16 else -5):
        with pytest.raises(EffcError, match=rf"gather.*index {value} is outside"):
            mil.one(
                lambda mb, x, i: mb.gather(x=x, indices=i, axis=2), X, np.array([value], np.int32),
                opset=opset,
            )  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_along_axis(mil: Any, rng: np.random.Generator, axis: int) -> None:
    shape = list(X.shape)
    shape[axis] = 5
    indices = rng.integers(0, X.shape[axis], shape).astype(np.int32)
    got = mil.one(lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=axis), X, indices)
    want = torch.gather(torch.from_numpy(X), axis, torch.from_numpy(indices).long())
    np.testing.assert_array_equal(got, want.numpy())
    old = mil.one(
        lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=axis),
        X, indices - np.int32(X.shape[axis]), opset=16,
    )  # fmt: skip
    np.testing.assert_array_equal(old, got)


def test_gather_nd(mil: Any) -> None:
    indices = np.array([[[1, 2], [0, 0]], [[0, 1], [1, 1]]], np.int32)
    for opset in (15, 18):
        got = mil.one(lambda mb, x, i: mb.gather_nd(x=x, indices=i), X, indices, opset=opset)
        want = [[X[tuple(indices[a, b])] for b in range(2)] for a in range(2)]
        np.testing.assert_array_equal(got, np.array(want))
    batched = mil.one(lambda mb, x, i: mb.gather_nd(x=x, indices=i, batch_dims=1), X, indices)
    want = [[X[(a, *indices[a, b])] for b in range(2)] for a in range(2)]
    np.testing.assert_array_equal(batched, np.array(want))


MODES = {
    "update": lambda a, b: b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": max,
    "min": min,
}
DATA = np.array([[8.0, 3.0, 5.0], [2.0, 9.0, 4.0]], np.float32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("opset", [16, 18])
def test_scatter(mil: Any, mode: str, opset: int) -> None:
    """Of the axis, along it, and by coordinates; every element is met twice but in `update`."""
    columns = np.array([2, 0] if mode == "update" else [2, 0, 2], np.int32)
    updates = np.array([[4.0, 2.0, 7.0], [1.0, 8.0, 5.0]], np.float32)[:, : len(columns)]
    rows = np.array([[1, 0, 1], [0, 1, 0]], np.int32)
    pairs = np.array([[0, 2], [1, 1]] + ([] if mode == "update" else [[0, 2]]), np.int32)
    values = np.array([6.0, 3.0, 2.0], np.float32)[: len(pairs)]

    def build(mb: Any, x: Any) -> list[Any]:
        return [
            mb.scatter(data=x, indices=columns, updates=updates, axis=1, mode=mode),
            mb.scatter_along_axis(
                data=x, indices=rows, updates=DATA[:, ::-1].copy(), axis=0, mode=mode
            ),
            mb.scatter_nd(data=x, indices=pairs, updates=values, mode=mode),
        ]

    wants = [DATA.copy() for _ in range(3)]
    f = MODES[mode]
    for r, i in itertools.product(range(2), range(len(columns))):
        wants[0][r, columns[i]] = f(wants[0][r, columns[i]], updates[r, i])
    for r, c in itertools.product(range(2), range(3)):
        wants[1][rows[r, c], c] = f(wants[1][rows[r, c], c], DATA[r, 2 - c])
    for p, v in zip(pairs, values, strict=True):
        wants[2][tuple(p)] = f(wants[2][tuple(p)], v)
    for got, want in zip(mil.run(build, {"x": DATA}, opset=opset), wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_scatter_of_whole_slices(mil: Any) -> None:
    updates = -X[:, :2]
    got = mil.one(
        lambda mb, x: mb.scatter(data=x, indices=[2, 0], updates=updates, axis=1, mode="update"), X
    )
    want = X.copy()
    want[:, 2], want[:, 0] = updates[:, 0], updates[:, 1]
    np.testing.assert_array_equal(got, want)
    got = mil.one(
        lambda mb, x: mb.scatter_nd(data=x, indices=[[1]], updates=X[:1] * 10, mode="add"), X
    )
    np.testing.assert_array_equal(got, np.stack([X[0], X[1] + X[0] * 10]))
