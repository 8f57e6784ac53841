"""Windows over two spatial axes, channels last: extents, and what a kernel may write over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.lowering import Refusal
from effc.core.ir import attr


@dataclass(frozen=True, slots=True)
class Windows:
    """A convolution's or pooling's geometry; one spatial axis is a picture of height 1."""

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    dilation_h: int
    dilation_w: int

    @classmethod
    def of(
        cls, node: ir.Node, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...]
    ) -> Windows:
        """The windows of `node` from shape `x` to shape `y`, both [1, C, *spatial]."""
        rank = len(x) - 2
        if rank not in (1, 2):
            raise Refusal(f"it has {rank} spatial axes", "use one or two")
        if x[0] != 1:
            raise Refusal(f"its batch is {x[0]}", "build with a batch of 1")

        def two(name: str, default: int) -> tuple[int, int]:
            found = tuple(attr(node, name, (default,) * rank))[:rank]
            return (found[0], found[1]) if rank == 2 else (default, found[0])

        high, wide = (x[2], x[3]) if rank == 2 else (1, x[2])
        out = (y[2], y[3]) if rank == 2 else (1, y[2])
        taps = (kernel[0], kernel[1]) if rank == 2 else (1, kernel[0])
        (sh, sw), (pt, pl), (dh, dw) = two("strides", 1), two("pads", 0), two("dilations", 1)
        return cls(high, wide, x[1], *out, y[1], *taps, sh, sw, pt, pl, dh, dw)

    @property
    def numbers(self) -> dict[str, int]:
        """The constants of the templates but for channels."""
        found = {
            "IN_H": self.in_h,
            "IN_W": self.in_w,
            "OUT_H": self.out_h,
            "OUT_W": self.out_w,
            "KERNEL_H": self.kernel_h,
            "KERNEL_W": self.kernel_w,
            "STRIDE_H": self.stride_h,
            "STRIDE_W": self.stride_w,
            "PAD_TOP": self.pad_top,
            "PAD_LEFT": self.pad_left,
            "DILATION_H": self.dilation_h,
            "DILATION_W": self.dilation_w,
        }
        return found

    @property
    def pointwise(self) -> bool:
        """Whether output p sees input p and nothing else."""
        return (
            self.kernel_h == self.kernel_w == self.stride_h == self.stride_w == 1
            and self.pad_top == self.pad_left == 0
            and (self.in_h, self.in_w) == (self.out_h, self.out_w)
        )

    @property
    def text(self) -> str:
        """A part of kernels' names."""
        return (
            f"{self.kernel_h}x{self.kernel_w}s{self.stride_h}_{self.in_h}x{self.in_w}x{self.in_c}"
        )

    def ahead(self, step: int, gathered: bool) -> int:
        """Bytes that the output has to start before the input, to lie over it.

        The kernel goes through the outputs in order, `step` at a time. `gathered`: it reads the windows
        of a step before it writes the outputs of that step; otherwise it goes on reading them meanwhile.
        """
        count = self.out_h * self.out_w
        rows = np.arange(self.out_h) * self.stride_h - self.pad_top
        columns = np.arange(self.out_w) * self.stride_w - self.pad_left
        rows = rows.clip(0, self.in_h - 1)
        columns = columns.clip(0, self.in_w - 1)
        first = ((rows[:, None] * self.in_w + columns) * self.in_c).reshape(-1)
        later = np.minimum.accumulate(first[::-1])[
            ::-1
        ]  # least byte that p and its successors read
        starts = np.arange(0, count, step)
        ends = np.minimum(starts + step, count) * self.out_c
        if gathered:
            needed, written = later[starts[1:]], ends[:-1]
        else:
            needed, written = later[starts], ends
        return max(0, int((written - needed).max(initial=0)))
