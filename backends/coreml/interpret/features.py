"""Inputs and outputs as the user of a model sees them: multi-arrays, images, class labels.

An image input takes a PIL image or a uint8 array [h, w, 3] (red, green, blue) or [h, w]; scale and bias
are operations of the program itself. An image output comes as such an array, rounded and clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from effc.backends.coreml.interpret.values import TensorType
from effc.core.errors import ConfigError, FrontendError
from effc.core.measure import Array

# ArrayFeatureType.ArrayDataType and ImageFeatureType.ColorSpace, FeatureTypes.proto
ARRAY_TYPES = {
    65552: "float16",
    65568: "float32",
    65600: "float64",
    131104: "int32",
    131080: "int8",
}
COLOURS = {10: "grayscale", 20: "rgb", 30: "bgr", 40: "grayscale_float16"}
MIL_TYPES = {"float16": "fp16", "float32": "fp32", "float64": "fp64"}

Kind = Literal["array", "image", "value"]
Range = tuple[int, float]  # of sizes, both included


@dataclass(frozen=True, slots=True)
class Feature:
    """One input or output of the model's description.

    shape: the default one; an image's is (height, width).
    allowed: shapes that may be used instead; ranges: the sizes allowed for each dimension.
    """

    name: str
    kind: Kind
    dtype: str = ""
    shape: tuple[int, ...] = ()
    allowed: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Range, ...] = ()
    colour: str = ""
    optional: bool = False
    default: float = 0.0

    def accepts(self, shape: tuple[int, ...]) -> bool:
        if self.allowed:
            return shape in self.allowed
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                low <= n <= high for n, (low, high) in zip(shape, self.ranges, strict=True)
            )
        return shape == self.shape or not self.shape

    def expected(self) -> str:
        if self.allowed:
            return " or ".join(str(list(s)) for s in self.allowed)
        if self.ranges:
            return "[" + ", ".join(f"{low}..{high}" for low, high in self.ranges) + "]"
        return str(list(self.shape))


def _range(proto: Any) -> Range:
    return int(proto.lowerBound), math.inf if proto.upperBound < 0 else int(proto.upperBound)


def _array(name: str, proto: Any, optional: bool, where: str) -> Feature:
    if proto.dataType not in ARRAY_TYPES:
        raise FrontendError(f"{where}: {name!r} has the array type {proto.dataType}")
    default = proto.WhichOneof("defaultOptionalValue")
    return Feature(
        name,
        "array",
        ARRAY_TYPES[proto.dataType],
        tuple(int(n) for n in proto.shape),
        tuple(tuple(int(n) for n in s.shape) for s in proto.enumeratedShapes.shapes),
        tuple(_range(r) for r in proto.shapeRange.sizeRanges),
        optional=optional,
        default=float(getattr(proto, default)) if default else 0.0,
    )


def feature(proto: Any, where: str) -> Feature:
    """A FeatureDescription."""
    kind = proto.type.WhichOneof("Type")
    optional = bool(proto.type.isOptional)
    if kind == "multiArrayType":
        return _array(proto.name, proto.type.multiArrayType, optional, where)
    if kind == "stateType":
        return _array(proto.name, proto.type.stateType.arrayType, False, where)
    if kind == "imageType":
        image = proto.type.imageType
        if image.colorSpace not in COLOURS:
            raise FrontendError(f"{where}: {proto.name!r} has the colour space {image.colorSpace}")
        sizes = image.imageSizeRange
        ranged = image.WhichOneof("SizeFlexibility") == "imageSizeRange"
        return Feature(
            proto.name,
            "image",
            "float16" if image.colorSpace == 40 else "uint8",
            (int(image.height), int(image.width)),
            tuple((int(s.height), int(s.width)) for s in image.enumeratedSizes.sizes),
            (_range(sizes.heightRange), _range(sizes.widthRange)) if ranged else (),
            COLOURS[image.colorSpace],
            optional,
        )
    return Feature(proto.name, "value", optional=optional)


def _converted(value: Any, wanted: Feature) -> Array:
    array = np.asarray(value)
    target = np.dtype(wanted.dtype)
    if array.dtype.kind not in "fiub" or (target.kind in "iu" and array.dtype.kind == "f"):
        raise ConfigError(f"input {wanted.name!r} takes {wanted.dtype}, not {array.dtype}")
    if not wanted.accepts(array.shape):
        raise ConfigError(
            f"input {wanted.name!r} has the shape {list(array.shape)}, it takes {wanted.expected()}"
        )
    if target.kind in "iu" and array.size:
        bounds = np.iinfo(target)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise ConfigError(f"input {wanted.name!r} holds values beyond {wanted.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(target)


def _pixels(value: Any, wanted: Feature) -> Array:
    """[c, h, w] in the order of the model's colours."""
    channels = 1 if wanted.colour.startswith("grayscale") else 3
    mode = getattr(value, "mode", None)
    fits = {"rgb": "RGB", "bgr": "RGB", "grayscale": "L", "grayscale_float16": "F"}[wanted.colour]
    if mode is not None and mode != fits:
        raise ConfigError(f"input {wanted.name!r} takes a PIL image of mode {fits}, not {mode}")
    array = np.asarray(value)
    if mode == "F":
        array = array.astype(np.float16)
    if array.dtype != wanted.dtype or array.ndim != (2 if channels == 1 else 3):
        layout = "[h, w]" if channels == 1 else "[h, w, 3]"
        raise ConfigError(
            f"input {wanted.name!r} takes an image: {wanted.dtype} {layout} or PIL's,"
            f" not {array.dtype} {list(array.shape)}"
        )
    if array.ndim == 3 and array.shape[2] != 3:
        raise ConfigError(f"input {wanted.name!r} takes 3 channels, not {array.shape[2]}")
    if not wanted.accepts(array.shape[:2]):
        raise ConfigError(
            f"input {wanted.name!r} is {list(array.shape[:2])} (height, width), it takes"
            f" {wanted.expected()}"
        )
    if channels == 1:
        return array[None]
    return (array[..., ::-1] if wanted.colour == "bgr" else array).transpose(2, 0, 1)


def fed(value: Any, wanted: Feature, kind: TensorType) -> Array:
    """The user's value as the program's input; raises ConfigError where it does not fit."""
    if wanted.kind == "image":
        pixels = _pixels(value, wanted)
        array = pixels[None] if len(kind.shape) == 4 else pixels
    else:
        array = _converted(value, wanted)
    if not kind.accepts(array.shape):
        raise ConfigError(f"input {wanted.name!r} has the shape {list(array.shape)}, not {kind}")
    if kind.name == "fp16":
        return array.astype(np.float16).astype(np.float32)
    return array.astype(kind.dtype)


def check_output(wanted: Feature, kind: TensorType | None, where: str) -> None:
    """The description and the program have to agree on the type of an output."""
    if kind is None or wanted.kind != "array":
        return
    if kind.name != MIL_TYPES.get(wanted.dtype, wanted.dtype):
        raise FrontendError(
            f"{where}: output {wanted.name!r} is described as {wanted.dtype}, the program gives {kind}"
        )


def shown(value: Array, wanted: Feature) -> Array:
    """A program's output as the user sees it."""
    if wanted.kind == "array":
        with np.errstate(over="ignore"):
            return np.asarray(value).astype(wanted.dtype)
    if wanted.kind == "image":
        image: Array = value.reshape(value.shape[-3:])
        if wanted.colour == "grayscale_float16":
            return image[0].astype(np.float16)
        pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        if wanted.colour == "grayscale":
            return pixels[0]
        return (pixels[::-1] if wanted.colour == "bgr" else pixels).transpose(1, 2, 0)
    return np.asarray(value)
