"""Every architecture of timm, exported through torch. torch and timm are imported when asked for.

Source: https://github.com/huggingface/pytorch-image-models
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from pathlib import Path
from typing import Any

import onnx_ir as ir

from effc.core.check import normalize
from effc.core.errors import ConfigError, FrontendError
from effc.core.extras import require
from effc.core.torch_export import export, quiet, reason_of
from effc.zoo.member import Member

# the operators whose meta functions torchvision registers as it is imported, as it declares them
_TORCHVISION_OPS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
}
# an ordinary installation of timm would bring a torchvision and a torch of its own choice
_INSTALL = "tools/effc installs it by itself; by hand: pip install --no-deps timm torchvision"


@functools.cache
def import_timm() -> Any:
    """The timm package, also where torchvision was built for another torch than the one installed.

    timm needs torchvision for its data pipeline only, but a torchvision for CUDA fails to import beside
    a CPU torch: its operators don't load, and it registers functions for them all the same. Declaring
    those operators first lets the import through. BackendUnavailable without torch, torchvision or timm.
    """
    what = "the timm zoo"
    torch: Any = require(what, "torch", "torch", "onnxscript")[0]
    _declare_missing(torch)
    with quiet():
        return require(what, "torch", "torchvision", "timm", hint=_INSTALL)[1]


@functools.cache
def _declare_missing(torch: Any) -> Any:
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for compiled in sorted(Path(folder).glob("_C*.so")):
            with contextlib.suppress(OSError):  # built for another torch: this is the case to mend
                torch.ops.load_library(str(compiled))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _TORCHVISION_OPS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
    return library  # kept by the cache: the operators go when the library goes


def create(
    architecture: str,
    *,
    pretrained: bool = False,
    seed: int = 0,
    randomize: bool = True,
    **options: Any,
) -> Any:
    """The timm model in eval mode.

    Without `pretrained`, weights are random after `torch.manual_seed(seed)`; with `randomize` every
    degenerate one (all alike, or below 1e-3) is drawn anew, and batch-norm statistics with them: at
    initialization many architectures compute next to nothing, which no comparison would notice.
    """
    timm = import_timm()
    torch: Any = require("the timm zoo", "torch", "torch")[0]
    if not timm.is_model(architecture):
        import difflib

        close = difflib.get_close_matches(architecture, timm.list_models(), 1)
        raise ConfigError(
            f"timm has no architecture {architecture!r}",
            hint=f"did you mean {close[0]!r}?" if close else "see timm.list_models()",
        )
    torch.manual_seed(seed)
    try:
        with quiet():
            model = timm.create_model(architecture, pretrained=pretrained, **options)
    except Exception as error:  # downloads and options fail in many ways
        raise FrontendError(
            f"timm can't make {architecture!r}: {reason_of(error)}",
            hint="pretrained weights need the network or a filled cache (HF_HUB_CACHE); "
            "pretrained=false makes random ones"
            if pretrained
            else "check the options",
        ) from error
    model.eval()
    if not pretrained and randomize:
        _randomize(torch, model, seed)
    return model


def _randomize(torch: Any, model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Any, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_mean"):
                uniform(tensor, -0.3, 0.3)
            elif name.endswith("running_var"):
                uniform(tensor, 0.5, 1.5)
            elif name in dict(model.named_buffers()):
                continue  # tables and masks: what they hold is meant
            elif (
                tensor.numel() > 1
                and float(tensor.std()) < 1e-3
                or float(tensor.abs().max()) < 1e-3
            ):
                ones = bool((tensor == 1).all())
                uniform(tensor, 0.5 if ones else -0.2, 1.5 if ones else 0.2)


def input_shape(model: Any) -> tuple[int, int, int]:
    """Channels, height and width that the architecture is made for."""
    shape = (model.pretrained_cfg or {}).get("input_size") or (3, 224, 224)
    return int(shape[0]), int(shape[1]), int(shape[2])


def build(
    architecture: str, /, seed: int = 0, batch: int = 1, size: int = 0, pretrained: bool = False
) -> ir.Model:
    """Export `architecture` for `batch` pictures of `size` pixels a side (0: its own), input `x`."""
    torch: Any = require("the timm zoo", "torch", "torch")[0]
    model = create(architecture, pretrained=pretrained, seed=seed)
    channels, height, width = input_shape(model)
    if size:
        height = width = size
    if batch < 1:
        raise ConfigError(
            f"timm/{architecture} needs a batch of 1 or more", hint="its export has fixed shapes"
        )
    generator = torch.Generator().manual_seed(seed)
    example = torch.randn((batch, channels, height, width), generator=generator)
    exported = export(torch, model, (example,), f"timm model {architecture!r}")
    normalize(exported)
    return exported


def timm_member(architecture: str) -> Member:
    """The zoo's entry for a timm architecture."""
    model = create(architecture, randomize=False)
    config = model.pretrained_cfg or {}
    return Member(
        name=f"timm/{architecture}",
        summary=f"{type(model).__name__} of timm",
        input_shape=(1, *input_shape(model)),
        parameters=sum(p.numel() for p in model.parameters()),
        reference=str(
            config.get("paper_ids") or "https://github.com/huggingface/pytorch-image-models"
        ),
        build=functools.partial(build, architecture),
        preprocess=_preprocess(config),
    )


def _preprocess(config: dict[str, Any]) -> str:
    mean, std = config.get("mean"), config.get("std")
    if mean is None or std is None:
        return "imagenet"
    return f"mean={','.join(map(str, mean))},std={','.join(map(str, std))}"
