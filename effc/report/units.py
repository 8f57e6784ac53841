"""Numbers and descriptions as people read them."""

from __future__ import annotations

from effc.core.artifact import Manifest
from effc.core.errors import ConfigError
from effc.core.preprocess import Preprocess


def milliseconds(seconds: float | None) -> str:
    """`3.21 ms`, `45.1 us`, `-`."""
    if seconds is None:
        return "-"
    if seconds < 1e-4:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def size(count: float | None) -> str:
    """Bytes with a binary unit: `10.4 MiB`."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return ""


def quantity(count: float | None) -> str:
    """A count with an SI prefix: `325 M`."""
    if count is None:
        return "-"
    for unit in ("", " k", " M", " G", " T"):
        if abs(count) < 1000 or unit == " T":
            return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    return ""


def extents(shape: tuple[int | str, ...] | None) -> str:
    """`1x3x224x224`."""
    return "?" if shape is None else "x".join(str(d) for d in shape) or "scalar"


def preprocess_text(manifest: Manifest) -> str:
    """The stored preprocessing as `--preprocess` takes it; as it stands where a later version wrote it."""
    if manifest.preprocess is None:
        return "none stored"
    try:
        return str(Preprocess.from_description(manifest.preprocess))
    except ConfigError:
        return str(manifest.preprocess)


def precision_text(manifest: Manifest) -> str:
    """The precision that was asked for; a model that came quantized keeps its integers under `fp32`."""
    integers = any(p.id == "integerize" and p.rewrites for p in manifest.passes)
    return (
        "the model's integers" if integers and manifest.precision == "fp32" else manifest.precision
    )
