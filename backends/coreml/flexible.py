"""One package for several sizes of an input: packages made for each, shown to be the same program.

Every size is converted on its own, with static shapes. The programs have to be equal, operation by operation
and constant by constant; where only a tensor's extent differs, it is left open (`unknown` in MIL). What
differs otherwise is named, and there is no package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effc.backends.coreml.interface import Port
from effc.backends.coreml.interpret.blob import WeightFile
from effc.backends.coreml.sizes import Sizes
from effc.core.errors import Problem, UnsupportedOpError

SPECIFICATION = Path("Data") / "com.apple.CoreML" / "model.mlmodel"
WEIGHTS = Path("Data") / "com.apple.CoreML" / "weights" / "weight.bin"
_REMEDY = "leave sizes out, and build one function for each size (--backend-option function=..., join=...)"


def merge(path: Path, others: Sequence[Path], port: Port, target: str) -> None:
    """Make the package `path` one that also takes the shapes of `others`: same program, open extents.

    `port` is the input with its `sizes`. UnsupportedOpError names the first operation that differs.
    """
    from coremltools import proto

    merged = _read(path)
    for other in others:
        spec = _read(other)
        (ours,), (theirs,) = _blocks(merged), _blocks(spec)
        _merge_values(merged.mlProgram.functions["main"].inputs,
                      spec.mlProgram.functions["main"].inputs, target)  # fmt: skip
        _merge_block(ours, theirs, path, other, target)
    assert isinstance(merged, proto.Model_pb2.Model) and port.sizes is not None
    for feature in merged.description.input:
        if feature.name == port.mil:
            _declare(feature.type, port, port.sizes)
    (block,) = _blocks(merged)
    types = {o.name: o.type for op in block.operations for o in op.outputs}
    for feature in merged.description.output:
        kind = types.get(feature.name)
        if kind is not None and feature.type.WhichOneof("Type") == "multiArrayType" and _open(kind):
            del feature.type.multiArrayType.shape[:]
    (path / SPECIFICATION).write_bytes(merged.SerializeToString(deterministic=True))


def _read(path: Path) -> Any:
    from coremltools import proto

    spec = proto.Model_pb2.Model()
    spec.ParseFromString((path / SPECIFICATION).read_bytes())
    return spec


def _blocks(spec: Any) -> Iterator[Any]:
    function = spec.mlProgram.functions["main"]
    yield function.block_specializations[function.opset]


def _merge_block(ours: Any, theirs: Any, path: Path, other: Path, target: str) -> None:
    """Open the extents in which `ours` differs from `theirs`; UnsupportedOpError for all else."""
    mine, computed = _parted(ours)
    there, others = _parted(theirs)
    same: set[tuple[str, str]] = set()  # pairs of constants that were compared
    names: dict[
        str, str
    ] = {}  # of their values to ours: coremltools counts through those it makes up

    def compare(a: Any, b: Any, name: str, op: Any) -> None:
        """Two bindings of a parameter: the same value, or equal constants whatever they are called."""
        first, second = mine.get(a.name), there.get(b.name)
        if (a.name, b.name) in same:
            return
        if first is None and second is None:
            alike = a.name == names.get(b.name, b.name) if a.name else a == b
            if not alike:
                raise _refused(target, op, f"its {name} is another one at another size")
            return
        if first is None or second is None or first.type != second.type:
            raise _refused(target, op, f"its {name} is another one at another size")
        arguments(first, second, op)
        for key, value in first.attributes.items():
            if key == "name":
                continue
            if key not in second.attributes or not _equal(
                value, second.attributes[key], path, other
            ):
                shown = [_shown(value), _shown(second.attributes[key])]
                what = (
                    f"is {shown[0]} at one size and {shown[1]} at another"
                    if all(shown)
                    else "differs from size to size"
                )
                raise _refused(target, op, f"its {name} {what}")
        same.add((a.name, b.name))

    def arguments(a: Any, b: Any, op: Any) -> None:
        if set(a.inputs) != set(b.inputs):
            raise _refused(target, op, "it has other inputs at another size")
        for name in a.inputs:
            first, second = a.inputs[name].arguments, b.inputs[name].arguments
            if len(first) != len(second):
                raise _refused(target, op, f"its {name} is another one at another size")
            for x, y in zip(first, second, strict=True):
                compare(x, y, name, op)

    for a, b in zip(computed, others, strict=False):
        if a.type != b.type or len(a.outputs) != len(b.outputs):
            raise _refused(target, a, f"at another size {b.type!r} stands in its place")
        if a.type == "conv_transpose":
            # a pass of coremltools adds it; without it the shape follows from the other parameters
            for op in (a, b):
                op.inputs.pop("output_shape", None)
        arguments(a, b, a)
        names.update((y.name, x.name) for x, y in zip(a.outputs, b.outputs, strict=True))
        if _attributes(a) != _attributes(b):
            raise _refused(target, a, "its attributes differ from size to size")
        if a.blocks or b.blocks:
            raise _refused(target, a, "it has branches, which are converted for one shape")
        _merge_values(a.outputs, b.outputs, target, a)
    longer = max((computed, others), key=len)[min(len(computed), len(others)) :]
    if longer:
        raise _refused(target, longer[0], "some sizes need it and others do not")
    if list(ours.outputs) != [names.get(name, name) for name in theirs.outputs]:
        raise _refused(target, computed[-1], "the outputs differ from size to size")


def _attributes(op: Any) -> dict[str, Any]:
    return {key: value for key, value in op.attributes.items() if key != "name"}


def _parted(block: Any) -> tuple[dict[str, Any], list[Any]]:
    """The constants by name (of equal ones coremltools keeps any), and the other operations."""
    constants, computed = {}, []
    for op in block.operations:
        if op.type == "const" or op.type.startswith("constexpr_"):
            constants[op.outputs[0].name] = op
        else:
            computed.append(op)
    return constants, computed


def _equal(a: Any, b: Any, path: Path, other: Path) -> bool:
    if a.WhichOneof("value") != "blobFileValue" or b.WhichOneof("value") != "blobFileValue":
        return bool(a == b)
    if a.type != b.type:
        return False
    return bool(np.array_equal(_blob(a, path), _blob(b, other)))


def _blob(value: Any, path: Path) -> Any:
    """A value in the weight file."""
    from effc.backends.coreml.interpret.values import DATA_TYPES

    kind = value.type.tensorType
    _, bits, dtype = DATA_TYPES[kind.dataType]
    count = int(np.prod([d.constant.size for d in kind.dimensions], dtype=np.int64))
    return WeightFile(path / WEIGHTS).read(value.blobFileValue.offset, bits, dtype, count)


def _shown(value: Any) -> str:
    """The numbers of a small constant."""
    if value is None or value.WhichOneof("value") != "immediateValue":
        return ""
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field in (None, "bytes"):
        return ""
    values = list(getattr(tensor, field).values)
    return str(values if len(values) != 1 else values[0]) if len(values) <= 8 else ""


def _merge_values(ours: Any, theirs: Any, target: str, op: Any = None) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if a.type == b.type:
            continue
        first, second = a.type.tensorType, b.type.tensorType
        if a.type.WhichOneof("type") != "tensorType" or (first.dataType, first.rank) != (
            second.dataType, second.rank
        ):  # fmt: skip
            raise _refused(target, op, "its type differs from size to size")
        for mine, other in zip(first.dimensions, second.dimensions, strict=True):
            if mine != other:
                mine.unknown.variadic = False


def _open(kind: Any) -> bool:
    return any(d.WhichOneof("dimension") == "unknown" for d in kind.tensorType.dimensions)


def _declare(feature: Any, port: Port, sizes: Sizes) -> None:
    """The shapes in the description of the input; its default one stands there already."""
    picture = port.image is not None
    h, w = (1, 2) if picture and port.image is not None and port.image.layout == "NHWC" else (2, 3)
    usual = port.shape
    if sizes.shapes:
        every = dict.fromkeys((usual, *sizes.shapes))
        for shape in every:
            if picture:
                size = feature.imageType.enumeratedSizes.sizes.add()
                size.height, size.width = shape[h], shape[w]
            else:
                feature.multiArrayType.enumeratedShapes.shapes.add().shape.extend(shape)
        return
    if picture:
        ranges = feature.imageType.imageSizeRange
        for at, axis in ((h, ranges.heightRange), (w, ranges.widthRange)):
            axis.lowerBound, axis.upperBound = sizes.bounds[at]
        return
    for low, high in sizes.bounds:
        axis = feature.multiArrayType.shapeRange.sizeRanges.add()
        axis.lowerBound, axis.upperBound = low, high


def _refused(target: str, op: Any, reason: str) -> UnsupportedOpError:
    name = op.outputs[0].name if op is not None and op.outputs else "input"
    kind = op.type if op is not None else "input"
    return UnsupportedOpError(
        target, [Problem(name, kind, f"sizes can't be open: {reason}", _REMEDY)]
    )
