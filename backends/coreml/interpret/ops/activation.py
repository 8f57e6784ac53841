"""Activations."""

from __future__ import annotations

import math

import numpy as np

from effc.backends.coreml.interpret.ops.elementwise import error_function
from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.core.measure import Array


def logistic(x: Array) -> Array:
    """1 / (1 + e^-x) that never overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def per_channel(values: Array, rank: int) -> Array:
    """A vector over axis 1 of a tensor of `rank` dimensions."""
    return values.reshape((1, -1) + (1,) * (rank - 2))


@op("clamped_relu")
def clamped_relu(x: Array, alpha: Array, beta: Array) -> Array:
    return np.minimum(beta, np.where(x >= 0, x, alpha * x))


@op("elu")
def elu(x: Array, alpha: Array) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@op("gelu")
def gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode == "EXACT":
        return 0.5 * x * (1 + error_function(x / np.float32(math.sqrt(2))))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * logistic(1.702 * x)
    raise Undefined(f"mode {mode!r}")


@op("leaky_relu")
def leaky_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= 0, x, alpha * x)


@op("linear_activation")
def linear_activation(x: Array, alpha: Array, beta: Array) -> Array:
    return x * alpha + beta


@op("prelu")
def prelu(x: Array, alpha: Array) -> Array:
    return np.where(x > 0, x, per_channel(alpha, x.ndim) * x)


@op("relu")
def relu(x: Array) -> Array:
    return np.maximum(x, 0)


@op("relu6")
def relu6(x: Array) -> Array:
    return np.minimum(np.maximum(x, 0), 6)


@op("scaled_tanh")
def scaled_tanh(x: Array, alpha: Array, beta: Array) -> Array:
    return alpha * np.tanh(beta * x)


@op("sigmoid")
def sigmoid(x: Array) -> Array:
    return logistic(x)


@op("sigmoid_hard")
def sigmoid_hard(x: Array, alpha: Array, beta: Array) -> Array:
    return np.minimum(np.maximum(alpha * x + beta, 0), 1)


@op("silu")
def silu(x: Array) -> Array:
    return x * logistic(x)


@op("softplus")
def softplus(x: Array) -> Array:
    return np.logaddexp(np.zeros((), x.dtype), x)


@op("softplus_parametric")
def softplus_parametric(x: Array, alpha: Array, beta: Array) -> Array:
    zero = np.zeros((), x.dtype)
    return per_channel(alpha, x.ndim) * np.logaddexp(zero, per_channel(beta, x.ndim) * x)


@op("softmax")
def softmax(x: Array, axis: Array | int = -1) -> Array:
    e = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return e / e.sum(axis=int(axis), keepdims=True)


@op("softsign")
def softsign(x: Array) -> Array:
    return x / (1 + np.abs(x))


@op("thresholded_relu")
def thresholded_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= alpha, x, np.zeros((), x.dtype))
