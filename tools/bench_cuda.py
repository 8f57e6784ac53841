"""A GPU's kernels of effc's own beside torch.compile, in one run: needs an NVIDIA GPU and a torch for CUDA.

    python tools/bench_cuda.py                        mobilenetv2_100 and resnet50 of timm, fp16, batch 1
    python tools/bench_cuda.py timm/resnet18 ...      other models of the zoo
    --target NAME       the profile (default: the one with this GPU's compute capability)
    --precision P       fp16 or fp32
    --rounds N          in which the two take turns (default 20, of 20 inferences each)

Every artifact is verified against onnxruntime first. Times are those between CUDA events on the GPU, with
inputs in its memory; `with copies` is what a caller on the host waits for. Says what is missing, if anything.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from effc.backends.tvm.cuda.device import Gpu, GpuRunner, gpu
from effc.core.profiles import all_profiles

MODELS = ("timm/mobilenetv2_100", "timm/resnet50")
BURST = 20  # inferences of a round


def missing() -> list[str]:
    """What this machine lacks to run it."""
    found = gpu()
    lacks = [] if isinstance(found, Gpu) else [found]
    for package in ("tvm", "torch", "timm"):
        if importlib.util.find_spec(package) is None:
            lacks.append(f"the package {package} is not installed")
    if not lacks:
        import torch

        if not torch.cuda.is_available():
            lacks.append(f"torch {torch.__version__} is not built for CUDA, or finds no GPU")
    return lacks


def target_of(device: Gpu) -> str:
    """The profile whose compute capability is the GPU's."""
    for profile in all_profiles():
        if profile.toolchain.get("sm") == str(device.sm):
            return profile.name
    raise SystemExit(f"no profile has SM{device.sm}: give one with --target")


def torch_timer(name: str, precision: str, shape: tuple[int, ...]) -> Callable[[], list[float]]:
    """A function that times a burst of inferences of the compiled torch model, in seconds."""
    import timm
    import torch

    dtype = torch.float16 if precision == "fp16" else torch.float32
    layout: Any = torch.channels_last
    model: Any = timm.create_model(name.removeprefix("timm/"), pretrained=False).eval()
    model = model.cuda().to(dtype).to(memory_format=layout)
    x = torch.randn(shape, device="cuda", dtype=dtype).to(memory_format=layout)
    fast: Any = torch.compile(model, mode="max-autotune")
    event: Any = torch.cuda.Event

    def burst() -> list[float]:
        times = []
        with torch.inference_mode():
            for _ in range(BURST):
                begin, end = (event(enable_timing=True) for _ in range(2))
                begin.record()
                fast(x)
                end.record()
                torch.cuda.synchronize()
                times.append(begin.elapsed_time(end) * 1e-3)
        return times

    for _ in range(3):  # compiles and captures
        burst()
    return burst


def compare(name: str, target: str, precision: str, rounds: int, device: Gpu) -> None:
    """Build, verify, and time one model beside torch."""
    from effc.build import build
    from effc.choices import BuildOptions

    with tempfile.TemporaryDirectory(prefix="effc-") as folder:
        options = BuildOptions(backend="tvm", precision=precision, measure=False)
        made = build(f"zoo:{name}", target, Path(folder) / "artifact", options).artifact
        verdict = made.manifest.verdict
        print(
            f"{name} {precision} on {device.name}: {verdict.status}: {verdict.reason}", flush=True
        )
        spec = made.manifest.inputs[0]
        feeds = {spec.name: np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype)}
        theirs = torch_timer(name, precision, tuple(spec.shape))
        own: list[float] = []
        copied: list[float] = []
        other: list[float] = []
        with GpuRunner(made, device) as runner:
            for _ in range(rounds):
                own += runner.time_on_device(feeds, BURST).seconds
                copied += runner.time(feeds, BURST).seconds
                other += theirs()
    for what, seconds in (("effc", own), ("torch.compile", other), ("effc with copies", copied)):
        low, middle, high = np.percentile(np.array(seconds) * 1e3, (10, 50, 90))
        print(f"  {what:18} {middle:8.3f} ms  ({low:.3f} .. {high:.3f})")
    print(f"  effc takes {np.median(own) / np.median(other):.2f} of torch.compile's time")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--target", default="")
    parser.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    lacks = missing()
    if lacks:
        sys.exit("not measured: " + "; ".join(lacks))
    device = gpu()
    assert isinstance(device, Gpu)
    for name in chosen.models:
        compare(name, chosen.target or target_of(device), chosen.precision, chosen.rounds, device)


if __name__ == "__main__":
    main()
