"""The interface of a package: tensors or a picture in, tensors and class labels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from effc.backends.coreml.options import Options
from effc.backends.coreml.sizes import Sizes
from effc.core.errors import ConfigError
from effc.core.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Port:
    """One input or output: the IR's name, type and shape, and the name, type and shape in the package."""

    name: str
    dtype: str  # numpy's name, of the source
    shape: tuple[int, ...]
    mil: str
    kind: str  # "fp32", "fp16", "int32"
    mil_shape: tuple[int, ...]
    image: Picture | None = None
    sizes: Sizes | None = None  # of an input: the shapes that it takes besides its own
    open: tuple[int, ...] = ()  # the axes, as the source has them, that are longer or shorter then

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return shape == self.shape or (self.sizes is not None and self.sizes.accepts(shape))

    def described(self) -> str:
        """The shapes of an input, for messages."""
        if self.sizes is None:
            return str(list(self.shape))
        alone = f"{list(self.shape)} or " if self.sizes.shapes else ""
        return alone + self.sizes.text()

    def describe(self) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "name": self.name, "dtype": self.dtype, "shape": list(self.shape), "mil": self.mil,
            "kind": self.kind, "mil_shape": list(self.mil_shape),
        }  # fmt: skip
        if self.image is not None:
            plain["image"] = self.image.describe()
        if self.sizes is not None:
            plain["sizes"] = self.sizes.describe()
        return {**plain, "open": list(self.open)} if self.open else plain

    @classmethod
    def from_description(cls, d: dict[str, Any]) -> Port:
        image = d.get("image")
        return cls(
            d["name"], d["dtype"], tuple(d["shape"]), d["mil"], d["kind"], tuple(d["mil_shape"]),
            None if image is None else Picture(**image),
            Sizes.from_description(d["sizes"]) if "sizes" in d else None, tuple(d.get("open", ())),
        )  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture as input: pixels 0..255 [1, C, H, W]; the package computes pixel * factor + offset.

    That is (pixel / scale - mean) / std of the preprocessing with both divisions in one factor: in fp32 it
    differs from the three steps by at most 2 units in the last place of the largest term.
    """

    color: str  # "RGB", "BGR", "GRAY"
    layout: str  # of the model's own input: "NCHW" or "NHWC"
    factor: list[float]  # one a channel
    offset: list[float]
    resize: str  # how the application brings a picture to H x W: "squash" or "crop"

    @classmethod
    def of(cls, preprocess: Preprocess, shape: tuple[int, ...]) -> Picture:
        """From the preprocessing of an input of `shape`; ConfigError where that takes no picture."""
        layout, channels, _, _ = preprocess.geometry(shape)
        wanted = 1 if preprocess.color == "GRAY" else 3
        if channels != wanted and channels != 1:
            raise ConfigError(f"an input of {channels} channels does not fit {preprocess.color}")
        mean, std = (
            np.broadcast_to(np.array(v, np.float64), (channels,))
            for v in (preprocess.mean, preprocess.std)
        )
        color = "GRAY" if channels == 1 else preprocess.color
        factor, offset = 1.0 / (preprocess.scale * std), -mean / std
        return cls(color, layout, factor.tolist(), offset.tolist(), preprocess.resize)

    def describe(self) -> dict[str, Any]:
        return {
            "color": self.color, "layout": self.layout, "factor": self.factor, "offset": self.offset,
            "resize": self.resize,
        }  # fmt: skip

    def image(self, values: npt.NDArray[Any]) -> Image:
        """The picture that the package turns into these `values` [1, ...] of the model's layout.

        ConfigError where the values are not those of a picture: of pixels that are whole and in 0..255.
        """
        from PIL import Image as images

        x = values.astype(np.float64)
        if self.layout == "NCHW":
            x = x.transpose(0, 2, 3, 1)
        pixels = (x[0] - self.offset) / self.factor
        whole = np.clip(np.rint(pixels), 0, 255)
        # float16 inputs have lost a little
        slack = 0.25 if values.dtype == np.float16 else 1e-2
        if not np.all(np.abs(pixels - whole) < slack):
            raise ConfigError(
                "the package takes pictures, and these numbers are not those of one",
                hint="give pictures, or build with --backend-option input=tensor",
            )
        rows = whole.astype(np.uint8)
        if rows.shape[2] == 1:
            return images.fromarray(rows[:, :, 0])
        if self.color == "BGR":  # of a picture Core ML itself brings the channels into order
            rows = rows[:, :, ::-1]
        return images.fromarray(np.ascontiguousarray(rows))


def picture_of(
    options: Options, preprocess: Preprocess | None, shapes: Sequence[tuple[int, ...]], floats: bool
) -> Picture | None:
    """The picture input of a model, if it has one; ConfigError where it was asked for in vain."""
    if options.image is False or (options.image is None and preprocess is None):
        return None
    try:
        if preprocess is None:
            raise ConfigError(
                "--backend-option input=image needs to know how pixels become numbers",
                hint="add --preprocess imagenet (or unit, raw, mean=...,std=...)",
            )
        if len(shapes) != 1:
            raise ConfigError(f"the model has {len(shapes)} inputs, and a picture is one of one")
        if not floats:
            raise ConfigError("the model's input is of integers, and a picture becomes floats")
        return Picture.of(preprocess, shapes[0])
    except ConfigError:
        if options.image:
            raise
        return None


def scores_port(outputs: Sequence[Port], options: Options) -> Port:
    """The output that the labels are of; ConfigError where none is, or their number is another."""
    count = len(options.labels)
    named = [p for p in outputs if not options.scores or p.name == options.scores]
    if options.scores and not named:
        raise ConfigError(
            f"--backend-option scores={options.scores}: the model has no such output",
            hint=f"its outputs: {', '.join(p.name for p in outputs)}",
        )
    scores = [p for p in named if int(np.prod(p.shape)) == max(p.shape, default=0)]
    fitting = [p for p in scores if int(np.prod(p.shape)) == count]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(
            f"{len(fitting)} outputs have {count} classes",
            hint="name one: --backend-option scores=NAME",
        )
    have = ", ".join(f"{p.name} {list(p.shape)}" for p in (scores or outputs))
    raise ConfigError(
        f"the labels name {count} classes, and the model's output is {have}",
        hint="give one line for each class, in the order of the output",
    )
