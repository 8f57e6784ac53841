"""Convolution of any rank, stride, dilation, padding and group count; fp32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis, forward_axis
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.depthwise import Depthwise, pack_depthwise
from effc.backends.tvm.kernels.direct import Direct
from effc.backends.tvm.kernels.direct_emission import direct_kernel
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """ONNX Conv. Tensors are [N, C, *spatial]; `pads` in ONNX order (all begins, then all ends)."""

    input: TensorType
    output: TensorType
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    bias: bool = False
    blocking: Blocking | None = None  # None: the rule's


def is_depthwise(spec: ConvSpec, isa: Isa) -> bool:
    """Whether the depthwise kernel takes it: one channel a group, blocked on both sides."""
    channels = spec.input.shape[1]
    blocked = spec.input.layout.block == spec.output.layout.block == isa.lanes
    return blocked and spec.groups == channels == spec.output.shape[1] > 1


def conv_axes(spec: ConvSpec) -> tuple[Axis, ...]:
    rank = len(spec.kernel)
    return tuple(
        forward_axis(
            spec.input.shape[2 + i],
            spec.kernel[i],
            spec.strides[i],
            spec.dilations[i],
            (spec.pads[i], spec.pads[rank + i]),
        )
        for i in range(rank)
    )


@lru_cache(maxsize=1024)
def direct_of(spec: ConvSpec, isa: Isa) -> Direct:
    return Direct(
        isa,
        spec.input,
        spec.output,
        (conv_axes(spec),),
        spec.groups,
        spec.bias,
        blocking=spec.blocking,
    )


def conv2d(spec: ConvSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY) -> Kernel:
    """The kernel of a convolution.

    Params: output, input, packed weights, packed bias (where `spec.bias`), the epilogue's operands.
    Input and output are each plain or blocked by `isa.lanes`.
    """
    if is_depthwise(spec, isa):
        return Depthwise(
            isa,
            spec.input,
            spec.output,
            conv_axes(spec),
            spec.bias,
            name,
            epilogue,
            blocking=spec.blocking,
        ).kernel()
    return direct_kernel(direct_of(spec, isa), name, epilogue)


def pack_conv2d(
    spec: ConvSpec, isa: Isa, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[Any], ...]:
    """The constants of `conv2d` in the order of its params: weights [OC, IC / groups, *kernel], bias."""
    if is_depthwise(spec, isa):
        packed = pack_depthwise(weight, isa)
    else:
        packed = direct_of(spec, isa).pack(weight)
    return (packed,) if bias is None else (packed, pack_bias(bias, isa))


def pack_bias(bias: npt.NDArray[Any], isa: Isa) -> npt.NDArray[Any]:
    """A vector of channels, with zeros up to whole blocks."""
    return np.pad(bias, (0, -bias.size % isa.lanes))
