"""Models by name: `tiny-*` members built without torch, and every timm architecture.

`zoo:tiny-resnet`, `zoo:tiny-resnet{batch=4,seed=1}`, `zoo:timm/resnet18{pretrained=true}`. Plug-ins add
members by entry points of the group `effc.models`, each a `effc.zoo.member.Member`.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.registry import Registry
from effc.zoo.member import Member

MODELS = Registry(
    "model",
    "effc.models",
    {
        "tiny-conv": "effc.zoo.plain:CONV",
        "tiny-convnext": "effc.zoo.convnext:CONVNEXT",
        "tiny-densenet": "effc.zoo.densenet:DENSENET",
        "tiny-dynamic": "effc.zoo.plain:DYNAMIC",
        "tiny-ghostnet": "effc.zoo.ghostnet:GHOSTNET",
        "tiny-mlp": "effc.zoo.plain:MLP",
        "tiny-mobilenetv2": "effc.zoo.mobilenet:V2",
        "tiny-mobilenetv3": "effc.zoo.mobilenet:V3",
        "tiny-mobileone": "effc.zoo.reparam:MOBILEONE",
        "tiny-repvgg": "effc.zoo.reparam:REPVGG",
        "tiny-resnet": "effc.zoo.resnet:RESNET",
        "tiny-shufflenet": "effc.zoo.shufflenet:SHUFFLENET",
        "tiny-squeezenet": "effc.zoo.squeezenet:SQUEEZENET",
        "tiny-swin": "effc.zoo.transformer:SWIN",
        "tiny-unet": "effc.zoo.unet:UNET",
        "tiny-vit": "effc.zoo.transformer:VIT",
        "tiny-yolo": "effc.zoo.yolo:YOLO",
    },
)
TIMM = "timm/"
_TEXT = re.compile(r"(?P<name>[^{}]+)(?:\{(?P<options>[^{}]*)\})?")


def names() -> list[str]:
    """The names of all members, plug-ins included; timm's architectures are not listed."""
    return sorted(MODELS.table())


def member(name: str) -> Member:
    """The member of that name; `timm/<architecture>` needs the extra `torch`."""
    if name.startswith(TIMM):
        from effc.zoo.timm_models import timm_member

        return timm_member(name.removeprefix(TIMM))
    found = MODELS.get(name)
    if not isinstance(found, Member):
        raise ConfigError(f"model {name!r} is a {type(found).__name__}, no effc.zoo.member.Member")
    return found


def build(text: str, **options: Any) -> ir.Model:
    """Build `name` or `name{option=value,...}`; `options` are the same as keyword arguments.

    Every member takes `seed` and `batch`; timm's also `pretrained`. ConfigError for a name or option
    that there is not.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{text!r} names no model", hint="write it like tiny-resnet{batch=4,seed=1}"
        )
    found = member(match["name"])
    known = inspect.signature(found.build, eval_str=True).parameters
    given: dict[str, Any] = {}
    for item in filter(None, (s.strip() for s in (match["options"] or "").split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"option {item!r} of model {found.name} has no value")
        key = key.strip()
        kind = known[key].annotation if key in known else str
        given[key] = _read(value.strip(), kind, found.name, key)
    given |= options
    for key in given:
        if key not in known:
            raise ConfigError(
                f"model {found.name} has no option {key!r}", hint=f"its options: {', '.join(known)}"
            )
    return found.build(**given)


def _read(text: str, kind: Any, name: str, key: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        number = kind(text)
        if kind is int and number < 0:
            raise ValueError
        return number
    except (KeyError, ValueError) as error:
        raise ConfigError(f"option {key}={text!r} of model {name} is no {kind.__name__}") from error
