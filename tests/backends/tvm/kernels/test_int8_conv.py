"""Integer convolutions of every kind, bit for bit, in all ways in which this machine can compute them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from tvm import tirx  # noqa: E402

from effc.backends.tvm import tir  # noqa: E402
from effc.backends.tvm.isa import Isa, isa_of  # noqa: E402
from effc.backends.tvm.kernels import int8_dot, int8_store  # noqa: E402
from effc.backends.tvm.kernels.choice import Blocking  # noqa: E402
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue  # noqa: E402
from effc.backends.tvm.kernels.int8_conv import int_conv, pack_int_conv  # noqa: E402
from effc.backends.tvm.kernels.int8_store import Requantize  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402

from .int8 import HOST, Case, Data, data, expected, integer_isas  # noqa: E402

P1 = (1, 1, 1, 1)
U8 = Requantize("uint8")
SHIFTED = Requantize("uint8", 37, 40, 201)
SIGNED = Requantize("int8", -5, -100, 127)
REAL = Requantize("float32")
ADDED = Requantize("uint8", 100, 0, 255, z_zero_point=128, z_multiplier=0.37)

EVERYWHERE = {
    "3x3": Case(20, 40, (9, 13), (3, 3), pads=P1, x_zero_point=128, how=SHIFTED),
    "pointwise": Case(24, 33, (7, 9), (1, 1), n=2, x_zero_point=3, how=SIGNED),
    "stem": Case(3, 20, (11, 37), (3, 3), (2, 2), (0, 1, 2, 1), plain_in=True, x_zero_point=114),
    "depthwise": Case(20, 20, (9, 17), (3, 3), pads=P1, groups=20, x_zero_point=255, how=SHIFTED),
    "depthwise-tiny": Case(20, 20, (3, 3), (3, 3), pads=P1, groups=20, x_zero_point=7),
    "residual": Case(16, 24, (5, 6), (3, 3), pads=P1, how=ADDED, residual=True),
    "signed": Case(20, 16, (5, 6), (3, 3), pads=P1, x_dtype="int8", x_zero_point=-3),
}
CASES = {
    **EVERYWHERE,
    "3x3-zero": Case(16, 32, (8, 29), (3, 3), pads=P1, how=SHIFTED),
    "3x3-strided": Case(18, 20, (9, 10), (3, 3), (2, 2), (0, 0, 1, 1), x_zero_point=255),
    "5x5-asymmetric": Case(5, 16, (9, 8), (5, 5), pads=(4, 0, 1, 3), x_zero_point=9),
    "1x7": Case(16, 16, (9, 9), (1, 7), pads=(0, 3, 0, 3), x_zero_point=9),
    "dilated": Case(16, 16, (9, 9), (3, 3), pads=(6,) * 4, dilations=(6, 6), x_zero_point=77),
    "dilated-far": Case(16, 16, (4, 4), (3, 3), pads=(5,) * 4, dilations=(5, 5), x_zero_point=77),
    "large-pad": Case(6, 8, (5, 5), (3, 3), pads=(7,) * 4, x_zero_point=200, how=SHIFTED),
    "many-edges": Case(16, 16, (19, 19), (19, 19), pads=(9,) * 4, x_zero_point=30),
    "groups": Case(32, 64, (5, 5), (3, 3), pads=P1, groups=2, x_zero_point=1),
    "groups-odd": Case(30, 45, (5, 6), (3, 3), (2, 2), P1, groups=3, x_zero_point=1),
    "multiplier": Case(20, 40, (4, 5), (3, 3), pads=P1, groups=20, x_zero_point=5),
    "plain-out": Case(16, 3, (7, 6), (3, 3), pads=P1, plain_out=True, how=SHIFTED),
    "plain-out-residual": Case(9, 18, (5, 3), (1, 1), plain_out=True, how=ADDED, residual=True),
    "residual-tail": Case(16, 19, (9, 10), (1, 1), how=replace(ADDED, zero_point=0), residual=True),
    "stem-7x7": Case(3, 33, (20, 20), (7, 7), (2, 2), (3,) * 4, n=2, plain_in=True),
    "stem-narrow": Case(1, 16, (9, 5), (3, 3), pads=P1, plain_in=True, x_zero_point=9),
    "stem-pointwise": Case(4, 20, (6, 11), (1, 1), plain_in=True, x_zero_point=9),
    "stem-blocked": Case(3, 16, (9, 5), (3, 3), pads=P1, x_zero_point=9),
    "stem-signed": Case(4, 16, (6, 40), (3, 3), pads=P1, plain_in=True, x_dtype="int8"),
    "real": Case(20, 40, (5, 5), (3, 3), pads=P1, x_zero_point=4, how=REAL),
    "real-plain": Case(20, 5, (5, 5), (1, 1), how=REAL, plain_out=True),
    "1d": Case(20, 33, (30,), (5,), (2,), (2, 2), (1,), x_zero_point=8),
    "3d": Case(6, 20, (4, 5, 6), (3, 3, 3), (1, 2, 1), (1,) * 6, (1, 1, 1), x_zero_point=8),
    "3d-planes": Case(2, 20, (4, 5, 6), (3, 3, 3), (1,) * 3, (1,) * 6, (1,) * 3, plain_in=True),
    "classifier": Case(40, 21, (1, 1), (1, 1), n=2, x_zero_point=11),
    "depthwise-strided": Case(
        33, 33, (9, 30), (3, 3), (2, 2), (0, 0, 1, 1), groups=33, n=2, how=SIGNED
    ),
    "depthwise-5x5": Case(16, 16, (14, 40), (5, 5), pads=(2,) * 4, groups=16, x_zero_point=1),
    "depthwise-5x5-strided": Case(
        16, 16, (9, 14), (5, 5), (2, 2), (1, 1, 2, 2), groups=16, x_zero_point=1
    ),
    "depthwise-7x1": Case(16, 16, (9, 14), (7, 1), pads=(3, 0, 3, 0), groups=16, x_zero_point=1),
    "depthwise-dilated": Case(
        20, 20, (12, 12), (3, 3), pads=(4,) * 4, dilations=(4, 4), groups=20, x_zero_point=17
    ),
    "depthwise-large": Case(16, 16, (21, 21), (21, 21), pads=(10,) * 4, groups=16, x_zero_point=1),
    "depthwise-signed": Case(
        20, 20, (7, 7), (3, 3), pads=P1, groups=20, x_dtype="int8", x_zero_point=-128
    ),
    "depthwise-residual": Case(
        20, 20, (7, 7), (3, 3), pads=P1, groups=20, how=ADDED, residual=True
    ),
    "depthwise-real": Case(20, 20, (5, 5), (3, 3), pads=P1, groups=20, how=REAL, x_zero_point=2),
    "depthwise-1d": Case(20, 20, (40,), (3,), (1,), (1, 1), (1,), groups=20, x_zero_point=9),
}  # fmt: skip


def arrays(case: Case, d: Data, isa: Isa) -> list[np.ndarray[Any, Any]]:
    """The physical arrays in the order of the kernel's params."""
    spec = case.spec(isa)
    found = [spec.conv.input.layout.pack(d.x), *pack_int_conv(spec, isa, d.w, d.bias, d.m)]
    if d.z is not None:
        found.append(spec.conv.output.layout.pack(d.z))
    return found


def check(compiled: Any, isa: Isa, cases: dict[str, Case]) -> None:
    """Every case agrees with the specification."""
    names = {name: "k_" + name.replace("-", "_") for name in cases}
    kernels = [int_conv(c.spec(isa), names[k], isa) for k, c in cases.items()]
    run = compiled(isa, kernels)
    for name, case in cases.items():
        d = data(case)
        found = run(names[name], *arrays(case, d, isa))
        np.testing.assert_array_equal(found, expected(case, d), f"{name} on {isa.name}")


def test_grid(compiled: Any) -> None:
    check(compiled, HOST, CASES)


@pytest.mark.parametrize("isa", integer_isas()[1:], ids=lambda isa: isa.name)
def test_other_instruction_sets(compiled: Any, isa: Isa) -> None:
    check(compiled, isa, EVERYWHERE)


def test_plain_arithmetic(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What processors without x86's intrinsics run."""
    for module in (int8_dot, int8_store):
        monkeypatch.setattr(module, "is_x86", lambda isa: False)
    isa = replace(HOST, name="plain", lanes=4)
    assert int8_dot.scheme(isa) == "wide"
    check(compiled, isa, EVERYWHERE)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any small convolution of two axes."""
    pick = lambda a, b: draw(st.integers(a, b))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    depthwise = draw(st.booleans())
    ic, oc = pick(1, 12) * groups, pick(1, 12) * groups
    if depthwise:
        groups = ic = oc = pick(2, 40)
    kernel, strides = (pick(1, 4), pick(1, 5)), (pick(1, 2), pick(1, 3))
    dilations = (pick(1, 2), draw(st.sampled_from([1, 1, 2])))
    pads = tuple(pick(0, k) for k in (*kernel, *kernel))
    size = tuple(
        max(pick(1, 12), (k - 1) * d + 1 - p - q)
        for k, d, p, q in zip(kernel, dilations, pads[:2], pads[2:], strict=True)
    )
    zero = draw(st.sampled_from([0, 0, 1, 128, 255]))
    low = pick(0, 200)
    how = Requantize("uint8", pick(0, 255), low, pick(low, 255), None, pick(0, 255), 0.61)
    return Case(
        ic, oc, size, kernel, strides, pads, dilations, groups, pick(1, 2), zero, how=how,
        residual=draw(st.booleans()), plain_in=not depthwise and groups == 1 and ic <= 4,
        plain_out=not depthwise and draw(st.booleans()),
    )  # fmt: skip


@given(case=cases(), seed=st.integers(0, 99))
@settings(
    max_examples=14,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_convolution(compiled: Any, case: Case, seed: int) -> None:
    d = data(case, seed)
    run = compiled(HOST, [int_conv(case.spec(HOST), "k", HOST)])
    np.testing.assert_array_equal(run("k", *arrays(case, d, HOST)), expected(case, d))


@pytest.mark.parametrize("text", ["tile=3,chunks=2,unroll=1", "tile=5,group=2,stationary=1"])
def test_explicit_blocking(compiled: Any, text: str) -> None:
    case = Case(32, 48, (6, 11), (3, 3), pads=P1, x_zero_point=9)
    spec = case.spec(HOST)
    spec = replace(spec, conv=replace(spec.conv, blocking=Blocking.parse(text)))
    d = data(case)
    run = compiled(HOST, [int_conv(spec, "k", HOST)])
    found = run("k", spec.conv.input.layout.pack(d.x), *pack_int_conv(spec, HOST, d.w, d.bias, d.m))
    np.testing.assert_array_equal(found, expected(case, d))


def test_operators_behind_it(compiled: Any) -> None:
    """An epilogue sees the stored byte (or the real result), and its operands come after the residual."""
    case = Case(16, 20, (5, 6), (1, 1), how=ADDED, residual=True)
    spec = case.spec(HOST)
    other = TensorType(case.out, "uint8", Layout(HOST.lanes))

    def halve(value: Any, index: Any, loads: Any) -> Any:
        return tirx.max(value, loads[0](index))

    run = compiled(HOST, [int_conv(spec, "k", HOST, Epilogue((other,), halve))])
    d = data(case)
    beside = np.random.default_rng(5).integers(0, 256, case.out).astype(np.uint8)
    found = run("k", *arrays(case, d, HOST), other.layout.pack(beside))
    np.testing.assert_array_equal(found, np.maximum(expected(case, d), beside))


@pytest.mark.parametrize(
    ("target", "product"), [("raspberry-pi-4", "smlal"), ("cortex-a55", "sdot")]
)
@pytest.mark.parametrize("name", ["3x3", "stem", "depthwise", "residual"])
def test_compiles_elsewhere(name: str, target: str, product: str) -> None:
    isa = isa_of(load_profile(target))
    asm = tir.llvm_module(
        [int_conv(EVERYWHERE[name].spec(isa), "f", isa, IDENTITY).func], isa.target()
    ).inspect_source("asm")
    assert product in asm
    assert "fcvtns" in asm
    assert "fmla" not in asm  # products and sums are rounded apart


def test_a_plain_input_has_few_channels() -> None:
    case = Case(5, 16, (5, 5), (1, 1), plain_in=True)
    assert case.spec(HOST).conv.input.layout == PLAIN
    with pytest.raises(ValueError, match="at most four channels"):
        int_conv(case.spec(HOST), "k", HOST)
