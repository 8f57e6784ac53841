"""Sixty timm architectures of different families, exported once and kept in a cache folder.

Weights are random but not degenerate (`effc.zoo.timm_models.create`). The cache lies in
`.pytest_cache/effc-models` (or $EFFC_MODEL_CACHE) and is keyed by everything that the export depends
on, so that the suites of passes and of backends export each model once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

NEEDED = ("torch", "onnxscript", "timm")


def missing() -> str:
    """The packages that exporting needs and that are not here, for the reason of a skip."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return ", ".join(absent)


@dataclass(frozen=True)
class Case:
    """One architecture at a picture size that keeps the export and the run short."""

    name: str
    size: int = 64
    optimize: bool = False  # torch's own optimizer in the exporter
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.name}@{self.size}{'-optimized' if self.optimize else ''}"

    @property
    def path(self) -> Path:
        versions = [importlib.metadata.version(n) for n in NEEDED]
        key = hashlib.sha256(repr((self, versions, _recipe())).encode()).hexdigest()[:12]
        default = Path(__file__).parents[2] / ".pytest_cache" / "effc-models"
        folder = Path(os.environ.get("EFFC_MODEL_CACHE", default))
        return folder / f"{self}-{key}.onnx"

    def load(self) -> ir.Model:
        """The exported model, from the cache or now."""
        path = self.path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            ir.save(self._export(), partial)
            partial.rename(path)
        return ir.load(path)

    def _export(self) -> ir.Model:
        import torch

        from effc.core.check import normalize
        from effc.core.torch_export import quiet
        from effc.zoo import timm_models

        sized = {"img_size": self.size} if _takes_size(self.name) else {}
        module = timm_models.create(self.name, seed=self.seed, **sized)
        _calibrate(torch, module, self.size, self.seed)
        example = torch.randn((1, 3, self.size, self.size))
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, (example,), dynamo=True, verbose=False, optimize=self.optimize
            )
        model: ir.Model = program.model
        for node in model.graph:
            node.metadata_props.clear()  # stack traces: most of the file
        normalize(model)
        return model


def _calibrate(torch: Any, module: Any, size: int, seed: int) -> None:
    """Give batch norms the statistics of what they see, a little off, so that signals reach the end.

    With statistics that do not fit, random deep networks answer the same to every picture, and a
    comparison would prove nothing.
    """
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        module(torch.randn((8, 3, size, size), generator=generator))
        for norm in norms:
            norm.eval()
            if norm.running_mean is None:
                continue
            spread = norm.running_var.sqrt()
            shape = norm.running_mean.shape
            norm.running_mean += 0.1 * spread * torch.randn(shape, generator=generator)
            norm.running_var *= 0.8 + 0.4 * torch.rand(shape, generator=generator)
            norm.running_var += 1e-4


def _recipe() -> str:
    """What the weights depend on beside torch and timm."""
    from effc.zoo import timm_models

    here = Path(__file__).read_text(encoding="utf-8").partition("FIXED_SIZE")[0]
    return Path(timm_models.__file__).read_text(encoding="utf-8") + here


def _takes_size(name: str) -> bool:
    """Whether the architecture must be told the picture size when it is made."""
    return name.startswith(FIXED_SIZE)


FIXED_SIZE = (
    "vit_", "deit", "beit", "swin", "cait", "xcit", "maxvit", "coatnet", "volo", "mixer", "gmlp",
    "resmlp", "twins", "tnt", "hiera", "levit", "convit", "crossvit", "visformer", "sequencer",
    "eva", "efficientformer", "nest", "flexivit", "samvit", "tiny_vit", "mvitv2",
)  # fmt: skip

CASES = (
    Case("resnet18"),
    Case("resnext26ts", optimize=True),
    Case("seresnet18", optimize=True),
    Case("resnetv2_50", 32),
    Case("res2net50_26w_4s", 32),
    Case("resnest14d", 64),
    Case("skresnet18"),
    Case("ecaresnet50t", 32, optimize=True),
    Case("densenet121", 32),
    Case("dla34", 64),
    Case("dpn48b", 64, optimize=True),
    Case("gernet_s", 64),
    Case("mobilenetv1_100"),
    Case("mobilenetv2_100"),
    Case("mobilenetv3_small_100", optimize=True),
    Case("mobilenetv4_conv_small"),
    Case("mobilenetv4_hybrid_medium", 64),
    Case("mnasnet_100", optimize=True),
    Case("efficientnet_b0"),
    Case("tf_efficientnet_lite0"),
    Case("tf_efficientnetv2_b0", optimize=True),
    Case("mixnet_s"),
    Case("fbnetc_100", optimize=True),
    Case("ghostnet_100"),
    Case("ghostnetv2_100"),
    Case("tinynet_e"),
    Case("lcnet_050", optimize=True),
    Case("hardcorenas_a"),
    Case("spnasnet_100", optimize=True),
    Case("rexnet_100"),
    Case("regnetx_002"),
    Case("regnety_002", optimize=True),
    Case("repvgg_a0"),
    Case("mobileone_s0"),
    Case("repvit_m0_9"),
    Case("repghostnet_050"),
    Case("fastvit_t8", 64),
    Case("convnext_atto"),
    Case("convnextv2_atto", optimize=True),
    Case("hgnet_tiny"),
    Case("cspdarknet53", 64, optimize=True),
    Case("vovnet39a", 64),
    Case("selecsls42b", 64),
    Case("inception_v3", 96),
    Case("xception41", 64, optimize=True),
    Case("nfnet_l0", 64),
    Case("hrnet_w18_small", 64),
    Case("edgenext_xx_small", 64),
    Case("mobilevit_xxs", 64),
    Case("mobilevitv2_050", 64, optimize=True),
    Case("efficientvit_b0", 64),
    Case("efficientvit_m0", 64),
    Case("efficientformerv2_s0", 64),
    Case("deit_tiny_patch16_224", 64),
    Case("swin_tiny_patch4_window7_224", 56, optimize=True),
    Case("levit_128s", 224),
    Case("poolformer_s12", 64),
    Case("pvt_v2_b0", 64),
    Case("mixer_s32_224", 64, optimize=True),
    Case("starnet_s1", 64),
)
