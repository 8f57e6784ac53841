"""Operators without a kernel of effc's own: TVM's operator, scheduled, in the form of our kernels.

One ONNX node -> relax -> legalized and fused PrimFunc -> elementwise stages inlined, spatial loops fused
into tasks, the innermost vectorized where it is contiguous -> `void f(out, in..., begin, end)`. The
report names such a kernel `tvm:<op>`. What TVM would do by calling its runtime (sort, nms) is refused.
"""

from __future__ import annotations

import math
from typing import Any

import onnx
import tvm
from onnx import helper
from tvm import relax, s_tir, te, tirx
from tvm.tirx import buffer as tir_buffer

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.ops.contract import OpNode, Refused, kernel, operands, storage_dtype
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any

STACK_BYTES = 64 << 10  # intermediates live on the caller's stack
REMEDY = "replace the operator by others, or cut the model before it"
FALLBACK = ("RoiAlign", "AveragePool", "MaxPool", "LpPool", "MatMulInteger", "ConvTranspose")


def _element_type(dtype: str) -> int:
    import numpy as np

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _model(node: OpNode) -> onnx.ModelProto:
    """The node alone; constant inputs are initializers."""
    import numpy as np
    from onnx import numpy_helper

    names = [f"i{k}" if t is not None else "" for k, t in enumerate(node.inputs)]
    fixed = {k: v for k, v in node.constants.items() if k not in operands(node)}
    proto = helper.make_node(
        node.op_type, names, [f"o{k}" for k in range(len(node.outputs))], **dict(node.attributes)
    )
    graph = helper.make_graph(
        [proto],
        node.op_type,
        [
            helper.make_tensor_value_info(names[k], _element_type(t.dtype), t.shape)
            for k, t in enumerate(node.inputs)
            if t is not None and k not in fixed
        ],
        [
            helper.make_tensor_value_info(f"o{k}", _element_type(t.dtype), t.shape)
            for k, t in enumerate(node.outputs)
        ],
        [numpy_helper.from_array(np.asarray(v), names[k]) for k, v in fixed.items()],
    )
    opset = [helper.make_opsetid(node.domain, node.opset or onnx.defs.onnx_opset_version())]
    return helper.make_model(graph, opset_imports=opset)


@relax.expr_functor.mutator
class _ComputedConstants(relax.PyExprMutator):  # type: ignore[misc]
    """Small constants as kernels that compute them: a fused kernel can't hold any."""

    def visit_call_(self, call: Any) -> Any:
        if len(call.args) < 2 or not isinstance(call.args[1], relax.Tuple):
            return call
        fields = [
            self._table(f) if type(f).__name__.endswith("Const") else self.visit_expr(f)
            for f in call.args[1].fields
        ]
        rest = [*call.args[:1], relax.Tuple(fields), *call.args[2:]]
        return relax.Call(call.op, rest, call.attrs, call.ty_args)

    def _table(self, constant: Any) -> Any:
        data = constant.value.numpy()
        if data.size > 64:
            raise Refused(f"TVM's kernel holds a table of {data.size} elements", REMEDY)
        flat, dtype = data.reshape(-1), str(data.dtype)

        def element(*index: Expr) -> Expr:
            at: Expr = tirx.const(0, "int32")
            for i, extent in zip(index, data.shape, strict=True):
                at = at * extent + i
            value = tirx.const(flat[-1].item(), dtype)
            for k in reversed(range(data.size - 1)):
                value = tirx.Select(at <= k, tirx.const(flat[k].item(), dtype), value)
            return value

        return self.builder_.emit_te(lambda: te.compute(data.shape or (1,), element, "table"))


def _as_one(module: Any) -> Any:
    """The module with all of `main` as one group to fuse, called by a new `main`."""
    main = module["main"]
    params = [relax.Var(p.name, p.ty) for p in main.params]
    others = {k: f for k, f in module.functions.items() if k.name_hint != "main"}
    builder = relax.BlockBuilder(tvm.IRModule(others))
    group = main.without_attr("global_symbol").with_attr("Primitive", 1)
    name = builder.add_func(group, "group")
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(relax.Call(name, params))
        builder.emit_func_output(result)
    return builder.get()


def _prim_func(node: OpNode) -> Any:
    """The one PrimFunc that computes the node: params are its inputs, then its outputs."""
    try:
        from tvm.relax.frontend.onnx import from_onnx

        module = from_onnx(_model(node), keep_params_in_input=False)
        for step in (
            relax.transform.DecomposeOpsForInference(),
            relax.transform.LegalizeOps(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ):
            module = step(module)
        mutator = _ComputedConstants(module)
        main = mutator.visit_expr(module["main"])
        module = mutator.builder_.get()
        module.update_func(module.get_global_var("main"), main)
        module = relax.transform.FuseTIR()(_as_one(module))
        module = relax.transform.DeadCodeElimination(["main"])(module)
    except Refused:
        raise
    except Exception as error:  # the importer raises anything
        line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise Refused(f"TVM's importer can't take it: {line[:160]}", REMEDY) from error
    funcs = [f for f in module.functions.values() if isinstance(f, tirx.PrimFunc)]
    calls = [
        b.value
        for block in module["main"].body.blocks
        for b in block.bindings
        if isinstance(b.value, relax.Call)
    ]
    if len(funcs) != 1 or len(calls) != 1:
        raise Refused(f"TVM needs {len(funcs)} kernels or its runtime for it", REMEDY)
    arguments = [getattr(a, "name", None) for a in calls[0].args[1].fields]
    order = [p.name for p in module["main"].params]
    if sorted(map(str, arguments)) != sorted(order):
        raise Refused("TVM's kernel takes other arguments than the node", REMEDY)
    return funcs[0], [order.index(a) for a in arguments]


def _scheduled(func: Any, lanes: int) -> tuple[Any, int]:
    """Producers inlined, one nest of `tasks` iterations if that is possible."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    changed = True
    while changed:
        changed = False
        for block in schedule.get_child_blocks(schedule.get_sblock("root")):
            try:
                schedule.compute_inline(block)
                changed = True
                break
            except Exception:  # noqa: S112  not elementwise, or the output
                continue
    *before, last = schedule.get_child_blocks(schedule.get_sblock("root"))
    loops = schedule.get_loops(last)
    kinds = [str(v.iter_type) for v in schedule.get(last).iter_vars]
    spatial = 0
    while spatial < len(loops) and kinds[spatial] in ("0", "IterVar.DataPar"):
        spatial += 1
    if not spatial:
        return schedule.mod["main"], 1
    width = math.gcd(int(schedule.get(loops[spatial - 1]).extent), lanes)
    inner = loops[spatial - 1] if spatial == len(loops) and spatial > 1 and width > 1 else None
    outer = loops[: spatial - 1] if inner is not None else loops[:spatial]
    task = schedule.fuse(*outer) if len(outer) > 1 else outer[0]
    if inner is not None:
        _, lane = schedule.split(inner, [None, width])
        schedule.vectorize(lane)
    try:
        for block in reversed(before):  # a reduction behind which more follows: inside the task
            schedule.compute_at(block, task, preserve_unit_loops=True)
    except Exception:  # its stages don't nest: one task does everything
        return func, 1
    return schedule.mod["main"], int(schedule.get(task).extent)


_LOWER = (
    s_tir.transform.CanonicalizeLoop(),
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.CompactBufferAllocation(),
    s_tir.transform.LowerMatchBuffer(),
    s_tir.transform.StmtSimplify(),
    s_tir.transform.LowerOpaqueBlock(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.NarrowDataType(32),
)


def _ranged(stmt: Stmt, begin: Expr, end: Expr, tasks: int) -> Stmt:
    """`stmt` restricted to tasks [begin, end): its outermost loop is the loop over the tasks."""
    if tasks == 1:
        return tirx.For(tirx.Var("t", "int32"), begin, end - begin, tirx.ForKind.SERIAL, stmt)
    if isinstance(stmt, tirx.For):
        body, start = stmt.body, tirx.Var("t", "int32")
        value = start if stmt.loop_var.ty.dtype == "int32" else tirx.Cast("int64", start)
        inner = tirx.SeqStmt([tirx.Bind(stmt.loop_var, value), body])
        return tirx.For(start, begin, end - begin, tirx.ForKind.SERIAL, inner)
    if isinstance(stmt, tirx.SeqStmt):
        parts = list(stmt.seq)
        head = [p for p in parts if isinstance(p, (tirx.AllocBuffer, tirx.DeclBuffer))]
        rest = [p for p in parts if not isinstance(p, (tirx.AllocBuffer, tirx.DeclBuffer))]
        if len(rest) == 1:
            return tirx.SeqStmt([*head, _ranged(rest[0], begin, end, tasks)])
    raise Refused(f"TVM's kernel has the form {type(stmt).__name__}", REMEDY)


def build(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """The kernel of `node` from TVM's operator."""
    ins = [node.input(i) for i in operands(node)]
    if node.op_type == "RoiAlign" and node.attr("mode", "avg") == "max":
        raise Refused("TVM's RoiAlign takes the maximum of other samples than ONNX", REMEDY)
    if any(t.dtype in ("bool", "bfloat16") for t in (*ins, *node.outputs)):
        raise Refused("TVM's operator works on numbers only here", REMEDY)
    func, order = _prim_func(node)
    func, tasks = _scheduled(func, isa.lanes)
    module = tvm.IRModule({"main": func.with_attr("target", isa.target())})
    for step in _LOWER:
        module = step(module)
    func = module["main"]
    text = func.script()
    if "call_packed" in text or "call_cpacked" in text:
        raise Refused("TVM does it by calling its runtime", REMEDY)
    stack = _allocated(func.body)
    if stack > STACK_BYTES:
        raise Refused(f"TVM's kernel needs {stack} bytes of workspace", REMEDY)
    buffers = [p for p in func.params if tir_buffer.is_buffer_var(p)]
    inputs, outputs = buffers[: len(ins)], buffers[len(ins) :]
    by_node = [inputs[order.index(k)] for k in range(len(ins))]
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    params, declared = [], []
    for b in (*outputs, *by_node):
        pointer = tirx.Var(f"{b.name}_ptr", tir_buffer.buffer_data_pointer_type(b))
        params.append(pointer)
        declared.append(tirx.DeclBuffer(b, data=pointer))
    body = tirx.SeqStmt([*declared, _ranged(func.body, begin, end, tasks)])
    raw = tirx.PrimFunc([*params, begin, end], body)
    raw = raw.with_attr({"global_symbol": name, "tirx.noalias": True, "calling_conv": 0})
    return Kernel(name, raw, tasks, (*node.outputs, *ins), len(node.outputs))


def _allocated(stmt: Stmt) -> int:
    """Bytes of the buffers that `stmt` allocates."""
    if isinstance(stmt, tirx.AllocBuffer):
        import numpy as np

        shape = [int(e) for e in stmt.buffer.shape]
        return math.prod(shape) * int(np.dtype(storage_dtype(stmt.buffer.dtype)).itemsize)
    if isinstance(stmt, tirx.SeqStmt):
        return sum(_allocated(s) for s in stmt.seq)
    body = getattr(stmt, "body", None)
    return _allocated(body) if body is not None else 0


kernel(*FALLBACK, template="tvm:{op}")(build)
