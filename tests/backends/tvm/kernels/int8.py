"""Integer convolutions and products straight from the specification, and data that is hard for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.conv import ConvSpec
from effc.backends.tvm.kernels.int8_conv import IntConvSpec
from effc.backends.tvm.kernels.int8_store import Requantize
from effc.backends.tvm.layout import PLAIN, Layout, TensorType

from .conftest import ISAS

HOST = ISAS[0]
Array = np.ndarray[Any, Any]


def narrowed(isa: Isa, name: str, *without: str, **changes: Any) -> Isa:
    """`isa` without some features."""
    left = tuple(f for f in isa.features if not any(f.startswith(w) for w in without))
    return replace(isa, name=name, features=left, **changes)


VNNI = ("avx512vnni", "avxvnni")


def integer_isas() -> list[Isa]:
    """All ways to compute a step that this machine has: VNNI and int16 products, in vectors of all widths."""
    found = list(ISAS)
    if HOST.lanes == 16:
        found.append(narrowed(HOST, "avx512-no-vnni", *VNNI))
        found.append(narrowed(HOST, "avx512-no-vbmi", "avx512vbmi"))
    if HOST.lanes >= 8:
        found.append(replace(HOST, name="avx2-vnni", lanes=8, registers=16))
    found.append(narrowed(HOST, "sse", "avx", "fma", "f16c", lanes=4, registers=16))
    return found


@dataclass(frozen=True)
class Case:
    """A convolution; sizes as ONNX has them."""

    ic: int
    oc: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1
    n: int = 1
    x_zero_point: int = 0
    x_dtype: str = "uint8"
    how: Requantize = field(default_factory=lambda: Requantize("uint8"))
    residual: bool = False
    plain_in: bool = False
    plain_out: bool = False

    @property
    def out(self) -> tuple[int, ...]:
        """The output's shape."""
        rank = len(self.kernel)
        spatial = [
            (self.size[i] + self.pads[i] + self.pads[rank + i]
             - self.dilations[i] * (self.kernel[i] - 1) - 1) // self.strides[i] + 1
            for i in range(rank)
        ]  # fmt: skip
        return (self.n, self.oc, *spatial)

    def spec(self, isa: Isa) -> IntConvSpec:
        """The kernel's."""
        blocked = Layout(isa.lanes)
        out_layout = PLAIN if self.plain_out else blocked
        x = TensorType(
            (self.n, self.ic, *self.size), self.x_dtype, PLAIN if self.plain_in else blocked
        )
        how = self.how
        if self.residual:
            how = replace(how, z=TensorType(self.out, "uint8", out_layout))
        conv = ConvSpec(
            x,
            TensorType(self.out, how.dtype, out_layout),
            self.kernel,
            self.strides,
            self.pads,
            self.dilations,
            self.groups,
            True,
        )
        return IntConvSpec(conv, self.x_zero_point, how)


@dataclass(frozen=True)
class Data:
    """Logical arrays; `m` mixes ties (0.5), saturation, zero and ordinary multipliers."""

    x: Array
    w: Array
    bias: Array
    m: Array
    z: Array | None


def bytes_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """All values of the type, the ends often."""
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max + 1, shape)
    ends = rng.choice([info.min, info.max], shape)
    return np.where(rng.random(shape) < 0.2, ends, values).astype(dtype)


def multipliers(rng: np.random.Generator, channels: int, depth: int) -> Array:
    """[channels] float32."""
    usual = rng.uniform(0.2, 2.0, channels) / (60 * 70 * np.sqrt(depth)) * 100
    hard = rng.choice([0.5, 2.0**-9, 1e9, 3e38, 0.0, 1e-39], channels)
    return np.where(rng.random(channels) < 0.3, hard, usual).astype(np.float32)


def data(case: Case, seed: int = 0) -> Data:
    """Random arrays for a case."""
    rng = np.random.default_rng(seed)
    w = bytes_of(rng, (case.oc, case.ic // case.groups, *case.kernel), "int8")
    depth = max(1, w[0].size)
    return Data(
        bytes_of(rng, (case.n, case.ic, *case.size), case.x_dtype),
        w,
        rng.integers(-(2**14), 2**14, case.oc).astype(np.int32),
        multipliers(rng, case.oc, depth),
        bytes_of(rng, case.out, "uint8") if case.residual else None,
    )


def accumulate(case: Case, x: Array, w: Array, bias: Array) -> Array:
    """bias + sum (x - x_zero_point) * w in int64, outside of the input x = x_zero_point."""
    rank = len(case.kernel)
    edges = [(0, 0), (0, 0), *zip(case.pads[:rank], case.pads[rank:], strict=True)]
    padded = np.pad(x.astype(np.int64) - case.x_zero_point, edges)
    spatial = case.out[2:]
    total = np.zeros(case.out, np.int64)
    icg, ocg = case.ic // case.groups, case.oc // case.groups
    for tap in np.ndindex(*case.kernel):
        cut = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, o, s in zip(tap, case.dilations, spatial, case.strides, strict=True)
        )
        seen = padded[(slice(None), slice(None), *cut)]
        for g in range(case.groups):
            part = seen[:, g * icg : (g + 1) * icg]
            filters = w[(slice(g * ocg, (g + 1) * ocg), slice(None), *tap)].astype(np.int64)
            total[:, g * ocg : (g + 1) * ocg] += np.einsum("oc,nc...->no...", filters, part)
    return total + bias.astype(np.int64).reshape(1, -1, *(1,) * rank)


def finish(how: Requantize, acc: Array, m: Array, z: Array | None) -> Array:
    """The rule `float32`; `m` is broadcast to `acc`."""
    assert np.abs(acc).max(initial=0) < 2**31
    with np.errstate(over="ignore"):
        real = acc.astype(np.int32).astype(np.float32) * m.astype(np.float32)
    if z is not None:
        centred = (z.astype(np.int32) - how.z_zero_point).astype(np.float32)
        real = real + centred * np.float32(how.z_multiplier)
    assert real.dtype == np.float32
    if how.is_float:
        return real
    whole = np.rint(real).astype(np.float64) + how.zero_point
    return np.clip(whole, how.low, how.high).astype(how.dtype)


def expected(case: Case, d: Data) -> Array:
    """What the specification says."""
    acc = accumulate(case, d.x, d.w, d.bias)
    m = d.m.reshape(1, -1, *(1,) * len(case.kernel))
    return finish(case.how, acc, m, d.z)
