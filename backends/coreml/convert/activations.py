"""Activations. Parameters that MIL defines otherwise than ONNX are spelled out."""

from __future__ import annotations

import numpy as np

from effc.backends.coreml.convert.call import Call, Refusal, Var, kind_of
from effc.backends.coreml.convert.table import op


def _x(c: Call) -> Var:
    c.only_float()
    return c.plain(c.raw())


@op("Relu")
def relu(c: Call) -> Var:
    if c.is_float():
        return c.mb.relu(x=_x(c))
    x = c.plain(c.raw())
    return c.mb.maximum(x=x, y=c.like(0, x))


@op("LeakyRelu")
def leaky_relu(c: Call) -> Var:
    x = _x(c)
    return c.mb.leaky_relu(x=x, alpha=c.like(c.attr("alpha", 0.01), x))


@op("PRelu")
def prelu(c: Call) -> Var:
    """MIL's prelu has one slope a channel of axis 1; anything else is spelled out."""
    c.only_float()
    x, slope = c.x(0), c.const(1)
    rank = c.rank()
    if slope is not None and rank >= 3:
        full = (1,) * (rank - slope.ndim) + slope.shape
        if all(d == 1 for i, d in enumerate(full) if i != 1) and full[1] in (1, c.shape()[1]):
            alpha = np.broadcast_to(slope.reshape(-1), (c.shape()[1],))
            return c.mb.prelu(x=x, alpha=alpha.astype(c.numpy()))
    positive = c.mb.relu(x=x)
    return c.mb.add(x=positive, y=c.mb.mul(x=c.x(1), y=c.mb.sub(x=x, y=positive)))


@op("Elu")
def elu(c: Call) -> Var:
    x = _x(c)
    return c.mb.elu(x=x, alpha=c.like(c.attr("alpha", 1.0), x))


@op("Celu")
def celu(c: Call) -> Var:
    """max(0, x) + min(0, a * (exp(x / a) - 1))"""
    x, alpha = _x(c), c.attr("alpha", 1.0)
    inner = c.mb.elu(x=c.mb.real_div(x=x, y=c.like(alpha, x)), alpha=c.like(alpha, x))
    return c.mb.add(x=c.mb.relu(x=x), y=c.mb.minimum(x=inner, y=c.like(0, x)))


@op("Selu")
def selu(c: Call) -> Var:
    x = _x(c)
    alpha = c.attr("alpha", 1.6732632423543772)
    gamma = c.attr("gamma", 1.0507009873554805)
    return c.mb.mul(x=c.mb.elu(x=x, alpha=c.like(alpha, x)), y=c.like(gamma, x))


@op("Sigmoid")
def sigmoid(c: Call) -> Var:
    return c.mb.sigmoid(x=_x(c))


@op("HardSigmoid")
def hard_sigmoid(c: Call) -> Var:
    x = _x(c)
    alpha, beta = c.attr("alpha", 0.2), c.attr("beta", 0.5)
    return c.mb.sigmoid_hard(x=x, alpha=c.like(alpha, x), beta=c.like(beta, x))


@op("HardSwish")
def hard_swish(c: Call) -> Var:
    x = _x(c)
    gate = c.mb.sigmoid_hard(x=x, alpha=c.like(1 / 6, x), beta=c.like(0.5, x))
    return c.mb.mul(x=x, y=gate)


@op("Swish")
def swish(c: Call) -> Var:
    x, alpha = _x(c), c.attr("alpha", 1.0)
    if alpha == 1.0:
        return c.mb.silu(x=x)
    return c.mb.mul(x=x, y=c.mb.sigmoid(x=c.mb.mul(x=x, y=c.like(alpha, x))))


@op("Softplus")
def softplus(c: Call) -> Var:
    return c.mb.softplus(x=_x(c))


@op("Softsign")
def softsign(c: Call) -> Var:
    return c.mb.softsign(x=_x(c))


@op("Mish")
def mish(c: Call) -> Var:
    x = _x(c)
    return c.mb.mul(x=x, y=c.mb.tanh(x=c.mb.softplus(x=x)))


@op("ThresholdedRelu")
def thresholded_relu(c: Call) -> Var:
    """ONNX keeps x > alpha, MIL x >= alpha: they differ at alpha itself."""
    x, alpha = _x(c), c.attr("alpha", 1.0)
    above = c.mb.cast(x=c.mb.greater(x=x, y=c.like(alpha, x)), dtype=kind_of(x))
    return c.mb.mul(x=x, y=above)


@op("Shrink")
def shrink(c: Call) -> Var:
    x = _x(c)
    kind, bias, lambd = kind_of(x), c.attr("bias", 0.0), c.attr("lambd", 0.5)
    low = c.mb.cast(x=c.mb.less(x=x, y=c.like(-lambd, x)), dtype=kind)
    high = c.mb.cast(x=c.mb.greater(x=x, y=c.like(lambd, x)), dtype=kind)
    under = c.mb.mul(x=c.mb.add(x=x, y=c.like(bias, x)), y=low)
    return c.mb.add(x=under, y=c.mb.mul(x=c.mb.sub(x=x, y=c.like(bias, x)), y=high))


@op("Gelu")
def gelu(c: Call) -> Var:
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[c.text("approximate", "none")]
    return c.mb.gelu(x=_x(c), mode=mode)


@op("Softmax")
def softmax(c: Call) -> Var:
    c.only_float()
    return c.mb.softmax(x=c.x(), axis=c.axis(c.attr("axis", -1)))


@op("LogSoftmax")
def log_softmax(c: Call) -> Var:
    """x - max - log(sum(exp(x - max))): the logarithm of a softmax loses what is far below the maximum."""
    c.only_float()
    x, axis = c.x(), [c.axis(c.attr("axis", -1))]
    x = c.mb.sub(x=x, y=c.mb.reduce_max(x=x, axes=axis, keep_dims=True))
    return c.mb.sub(x=x, y=c.mb.reduce_log_sum_exp(x=x, axes=axis, keep_dims=True))


@op("Hardmax")
def hardmax(c: Call) -> Var:
    c.only_float()
    x, axis = c.x(), c.axis(c.attr("axis", -1))
    best = c.mb.reduce_argmax(x=x, axis=axis, keep_dims=False)
    if len(best.shape) == 0:
        raise Refusal("it is of a vector, which Core ML reduces to a scalar", "add a dimension")
    return c.mb.one_hot(
        indices=best, one_hot_vector_size=np.int32(c.shape()[axis]), axis=axis,
        on_value=c.like(1, x), off_value=c.like(0, x),
    )  # fmt: skip
