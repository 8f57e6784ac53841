"""Integer transposed convolution: phases of ordinary ones, each with biases of its own borders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.conv_transpose import (
    ConvTransposeSpec,
    transposed_phases,
    turn_weights,
)
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.kernels.int8_bias import borders_of, class_biases, pad_channels
from effc.backends.tvm.kernels.int8_direct import IntegerConv
from effc.backends.tvm.kernels.int8_dot import shift_of
from effc.backends.tvm.kernels.int8_emission import integer_kernel
from effc.backends.tvm.kernels.int8_store import Requantize
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class IntConvTransposeSpec:
    """`conv` with an 8-bit input, blocked by the ISA's lanes, and what follows the sum."""

    conv: ConvTransposeSpec
    zero_point: int
    how: Requantize

    def shift(self, isa: Isa) -> int:
        """The zero point of the input as a step takes it."""
        return shift_of(isa, self.conv.input.dtype, self.zero_point)


@lru_cache(maxsize=1024)
def _direct(spec: ConvTransposeSpec, isa: Isa) -> IntegerConv:
    if not spec.input.layout.block:
        raise ValueError("an integer transposed convolution takes blocks of channels")
    phases = transposed_phases(spec)
    return IntegerConv(isa, spec.input, spec.output, phases, spec.groups, True)


def int_conv_transpose(
    spec: IntConvTransposeSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY
) -> Kernel:
    """Params: output, input, weights, biases, multipliers, the residual (if any), the epilogue's."""
    return integer_kernel(_direct(spec.conv, isa), name, spec.how, spec.zero_point, epilogue)


def pack_int_conv_transpose(
    spec: IntConvTransposeSpec, isa: Isa, weight: Array, bias: Array, m: Array
) -> tuple[Array, ...]:
    """The constants: weights [IC, OC / groups, *kernel] int8, bias [OC], m [OC]."""
    direct = _direct(spec.conv, isa)
    turned = turn_weights(spec.conv, weight)
    rows, shift = [], spec.shift(isa)
    for phase in direct.phases:
        taken = turned
        for i, axis in enumerate(phase.axes):
            taken = np.take(taken, axis.taps, axis=2 + i)
        rows.append(class_biases(borders_of(phase.axes, shift), taken, bias, shift))
    table = pad_channels(np.concatenate(rows), direct.output_channels)
    return direct.pack(turned), table, pad_channels(m[None], direct.output_channels)
