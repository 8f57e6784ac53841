"""Whether a target can take a model: every problem, in seconds, without compiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import onnx_ir as ir

from effc.backends import BACKENDS, make_backend
from effc.choices import BuildOptions, choose_backend, choose_pipelines, choose_target
from effc.core.check import check_model
from effc.core.errors import Problem
from effc.core.passinfra import PassContext
from effc.core.shapes import fix_shapes, infer_shapes
from effc.core.specs import static_specs
from effc.core.target import Target
from effc.sources import load


class CheckedProblem(msgspec.Struct, frozen=True):
    """One node that the target can't take; `source` is where in the user's code it comes from, if known."""

    node: str
    op: str
    reason: str
    remedy: str
    source: str = ""
    taken_by: tuple[str, ...] = ()  # the other backends that are here and would take the node


class Check(msgspec.Struct, frozen=True):
    """The verdict before the build."""

    supported: bool
    problems: tuple[CheckedProblem, ...]
    target: str
    backend: str
    nodes: int  # that are left to lower, after the passes


def check(
    source: str,
    target: str,
    *,
    precision: str = "fp32",
    backend: str = "",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Check:
    """Load, canonicalize, fuse and legalize `source` as `build` would, and ask the backend."""
    options = BuildOptions(precision=precision, backend=backend, shapes=shapes or {})
    chosen = choose_target(target, options)
    found = choose_backend(chosen, options)
    front, legal = choose_pipelines(options, found, chosen)
    model = load(source, options.shapes).model
    check_model(model)
    fix_shapes(model, options.shapes)
    infer_shapes(model)
    static_specs(model.graph.inputs)
    (front + legal).run(model, PassContext(chosen))
    problems = _with_others(found.check(model, chosen), model, chosen, found.id)
    return Check(not problems, problems, chosen.profile.name, found.id, len(model.graph))


def _with_others(
    problems: Sequence[Problem], model: ir.Model, target: Target, asked: str
) -> tuple[CheckedProblem, ...]:
    """The `problems` of the backend `asked`, each with the other backends that would take the node."""
    refused = _refused_by_others(model, target, asked) if problems else {}
    found = []
    for p in problems:
        takers = tuple(name for name, nodes in refused.items() if p.node not in nodes)
        remedy = p.remedy
        if takers:
            choices = " or ".join(f"--backend {name}" for name in takers)
            remedy = f"{remedy}; or build with {choices}, which takes it"
        found.append(CheckedProblem(p.node, p.op, p.reason, remedy, p.source, takers))
    return tuple(found)


def _refused_by_others(model: ir.Model, target: Target, asked: str) -> dict[str, set[str]]:
    """Backend -> the nodes it refuses; without those that can't build for `target` from here.

    A backend that refuses the model without a node takes none of it, and is left out.
    """
    refused = {}
    for name in BACKENDS.table():
        if name == asked:
            continue
        backend = make_backend(name)
        if backend.probe().ok and backend.accepts(target).ok:
            nodes = {p.node for p in backend.check(model, target)}
            if "" not in nodes:
                refused[name] = nodes
    return refused
