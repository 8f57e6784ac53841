"""Reductions, normalizations, softmax, sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from effc.core.ir import attr
from effc.core.torch_module.op import Function, Op, axis_of, shaped


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Function:
    def run(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = op.ints("axes", axes)
        if not chosen:
            if op.get("noop_with_empty_axes", 0):
                return _noop(op, x)
            chosen = tuple(range(x.ndim))
        keep = bool(op.get("keepdims", 1))
        if not chosen:  # a scalar
            return function(x.reshape(1), (0,), False)
        return function(x, tuple(axis_of(a, x.ndim) for a in chosen), keep).to(x.dtype)

    return run


def _noop(op: Op, x: Tensor) -> Tensor:
    """No axes: each element is a reduction of itself."""
    kind = op.node.op_type
    if kind in ("ReduceL1", "ReduceL2"):
        return x.abs()
    if kind == "ReduceLogSum":
        return x.log()
    return x * x if kind == "ReduceSumSquare" else x


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(name: str) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    def run(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        low = name == "amin"
        if x.numel() == 0 and any(x.shape[a] == 0 for a in axes):
            size = [1 if i in axes else n for i, n in enumerate(x.shape)]
            size = size if keep else [n for i, n in enumerate(x.shape) if i not in axes]
            if x.dtype == torch.bool:
                return torch.full(size, low)
            if x.is_floating_point():
                return torch.full(size, float("inf") if low else float("-inf"), dtype=x.dtype)
            info = torch.iinfo(x.dtype)
            return torch.full(size, info.max if low else info.min, dtype=x.dtype)
        y: Tensor = getattr(torch, name)(x, axes, keep)
        return y

    return run


def _arg(largest: bool) -> Function:
    def run(op: Op, x: Tensor) -> Tensor:
        axis = axis_of(op.get("axis", 0), x.ndim)
        x = x.flip(axis) if op.get("select_last_index", 0) else x
        best = x.amax(axis, keepdim=True) if largest else x.amin(axis, keepdim=True)
        # torch promises no order among equals, so count the places before the first
        at = ((x == best).cumsum(axis) == 0).sum(axis, keepdim=True)
        if op.get("select_last_index", 0):
            at = x.shape[axis] - 1 - at
        return at if op.get("keepdims", 1) else at.squeeze(axis)

    return run


def _softmax(function: Callable[..., Tensor]) -> Function:
    def run(op: Op, x: Tensor) -> Tensor:
        axis = op.get("axis", 1 if op.opset < 13 else -1)
        if op.opset >= 13:
            return function(x, axis)
        axis = axis_of(axis, x.ndim)
        return function(x.flatten(axis) if axis < x.ndim else x, axis).reshape(x.shape)

    return run


def _hardmax(op: Op, x: Tensor) -> Tensor:
    axis = op.get("axis", 1 if op.opset < 13 else -1)
    flat = x if op.opset >= 13 else x.flatten(axis_of(axis, x.ndim))
    first = ((flat == flat.amax(axis, keepdim=True)).cumsum(axis) == 0).sum(axis, keepdim=True)
    return torch.zeros_like(flat).scatter(axis, first, 1).reshape(x.shape)


def _cumulative(function: Callable[..., Tensor], neutral: float) -> Function:
    def run(op: Op, x: Tensor, axis: Tensor) -> Tensor:
        at = axis_of(int(axis), x.ndim)
        x = x.flip(at) if op.get("reverse", 0) else x
        y = function(x, at).to(x.dtype)
        if op.get("exclusive", 0):
            first = torch.full_like(y.narrow(at, 0, 1), neutral)
            y = torch.cat([first, y.narrow(at, 0, y.shape[at] - 1)], at)
        return y.flip(at) if op.get("reverse", 0) else y

    return run


def _top_k(op: Op, x: Tensor, k: Tensor | None = None) -> Any:
    count = int(k) if k is not None else op.get("k")
    axis, largest = op.get("axis", -1), bool(op.get("largest", 1))
    y, at = torch.sort(x, dim=axis, descending=largest, stable=True)
    return y.narrow(axis, 0, count), at.narrow(axis, 0, count)


def _batch_norm(
    op: Op, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    factor = scale / torch.sqrt(var + op.get("epsilon", 1e-5))
    y = (x - shaped(mean, x.ndim)) * shaped(factor, x.ndim) + shaped(bias, x.ndim)
    return y.to(x.dtype)


def batch_norm_refusal(node: ir.Node) -> str:
    """Why a BatchNormalization can't be computed here; empty where it can."""
    return "training_mode=1 updates statistics" if attr(node, "training_mode", 0) else ""


def _standardized(
    x: Tensor, axes: tuple[int, ...], epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


def _instance_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    y, _, _ = _standardized(x, tuple(range(2, x.ndim)), op.get("epsilon", 1e-5))
    return y * shaped(scale, x.ndim) + shaped(bias, x.ndim)


def _layer_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = axis_of(op.get("axis", -1), x.ndim)
    dtype = torch.promote_types(x.dtype, op.dtype(op.get("stash_type", 1)))
    y, mean, inverse = _standardized(
        x.to(dtype), tuple(range(axis, x.ndim)), op.get("epsilon", 1e-5)
    )
    y = y.to(x.dtype) * scale
    return (y if bias is None else y + bias, mean, inverse)[: len(op.wanted)]


def _rms_norm(op: Op, x: Tensor, scale: Tensor) -> Tensor:
    axis = axis_of(op.get("axis", -1), x.ndim)
    wide = x.to(torch.promote_types(x.dtype, op.dtype(op.get("stash_type", 1))))
    axes = tuple(range(axis, x.ndim))
    mean = wide.square().mean(axes, keepdim=True)
    return (wide * torch.rsqrt(mean + op.get("epsilon", 1e-5))).to(x.dtype) * scale


def _group_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = op.get("num_groups")
    split = x.reshape(x.shape[0], groups, -1)
    y, _, _ = _standardized(split, (2,), op.get("epsilon", 1e-5))
    y = y.reshape(x.shape)
    if op.opset < 21 and scale.numel() == groups:  # one scale a group
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return y * shaped(scale, x.ndim) + shaped(bias, x.ndim)


def _lp_norm(op: Op, x: Tensor) -> Tensor:
    p, axis = op.get("p", 2), op.get("axis", -1)
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else x.square().sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def _mean_variance(op: Op, x: Tensor) -> Tensor:
    axes = tuple(op.get("axes", (0, 2, 3)))
    mean = x.mean(axes, keepdim=True)
    deviation = (x.square().mean(axes, keepdim=True) - mean.square()).sqrt()
    return (x - mean) / (deviation + 1e-9)


TABLE: dict[str, Function] = {
    "ReduceSum": _reduction(lambda x, a, k: x.sum(a, keepdim=k)),
    "ReduceMean": _reduction(lambda x, a, k: x.mean(a, keepdim=k)),
    "ReduceMax": _reduction(_extreme("amax")),
    "ReduceMin": _reduction(_extreme("amin")),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(lambda x, a, k: x.abs().sum(a, keepdim=k)),
    "ReduceL2": _reduction(lambda x, a, k: x.square().sum(a, keepdim=k).sqrt()),
    "ReduceLogSum": _reduction(lambda x, a, k: x.sum(a, keepdim=k).log()),
    "ReduceLogSumExp": _reduction(lambda x, a, k: x.logsumexp(a, keepdim=k)),
    "ReduceSumSquare": _reduction(lambda x, a, k: x.square().sum(a, keepdim=k)),
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "Softmax": _softmax(F.softmax),
    "LogSoftmax": _softmax(F.log_softmax),
    "Hardmax": _hardmax,
    "CumSum": _cumulative(torch.cumsum, 0),
    "CumProd": _cumulative(torch.cumprod, 1),
    "TopK": _top_k,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
}
