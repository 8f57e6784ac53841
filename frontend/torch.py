"""PyTorch models by name: `package.module:attribute` or `file.py:attribute`."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from effc.core import registry
from effc.core.check import check_model, normalize
from effc.core.errors import ConfigError, FrontendError
from effc.core.extras import require
from effc.core.source import Source, fingerprint
from effc.core.torch_export import export, quiet

_NAME = re.compile(r"(?:[A-Za-z_][\w.]*|.+\.py):[A-Za-z_][\w.]*")


def is_object_name(text: str) -> bool:
    """Whether `text` has the form of `module:attribute` or `file.py:attribute`, and is no file."""
    return _NAME.fullmatch(text) is not None and not os.path.exists(text)


def load_source(text: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Source:
    """Export the torch.nn.Module, ExportedProgram, or callable returning one, that `text` names.

    Inputs have the `shapes` given for them (float32), or are those of an `example_inputs` attribute (a
    tuple of tensors) of the object, of the module it makes, or of its Python file. Weights are taken as
    they are; random ones where the callable makes random ones (after torch.manual_seed(0)). The export
    is compared with torch on the example. Importing runs the user's code, as naming it asks for.
    """
    what = f"model {text!r}"
    torch: Any = require(what, "torch", "torch", "onnxscript")[0]
    torch.manual_seed(0)
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        with quiet():
            named = registry.load(text, "model")
            module, examples = _instantiate(torch, named, what)
    finally:
        sys.path.remove(here)
    if examples is None:
        examples = _examples(named, module)
    dynamic = getattr(named, "dynamic_shapes", None) or getattr(module, "dynamic_shapes", None)
    if isinstance(module, torch.export.ExportedProgram):
        examples, dynamic = _program_inputs(module, shapes or {}, what), None
    elif shapes:
        examples = _from_shapes(torch, module, shapes, examples, what)
        dynamic = None
    if examples is None:
        raise ConfigError(
            f"{what} needs to know the shape of its inputs",
            hint=f"give --shape {_parameters(module)[0]}=1,3,224,224, or set example_inputs on it",
        )
    if isinstance(module, torch.nn.Module):
        _check_call(module, examples, what)
    model = export(torch, module, examples, what, dynamic_shapes=dynamic)
    try:
        check_model(model, allow_nonfinite=True)
    except FrontendError as error:
        raise FrontendError(f"{what}: {error}", hint=error.hint) from error
    normalize(model)
    return Source(model, "torch", text, fingerprint(model), _notes(model))


def _instantiate(torch: Any, named: Any, what: str) -> tuple[Any, tuple[Any, ...] | None]:
    """The module that `named` is or makes, and the example inputs that come with it."""
    kinds = (torch.nn.Module, torch.export.ExportedProgram)
    if isinstance(named, kinds):
        return named, None
    if not callable(named):
        raise ConfigError(
            f"{what} is of type {type(named).__name__}, no torch.nn.Module",
            hint="name a module, an ExportedProgram, or a callable without arguments that returns one",
        )
    needed = _required(named)
    if needed:
        raise ConfigError(
            f"{what} takes the arguments {', '.join(needed)}",
            hint="name a callable without arguments that returns the module",
        )
    try:
        made = named()
    except Exception as error:  # the user's code
        raise FrontendError(
            f"{what} fails when it is called: {type(error).__name__}: {error}",
            hint="run it in Python by itself to see where",
        ) from error
    examples = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], kinds):
        made, examples = made[0], tuple(made[1])
    if not isinstance(made, kinds):
        raise ConfigError(f"{what} returns {type(made).__name__}, no torch.nn.Module")
    return made, examples


def _required(call: Callable[..., Any]) -> list[str]:
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and (p.kind in plain or p.kind is p.KEYWORD_ONLY)
    ]


def _parameters(module: Any) -> list[str]:
    """The names of forward's positional parameters."""
    forward = getattr(module, "forward", module)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p.name for p in inspect.signature(forward).parameters.values() if p.kind in kinds]
    return found or ["x"]


def _examples(named: Any, module: Any) -> tuple[Any, ...] | None:
    owner = sys.modules.get(getattr(named, "__module__", None) or "")
    for holder in (named, module, owner):
        found = getattr(holder, "example_inputs", None)
        if callable(found):
            found = found()
        if found is not None:
            return tuple(found) if isinstance(found, (tuple, list)) else (found,)
    return None


def _from_shapes(
    torch: Any,
    module: Any,
    shapes: Mapping[str, tuple[int, ...]],
    examples: tuple[Any, ...] | None,
    what: str,
) -> tuple[Any, ...]:
    names = _parameters(module)
    unknown = [n for n in shapes if n not in names]
    if unknown:
        raise ConfigError(
            f"--shape names {unknown[0]!r}, which {what} does not take",
            hint=f"its forward() takes {', '.join(names)}",
        )
    given = [n for n in names if n in shapes]
    if examples is None and given != names[: len(given)]:
        raise ConfigError(
            f"{what} needs a shape for every input before {given[-1]!r}",
            hint="give --shape once for each of " + ", ".join(names),
        )
    if examples is None or (len(given) > len(examples) and given == names[: len(given)]):
        examples = (None,) * len(given)  # those of the file were for another model
    generator = torch.Generator().manual_seed(0)
    result: list[Any] = list(examples)
    for name, shape in shapes.items():
        index = names.index(name)
        if index >= len(result):
            raise ConfigError(
                f"--shape names {name!r}, but {what} has {len(result)} example inputs"
            )
        old = result[index]
        dtype = old.dtype if torch.is_tensor(old) else torch.float32
        made = torch.randn(tuple(shape), generator=generator)
        result[index] = (
            made.to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        )
    return tuple(result)


def _check_call(module: Any, examples: tuple[Any, ...], what: str) -> None:
    try:
        inspect.signature(module.forward).bind(*examples)
    except TypeError as error:
        raise ConfigError(
            f"{what} can't be called with {len(examples)} inputs: {error}",
            hint="give --shape once for each of " + ", ".join(_parameters(module)),
        ) from error


def _program_inputs(
    program: Any, shapes: Mapping[str, tuple[int, ...]], what: str
) -> tuple[Any, ...]:
    if program.example_inputs is None:
        raise FrontendError(f"{what} is an ExportedProgram without example inputs")
    args, kwargs = program.example_inputs
    if kwargs:
        raise FrontendError(
            f"{what} takes keyword inputs ({', '.join(kwargs)})",
            hint="export it with positional inputs",
        )
    if shapes:
        raise ConfigError(
            f"{what} is an ExportedProgram: its shapes are fixed",
            hint="leave --shape out, or name the module instead",
        )
    return tuple(args)


def _notes(model: ir.Model) -> tuple[str, ...]:
    open_sizes = [v.name for v in model.graph.inputs if v.shape is None or v.shape.is_dynamic()]
    return (f"inputs of dynamic shape: {', '.join(map(str, open_sizes))}",) if open_sizes else ()
