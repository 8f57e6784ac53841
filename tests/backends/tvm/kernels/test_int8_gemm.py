"""Integer products with constant weights, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import Isa  # noqa: E402
from effc.backends.tvm.kernels import int8_dot, int8_store  # noqa: E402
from effc.backends.tvm.kernels.int8_gemm import (  # noqa: E402
    IntGemmSpec,
    int_gemm,
    pack_int_gemm,
)
from effc.backends.tvm.kernels.int8_matmul import (  # noqa: E402
    IntMatmulSpec,
    int_matmul,
    pack_int_matmul,
)
from effc.backends.tvm.kernels.int8_store import Requantize  # noqa: E402
from effc.backends.tvm.layout import TensorType  # noqa: E402

from .int8 import HOST, bytes_of, finish, integer_isas, multipliers  # noqa: E402


@dataclass(frozen=True)
class Product:
    """x [*rows, k] @ w [k, n]."""

    rows: tuple[int, ...]
    k: int
    n: int
    zero_point: int = 0
    how: Requantize = field(default_factory=lambda: Requantize("uint8"))
    dtype: str = "uint8"
    residual: bool = False
    one_multiplier: bool = False

    @property
    def spec(self) -> IntGemmSpec:
        """The kernel's."""
        out = (*self.rows, self.n)
        how = replace(self.how, z=TensorType(out, "uint8")) if self.residual else self.how
        x = TensorType((*self.rows, self.k), self.dtype)
        return IntGemmSpec(x, TensorType(out, how.dtype), self.zero_point, how)


PRODUCTS = {
    "vector": Product((1,), 40, 100, 128),
    "vector-odd": Product((1,), 7, 5, 3, Requantize("uint8", 30, 31, 200)),
    "rows": Product((9,), 21, 64, 255, Requantize("int8", -7, -120, 127)),
    "rows-odd": Product((2, 5), 50, 39, 17),
    "wide": Product((6,), 16, 130, how=Requantize("uint8", 5)),
    "signed": Product((5,), 19, 33, -128, dtype="int8"),
    "real": Product((3,), 20, 20, 9, Requantize("float32"), one_multiplier=True),
    "residual": Product(
        (7,), 24, 40, 9, Requantize("uint8", 8, 8, 255, None, 77, 0.81), residual=True
    ),
    "single": Product((3,), 1, 1, 2),
}


def check(compiled: Any, isa: Isa) -> None:
    names = {k: "g_" + k.replace("-", "_") for k in PRODUCTS}
    run = compiled(isa, [int_gemm(p.spec, names[k], isa) for k, p in PRODUCTS.items()])
    for i, (name, p) in enumerate(PRODUCTS.items()):
        rng = np.random.default_rng(i)
        x = bytes_of(rng, (*p.rows, p.k), p.dtype)
        w = bytes_of(rng, (p.k, p.n), "int8")
        bias = rng.integers(-9999, 9999, p.n).astype(np.int32)
        m = multipliers(rng, 1 if p.one_multiplier else p.n, p.k)
        z = bytes_of(rng, (*p.rows, p.n), "uint8") if p.residual else None
        arrays = [x, *pack_int_gemm(p.spec, isa, w, bias, m)]
        found = run(names[name], *arrays, *([] if z is None else [z]))
        acc = (x.astype(np.int64) - p.zero_point) @ w.astype(np.int64) + bias
        np.testing.assert_array_equal(found, finish(p.how, acc, m, z), f"{name} on {isa.name}")


@pytest.mark.parametrize("isa", integer_isas()[::2], ids=lambda isa: isa.name)
def test_products(compiled: Any, isa: Isa) -> None:
    check(compiled, isa)


@dataclass(frozen=True)
class Matmul:
    """a @ b of two activations."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    zero_points: tuple[int, int] = (0, 0)
    dtypes: tuple[str, str] = ("uint8", "uint8")
    how: Requantize = field(default_factory=lambda: Requantize("uint8"))
    residual: bool = False

    @property
    def out(self) -> tuple[int, ...]:
        """The output's shape."""
        batch = np.broadcast_shapes(self.a[:-2], self.b[:-2])
        return (*batch, self.a[-2], self.b[-1])

    @property
    def spec(self) -> IntMatmulSpec:
        """The kernel's."""
        how = self.how
        if self.residual:
            how = replace(how, z=TensorType(self.out, "uint8"))
        a, b = (TensorType(s, t) for s, t in zip((self.a, self.b), self.dtypes, strict=True))
        return IntMatmulSpec(a, b, TensorType(self.out, how.dtype), *self.zero_points, how)


MATMULS = {
    "heads": Matmul((3, 9, 16), (3, 16, 20), (128, 100)),
    "odd": Matmul((2, 5, 7), (2, 7, 33), (3, 128), ("uint8", "int8")),
    "odd-signed": Matmul((2, 5, 7), (2, 7, 33), (-3, 100), ("int8", "uint8")),
    "one-column": Matmul((5, 6), (6, 1), (0, 0)),
    "shared": Matmul((2, 3, 4, 19), (19, 40), (255, 255), how=Requantize("int8", -7, -99, 99)),
    "broadcast": Matmul((2, 1, 4, 8), (3, 8, 16), (1, 0), ("int8", "int8")),
    "real": Matmul((6, 12), (12, 64), (7, 9), how=Requantize("float32")),
    "residual": Matmul(
        (6, 12), (12, 24), (7, 9), how=Requantize("uint8", 8, 8, 255, None, 77, 0.81), residual=True
    ),
}


def check_matmuls(compiled: Any, isa: Isa) -> None:
    names = {k: "m_" + k.replace("-", "_") for k in MATMULS}
    run = compiled(isa, [int_matmul(c.spec, names[k], isa) for k, c in MATMULS.items()])
    for i, (name, c) in enumerate(MATMULS.items()):
        rng = np.random.default_rng(i)
        a, b = (bytes_of(rng, s, t) for s, t in zip((c.a, c.b), c.dtypes, strict=True))
        bias = rng.integers(-9999, 9999, c.out[-1]).astype(np.int32)
        m = multipliers(rng, c.out[-1], c.a[-1])
        z = bytes_of(rng, c.out, "uint8") if c.residual else None
        arrays = [a, b, *pack_int_matmul(c.spec, isa, bias, m), *([] if z is None else [z])]
        found = run(names[name], *arrays)
        za, zb = c.zero_points
        acc = np.matmul(a.astype(np.int64) - za, b.astype(np.int64) - zb) + bias
        np.testing.assert_array_equal(found, finish(c.how, acc, m, z), f"{name} on {isa.name}")


@pytest.mark.parametrize("isa", integer_isas()[::3], ids=lambda isa: isa.name)
def test_products_of_activations(compiled: Any, isa: Isa) -> None:
    check_matmuls(compiled, isa)


def test_plain_arithmetic(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (int8_dot, int8_store):
        monkeypatch.setattr(module, "is_x86", lambda isa: False)
    isa = replace(HOST, name="plain", lanes=4)
    check(compiled, isa)
    check_matmuls(compiled, isa)
