"""Integer convolution of bytes, and the product with constant weights: `effc.integer`'s Conv and MatMul."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.conv import ConvSpec, conv_axes, is_depthwise
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.kernels.int8_bias import borders_of, class_biases, pad_channels
from effc.backends.tvm.kernels.int8_depthwise import IntegerDepthwise
from effc.backends.tvm.kernels.int8_direct import IntegerConv
from effc.backends.tvm.kernels.int8_dot import shift_of
from effc.backends.tvm.kernels.int8_emission import integer_kernel
from effc.backends.tvm.kernels.int8_quads import pack_int_depthwise
from effc.backends.tvm.kernels.int8_store import Requantize
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class IntConvSpec:
    """`conv` with a uint8 or int8 input whose zero point is `zero_point`, and what follows the sum.

    The input is blocked by the ISA's lanes, or plain with at most four channels in one group.
    """

    conv: ConvSpec
    zero_point: int
    how: Requantize

    @property
    def blocking(self) -> Blocking | None:
        """The convolution's."""
        return self.conv.blocking

    def shift(self, isa: Isa) -> int:
        """The zero point of the input as a step takes it."""
        return shift_of(isa, self.conv.input.dtype, self.zero_point)


@lru_cache(maxsize=1024)
def int_direct_of(spec: ConvSpec, isa: Isa) -> IntegerConv:
    """The plan of a direct convolution."""
    if not spec.input.layout.block and (spec.input.shape[1] > 4 or spec.groups > 1):
        raise ValueError("a plain input of an integer convolution has at most four channels")
    axes = conv_axes(spec)
    return IntegerConv(
        isa, spec.input, spec.output, (axes,), spec.groups, True, blocking=spec.blocking
    )


def int_conv(spec: IntConvSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY) -> Kernel:
    """Params: output, input, weights, biases, multipliers, the residual (if any), the epilogue's."""
    if is_depthwise(spec.conv, isa):
        return IntegerDepthwise(isa, spec.conv, spec.how, spec.zero_point, name, epilogue).kernel()
    direct = int_direct_of(spec.conv, isa)
    return integer_kernel(direct, name, spec.how, spec.zero_point, epilogue)


def pack_int_conv(
    spec: IntConvSpec, isa: Isa, weight: Array, bias: Array, m: Array
) -> tuple[Array, ...]:
    """The constants of `int_conv`: weights [OC, IC / groups, *kernel] int8, bias [OC], m [OC]."""
    shift = spec.shift(isa)
    table = class_biases(borders_of(conv_axes(spec.conv), shift), weight, bias, shift)
    channels = -(-bias.size // isa.lanes) * isa.lanes
    if is_depthwise(spec.conv, isa):
        packed = pack_int_depthwise(spec.conv, isa, weight)
    else:
        direct = int_direct_of(spec.conv, isa)
        packed, channels = direct.pack(weight), direct.output_channels
    multipliers = np.broadcast_to(m.astype(np.float32).reshape(1, -1), (1, bias.size))
    return packed, pad_channels(table, channels), pad_channels(multipliers, channels)
