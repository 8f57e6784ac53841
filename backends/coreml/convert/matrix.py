"""MatMul, Gemm, Einsum."""

from __future__ import annotations

import numpy as np

from effc.backends.coreml.convert.call import Call, Refusal, Var
from effc.backends.coreml.convert.compressed import is_compressed
from effc.backends.coreml.convert.compressed import weight as stored_weight
from effc.backends.coreml.convert.table import op


@op("MatMul")
def matmul(c: Call) -> Var:
    """A vector has the missing dimension added and taken away again, by ONNX's (numpy's) rules."""
    c.no_wrap()
    x, y = c.x(0), c.x(1)
    shape = c.out_shape()
    weight, rank = c.const(1), c.rank()
    if weight is not None and weight.ndim == 2 and rank >= 2 and c.is_float():
        matrix = np.ascontiguousarray(weight.T).astype(c.numpy())
        return c.mb.linear(x=x, weight=stored_weight(c, matrix))
    if rank == 1:
        x = c.mb.expand_dims(x=x, axes=[0])
    if c.rank(1) == 1:
        y = c.mb.expand_dims(x=y, axes=[1])
    return c.reshaped(c.mb.matmul(x=x, y=y), shape)


@op("Gemm")
def gemm(c: Call) -> Var:
    """alpha * A' B' + beta * C; the plain form with a constant B is MIL's linear."""
    c.only_float()
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    a, ta, tb = c.x(0), bool(c.attr("transA", 0)), bool(c.attr("transB", 0))
    weight = c.const(1)
    bias = c.const(2) if c.has(2) else np.zeros(1, np.float32)
    if weight is not None and not ta and bias is not None and bias.size in (1, c.out_shape()[1]):
        if bias.ndim <= 1 or bias.shape[0] == 1:
            kind = c.numpy()
            matrix = weight if tb else weight.T
            if alpha != 1.0:
                matrix = matrix * np.float32(alpha)
            vector = np.broadcast_to(bias.reshape(-1) * np.float32(beta), (matrix.shape[0],))
            return c.mb.linear(
                x=a,
                weight=stored_weight(c, np.ascontiguousarray(matrix).astype(kind)),
                bias=vector.astype(kind),
            )
    weight_var = c.x(1)
    packed = is_compressed(weight_var)
    if packed and not ta and tb and alpha == 1.0 and bias is not None:
        if bias.size in (1, c.out_shape()[1]) and (bias.ndim <= 1 or bias.shape[0] == 1):
            vector = np.broadcast_to(bias.reshape(-1) * np.float32(beta), (c.out_shape()[1],))
            return c.mb.linear(x=a, weight=weight_var, bias=vector.astype(c.numpy()))
    y = c.mb.matmul(x=a, y=weight_var, transpose_x=ta, transpose_y=tb)
    if alpha != 1.0:
        y = c.mb.mul(x=y, y=c.like(alpha, y))
    if c.has(2) and beta != 0.0:
        term = c.x(2)
        y = c.mb.add(x=y, y=term if beta == 1.0 else c.mb.mul(x=term, y=c.like(beta, y)))
    return y


@op("Einsum")
def einsum(c: Call) -> Var:
    """Two operands as one matmul: axes are batch, contracted, of the left or of the right."""
    c.only_float()
    equation = c.text("equation").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if "." in equation:
        terms, out = _without_ellipsis(c, terms, out, bool(arrow))
    elif not arrow:
        letters = "".join(terms)
        out = "".join(sorted(s for s in set(letters) if letters.count(s) == 1))
    if any(len(set(t)) < len(t) for t in terms):
        raise Refusal("it takes a diagonal", "gather the diagonal before it")
    parts = [c.x(i) for i in range(len(terms))]
    result, have = parts[0], terms[0]
    for k, (other, term) in enumerate(zip(parts[1:], terms[1:], strict=True)):
        later = set("".join(terms[k + 2 :])) | set(out)
        result, have = _pair(c, result, have, other, term, later)
    lost = [i for i, s in enumerate(have) if s not in out]
    if lost:
        result = c.mb.reduce_sum(x=result, axes=lost, keep_dims=True)
        have = "".join(s for s in have if s in out)
        extents = _extents(c, terms, parts)
        result = c.reshaped(result, [extents[s] for s in have])
    if have != out:
        result = c.mb.transpose(x=result, perm=[have.index(s) for s in out])
    return c.mb.identity(x=result) if result is parts[0] else result


def _without_ellipsis(c: Call, terms: list[str], out: str, explicit: bool) -> tuple[list[str], str]:
    used = set("".join(terms) + out)
    spare = [s for s in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if s not in used]
    counts = [
        c.rank(i) - len(t.replace("...", "")) if "..." in t else 0 for i, t in enumerate(terms)
    ]
    names = "".join(spare[: max(counts)])
    full = [
        t.replace("...", names[len(names) - n :]) if "..." in t else t
        for t, n in zip(terms, counts, strict=True)
    ]
    if explicit:
        return full, out.replace("...", names)
    letters = "".join(full)
    rest = sorted(s for s in set(letters) if s not in names and letters.count(s) == 1)
    return full, names + "".join(rest)


def _extents(c: Call, terms: list[str], parts: list[Var]) -> dict[str, int]:
    found: dict[str, int] = {}
    for term, part in zip(terms, parts, strict=True):
        for s, d in zip(term, part.shape, strict=True):
            found[s] = max(found.get(s, 1), int(d))
    return found


def _pair(c: Call, a: Var, ta: str, b: Var, tb: str, later: set[str]) -> tuple[Var, str]:
    extents = _extents(c, [ta, tb], [a, b])
    for term, var in ((ta, a), (tb, b)):
        if any(int(d) != extents[s] for s, d in zip(term, var.shape, strict=True)):
            raise Refusal("it broadcasts a dimension of extent 1", "expand it before")
    batch = [s for s in ta if s in tb and s in later]
    summed = [s for s in ta if s in tb and s not in later]
    rows = [s for s in ta if s not in tb]
    columns = [s for s in tb if s not in ta]

    def size(names: list[str]) -> int:
        return int(np.prod([extents[s] for s in names], dtype=np.int64))

    x = c.mb.transpose(x=a, perm=[ta.index(s) for s in batch + rows + summed])
    y = c.mb.transpose(x=b, perm=[tb.index(s) for s in batch + summed + columns])
    x = c.reshaped(x, (size(batch), size(rows), size(summed)))
    y = c.reshaped(y, (size(batch), size(summed), size(columns)))
    z = c.mb.matmul(x=x, y=y)
    have = batch + rows + columns
    if len(have) > 5:
        raise Refusal(f"a step of it has rank {len(have)}, and Core ML takes at most 5")
    return c.reshaped(z, [extents[s] for s in have]), "".join(have)


@op("Det")
def det(c: Call) -> Var:
    """Of 2 x 2 and 3 x 3 matrices, by their definition."""
    c.only_float()
    n = c.shape()[-1]
    if n not in (2, 3):
        raise Refusal(f"it is of {n} x {n} matrices; only 2 x 2 and 3 x 3 are spelled out")
    x, rank = c.x(), c.rank()

    def at(i: int, j: int) -> Var:
        lead = [int(d) for d in c.shape()[:-2]]
        y = c.mb.slice_by_index(
            x=x, begin=[0] * (rank - 2) + [i, j], end=[*lead, i + 1, j + 1], stride=[1] * rank
        )
        return c.reshaped(y, tuple(lead))

    def minor(j: int, k: int, row: int) -> Var:
        down = c.mb.mul(x=at(row, j), y=at(row + 1, k))
        return c.mb.sub(x=down, y=c.mb.mul(x=at(row, k), y=at(row + 1, j)))

    if n == 2:
        return minor(0, 1, 0)
    first = c.mb.mul(x=at(0, 0), y=minor(1, 2, 1))
    second = c.mb.mul(x=at(0, 1), y=minor(0, 2, 1))
    third = c.mb.mul(x=at(0, 2), y=minor(0, 1, 1))
    return c.mb.add(x=c.mb.sub(x=first, y=second), y=third)
