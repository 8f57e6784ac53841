"""Whether a target can take a model: every problem, in seconds, without compiling."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from effc.build import BuildOptions, choose_backend, choose_pipeline, choose_target
from effc.core.check import check_model
from effc.core.passinfra import PassContext
from effc.core.shapes import fix_shapes, infer_shapes
from effc.core.specs import static_specs
from effc.sources import load


class CheckedProblem(msgspec.Struct, frozen=True):
    """One node that the target can't take; `source` is where in the user's code it comes from, if known."""

    node: str
    op: str
    reason: str
    remedy: str
    source: str = ""


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
    pipeline = choose_pipeline(options, found, chosen)
    model = load(source, options.shapes).model
    check_model(model)
    fix_shapes(model, options.shapes)
    infer_shapes(model)
    static_specs(model.graph.inputs)
    pipeline.run(model, PassContext(chosen))
    problems = tuple(
        CheckedProblem(p.node, p.op, p.reason, p.remedy, p.source)
        for p in found.check(model, chosen)
    )
    return Check(not problems, problems, chosen.profile.name, found.id, len(model.graph))
