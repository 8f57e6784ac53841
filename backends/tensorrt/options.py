"""What the user may choose for an engine or a bundle: `--backend-option KEY=VALUE`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from effc.core.errors import ConfigError
from effc.core.target import Target

OPTIONS = {
    "product": "rtx (engine of TensorRT for RTX), full (engine of this machine's TensorRT) or bundle",
    "profile": "NAME=MIN:OPT:MAX, shapes like 1x3x224x224; several joined by commas: the batch stays open",
    "workspace": "bytes (K, M, G) that kernels may use beside activations",
    "level": "how hard the builder searches, 0 to 5",
    "tactics": "how many kernels are timed for a layer (TensorRT 10.6 or later)",
    "version-compatible": "yes: the engine also loads in later TensorRT versions",
    "refit": "yes: weights can be exchanged later",
    "dla": "the DLA core that takes what it can, the GPU the rest",
    "nms": "layer (INMSLayer), plugin (EfficientNMS), or auto: what the TensorRT found has",
    "cache": "the folder of timing caches",
    "time-limit": "seconds that a build may take",
    "memory-limit": "bytes (K, M, G) of host memory that a build may take",
}
PRODUCTS = ("rtx", "full", "bundle")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """The checked choices; None is TensorRT's own default."""

    product: str = ""
    profiles: dict[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    workspace: int | None = None
    level: int | None = None
    tactics: int | None = None
    version_compatible: bool = False
    refit: bool = False
    dla: int | None = None
    nms: str = "auto"
    cache: Path | None = None
    time_limit: float = 600.0
    memory_limit: int = 8 << 30


def options_of(target: Target) -> Options:
    """Read the options of `target`; ConfigError names the one that is wrong."""
    given = dict(target.options)
    for key in given:
        if key not in OPTIONS:
            raise ConfigError(
                f"--backend-option {key}: the backend 'tensorrt' has no such option",
                hint="; ".join(f"{k}: {v}" for k, v in OPTIONS.items()),
            )
    return Options(
        product=_choice(given, "product", ("", *PRODUCTS)),
        profiles=read_profiles(given.get("profile", "")),
        workspace=_bytes(given, "workspace"),
        level=_integer(given, "level", 0, 5),
        tactics=_integer(given, "tactics", 1, 1 << 20),
        version_compatible=_flag(given, "version-compatible"),
        refit=_flag(given, "refit"),
        dla=_integer(given, "dla", 0, 3),
        nms=_choice(given, "nms", ("auto", "layer", "plugin")),
        cache=Path(given["cache"]) if "cache" in given else None,
        time_limit=float(_integer(given, "time-limit", 1, 1 << 20) or 600),
        memory_limit=_bytes(given, "memory-limit") or 8 << 30,
    )


def read_profiles(text: str) -> dict[str, tuple[Shape, Shape, Shape]]:
    """`x=1x3x8x8:4x3x8x8:8x3x8x8,y=...` -> name -> (min, opt, max)."""
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    for part in filter(None, text.split(",")):
        name, equals, ranges = part.rpartition("=")
        shapes = [_shape(s) for s in ranges.split(":")]
        if not equals or not name or len(shapes) != 3 or None in shapes:
            raise ConfigError(
                f"--backend-option profile: {part!r} is not like x=1x3x224x224:4x3x224x224:8x3x224x224",
                hint="the least, the best and the largest shape of the input",
            )
        low, best, high = (s for s in shapes if s is not None)
        if not len(low) == len(best) == len(high) or any(
            not a <= b <= c for a, b, c in zip(low, best, high, strict=True)
        ):
            raise ConfigError(
                f"--backend-option profile: of {name!r} the least shape is not below the best and the largest"
            )
        found[name] = (low, best, high)
    return found


def _shape(text: str) -> Shape | None:
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", text):
        return None
    return tuple(int(d) for d in text.split("x"))


def _choice(given: dict[str, str], key: str, known: tuple[str, ...]) -> str:
    value = given.get(key, known[0])
    if value not in known:
        raise ConfigError(
            f"--backend-option {key}={value}: it is {', '.join(k for k in known if k)}"
        )
    return value


def _flag(given: dict[str, str], key: str) -> bool:
    return _choice({key: given.get(key, "no")}, key, ("no", "yes")) == "yes"


def _integer(given: dict[str, str], key: str, low: int, high: int) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text) or not low <= int(text) <= high:
        raise ConfigError(f"--backend-option {key}={text}: it is a number of {low} to {high}")
    return int(text)


def _bytes(given: dict[str, str], key: str) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,12})([KMG]?)", text)
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"--backend-option {key}={text}: it is a number of bytes, like 512M")
    return int(match[1]) * _UNITS[match[2]]
