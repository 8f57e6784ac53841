"""Convolution of any rank, stride, dilation, padding and group count; fp32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import forward_axis
from effc.backends.tvm.kernels.direct import Direct
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


@lru_cache(maxsize=1024)
def _direct(spec: ConvSpec, isa: Isa) -> Direct:
    rank = len(spec.kernel)
    axes = tuple(
        forward_axis(
            spec.input.shape[2 + i],
            spec.kernel[i],
            spec.strides[i],
            spec.dilations[i],
            (spec.pads[i], spec.pads[rank + i]),
        )
        for i in range(rank)
    )
    return Direct(isa, spec.input, spec.output, (axes,), spec.groups, spec.bias)


def conv2d(spec: ConvSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY) -> Kernel:
    """The kernel of a convolution.

    Params: output, input, packed weights, packed bias (where `spec.bias`), the epilogue's operands.
    Input and output are each plain or blocked by `isa.lanes`.
    """
    return _direct(spec, isa).kernel(name, epilogue)


def pack_conv2d(
    spec: ConvSpec, isa: Isa, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[Any], ...]:
    """The constants of `conv2d` in the order of its params: weights [OC, IC / groups, *kernel], bias."""
    packed = _direct(spec, isa).pack(weight)
    return (packed,) if bias is None else (packed, pack_bias(bias, isa))


def pack_bias(bias: npt.NDArray[Any], isa: Isa) -> npt.NDArray[Any]:
    """A vector of channels, with zeros up to whole blocks."""
    return np.pad(bias, (0, -bias.size % isa.lanes))
