"""Elementwise groups: layouts, broadcasting, tails, and the machine code of the common ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402
from effc.backends.tvm.ops import all as _all  # noqa: E402, F401
from effc.backends.tvm.ops.contract import OpNode, apply_rule  # noqa: E402
from effc.backends.tvm.ops.injective import injective  # noqa: E402
from effc.backends.tvm.program import Kernel  # noqa: E402

ISA = host_isa()
BLOCKED = Layout(ISA.lanes)


def of_rule(
    name: str,
    op_type: str,
    shapes: list[tuple[int, ...]],
    out: tuple[int, ...],
    layouts: list[Layout] | None = None,
    layout: Layout = PLAIN,
    attributes: dict[str, Any] | None = None,
    constants: dict[int, np.ndarray] | None = None,
) -> Kernel:
    """The kernel of one node; `constants` come after the `shapes`' inputs."""
    layouts = layouts or [PLAIN] * len(shapes)
    ins = [TensorType(s, "float32", k) for s, k in zip(shapes, layouts, strict=True)]
    extra = [TensorType(c.shape, c.dtype.name) for c in (constants or {}).values()]
    node = OpNode(
        op_type,
        "",
        op_type,
        attributes or {},
        (*ins, *extra),
        (TensorType(out, "float32", layout),),
        constants or {},
        21,
    )

    def body(loads: list[Any]) -> list[Any]:
        return list(apply_rule(node, [*loads, *[None] * len(extra)])[:1])

    return injective(name, ISA, node.outputs, ins, body)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


ADDS = {
    "plain": ([(2, 5, 3, 7)] * 2, [PLAIN] * 2, PLAIN),
    "blocked": ([(2, 37, 3, 5)] * 2, [BLOCKED] * 2, BLOCKED),
    "blocked_bias": ([(2, 37, 3, 5), (1, 37, 1, 1)], [BLOCKED, PLAIN], BLOCKED),
    "mixed": ([(1, 24, 5, 4)] * 2, [PLAIN, BLOCKED], BLOCKED),
    "to_plain": ([(1, 40, 5, 20)] * 2, [BLOCKED, PLAIN], PLAIN),
    "row": ([(4, 5, 33), (33,)], [PLAIN] * 2, PLAIN),
    "column": ([(4, 5, 33), (5, 1)], [PLAIN] * 2, PLAIN),
    "narrow": ([(6, 4, 3), (4, 3)], [PLAIN] * 2, PLAIN),
    "long": ([(1, 3, 100, 107)] * 2, [PLAIN] * 2, PLAIN),
}


def test_add_in_every_layout(compile_kernels: Any) -> None:
    kernels, cases = [], {}
    for name, (shapes, layouts, layout) in ADDS.items():
        out = tuple(np.broadcast_shapes(*shapes))
        kernels.append(of_rule(name, "Add", shapes, out, layouts, layout))
        cases[name] = [draw(*s) for s in shapes]
    library = compile_kernels(kernels)
    for name, (x, y) in cases.items():
        assert np.array_equal(library(name, x, y)[0], x + y), name


def test_data_movement(compile_kernels: Any) -> None:
    x = draw(2, 20, 6, 9)
    pads = np.array([0, 0, 1, 2, 0, 0, 3, 1])
    begin, end, axes, steps = (np.array(v) for v in ([8, 5], [1, -7], [3, 2], [-2, -1]))
    cases = {
        "nhwc": (("Transpose", x.shape, (2, 6, 9, 20)), {"perm": (0, 2, 3, 1)}, {}, PLAIN),
        "heads": (("Transpose", x.shape, (2, 6, 20, 9)), {"perm": (0, 2, 1, 3)}, {}, PLAIN),
        "pad": (("Pad", x.shape, (2, 20, 10, 12)), {}, {1: pads}, BLOCKED),
        "tokens": (("Reshape", x.shape, (2, 20, 54)), {}, {1: np.array([2, 20, 54])}, PLAIN),
        "back": (
            ("Slice", x.shape, (2, 20, 6, 4)),
            {},
            {1: begin, 2: end, 3: axes, 4: steps},
            BLOCKED,
        ),
    }
    want = {
        "nhwc": x.transpose(0, 2, 3, 1),
        "heads": x.transpose(0, 2, 1, 3),
        "pad": np.pad(x, [(0, 0), (0, 0), (1, 3), (2, 1)]),
        "tokens": x.reshape(2, 20, 54),
        "back": x[:, :, 5:-7:-1, 8:1:-2],
    }
    kernels = [
        of_rule(name, op, [shape], out, [layout], layout if len(out) == 4 else PLAIN, attrs, consts)
        for name, ((op, shape, out), attrs, consts, layout) in cases.items()
    ]
    library = compile_kernels(kernels)
    for name, y in want.items():
        assert np.array_equal(library(name, x)[0], y), name


def test_layout_conversions(compile_kernels: Any) -> None:
    shapes = [(1, 3, 8, 8), (1, 48, 5, 7), (2, 64, 20, 33), (1, 40, 17, 17)]
    kernels = []
    for i, s in enumerate(shapes):
        kernels.append(of_rule(f"block{i}", "Identity", [s], s, [PLAIN], BLOCKED))
        kernels.append(of_rule(f"plain{i}", "Identity", [s], s, [BLOCKED], PLAIN))
    library = compile_kernels(kernels)
    for i, s in enumerate(shapes):
        x = draw(*s)
        assert np.array_equal(library(f"block{i}", x)[0], x)
        assert np.array_equal(library(f"plain{i}", x)[0], x)


@pytest.mark.skipif(ISA.name != "avx512", reason="reads AVX-512 assembly")
def test_contiguous_access_is_vector_loads(compile_kernels: Any) -> None:
    s = (1, 64, 56, 56)
    kernels = [
        of_rule("plain", "Add", [s, s], s),
        of_rule("blocked", "Add", [s, s], s, [BLOCKED] * 2, BLOCKED),
        of_rule("scale", "Mul", [s, (1, 64, 1, 1)], s, [BLOCKED] * 2, BLOCKED),
        of_rule("heads", "Transpose", [(1, 20, 3, 64)], (1, 3, 20, 64), None, PLAIN,
                {"perm": (0, 2, 1, 3)}),
    ]  # fmt: skip
    text = compile_kernels(kernels).asm()
    for kernel in kernels:
        code = text.split(f"\n{kernel.name}:")[1].split(".Lfunc_end")[0]
        assert re.search(r"v(addps|mulps|movups|movaps|movdqu)[^\n]*[yz]mm", code), kernel.name
        assert not re.search(r"vinsertps|vpinsrd|vgather", code), f"{kernel.name} gathers"
        assert not re.search(r"\bidiv", code), f"{kernel.name} divides"
