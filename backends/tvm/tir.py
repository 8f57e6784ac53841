"""Building TIR by hand: loops, buffers, and functions that need no TVM at run time.

A kernel is `void name(T0* p0, ..., int32 begin, int32 end)`. It is lowered by a short list of TIR passes
to an LLVM object whose symbols a C compiler links like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import transform

Expr = Any
Stmt = Any

SERIAL, VECTORIZED, UNROLLED = (
    tirx.ForKind.SERIAL,
    tirx.ForKind.VECTORIZED,
    tirx.ForKind.UNROLLED,
)


def seq(*stmts: Stmt) -> Stmt:
    """One statement out of many; TIR forbids a sequence of one."""
    return stmts[0] if len(stmts) == 1 else tirx.SeqStmt(list(stmts))


def loop(
    name: str, extent: Expr, body: Callable[[Expr], Stmt], kind: Any = SERIAL, begin: Expr = 0
) -> Stmt:
    """`for name in [begin, begin + extent)`."""
    var = tirx.Var(name, "int32")
    return tirx.For(var, begin, extent, kind, body(var))


def buffer(name: str, elements: int, dtype: str, *, alignment: int = 0) -> Any:
    """A flat buffer; `alignment` in bytes, by default an element's: any parameter may be the user's.

    (Unaligned vector moves of aligned data cost nothing on the processors that have vectors.)
    """
    alignment = alignment or max(1, tvm.DataType(dtype).bits // 8)
    return tirx.decl_buffer((elements,), dtype, name=name, data_alignment=alignment)


def local(name: str, elements: int, dtype: str) -> Any:
    """Registers or stack: LLVM promotes it to registers where every index is a constant."""
    return tirx.decl_buffer((elements,), dtype, name=name, scope="local")


_scopes: list[tuple[Expr, int, list[Any], list[Stmt]]] = []


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body(v)` with `v` computed once: expressions are trees, so a value read twice needs a name.

    Only inside `lanes`, which places the register that holds `v`. (`Let` and `Bind` won't do: the
    vectorizer and the simplifier reject the first where it nests, and inline the second.)
    """
    named = isinstance(value, (tirx.Var, tirx.IntImm, tirx.FloatImm))
    if named or (isinstance(value, tvm.ir.TensorLoad) and value.source.scope() == "local"):
        return body(value)
    lane, width, buffers, stores = _scopes[-1]
    truth = str(value.ty.dtype) == "bool"
    if truth:  # vectors of bits have no memory form that the vectorizer and LLVM agree on
        value = tirx.Select(value, tirx.const(1, "uint8"), tirx.const(0, "uint8"))
    if width > 1 and not any(v.same_as(lane) for v in tirx.analysis.undefined_vars(value)):
        width, lane = 1, 0  # the same for every lane: a scalar, so that what it indexes is one load
    register = local("v", width, value.ty.dtype)
    buffers.append(register)
    stores.append(tirx.BufferStore(register, value, [lane]))
    load = tirx.BufferLoad(register, [lane])
    return body(tirx.NE(load, tirx.const(0, "uint8")) if truth else load)


def lanes(width: int, body: Callable[[Expr], Stmt], lane: Any = None) -> Stmt:
    """`body(lane)` for `width` lanes at once, with the values that its expressions name by `let`.

    Every store of a value that comes from rules stands in one; width 1 is a scalar statement.
    """
    if width == 1:
        lane = tirx.const(0, "int32")
    elif lane is None:
        lane = tirx.Var("lane", "int32")
    _scopes.append((lane, width, [], []))
    try:
        inner = body(lane)
    finally:
        _, _, buffers, stores = _scopes.pop()
    inner = seq(*stores, inner)
    if width > 1:
        inner = tirx.For(lane, 0, width, VECTORIZED, inner)
    return seq(*(tirx.AllocBuffer(b) for b in buffers), inner)


def prim_func(
    name: str,
    buffers: Sequence[Any],
    body: Callable[[Expr, Expr], Stmt],
    locals_: Sequence[Any] = (),
) -> Any:
    """The function `name(buffers..., begin, end)`; `body(begin, end)` gives its statement."""
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    pointers = [
        tirx.Var(f"{b.name}_ptr", tvm.ir.PointerType(tvm.ir.PrimType(b.dtype))) for b in buffers
    ]
    declared = [tirx.DeclBuffer(b, data=p) for b, p in zip(buffers, pointers, strict=True)]
    inner = seq(*declared, *(tirx.AllocBuffer(b) for b in locals_), body(begin, end))
    inner = tirx.AttrStmt(0, "device_id", tirx.IntImm("int32", 0), inner)
    inner = tirx.AttrStmt(0, "device_type", tirx.IntImm("int32", 1), inner)
    func = tirx.PrimFunc([*pointers, begin, end], inner)
    attributes = {"global_symbol": name, "tirx.noalias": True, "calling_conv": 0, _FLAT: True}
    return func.with_attr(attributes)


_FLAT = "effc.flat_buffers"  # every buffer has one axis: FlattenBuffer has nothing to do, slowly
_PASSES = (
    transform.BF16ComputeLegalize(),
    transform.NarrowDataType(32),
    transform.VectorizeLoop(True),
    transform.StorageRewrite(),
    transform.UnrollLoop(),
    transform.StmtSimplify(),
    transform.RemoveNoOp(),
    transform.CommonSubexprElim(),
    transform.LowerIntrin(),
)


def llvm_module(funcs: Sequence[Any], target: Any) -> Any:
    """Compile PrimFuncs for `target` (a tvm.target.Target of kind llvm, bound to itself as host)."""
    mod = tvm.IRModule({f.attrs["global_symbol"]: f.with_attr("target", target) for f in funcs})
    flat = all(_FLAT in (f.attrs or {}) for f in funcs)
    for p in _PASSES if flat else (transform.FlattenBuffer(), *_PASSES):
        mod = p(mod)
    return tvm.get_global_func("target.build.llvm")(mod, target)
