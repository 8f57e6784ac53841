"""The float32 functions against float64 libm: largest error in ulp, special values, no libm calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.layout import TensorType  # noqa: E402
from effc.backends.tvm.ops import math as m  # noqa: E402
from effc.backends.tvm.ops import trigonometry  # noqa: E402
from effc.backends.tvm.ops.injective import injective  # noqa: E402
from effc.backends.tvm.ops.power import power  # noqa: E402

N = 1 << 15
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-40, -1e-40, 3e30, -3e30, 88.8, -103, 0.5, -0.5],
    np.float32,
)


def _uniform(low: float, high: float) -> Callable[[np.random.Generator], np.ndarray]:
    def draw(rng: np.random.Generator) -> np.ndarray:
        x = rng.uniform(low, high, N)
        x[: N // 4] *= np.exp(rng.uniform(-15, 0, N // 4))  # small arguments too
        return np.clip(x, low, high)

    return draw


def _positive(rng: np.random.Generator) -> np.ndarray:
    return np.exp(rng.uniform(-103, 88, N))


def _above(start: float, sign: float = 1.0) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: start + sign * np.exp(rng.uniform(-15, 40, N))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


# function, float64 reference, arguments, the docstring's promise in ulp
FUNCTIONS: dict[str, tuple[Any, Any, float]] = {
    "exp": (np.exp, _uniform(-87, 88.7), 1.1),
    "expm1": (np.expm1, _uniform(-20, 88), 2),
    "log": (np.log, _positive, 1),
    "log1p": (np.log1p, _above(0), 2),
    "tanh": (np.tanh, _uniform(-12, 12), 3),
    "sigmoid": (_sigmoid, _uniform(-80, 80), 3),
    "erf": (np.vectorize(math.erf), _uniform(-5, 5), 1.5),
    "softplus": (_softplus, _uniform(-80, 80), 2),
    "sin": (np.sin, _uniform(-1e5, 1e5), 2),
    "cos": (np.cos, _uniform(-1e5, 1e5), 2),
    "tan": (np.tan, _uniform(-1e5, 1e5), 4),
    "asin": (np.arcsin, _uniform(-1, 1), 3),
    "acos": (np.arccos, _uniform(-1, 1), 2),
    "atan": (np.arctan, _uniform(-50, 50), 3),
    "sinh": (np.sinh, _uniform(-89, 89), 2),
    "cosh": (np.cosh, _uniform(-89, 89), 2),
    "asinh": (np.arcsinh, _above(0, -1), 3),
    "acosh": (np.arccosh, _above(1), 3),
    "atanh": (np.arctanh, _uniform(-1, 1), 3),
}


def ulps(y: np.ndarray, exact: np.ndarray) -> np.ndarray:
    nearest = exact.astype(np.float32)
    error = np.abs(y.astype(np.float64) - exact) / np.spacing(np.abs(nearest)).astype(np.float64)
    return np.where((y == nearest) | (np.isnan(y) & np.isnan(nearest)), 0.0, error)


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: draw(rng).astype(np.float32) for name, (_, draw, _) in FUNCTIONS.items()}


def test_functions(compile_kernels: Any, data: dict[str, np.ndarray]) -> None:
    isa = host_isa()
    many, few = TensorType((N,), "float32"), TensorType(SPECIAL.shape, "float32")
    kernels = []
    for name in FUNCTIONS:
        function = getattr(m, name, None) or getattr(trigonometry, name)

        def body(loads: list[Any], function: Any = function) -> list[Any]:
            return [lambda index: function(loads[0](index))]

        kernels.append(injective(name, isa, [many], [many], body))
        kernels.append(injective(f"{name}_special", isa, [few], [few], body))
    library = compile_kernels(kernels)
    with np.errstate(all="ignore"):
        for name, (reference, _, promise) in FUNCTIONS.items():
            (y,) = library(name, data[name])
            worst = ulps(y, reference(data[name].astype(np.float64))).max()
            assert worst <= promise, f"{name}: {worst:.2f} ulp"
            (y,) = library(f"{name}_special", SPECIAL)
            want = reference(SPECIAL.astype(np.float64)).astype(np.float32)
            small = np.abs(SPECIAL) < 1e5
            sure = small | ~np.isfinite(SPECIAL) if name in ("sin", "cos", "tan") else small | True
            np.testing.assert_allclose(y[sure], want[sure], rtol=1e-6, atol=1e-38, err_msg=name)
            signs = ~np.isnan(want) & sure
            assert np.array_equal(np.signbit(y[signs]), np.signbit(want[signs])), name
    text = library.asm()
    assert "call" not in text and "@PLT" not in text, "a function went to libm"


def test_power(compile_kernels: Any) -> None:
    rng = np.random.default_rng(1)
    x = np.exp(rng.uniform(-10, 10, N)).astype(np.float32)
    y = rng.uniform(-12, 12, N).astype(np.float32)
    x[:1000], y[:1000] = -x[:1000], np.round(y[:1000])
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, -2, 0.5, 3, -3], np.float32)
    pairs = np.stack(np.meshgrid(special, special), -1).reshape(-1, 2)
    x[-len(pairs) :], y[-len(pairs) :] = pairs[:, 0], pairs[:, 1]
    t = TensorType((N,), "float32")
    kernel = injective(
        "power", host_isa(), [t], [t, t], lambda ls: [lambda i: power(ls[0](i), ls[1](i))]
    )
    (got,) = compile_kernels([kernel])("power", x, y)
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64))
        error = ulps(got, want)
        assert np.nanmax(error) <= 1
        assert np.array_equal(np.isnan(got), np.isnan(want))
        assert np.array_equal(np.signbit(got)[~np.isnan(want)], np.signbit(want)[~np.isnan(want)])
