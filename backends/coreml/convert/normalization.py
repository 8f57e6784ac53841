"""Normalizations, each over the axes that ONNX defines."""

from __future__ import annotations

import math

import numpy as np

from effc.backends.coreml.convert.call import Call, Refusal, Var, kind_of
from effc.backends.coreml.convert.table import op


@op("BatchNormalization")
def batch_normalization(c: Call) -> Var:
    c.only_float()
    if c.attr("training_mode", 0):
        raise Refusal("it is in training mode", "export the model for inference")
    x, kind = c.x(), c.numpy()
    arrays = [c.const(i) for i in range(1, 5)]
    if c.rank() in (3, 4, 5) and all(a is not None for a in arrays):
        gamma, beta, mean, variance = (a.astype(kind) for a in arrays)  # type: ignore[union-attr]
        return c.mb.batch_norm(
            x=x, gamma=gamma, beta=beta, mean=mean, variance=variance,
            epsilon=kind(c.attr("epsilon", 1e-5)),
        )  # fmt: skip
    shape = (1, -1) + (1,) * (c.rank() - 2)
    gamma, beta, mean, variance = (_vector(c, i, shape) for i in range(1, 5))
    root = c.mb.sqrt(x=c.mb.add(x=variance, y=c.like(c.attr("epsilon", 1e-5), x)))
    scaled = c.mb.mul(x=c.mb.sub(x=x, y=mean), y=c.mb.real_div(x=gamma, y=root))
    return c.mb.add(x=scaled, y=beta)


def _vector(c: Call, index: int, shape: tuple[int, ...]) -> Var:
    """A parameter [C] in the place of the channels."""
    var = c.cast(c.x(index), c.carrier(0))
    if c.rank() == 1:
        return var
    return c.reshaped(var, tuple(int(var.shape[0]) if d == -1 else d for d in shape))


def normalized(c: Call, x: Var, axes: list[int], epsilon: float) -> Var:
    """(x - mean) / sqrt(variance + epsilon) over `axes`."""
    mean = c.mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    centred = c.mb.sub(x=x, y=mean)
    variance = c.mb.reduce_mean(x=c.mb.mul(x=centred, y=centred), axes=axes, keep_dims=True)
    root = c.mb.sqrt(x=c.mb.add(x=variance, y=c.like(epsilon, x)))
    return c.mb.real_div(x=centred, y=root)


@op("InstanceNormalization")
def instance_normalization(c: Call) -> Var:
    c.only_float()
    x, kind, epsilon = c.x(), c.numpy(), c.attr("epsilon", 1e-5)
    gamma, beta = c.const(1), c.const(2)
    if c.rank() in (3, 4) and gamma is not None and beta is not None:
        return c.mb.instance_norm(
            x=x, gamma=gamma.astype(kind), beta=beta.astype(kind), epsilon=kind(epsilon)
        )
    shape = (1, -1) + (1,) * (c.rank() - 2)
    y = normalized(c, x, list(range(2, c.rank())), epsilon)
    return c.mb.add(x=c.mb.mul(x=y, y=_vector(c, 1, shape)), y=_vector(c, 2, shape))


@op("LayerNormalization")
def layer_normalization(c: Call) -> Var | tuple[Var | None, ...]:
    c.only_float()
    x, kind = c.x(), c.numpy()
    axis = c.axis(c.attr("axis", -1))
    axes, epsilon = list(range(axis, c.rank())), c.attr("epsilon", 1e-5)
    inner = c.shape()[axis:]
    wanted = c.wanted(1) or c.wanted(2)
    gamma, beta = c.const(1), c.const(2) if c.has(2) else np.zeros(inner, kind)
    if not wanted and gamma is not None and beta is not None:
        gamma, beta = (np.broadcast_to(a, inner).astype(kind) for a in (gamma, beta))
        return c.mb.layer_norm(x=x, axes=axes, gamma=gamma, beta=beta, epsilon=kind(epsilon))
    mean = c.mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    centred = c.mb.sub(x=x, y=mean)
    variance = c.mb.reduce_mean(x=c.mb.mul(x=centred, y=centred), axes=axes, keep_dims=True)
    root = c.mb.sqrt(x=c.mb.add(x=variance, y=c.like(epsilon, x)))
    y = c.mb.mul(x=c.mb.real_div(x=centred, y=root), y=c.x(1))
    if c.has(2):
        y = c.mb.add(x=y, y=c.x(2))
    if not wanted:
        return y
    return y, mean, c.mb.real_div(x=c.like(1, x), y=root)


@op("RMSNormalization")
def rms_normalization(c: Call) -> Var:
    c.only_float()
    x = c.x()
    axes = list(range(c.axis(c.attr("axis", -1)), c.rank()))
    square = c.mb.reduce_mean(x=c.mb.mul(x=x, y=x), axes=axes, keep_dims=True)
    root = c.mb.sqrt(x=c.mb.add(x=square, y=c.like(c.attr("epsilon", 1e-5), x)))
    return c.mb.mul(x=c.mb.real_div(x=x, y=root), y=c.cast(c.x(1), kind_of(x)))


@op("GroupNormalization")
def group_normalization(c: Call) -> Var:
    """Scale and bias are one a channel (opset 21)."""
    c.only_float()
    x, shape = c.x(), c.shape()
    groups = c.attr("num_groups")
    if len(c.shape(1)) != 1 or c.shape(1)[0] != shape[1]:
        raise Refusal("its scale is not one a channel", "convert the model to opset 21 or newer")
    grouped = c.reshaped(x, (shape[0], groups, math.prod(shape[1:]) // groups))
    y = c.reshaped(normalized(c, grouped, [2], c.attr("epsilon", 1e-5)), shape)
    place = (1, -1) + (1,) * (c.rank() - 2)
    return c.mb.add(x=c.mb.mul(x=y, y=_vector(c, 1, place)), y=_vector(c, 2, place))


@op("LpNormalization")
def lp_normalization(c: Call) -> Var:
    """0 / 0 is 0 there."""
    c.only_float()
    x, axes = c.x(), [c.axis(c.attr("axis", -1))]
    function = c.mb.reduce_l1_norm if c.attr("p", 2) == 1 else c.mb.reduce_l2_norm
    norm = function(x=x, axes=axes, keep_dims=True)
    zero = c.mb.cast(x=c.mb.equal(x=norm, y=c.like(0, norm)), dtype=kind_of(norm))
    return c.mb.real_div(x=x, y=c.mb.add(x=norm, y=zero))


@op("MeanVarianceNormalization")
def mean_variance_normalization(c: Call) -> Var:
    c.only_float()
    axes = sorted(c.axis(a) for a in c.attr("axes", (0, 2, 3)))
    x = c.x()
    mean = c.mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    centred = c.mb.sub(x=x, y=mean)
    variance = c.mb.reduce_mean(x=c.mb.mul(x=centred, y=centred), axes=axes, keep_dims=True)
    return c.mb.real_div(x=centred, y=c.mb.add(x=c.mb.sqrt(x=variance), y=c.like(1e-9, x)))


@op("LRN")
def lrn(c: Call) -> Var:
    """An even window reaches one further behind than before; MIL's is only defined for odd ones."""
    c.only_float()
    x, size = c.x(), c.attr("size")
    alpha, beta, bias = c.attr("alpha", 1e-4), c.attr("beta", 0.75), c.attr("bias", 1.0)
    if size % 2 and c.rank() in (3, 4):
        return c.mb.local_response_norm(
            x=x, size=size, alpha=c.like(alpha, x), beta=c.like(beta, x), k=c.like(bias, x)
        )
    square, channels = c.mb.mul(x=x, y=x), c.shape()[1]
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    at = np.arange(channels)
    band = (at[None] - at[:, None] >= -before) & (at[None] - at[:, None] <= after)
    flat = c.reshaped(square, (c.shape()[0], channels, math.prod(c.shape()[2:])))
    summed = c.mb.matmul(x=band.astype(c.numpy())[None], y=flat)
    summed = c.reshaped(summed, c.shape())
    scale = c.mb.add(x=c.mb.mul(x=summed, y=c.like(alpha / size, x)), y=c.like(bias, x))
    return c.mb.real_div(x=x, y=c.mb.pow(x=scale, y=c.like(beta, x)))
