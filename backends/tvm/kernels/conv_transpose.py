"""Transposed convolution: one direct convolution for each phase of the strides; fp32."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis, transposed_axes
from effc.backends.tvm.kernels.conv import pack_bias
from effc.backends.tvm.kernels.direct import Direct
from effc.backends.tvm.kernels.direct_emission import direct_kernel
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel


@dataclass(frozen=True, slots=True)
class ConvTransposeSpec:
    """ONNX ConvTranspose. Tensors are [N, C, *spatial]; the output's shape holds output_padding.

    `pads` are those at the begin of each spatial axis, then those at the end (which only the output's
    shape depends on).
    """

    input: TensorType
    output: TensorType
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    bias: bool = False


def transposed_phases(spec: ConvTransposeSpec) -> tuple[tuple[Axis, ...], ...]:
    """The axes of each phase."""
    axes = [
        transposed_axes(
            spec.input.shape[2 + i],
            spec.output.shape[2 + i],
            spec.kernel[i],
            spec.strides[i],
            spec.dilations[i],
            spec.pads[i],
        )
        for i in range(len(spec.kernel))
    ]
    return tuple(itertools.product(*axes))


def turn_weights(spec: ConvTransposeSpec, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[IC, OC / groups, *kernel] -> [OC, IC / groups, *kernel]."""
    ic, oc = spec.input.shape[1] // spec.groups, weight.shape[1]
    grouped = weight.reshape(spec.groups, ic, oc, *spec.kernel)
    return np.swapaxes(grouped, 1, 2).reshape(spec.groups * oc, ic, *spec.kernel)


@lru_cache(maxsize=1024)
def _direct(spec: ConvTransposeSpec, isa: Isa) -> Direct:
    phases = transposed_phases(spec)
    return Direct(isa, spec.input, spec.output, phases, spec.groups, spec.bias)


def conv_transpose(
    spec: ConvTransposeSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY
) -> Kernel:
    """Params: output, input, packed weights, packed bias (where `spec.bias`), epilogue's operands."""
    return direct_kernel(_direct(spec, isa), name, epilogue)


def pack_conv_transpose(
    spec: ConvTransposeSpec,
    isa: Isa,
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[Any], ...]:
    """The constants in the order of the params: weights [IC, OC / groups, *kernel], bias [OC]."""
    packed = _direct(spec, isa).pack(turn_weights(spec, weight))
    return (packed,) if bias is None else (packed, pack_bias(bias, isa))
