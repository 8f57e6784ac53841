"""From a torch module to the IR, through torch's own exporter. Callers hand over the torch package."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.core.reference import OnnxRuntimeRunner

# the exporter may choose other algorithms than torch does eagerly; errors beyond this are no rounding
TOLERANCE = 1e-3


def export(
    torch: Any,
    module: Any,
    args: Sequence[Any],
    what: str,
    *,
    dynamic_shapes: Any = None,
    verify: bool = True,
) -> ir.Model:
    """Export `module` (torch.nn.Module, set to eval mode, or ExportedProgram) called with `args`.

    Nothing is optimized on the way: that is for effc's passes, which are held to their promises. With
    `verify` the exported model is run by onnxruntime on `args` and compared with torch; a difference
    over TOLERANCE of an output's range raises. `what` names the source in errors.
    """
    if isinstance(module, torch.nn.Module):
        module.eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(args),
                dynamo=True,
                verbose=False,
                optimize=False,
                dynamic_shapes=dynamic_shapes,
            )
            model: ir.Model = program.model
    except Exception as error:  # the exporter wraps whatever the user's code raises
        reason = reason_of(error)
        raise FrontendError(
            f"{what} can't be exported: {reason}",
            hint="torch.export must be able to trace forward(): no control flow on values, no "
            "unsupported operators; try torch.export.export(module, args) by itself",
        ) from error
    if verify:
        _verify(torch, module, args, model, what)
    return model


def _verify(torch: Any, module: Any, args: Sequence[Any], model: ir.Model, what: str) -> None:
    call = module if isinstance(module, torch.nn.Module) else module.module()
    names = [v.name or "" for v in model.graph.inputs]
    leaves = [t for t in torch.utils._pytree.tree_leaves(tuple(args)) if torch.is_tensor(t)]
    if len(leaves) != len(names):  # an argument was folded in or unpacked: nothing to compare by
        raise FrontendError(
            f"{what} has {len(leaves)} tensor arguments but its export has {len(names)} inputs",
            hint="an argument that forward() does not use can't be an input: leave it out",
        )
    with quiet(), torch.no_grad():
        answer = call(*args)
    expected = [t for t in torch.utils._pytree.tree_leaves(answer) if torch.is_tensor(t)]
    feeds = {n: t.detach().cpu().numpy() for n, t in zip(names, leaves, strict=True)}
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        got = runner.infer(feeds)
    for (name, array), tensor in zip(got.items(), expected, strict=False):
        wanted = tensor.detach().cpu().numpy()
        if array.shape != wanted.shape:
            raise FrontendError(
                f"{what}: the export gives output {name!r} the shape {array.shape}, torch gives "
                f"{wanted.shape}"
            )
        if array.size == 0 or wanted.dtype.kind not in "fiu":
            continue
        scale = float(np.nanmax(np.abs(wanted.astype(np.float64)))) or 1.0
        off = float(np.nanmax(np.abs(array.astype(np.float64) - wanted))) / scale
        if not off <= TOLERANCE:
            raise FrontendError(
                f"{what}: the export is not the same function: output {name!r} is off by {off:.3g} of "
                "its range",
                hint="the fault is in the exporter or in a model that is not deterministic in eval mode",
            )


def reason_of(error: BaseException) -> str:
    """The innermost cause of an exporter's exception, in one line."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None and inner is not cause:
        cause = inner
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else "no reason given"
    return f"{type(cause).__name__}: {text[:300]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's progress texts, warnings and logs off the terminal."""
    logger = logging.getLogger("torch")
    level = logger.level
    sink = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
