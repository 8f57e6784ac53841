"""Matrix products, normalizations and reductions against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from effc.backends.coreml.interpret.ops.linear import matmul
from effc.core.errors import EffcError


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def close(got: np.ndarray, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got, want.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(mil: Any, rng: np.random.Generator, rank: int, bias: bool) -> None:
    x, w = normal(rng, *(2, 3, 5)[3 - rank :]), normal(rng, 4, 5)
    b = normal(rng, 4) if bias else None
    got = mil.one(lambda mb, x: mb.linear(x=x, weight=w, bias=b), x)
    close(got, F.linear(*(None if v is None else torch.from_numpy(v) for v in (x, w, b))))


@pytest.mark.parametrize(
    ("a", "b", "ta", "tb"),
    [
        ((4, 3), (3, 5), False, False),
        ((3, 4), (3, 5), True, False),
        ((2, 4, 3), (5, 3), False, True),
        ((2, 1, 3, 4), (5, 6, 3), True, True),
    ],
)
def test_matmul(
    mil: Any, rng: np.random.Generator, a: tuple[int, ...], b: tuple[int, ...], ta: bool, tb: bool
) -> None:
    x, y = normal(rng, *a), normal(rng, *b)
    got = mil.one(lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=ta, transpose_y=tb), x, y)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    close(got, (tx.mT if ta else tx) @ (ty.mT if tb else ty))


def test_matmul_of_vectors(rng: np.random.Generator) -> None:
    """coremltools can't build these."""
    x, y = normal(rng, 3), normal(rng, 2, 3, 4)
    close(matmul(x, y, True, False), torch.from_numpy(x) @ torch.from_numpy(y))
    close(matmul(y, x, True, True), torch.from_numpy(y).mT @ torch.from_numpy(x))
    close(matmul(x, x), torch.from_numpy(x) @ torch.from_numpy(x))


@pytest.mark.parametrize(
    ("equation", "a", "b"),
    [
        ("nchw,nwhu->nchu", (2, 3, 4, 5), (2, 5, 4, 6)),
        ("abcd,adce->abce", (1, 3, 4, 5), (2, 5, 1, 6)),
        ("chw,whr->chr", (3, 4, 5), (5, 4, 2)),
    ],
)
def test_einsum(
    mil: Any, rng: np.random.Generator, equation: str, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    x, y = normal(rng, *a), normal(rng, *b)
    got = mil.one(lambda mb, x, y: mb.einsum(values=(x, y), equation=equation), x, y)
    close(got, torch.einsum(equation, torch.from_numpy(x), torch.from_numpy(y)))


@pytest.mark.parametrize("mask", ["none", "float", "bool"])
def test_scaled_dot_product_attention(mil: Any, rng: np.random.Generator, mask: str) -> None:
    q, k, v = normal(rng, 2, 3, 4, 6), normal(rng, 2, 3, 5, 6), normal(rng, 2, 3, 5, 7)
    m = normal(rng, 4, 5)

    def build(mb: Any, q: Any, k: Any, v: Any) -> Any:
        given = {"none": {}, "float": {"attn_mask": m}, "bool": {"attn_mask": m > -0.5}}[mask]
        return mb.scaled_dot_product_attention(query=q, key=k, value=v, **given)

    given = {"none": None, "float": torch.from_numpy(m), "bool": torch.from_numpy(m > -0.5)}[mask]
    want = F.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), attn_mask=given)
    close(mil.one(build, q, k, v), want)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_batch_norm(mil: Any, rng: np.random.Generator, rank: int) -> None:
    x = normal(rng, 2, 3, *(4, 5, 2)[: rank - 2])
    mean, gamma, beta = normal(rng, 3), normal(rng, 3), normal(rng, 3)
    variance = np.abs(normal(rng, 3)) + np.float32(0.2)

    def build(mb: Any, x: Any) -> list[Any]:
        common = {"x": x, "mean": mean, "variance": variance}
        return [
            mb.batch_norm(**common, gamma=gamma, beta=beta, epsilon=np.float32(0.01)),
            mb.batch_norm(**common),
        ]

    full, bare = mil.run(build, {"x": x})
    t, m, v, g, b = map(torch.from_numpy, (x, mean, variance, gamma, beta))
    close(full, F.batch_norm(t, m, v, g, b, eps=0.01))
    close(bare, F.batch_norm(t, m, v, eps=1e-5))


def test_instance_norm(mil: Any, rng: np.random.Generator) -> None:
    x, gamma, beta = normal(rng, 2, 3, 4, 5) + 3, normal(rng, 3), normal(rng, 3)
    got = mil.one(
        lambda mb, x: mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=np.float32(0.01)), x
    )
    t, g, b = map(torch.from_numpy, (x, gamma, beta))
    close(got, F.instance_norm(t, weight=g, bias=b, eps=0.01))


@pytest.mark.parametrize("axes", [[2], [-1], [1, 2]])
def test_layer_norm(mil: Any, rng: np.random.Generator, axes: list[int]) -> None:
    x = normal(rng, 2, 3, 5) - 4
    shape = [x.shape[a] for a in axes]
    gamma, beta = normal(rng, *shape), normal(rng, *shape)
    got = mil.one(
        lambda mb, x: mb.layer_norm(
            x=x, axes=axes, gamma=gamma, beta=beta, epsilon=np.float32(0.02)
        ),
        x,
    )
    t, g, b = map(torch.from_numpy, (x, gamma, beta))
    close(got, F.layer_norm(t, shape, g, b, eps=0.02))


def test_layer_norm_over_the_first_axis(mil: Any, rng: np.random.Generator) -> None:
    x, gamma = normal(rng, 4, 3), normal(rng, 4)
    got = mil.one(lambda mb, x: mb.layer_norm(x=x, axes=[0], gamma=gamma), x)
    want = F.layer_norm(torch.from_numpy(x).T, [4], torch.from_numpy(gamma)).T
    close(got, want)


def test_l2_norm(mil: Any, rng: np.random.Generator) -> None:
    x = normal(rng, 2, 3, 4, 5)
    got = mil.one(lambda mb, x: mb.l2_norm(x=x, epsilon=np.float32(0.3)), x)
    t = torch.from_numpy(x)
    close(got, t / torch.sqrt(t.flatten(1).square().sum(1).reshape(2, 1, 1, 1) + 0.3))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_local_response_norm(mil: Any, rng: np.random.Generator, size: int) -> None:
    x = normal(rng, 2, 5, 3, 4)
    options = {"alpha": np.float32(0.5), "beta": np.float32(0.6), "k": np.float32(1.5)}
    got = mil.one(lambda mb, x: mb.local_response_norm(x=x, size=size, **options), x)
    close(got, F.local_response_norm(torch.from_numpy(x), size, alpha=0.5, beta=0.6, k=1.5))


def test_local_response_norm_is_documented_for_images_only(mil: Any) -> None:
    with pytest.raises(EffcError, match="local_response_norm.*rank 3"):
        mil.one(lambda mb, x: mb.local_response_norm(x=x, size=3), np.zeros((1, 3, 2), np.float32))


REDUCTIONS: dict[str, Any] = {
    "reduce_l1_norm": lambda t, a, k: t.abs().sum(a, keepdim=k),
    "reduce_l2_norm": lambda t, a, k: torch.linalg.vector_norm(t, dim=a, keepdim=k),
    "reduce_log_sum": lambda t, a, k: t.sum(a, keepdim=k).log(),
    "reduce_log_sum_exp": lambda t, a, k: torch.logsumexp(t, a, keepdim=k),
    "reduce_max": lambda t, a, k: torch.amax(t, a, keepdim=k),
    "reduce_mean": lambda t, a, k: t.mean(a, keepdim=k),
    "reduce_min": lambda t, a, k: torch.amin(t, a, keepdim=k),
    "reduce_prod": lambda t, a, k: (
        t.prod(a[0], keepdim=k) if len(a) == 1 else t.prod(a[1], True).prod(a[0], True).reshape(
            torch.amax(t, a, keepdim=k).shape
        )
    ),
    "reduce_sum": lambda t, a, k: t.sum(a, keepdim=k),
    "reduce_sum_square": lambda t, a, k: t.square().sum(a, keepdim=k),
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(mil: Any, rng: np.random.Generator, name: str) -> None:
    x = np.abs(normal(rng, 2, 3, 4)) + np.float32(0.1)
    variants = [([1], True), ([-1], False), ([0, 2], False), ([0, 2], True)]
    got = mil.run(
        lambda mb, x: [
            *(getattr(mb, name)(x=x, axes=a, keep_dims=k) for a, k in variants),
            mb.expand_dims(x=getattr(mb, name)(x=x), axes=[0]),
        ],
        {"x": x},
    )
    t = torch.from_numpy(x)
    for g, (axes, keep) in zip(got, variants, strict=False):
        close(g, REDUCTIONS[name](t, tuple(axes), keep))
    close(got[-1], REDUCTIONS[name](t.flatten(), (0,), True))


@pytest.mark.parametrize("name", ["reduce_argmax", "reduce_argmin"])
def test_arg_reduction(mil: Any, rng: np.random.Generator, name: str) -> None:
    x = normal(rng, 3, 4, 5)
    function = getattr(torch, name.removeprefix("reduce_"))
    got = mil.run(
        lambda mb, x: [
            getattr(mb, name)(x=x),
            getattr(mb, name)(x=x, axis=1, keep_dims=True),
            getattr(mb, name)(x=x, axis=-3, output_dtype="uint16"),
        ],
        {"x": x},
    )
    t = torch.from_numpy(x)
    wants = [function(t, -1), function(t, 1, keepdim=True), function(t, 0)]
    for g, w in zip(got, wants, strict=True):
        assert np.array_equal(g, w.numpy())


def test_log_sum_exp_does_not_overflow(mil: Any) -> None:
    x = np.array([[900.0, 901.0], [-1000.0, -1000.0]], np.float32)
    got = mil.one(lambda mb, x: mb.reduce_log_sum_exp(x=x, axes=[1]), x)
    close(got, torch.logsumexp(torch.from_numpy(x), 1))
