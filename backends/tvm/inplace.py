"""Elementwise results that take the place of an operand which nobody reads any more.

Only for blocked tensors: there a kernel stores each vector where it has just loaded it, and touches no
element twice (along row-major tails two vectors may overlap).
"""

from __future__ import annotations

from effc.backends.tvm.program import Call, Program, View


def reuse_operands(program: Program) -> int:
    """Let elementwise calls write over a dying operand, by views; the number of tensors saved."""
    held = {program.root(n) for n in (*program.inputs, *program.outputs)} | set(program.constants)
    last: dict[str, int] = {}
    for i, call in enumerate(program.calls):
        last.update((program.root(name), i) for name in call.args)
    saved = 0
    for i, call in enumerate(program.calls):
        out = call.args[0]
        if call.template != "elementwise" or out in program.views or out in held:
            continue
        found = _dying(program, call, i, last, held)
        if found is not None:
            program.views[out] = View(found)
            last[found] = last[out]
            saved += 1
    return saved


def _dying(
    program: Program, call: Call, i: int, last: dict[str, int], held: set[str]
) -> str | None:
    """The storage of an operand of the output's type that this call is the last to read, as a whole."""
    out = program.tensors[call.args[0]]
    if not out.layout.block:
        return None
    roots = [program.root(name) for name in call.args[1:]]
    for name, root in zip(call.args[1:], roots, strict=True):
        whole = program.place(name) == (root, 0) and program.tensors[root].bytes == out.bytes
        alone = all(r != root or n == name for n, r in zip(call.args[1:], roots, strict=True))
        if (
            program.tensors[name] == out
            and whole
            and alone
            and root not in held
            and last[root] == i
        ):
            return root
    return None
