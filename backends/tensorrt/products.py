"""Which of the backend's three products a target gets, and what has to be installed for it."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from effc.backends.tensorrt.gpu import gpu_for, gpus
from effc.backends.tensorrt.options import options_of
from effc.core.backend import Availability
from effc.core.errors import ConfigError
from effc.core.target import Target

# what TensorRT for RTX 1.7 compiles for, on any machine
RTX_TARGETS = ("75", "80", "86", "89", "120", "121")
_RTX_HINT = "pip install 'effc[tensorrt-rtx]'"
_FULL_HINT = "on a machine with the GPU: pip install tensorrt"
_PACKAGES = {
    "tensorrt_rtx": ("tensorrt_rtx_cu13", "tensorrt_rtx_cu12", "tensorrt_rtx"),
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_cu11"),
}


def installed(module: str) -> str:
    """The version of a module, "" where it is not there; nothing is imported."""
    if importlib.util.find_spec(module) is None:
        return ""
    for package in _PACKAGES.get(module, (module,)):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"


def compute_capability(target: Target) -> str:
    """The profile's `sm`; ConfigError where it has none."""
    sm = target.profile.toolchain.get("sm", "")
    if not sm.isdigit():
        raise ConfigError(
            f"profile {target.profile.name!r} does not say its compute capability",
            hint='add [toolchain] sm = "86", or what the GPU has',
        )
    return sm


def product_of(target: Target) -> str:
    """`full` where the GPU and TensorRT are here, `rtx` where its compiler knows the GPU, or `bundle`.

    `--backend-option product=` says otherwise.
    """
    sm, wanted = compute_capability(target), options_of(target).product
    if wanted:
        return wanted
    if installed("tensorrt") and gpu_for(sm) is not None:
        return "full"
    desktop = not target.profile.triple.startswith("aarch64") or sm == "121"
    return "rtx" if sm in RTX_TARGETS and desktop else "bundle"


def availability(target: Target) -> Availability:
    """Whether the product of `target` can be made here, in its precision."""
    try:
        product, sm = product_of(target), compute_capability(target)
    except ConfigError as error:
        return Availability(False, str(error), error.hint)
    dla, cores = options_of(target).dla, int(target.profile.toolchain.get("dla", "0"))
    if dla is not None and dla >= cores:
        return Availability(
            False, f"{target.profile.name} has {cores} DLA cores", "leave --backend-option dla out"
        )
    if product == "rtx":
        return _rtx(target, sm)
    if product == "full":
        return _full(sm)
    if importlib.util.find_spec("effc.backends.tensorrt.bundle") is None:
        return Availability(False, "this version writes no bundles for other devices")
    return Availability(True)


def _rtx(target: Target, sm: str) -> Availability:
    from effc.backends.tensorrt.rules import W8A8_REASON, W8A8_REMEDY

    if sm not in RTX_TARGETS:
        known = ", ".join(f"SM{s}" for s in RTX_TARGETS)
        return Availability(
            False,
            f"TensorRT for RTX does not compile for SM{sm}",
            f"it compiles for {known}; take --backend-option product=bundle",
        )
    if not installed("tensorrt_rtx"):
        return Availability(False, "TensorRT for RTX is not installed", _RTX_HINT)
    if target.precision in ("int8", "w4a8", "auto"):
        return Availability(False, W8A8_REASON, W8A8_REMEDY)
    if target.precision == "bf16" and int(sm) < 80:
        return Availability(False, f"SM{sm} does not compute bfloat16", "take --precision fp16")
    options = options_of(target)
    for key, given in (("dla", options.dla is not None), ("cache", options.cache is not None)):
        if given:
            return Availability(
                False,
                f"TensorRT for RTX has no option {key!r}",
                f"leave --backend-option {key} out, or take product=bundle",
            )
    return Availability(True)


def _full(sm: str) -> Availability:
    if not installed("tensorrt"):
        return Availability(False, "TensorRT is not installed", _FULL_HINT)
    if gpu_for(sm) is None:
        found = ", ".join(f"{g.name} (SM{g.sm})" for g in gpus()) or "none"
        return Availability(
            False,
            f"TensorRT builds for the GPU of its own machine, which needs SM{sm}; found: {found}",
            "leave product=full out: a bundle is built on its device",
        )
    return Availability(True)
