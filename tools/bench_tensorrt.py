"""Engines of TensorRT for RTX from timm's architectures and from testdata: what builds, how fast, how close.

    python tools/bench_tensorrt.py --models timm --targets rtx-3060,sm120    # 38 architectures, fp16
    python tools/bench_tensorrt.py --models testdata --targets rtx-4090
    python tools/bench_tensorrt.py --models resnet18,vit_tiny_patch16_224

For every model: whether an engine builds for each target, the seconds that one build takes (a process, the
parser, the builder; not effc's passes) and in brackets those of the processor, which hardly depend on what
else the machine does; the layers of the engine, and the SQNR in dB of the fp16 ONNX model
in onnxruntime against the untouched one, which the pass promises to be at least 15. timm's weights are
random, and none is degenerate.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import onnx_ir as ir

from effc import passes
from effc.backends.tensorrt import engine as engines
from effc.backends.tensorrt.backend import TensorRTBackend
from effc.backends.tensorrt.engine import Engine
from effc.core.check import check_model
from effc.core.data import SyntheticSamples
from effc.core.errors import EffcError
from effc.core.passinfra import PassContext
from effc.core.profiles import load_profile
from effc.core.reference import OnnxRuntimeRunner, record_goldens
from effc.core.shapes import infer_shapes
from effc.core.specs import static_specs
from effc.core.target import HardwareProfile, Target
from effc.core.verify import compare_outputs
from effc.sources import load

ROOT = Path(__file__).resolve().parents[1]

# diverse: convolutions, attention of many kinds, token mixers, recurrence
TIMM = """resnet18 seresnet18 mobilenetv2_100 mobilenetv3_small_100 efficientnet_b0 densenet121 vgg11_bn
    inception_v3 regnety_002 ghostnet_100 mixnet_s dla34 dpn68 hrnet_w18_small res2net50_14w_8s repvgg_a0
    convnext_atto nf_resnet26 botnet26t_256 vit_tiny_patch16_224 swin_tiny_patch4_window7_224 levit_128s
    mixer_s32_224 resmlp_12_224 gmlp_ti16_224 poolformer_s12 edgenext_xx_small mobilevit_xxs fastvit_t8
    pvt_v2_b0 ese_vovnet19b_dw xcit_nano_12_p16_224 crossvit_tiny_240 volo_d1_224 sequencer2d_s
    efficientformer_l1 starnet_s1 cait_xxs24_224""".split()


@dataclass(slots=True)
class Row:
    """One model: by target the seconds of its build or the reason why there is none."""

    model: str
    seconds: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)  # of the processor
    refused: dict[str, str] = field(default_factory=dict)
    layers: int = 0
    sqnr_db: float | None = None


def target_of(name: str) -> Target:
    """A profile by name, or `sm120` for a card without one."""
    if not name.startswith("sm"):
        return Target(load_profile(name), precision="fp16")
    profile: HardwareProfile = load_profile("rtx-4090")
    fields = {f: getattr(profile, f) for f in profile.__struct_fields__}
    fields |= {"name": name, "toolchain": {"sm": name[2:]}, "aliases": ()}
    return Target(HardwareProfile(**fields), precision="fp16")


def measure(source: str, targets: list[Target], folder: Path) -> Row:
    """Build `source` for every target."""
    row = Row(source.rpartition("/")[2].removesuffix(".onnx"))
    try:
        loaded = load(source, {})
        model = loaded.model
        check_model(model)
        infer_shapes(model)
        samples = SyntheticSamples(static_specs(model.graph.inputs), count=2, seed=0)
        original = model.clone()
        text = f"{passes.CANONICALIZE},{passes.FUSE},convert-float16"
        passes.parse(text).run(model, PassContext(targets[0], samples))
    except EffcError as error:
        row.refused = {t.profile.name: str(error) for t in targets}
        return row
    backend = TensorRTBackend()
    for target in targets:
        name = target.profile.name
        half = model.clone()
        try:
            passes.parse(backend.legalize(target)).run(half, PassContext(target, samples))
            lowered = backend.lower(half, target)
            assert isinstance(lowered, Engine)
            begun, used = time.perf_counter(), children()
            engines.build(lowered, folder)
            row.seconds[name] = time.perf_counter() - begun
            row.busy[name] = children() - used
            row.layers = lowered.fusion.summary()["layers"]
        except EffcError as error:
            row.refused[name] = str(error)
    row.sqnr_db = closeness(original, half, samples)
    return row


def children() -> float:
    """Seconds of the processor that ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def closeness(original: ir.Model, half: ir.Model, samples: SyntheticSamples) -> float | None:
    """The least SQNR of any output, in dB; None where all are bit-equal."""
    feeds = list(islice(samples, 2))
    goldens = record_goldens(original, feeds)
    with OnnxRuntimeRunner(half) as runner:
        answers = [runner.infer(f) for f in feeds]
    found = [e.sqnr_db for e in compare_outputs(goldens, answers) if e.sqnr_db is not None]
    return min(found, default=None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="timm", help="timm, testdata, or names")
    parser.add_argument("--targets", default="rtx-3060,sm120")
    parser.add_argument("--testdata", type=Path, default=ROOT.parent / "shared/testdata")
    arguments = parser.parse_args()
    sources = {
        "timm": [f"zoo:timm/{n}" for n in TIMM],
        "testdata": [str(p) for p in sorted(arguments.testdata.glob("models/*.onnx"))],
    }.get(arguments.models) or [
        n if n.endswith(".onnx") else f"zoo:timm/{n}" for n in arguments.models.split(",")
    ]
    targets = [replace(target_of(n)) for n in arguments.targets.split(",")]
    rows = []
    begun = time.perf_counter()
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(source, targets, Path(folder))
        rows.append(row)
        times = "  ".join(f"{n} {s:.2f} ({row.busy[n]:.2f}) s" for n, s in row.seconds.items())
        sqnr = f"{row.sqnr_db:.1f} dB" if row.sqnr_db is not None else ""
        print(f"{row.model:32} {row.layers:4} layers  {times}  {sqnr}", flush=True)
        for name, reason in row.refused.items():
            print(f"    {name}: {reason[:220]}", flush=True)
    for target in targets:
        name = target.profile.name
        seconds = [r.seconds[name] for r in rows if name in r.seconds]
        busy = [r.busy[name] for r in rows if name in r.busy]
        if seconds:
            print(
                f"{name}: {len(seconds)} of {len(rows)} build, median {statistics.median(seconds):.2f} s"
                f" ({statistics.median(busy):.2f} s of the processor), longest {max(seconds):.2f} s"
            )
    print(f"{time.perf_counter() - begun:.0f} s in all, models and passes included")
    return 0


if __name__ == "__main__":
    sys.exit(main())
