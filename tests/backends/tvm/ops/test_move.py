"""Data movement by strides: what is recognized, and that every element gets where it belongs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402
from effc.backends.tvm.ops import all as _all  # noqa: E402, F401
from effc.backends.tvm.ops.contract import OpNode, apply_rule  # noqa: E402
from effc.backends.tvm.ops.injective import injective  # noqa: E402
from effc.backends.tvm.ops.strided import strided  # noqa: E402

HOST = host_isa()
ISAS = [HOST]
if HOST.name == "avx512":  # the code for half as wide registers runs here too
    narrow = tuple(f for f in HOST.features if not f.startswith(("avx512", "avx10")))
    ISAS.append(replace(HOST, name="avx2", lanes=8, registers=16, mcpu="haswell", features=narrow))
DTYPES = ("uint8", "bool", "float16", "bfloat16", "float32", "int64")


def draw(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    if dtype == "bool":
        return rng.random(shape) < 0.5
    return rng.integers(0, 200, shape).astype("uint16" if dtype == "bfloat16" else dtype)


def transposing(perm: tuple[int, ...]) -> Any:
    inverse = [perm.index(a) for a in range(len(perm))]
    return lambda loads: [lambda index: loads[0](tuple(index[i] for i in inverse))]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_transposes_of_every_type(isa: Any, compile_kernels: Any) -> None:
    shapes = {
        ((2, 20, 6, 37), (0, 2, 3, 1)),
        ((1, 19, 23, 3), (0, 3, 1, 2)),
        ((1, 2, 17, 18), (0, 2, 3, 1)),
        ((3, 33, 2, 40), (0, 2, 3, 1)),
        ((5, 3, 7), (2, 1, 0)),
        ((4, 9, 16), (1, 0, 2)),
        ((16, 16), (1, 0)),
    }
    kernels, cases = [], []
    for k, (shape, perm) in enumerate(sorted(shapes)):
        for dtype in DTYPES:
            out = TensorType(tuple(shape[p] for p in perm), dtype)
            source, body = TensorType(shape, dtype), transposing(perm)
            assert strided(out, source, body), (shape, perm)
            kernels.append(injective(f"t{k}_{dtype}", isa, [out], [source], body))
            cases.append((kernels[-1].name, draw(shape, dtype), perm))
    kernels = [
        replace(k, params=tuple(replace(t, dtype="uint16") for t in k.params))
        if k.params[0].dtype == "bfloat16"
        else k
        for k in kernels
    ]
    library = compile_kernels(kernels)
    for name, x, perm in cases:
        assert np.array_equal(library(name, x)[0], x.transpose(perm)), name


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_layouts_with_and_without_padding_lanes(isa: Any, compile_kernels: Any) -> None:
    kernels, inputs, blocked = [], [], Layout(isa.lanes)
    for k, c in enumerate((1, 3, 8, 16, 24, 40, 57)):
        shape = (2, c, 5, 7)
        for name, layouts in {
            "block": (PLAIN, blocked),
            "plain": (blocked, PLAIN),
            "same": (blocked, blocked),
        }.items():
            source, out = (TensorType(shape, "float32", layout) for layout in layouts)
            kernel = injective(f"{name}{k}", isa, [out], [source], lambda loads: [loads[0]])
            kernels.append(kernel)
            inputs.append(draw(shape, "float32"))
    library = compile_kernels(kernels)
    for kernel, x in zip(kernels, inputs, strict=True):
        assert np.array_equal(library(kernel.name, x)[0], x), kernel.name


def node_kernel(name: str, op: str, shape: tuple[int, ...], out: tuple[int, ...], layout: Layout,
                attributes: dict[str, Any], constants: dict[int, np.ndarray]) -> Any:  # fmt: skip
    types = TensorType(shape, "float32", layout), TensorType(out, "float32", layout)
    extra = [TensorType(c.shape, c.dtype.name) for c in constants.values()]
    node = OpNode(op, "", op, attributes, (types[0], *extra), (types[1],), constants, 21)

    def body(loads: list[Any]) -> list[Any]:
        return list(apply_rule(node, [*loads, *[None] * len(extra)])[:1])

    assert strided(types[1], types[0], body), name
    return injective(name, HOST, [types[1]], [types[0]], body)


def test_movement_by_other_operators(compile_kernels: Any) -> None:
    shape = (1, 40, 6, 10)
    x = draw(shape, "float32")
    nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    flip = [np.array(v) for v in ([-1], [-100], [3], [-1])]
    odd = [np.array(v) for v in ([1], [100], [3], [3])]
    cases = {
        "up2": ("Resize", (1, 40, 12, 20), nearest, {1: np.array([1, 1, 2, 2], np.float32)}),
        "up3": ("Resize", (1, 40, 18, 30), nearest, {1: np.array([1, 1, 3, 3], np.float32)}),
        "depth": ("DepthToSpace", (1, 10, 12, 20), {"blocksize": 2}, {}),
        "space": ("SpaceToDepth", (1, 160, 3, 5), {"blocksize": 2}, {}),
        "flip": ("Slice", shape, {}, dict(enumerate(flip, 1))),
        "odd": ("Slice", (1, 40, 6, 3), {}, dict(enumerate(odd, 1))),
        "expand": ("Expand", (3, 40, 6, 10), {}, {1: np.array([3, 40, 6, 10])}),
    }
    squares = x.reshape(1, 2, 2, 10, 6, 10).transpose(0, 3, 4, 1, 5, 2)
    cells = x.reshape(1, 40, 3, 2, 5, 2).transpose(0, 3, 5, 1, 2, 4)
    want = {
        "up2": x.repeat(2, 2).repeat(2, 3),
        "up3": x.repeat(3, 2).repeat(3, 3),
        "depth": squares.reshape(1, 10, 12, 20),
        "space": cells.reshape(1, 160, 3, 5),
        "flip": x[..., ::-1],
        "odd": x[..., 1::3],
        "expand": np.broadcast_to(x, (3, 40, 6, 10)),
    }
    kernels = [
        node_kernel(name, op, shape, out, PLAIN, attributes, constants)
        for name, (op, out, attributes, constants) in cases.items()
    ]
    blocked = Layout(HOST.lanes)
    for name in ("up2", "up3"):
        op, out, attributes, constants = cases[name]
        kernels.append(
            node_kernel(f"{name}_blocked", op, shape, out, blocked, attributes, constants)
        )
        want[kernels[-1].name] = want[name]
    library = compile_kernels(kernels)
    for name, expected in want.items():
        assert np.array_equal(library(name, x)[0], expected), name


def test_the_channel_shuffle_is_strided() -> None:
    def body(loads: list[Any]) -> list[Any]:
        return [lambda i: loads[0]((i[0], i[1] % 2 * 58 + i[1] // 2, i[2], i[3]))]

    tensor = TensorType((1, 116, 4, 4), "float32")
    (piece,) = strided(tensor, tensor, body) or []
    digits = [(d.extent, d.out, d.source) for d in piece.digits]
    assert digits == [(58, 32, 16), (2, 16, 58 * 16), (16, 1, 1)]


def test_what_is_no_strided_copy() -> None:
    tensor = TensorType((4, 6), "float32")
    negative = [lambda loads: [lambda i: -loads[0](i)]]
    diagonal = [lambda loads: [lambda i: loads[0]((i[0], (i[0] + i[1]) % 6))]]
    twice = [lambda loads: [lambda i: loads[0](i) + loads[0](i)]]
    for (body,) in (negative, diagonal, twice):
        assert strided(tensor, tensor, body) is None
    assert strided(TensorType((4, 6), "int32"), tensor, lambda loads: [loads[0]]) is None


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_pieces_cover_the_output_once(data: Any) -> None:
    rank = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=rank, max_size=rank)))
    perm = tuple(data.draw(st.permutations(range(rank))))
    block = Layout(4 if rank >= 2 else 0)
    layouts = [data.draw(st.sampled_from([PLAIN, block])) for _ in range(2)]
    source = TensorType(shape, "float32", layouts[0])
    out = TensorType(tuple(shape[p] for p in perm), "float32", layouts[1])
    pieces = strided(out, source, transposing(perm))
    if pieces is None:
        assert layouts != [PLAIN, PLAIN]
        return
    x = np.arange(1, np.prod(shape) + 1, dtype=np.int64).reshape(shape)
    packed = source.layout.pack(x).reshape(-1)
    written = np.full(out.elements, -1)
    for piece in pieces:
        to, at = np.array([piece.out]), np.array([piece.source])
        for d in piece.digits:
            steps = np.arange(d.extent)
            to = (to[:, None] + steps * d.out).reshape(-1)
            at = (at[:, None] + steps * d.source).reshape(-1)
        assert (written[to] == -1).all()
        written[to] = packed[at]
    lanes = out.layout.pack(np.ones(out.shape, bool)).reshape(-1)
    if all(p.pad == 0 for p in pieces):
        lanes = lanes | (written != -1)
    assert np.array_equal(written[lanes], out.layout.pack(x.transpose(perm)).reshape(-1)[lanes])


@pytest.mark.skipif(HOST.name != "avx512", reason="reads AVX-512 assembly")
def test_a_transpose_is_shuffles_of_whole_vectors(compile_kernels: Any) -> None:
    tensor = TensorType((64, 320), "float32")
    kernel = injective("t", HOST, [TensorType((320, 64), "float32")], [tensor], transposing((1, 0)))
    code = compile_kernels([kernel]).asm().split("\nt:")[1].split(".Lfunc_end")[0]
    assert len(re.findall(r"vunpck[lh]p[sd]\s[^\n]*zmm", code)) >= 32
    assert not re.search(r"vinsertps|vextractps|vgather|rsp", code)
