"""Normalizations. Means and variances are taken in double precision."""

from __future__ import annotations

import numpy as np

from effc.backends.coreml.interpret.ops.activation import per_channel
from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.core.measure import Array


def _standardize(x: Array, axes: tuple[int, ...], epsilon: Array | float) -> Array:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return (centred / np.sqrt(variance + np.asarray(epsilon))).astype(x.dtype)


@op("batch_norm")
def batch_norm(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: Array | float = 1e-5,
) -> Array:
    scale = 1 / np.sqrt(variance.astype(np.float64) + np.asarray(epsilon))
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    if beta is not None:
        shift = shift + beta
    wide = x * per_channel(scale, x.ndim) + per_channel(shift, x.ndim)
    return wide.astype(x.dtype)


@op("instance_norm")
def instance_norm(
    x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5
) -> Array:
    y = _standardize(x, tuple(range(2, x.ndim)), epsilon)
    if gamma is not None:
        y = y * per_channel(gamma, x.ndim)
    return y if beta is None else y + per_channel(beta, x.ndim)


@op("l2_norm")
def l2_norm(x: Array, epsilon: Array | float = 1e-6) -> Array:
    """Over the last three dimensions."""
    if x.ndim < 3:
        raise Undefined(f"rank {x.ndim}; at least 3 is documented")
    total = np.square(x.astype(np.float64)).sum(axis=(-3, -2, -1), keepdims=True)
    return (x / np.sqrt(total + np.asarray(epsilon))).astype(x.dtype)


@op("layer_norm")
def layer_norm(
    x: Array,
    axes: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: Array | float = 1e-5,
) -> Array:
    """gamma and beta have the shape x.shape[axes]."""
    over = range(x.ndim) if axes is None else sorted(int(a) % x.ndim for a in axes)
    y = _standardize(x, tuple(over), epsilon)
    shape = [x.shape[i] if i in over else 1 for i in range(x.ndim)]
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@op("local_response_norm")
def local_response_norm(
    x: Array,
    size: Array,
    alpha: Array | float = 1e-4,
    beta: Array | float = 0.75,
    k: Array | float = 1.0,
) -> Array:
    """Over `size` neighbouring channels; of an even number, the larger half is before.

    For rank 4 only: for others the documentation (axis 1) and coremltools' tests (axis -3) disagree.
    """
    if x.ndim != 4:
        raise Undefined(f"rank {x.ndim}")
    width = int(size)
    before = width // 2
    squares = np.zeros((x.shape[0], x.shape[1] + width - 1, *x.shape[2:]), np.float64)
    squares[:, before : before + x.shape[1]] = np.square(x.astype(np.float64))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(width))
    return (x / (k + np.asarray(alpha) / width * total) ** np.asarray(beta)).astype(x.dtype)
