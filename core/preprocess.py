"""How a picture becomes the tensor of a model's input: one description for eval, run and calibration.

The text form round-trips: `Preprocess.parse(str(p)) == p`. It is a name (`imagenet`, `inception`, `unit`,
`raw`), or `mean=...,std=...`, or a name followed by options: `imagenet,resize=crop,color=BGR`.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from effc.core.errors import ConfigError
from effc.core.measure import Array

if TYPE_CHECKING:
    from PIL.Image import Image

# a picture of more pixels is refused before it is decoded: Pillow warns from there on
MAX_PIXELS = 89_478_485


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """y = (x / scale - mean) / std by channel, in float32, where x is 0..255 in the order `color`.

    Before that, the picture is turned upright by its EXIF orientation, converted to 8-bit RGB (an alpha
    channel is dropped) or gray, and resized to the input's height and width with Pillow's bilinear filter
    (which averages over the source's pixels where it shrinks; nothing happens where the size fits):
    squash  both sides on their own, so the aspect ratio may change;
    crop    the short side to input / `fraction`, aspect kept, then the centre is cut out.
    `mean` and `std` hold one number, or one a channel in the order `color`; those of a name are put in order.
    `layout` "" is read off the input's shape. Integer inputs get y rounded and clipped.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    resize: Literal["squash", "crop"] = "squash"
    fraction: float = 0.875
    layout: Literal["", "NCHW", "NHWC"] = ""
    color: Literal["RGB", "BGR", "GRAY"] = "RGB"

    def __str__(self) -> str:
        for name, preset in PRESETS.items():
            order = -1 if self.color == "BGR" else 1
            numbers = (preset.mean[::order], preset.std[::order], preset.scale)
            if (self.mean, self.std, self.scale) == numbers:
                head = [name]
                break
        else:
            head = [
                f"mean={_join(self.mean)}",
                f"std={_join(self.std)}",
                f"scale={_number(self.scale)}",
            ]
        if self.resize != "squash":
            head.append(f"resize={self.resize}")
        if self.fraction != 0.875:
            head.append(f"fraction={_number(self.fraction)}")
        if self.layout:
            head.append(f"layout={self.layout}")
        if self.color != "RGB":
            head.append(f"color={self.color}")
        return ",".join(head)

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """The description that `text` stands for; ConfigError says what is wrong with it.

        Numbers of a list are separated by commas: `mean=0.485,0.456,0.406,std=0.229,0.224,0.225`.
        Without `scale=`, numbers that are all at most 1 are of pictures in 0..1, others of 0..255.
        """
        name, options = _split(text)
        fields: dict[str, Any] = msgspec.structs.asdict(PRESETS[name]) if name else {}
        if not name and "mean" not in options and "std" not in options:
            raise ConfigError(
                f"preprocessing {text!r} says nothing about the values",
                hint=f"start with one of {', '.join(PRESETS)}, or with mean=...,std=...",
            )
        own = set(options)
        for key in ("mean", "std"):
            if key in options:
                fields[key] = tuple(_float(key, v) for v in options.pop(key))
        for key in ("scale", "fraction"):
            if key in options:
                fields[key] = _float(key, _one(key, options.pop(key)))
            elif key == "scale" and not name:
                fields[key] = _scale_of(fields, text)
        for key, kinds in _CHOICES.items():
            if key in options:
                value = _one(key, options.pop(key))
                match = [k for k in kinds if k.lower() == value.lower()]
                if not match:
                    raise ConfigError(
                        f"preprocessing option {key}={value!r} is unknown",
                        hint=f"{key} is one of {', '.join(kinds)}",
                    )
                fields[key] = match[0]
        if fields.get("color") == "BGR" and name:
            for key in ("mean", "std"):
                if key not in own:
                    fields[key] = fields[key][::-1]
        if options:
            raise ConfigError(
                f"preprocessing has no option {next(iter(options))!r}",
                hint="its options: mean, std, scale, resize, fraction, layout, color",
            )
        return _checked(cls(**fields))

    def describe(self) -> dict[str, Any]:
        """The plain form that the manifest stores; `from_description` reads it back."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in msgspec.to_builtins(self).items()
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Preprocess:
        """The inverse of `describe`; ConfigError on anything else."""
        try:
            return _checked(msgspec.convert(description, cls))
        except msgspec.ValidationError as error:
            raise ConfigError(f"stored preprocessing is not valid: {error}") from error

    def geometry(self, shape: tuple[int, ...]) -> tuple[str, int, int, int]:
        """Layout, channels, height and width of an input of `shape`; ConfigError if it takes no picture."""
        if len(shape) == 4 and shape[0] != 1:
            raise ConfigError(
                f"an input of shape {list(shape)} takes {shape[0]} pictures at once",
                hint="fix the batch to 1 with --shape",
            )
        layout = self.layout or guess_layout(shape)
        if len(shape) != 4 or not layout:
            raise ConfigError(
                f"an input of shape {list(shape)} takes no picture",
                hint="a picture input is NCHW or NHWC with 1 or 3 channels; give tensors as npz otherwise",
            )
        c, h, w = shape[1:] if layout == "NCHW" else (shape[3], shape[1], shape[2])
        wanted = 1 if self.color == "GRAY" else 3
        if c not in (1, 3) or (c == 3 and wanted == 1):
            raise ConfigError(
                f"an input of {c} channels in {layout} does not fit color={self.color}",
                hint="set layout= and color= of --preprocess",
            )
        if len(self.mean) not in (1, c) or len(self.std) not in (1, c):
            raise ConfigError(f"mean or std of the preprocessing does not fit {c} channels")
        return layout, c, h, w

    def picture(
        self, source: Path | IO[bytes], shape: tuple[int, ...], dtype: str, name: str
    ) -> Array:
        """Decode, resize, normalize: a tensor of `shape` and numpy `dtype`. `name` stands in errors."""
        layout, c, h, w = self.geometry(shape)
        return self._finish(_decode(source, name, c), layout, c, h, w, dtype)

    def pixels(self, rows: Array, shape: tuple[int, ...], dtype: str) -> Array:
        """The same for decoded uint8 pixels, [H, W, 1 or 3] RGB or [H, W] gray."""
        from PIL import Image

        layout, c, h, w = self.geometry(shape)
        squeezed = rows[:, :, 0] if rows.ndim == 3 and rows.shape[2] == 1 else rows
        gray = squeezed.ndim == 2
        fits = squeezed.shape[:2] == (h, w) and gray == (c == 1)
        if fits and self.resize == "squash":
            return self._values(squeezed.reshape(h, w, c), layout, dtype)
        image = Image.fromarray(np.ascontiguousarray(squeezed), "L" if gray else "RGB")
        return self._finish(image.convert("L" if c == 1 else "RGB"), layout, c, h, w, dtype)

    def values(self, array: Array, shape: tuple[int, ...], dtype: str) -> Array:
        """Normalize numbers that are no picture (features, planes): elementwise, reshaped to `shape`.

        With more than one mean or std, `shape` must say where the channels are.
        """
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        if len(mean) > 1 or len(std) > 1:
            at = 1 if (self.layout or guess_layout(shape)) == "NCHW" else len(shape) - 1
            mean, std = (v.reshape([-1] + [1] * (len(shape) - 1 - at)) for v in (mean, std))
        y = (array.reshape(shape).astype(np.float32) / np.float32(self.scale) - mean) / std
        return _cast(y, dtype)

    def reals(self, codes: Array) -> Array:
        """The numbers that integers of 8 bits become: float32, for each mean and std, sorted, once each."""
        mean, std = (np.array(v, np.float32).reshape(-1, 1) for v in (self.mean, self.std))
        scaled = codes.astype(np.float32).reshape(1, -1) / np.float32(self.scale)
        return np.unique((scaled - mean) / std)

    def _finish(self, image: Image, layout: str, c: int, h: int, w: int, dtype: str) -> Array:
        return self._values(np.asarray(self._resized(image, h, w)).reshape(h, w, c), layout, dtype)

    def _resized(self, image: Image, h: int, w: int) -> Image:
        from PIL import Image as images

        bilinear = images.Resampling.BILINEAR
        if self.resize == "squash":
            return image if image.size == (w, h) else image.resize((w, h), bilinear)
        zoom = max(w / self.fraction / image.width, h / self.fraction / image.height)
        size = (max(w, round(image.width * zoom)), max(h, round(image.height * zoom)))
        if image.size != size:
            image = image.resize(size, bilinear)
        left, top = (size[0] - w) // 2, (size[1] - h) // 2
        return image.crop((left, top, left + w, top + h))

    def _values(self, pixels: Array, layout: str, dtype: str) -> Array:
        if self.color == "BGR" and pixels.shape[2] == 3:
            pixels = pixels[:, :, ::-1]
        scaled = pixels.astype(np.float32) / np.float32(self.scale)
        y = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if layout == "NCHW":
            y = y.transpose(2, 0, 1)
        return _cast(np.ascontiguousarray(y)[None], dtype)


PRESETS = {
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=255.0),
    "inception": Preprocess(mean=(1.0,), std=(1.0,), scale=127.5),
    "unit": Preprocess(scale=255.0),
    "raw": Preprocess(),
}

_CHOICES = {
    "resize": ("squash", "crop"),
    "layout": ("NCHW", "NHWC"),
    "color": ("RGB", "BGR", "GRAY"),
}


def guess_layout(shape: tuple[int, ...]) -> Literal["", "NCHW", "NHWC"]:
    """Where the 1 or 3 channels of a picture input stand; "" when the shape does not tell."""
    if len(shape) != 4:
        return ""
    if shape[1] in (1, 3):
        return "NCHW"
    return "NHWC" if shape[3] in (1, 3) else ""


def _decode(source: Path | IO[bytes], name: str, channels: int) -> Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ConfigError(
                    f"picture {name!r} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}",
                    hint="make it smaller",
                )
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16") or upright.mode == "I":  # 16-bit gray
                pixels = (np.asarray(upright).clip(0, 65535) / 257).round().astype(np.uint8)
                upright = Image.fromarray(pixels, "L")
            return upright.convert("L" if channels == 1 else "RGB")
    except ConfigError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on broken files
        raise ConfigError(f"{name!r} is no picture that can be read: {error}") from error


def _cast(y: Array, dtype: str) -> Array:
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return y.round().clip(info.min, info.max).astype(kind)
    return y.astype(kind, copy=False)


def _checked(p: Preprocess) -> Preprocess:
    numbers = np.array([*p.mean, *p.std, p.scale, p.fraction])
    if not p.mean or not p.std or not np.isfinite(numbers).all():
        raise ConfigError("mean and std of the preprocessing need finite numbers")
    if 0.0 in p.std or p.scale == 0:
        raise ConfigError(
            "std and scale of the preprocessing can't be 0: values are divided by them"
        )
    if not 0 < p.fraction <= 1:
        raise ConfigError("fraction of the preprocessing lies in (0, 1]")
    return p


def _scale_of(fields: dict[str, Any], text: str) -> float:
    numbers = [abs(v) for key in ("mean", "std") for v in fields.get(key, ())]
    if set(fields.get("mean", (0.0,))) == {0.0} and set(fields.get("std", (1.0,))) == {1.0}:
        raise ConfigError(
            f"preprocessing {text!r} does not say whether pictures are 0..1 or 0..255",
            hint="write unit (x / 255) or raw (0..255), or add scale=255 or scale=1",
        )
    return 255.0 if max(numbers) <= 1 else 1.0


def _split(text: str) -> tuple[str, dict[str, list[str]]]:
    name = ""
    options: dict[str, list[str]] = {}
    key = ""
    for index, token in enumerate(t.strip() for t in text.split(",")):
        left, equals, right = token.partition("=")
        if equals:
            key, token = left.strip().lower(), right
            if key in options:
                raise ConfigError(f"preprocessing option {key!r} is given twice")
            options[key] = []
        elif index == 0:
            if token.lower() not in PRESETS:
                raise ConfigError(
                    f"unknown preprocessing {token!r}",
                    hint=f"known: {', '.join(PRESETS)}; or mean=...,std=...",
                )
            name = token.lower()
            continue
        elif not key:
            raise ConfigError(f"preprocessing {text!r}: {token!r} has no name before it")
        token = token.strip().strip("[]()")
        options[key] += [t for t in token.replace("+", " ").replace(":", " ").split() if t]
    return name, options


def _one(key: str, values: list[str]) -> str:
    if len(values) != 1:
        raise ConfigError(f"preprocessing option {key!r} takes one value")
    return values[0]


def _float(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"preprocessing option {key}={text!r} is no number") from None


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(value)


def _join(values: tuple[float, ...]) -> str:
    return ",".join(_number(v) for v in values)
