"""Copies between strided places, found from the table of source indices that an operator makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effc.backends.tvm.mcu.program import C_TYPES, Kernel
from effc.backends.tvm.mcu.templates import Kernels
from effc.core.ir import Array


@dataclass(frozen=True, slots=True)
class StridedCopy:
    """y[y_base + sum y_strides[k] * i_k] = x[base + sum sources[k][i_k]]; sources in elements."""

    extents: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]  # of axis k, for every index
    base: int
    y_strides: tuple[int, ...]
    y_base: int = 0

    @classmethod
    def of(
        cls, index: Array, y_strides: Sequence[int] | None = None, y_base: int = 0
    ) -> StridedCopy | None:
        """The copy that puts x[index] into y; None where an axis moves what another one selects."""
        index = np.asarray(index, np.int64)
        if y_strides is None:
            y_strides = [int(np.prod(index.shape[k + 1 :])) for k in range(index.ndim)]
        corner = (0,) * index.ndim
        base = int(index[corner]) if index.size else 0
        sources = []
        total = np.full(index.shape, base, np.int64)
        for k, extent in enumerate(index.shape):
            at: Any = (*corner[:k], slice(None), *corner[k + 1 :])
            line = index[at] - base
            sources.append(tuple(int(v) for v in line))
            total += line.reshape([extent if i == k else 1 for i in range(index.ndim)])
        if not np.array_equal(total, index):
            return None
        return cls(index.shape, tuple(sources), base, tuple(y_strides), y_base)._merged()

    def _merged(self) -> StridedCopy:
        """Without axes of extent 1, neighbours that are one run as one axis."""
        axes: list[tuple[int, tuple[int, ...], int]] = []
        for extent, source, stride in zip(self.extents, self.sources, self.y_strides, strict=True):
            if extent == 1:
                continue
            step = _step(source)
            if axes and step is not None:
                before, above, above_stride = axes[-1]
                outer = _step(above)
                if outer == step * extent and above_stride == stride * extent:
                    count = before * extent
                    axes[-1] = (count, tuple(i * step for i in range(count)), stride)
                    continue
            axes.append((extent, source, stride))
        return StridedCopy(
            tuple(a[0] for a in axes),
            tuple(a[1] for a in axes),
            self.base,
            tuple(a[2] for a in axes),
            self.y_base,
        )

    @property
    def whole(self) -> bool:
        """Whether one stretch is copied as it is."""
        if not self.extents:
            return True
        return len(self.extents) == 1 and _step(self.sources[0]) == 1 and self.y_strides == (1,)

    def kernel(self, kernels: Kernels, name: str, dtype: str) -> Kernel:
        """The C function (const T *x, T *y)."""
        ctype = C_TYPES[dtype]
        tables, loops, x_terms, y_terms = [], [], [str(self.base)], [str(self.y_base)]
        run = 1
        axes = list(zip(self.extents, self.sources, self.y_strides, strict=True))
        if axes and _step(axes[-1][1]) == 1 and axes[-1][2] == 1:
            run = axes.pop()[0]
        for k, (extent, source, stride) in enumerate(axes):
            step = _step(source)
            if step is None:
                listed = ", ".join(map(str, source))
                tables.append(f"  static const int32_t t{k}[{extent}] = {{{listed}}};")
                x_terms.append(f"t{k}[i{k}]")
            elif step:
                x_terms.append(f"i{k} * {step}" if step >= 0 else f"i{k} * ({step})")
            y_terms.append(f"i{k} * {stride}")
            loops.append(f"{'  ' * (k + 1)}for (int i{k} = 0; i{k} < {extent}; i{k}++)")
        x_at = " + ".join(t for t in x_terms if t != "0") or "0"
        y_at = " + ".join(t for t in y_terms if t != "0") or "0"
        indent = "  " * (len(axes) + 1)
        if run > 1:
            body = f"{indent}memmove(y + {y_at}, x + {x_at}, {run * np.dtype(dtype).itemsize});"
        else:
            body = f"{indent}y[{y_at}] = x[{x_at}];"
        lines = ["/* Elements moved. */", f"void NAME(const {ctype} *x, {ctype} *y) {{"]
        text = "\n".join([*lines, *tables, *loops, body, "}"])
        return kernels.made(text, f"{name}_{'x'.join(map(str, self.extents)) or '1'}", {})


def _step(source: Sequence[int]) -> int | None:
    """The distance of neighbours where it is one; None for a table."""
    if len(source) < 2:
        return 0
    step = source[1] - source[0]
    return step if all(b - a == step for a, b in zip(source, source[1:], strict=False)) else None
