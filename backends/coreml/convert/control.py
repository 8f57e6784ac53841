"""If. Loop and Scan have no counterpart whose shapes are static."""

from __future__ import annotations

import onnx_ir as ir

from effc.backends.coreml.convert.call import Call, Refusal, Scope, Var
from effc.backends.coreml.convert.table import op


@op("If")
def if_(c: Call) -> Var | tuple[Var, ...]:
    """Both branches have to make the same types and shapes."""
    run = c.scope.run
    if run is None:
        raise Refusal("it stands where no branch can be lowered")
    condition = c.x()
    if len(condition.shape):
        condition = c.reshaped(condition, ())
    branches: list[ir.Graph] = [c.attr("then_branch"), c.attr("else_branch")]
    shapes = [[(v.dtype, v.shape) for v in b.outputs] for b in branches]
    if [str(s) for s in shapes[0]] != [str(s) for s in shapes[1]]:
        raise Refusal("its branches differ in their types or shapes", "make them alike")

    def branch(graph: ir.Graph) -> tuple[Var, ...]:
        inner = Scope(c.mb, c.ios, {}, c.scope.facts, c.scope, run)
        # a branch must compute something of its own
        return tuple(c.mb.identity(x=v) for v in run(inner, graph))

    result = c.mb.cond(
        pred=condition, _true_fn=lambda: branch(branches[0]), _false_fn=lambda: branch(branches[1])
    )
    return result if isinstance(result, tuple) else (result,)
