"""int8 of every model in testdata, beside onnxruntime's quantize_static: one table.

    python tools/bench_quantize.py                                   # all models, beside quantize_static
    python tools/bench_quantize.py --models resnet20 --limit 500     # the first 500 of its evaluation set
    python tools/bench_quantize.py --models mobilenet_v1 --precision int8 --precision w4a8
    python tools/bench_quantize.py --recipe 'quantize{calibrator=mse}' --no-ort
    python tools/bench_quantize.py --calibrators                     # the simple recipes, one by one
    python tools/bench_quantize.py --models mobilenet_v1 --layers    # SQNR with one node quantized at a time

The row `effc (--precision int8)` is what `effc build --backend ort --precision int8` chooses by itself, which
it does on the calibration samples alone; its recipe and its notes follow with --notes. On two quiet
cores that takes a minute and a half for mobilenet_v1 and squeezenet, almost four for mobilenet_v2.

Calibration is on at most 128 samples that are not in the evaluation set: every fifth ImageNet picture, with
the other 400 for evaluation; CIFAR-10 training images; every fifth keyword. top-1 and agreement with fp32 are
in percent, SQNR of all outputs together in dB. Models without labels are fed pictures and have only agreement
(where they have classes) and SQNR. effc's models run in onnxruntime: the Q/DQ model means what it computes
with graph optimizations off; `drift` is how far its fused integer kernels (which the table runs) are from
that on 4 samples, as SQNR. --layers runs with the optimizations off: they would quantize float weights that
stand between Q and DQ.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from effc import passes
from effc.choices import BuildOptions
from effc.core.data import LabelledSamples, open_samples
from effc.core.measure import Array, Feeds
from effc.core.passinfra import PassContext
from effc.core.preprocess import Preprocess
from effc.core.quant_units import only, quantized_nodes
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import infer_shapes
from effc.core.specs import static_specs
from effc.evaluate import is_scores
from effc.precision.explain import explain
from effc.precision.plan import Planned
from effc.sources import load

ROOT = Path(__file__).resolve().parents[1]
TESTDATA = Path(os.environ.get("EFFC_TESTDATA", ROOT.parent / "shared/testdata"))
THREADS = len(os.sched_getaffinity(0))

FACE = "mean=127,std=128,scale=1"
NANODET = "mean=103.53,116.28,123.675,std=57.375,57.12,58.395,scale=1,color=BGR"
SINET = (
    "mean=102.890434,111.25247,126.91212,std=16047.8946,16019.8191,16920.717775,scale=1,color=BGR"
)
KWS = "mean=83,std=1.7102668,scale=1"  # (x - 83) * 0.5847029
PICTURES, OTHERS = "imagenet_dev_500.tar[::5]", "imagenet_dev_500.tar[!::5]"
CIFAR = ("cifar10_calib_500.npz[:128]", "cifar10_dev_5000.npz")

# model -> preprocessing, calibration, evaluation
MODELS: dict[str, tuple[str, str, str]] = {
    "mobilenet_v1_0.75": ("inception", PICTURES, OTHERS),
    "squeezenet1.1": ("imagenet", PICTURES, OTHERS),
    "mobilenet_v2_1.0_dq": ("inception", PICTURES, OTHERS),
    "resnet20_cifar10": ("imagenet", *CIFAR),
    "mlperf_tiny_resnet8": ("raw", *CIFAR),
    "mlperf_tiny_kws_dq": (KWS, "kws_dev_500.npz[::5]", "kws_dev_500.npz[!::5]"),
    "mlperf_tiny_vww96": ("unit", PICTURES, OTHERS),
    "face_rfb320": (FACE, PICTURES, "imagenet_dev_500.tar[1::10]"),
    "nanodet_m": (NANODET, "imagenet_dev_500.tar[::10]", "imagenet_dev_500.tar[1::20]"),
    "portrait_sinet": (SINET, "imagenet_dev_500.tar[::10]", "imagenet_dev_500.tar[1::20]"),
}

RECIPES = (
    "quantize",
    "quantize{calibrator=percentile}",
    "quantize{calibrator=mse}",
    "quantize{calibrator=mse,weight-clip=true}",
    "quantize{calibrator=entropy}",
    "quantize{scheme=ort,calibrator=mse}",
)


@dataclass
class Tally:
    """Sums over the evaluation set."""

    hits: int = 0
    labelled: int = 0
    same: int = 0
    scored: int = 0
    noise: float = 0.0
    signal: float = 0.0
    samples: int = 0

    def add(self, found: dict[str, Array], golden: dict[str, Array], label: int | None) -> None:
        self.samples += 1
        for name, g in golden.items():
            a = found[name].astype(np.float64)
            self.noise += float(((a - g) ** 2).sum())
            self.signal += float((g.astype(np.float64) ** 2).sum())
        if len(golden) == 1:
            (name,) = golden
            if golden[name].size <= 1000:
                best = int(found[name].argmax())
                self.same += best == int(golden[name].argmax())
                self.scored += 1
                if label is not None:
                    self.hits += best == label
                    self.labelled += 1

    @property
    def top1(self) -> float | None:
        return 100 * self.hits / self.labelled if self.labelled else None

    @property
    def agreement(self) -> float | None:
        return 100 * self.same / self.scored if self.scored else None

    @property
    def sqnr(self) -> float:
        return 10 * float(np.log10(self.signal / self.noise)) if self.noise else float("inf")


@dataclass
class Case:
    """One model with its samples in memory and its float answers."""

    name: str
    source: ir.Model
    path: Path
    calibration: LabelledSamples
    feeds: list[Feeds]
    labels: list[int | None]
    goldens: list[dict[str, Array]]
    float_model: ir.Model = field(init=False)

    def __post_init__(self) -> None:
        self.float_model = self.source.clone()
        passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(self.float_model, PassContext())

    @classmethod
    def open(cls, name: str, limit: int | None) -> Case:
        preprocess, calibration, evaluation = MODELS[name]
        path = TESTDATA / "models" / f"{name}.onnx"
        model = load(str(path), {}).model
        infer_shapes(model)
        inputs = static_specs(model.graph.inputs)
        how = Preprocess.parse(preprocess)
        data = TESTDATA / "data"
        chosen = open_samples(data / calibration, inputs, how)
        held_out = open_samples(data / evaluation, inputs, how)
        pairs = list(islice(held_out.labelled(), limit))
        feeds = [f for f, _ in pairs]
        classes = [o for o in static_specs(model.graph.outputs) if is_scores(o)]
        known = bool(classes) and classes[0].shape[-1] in (10, 12, 1000)
        labels = [label if known else None for _, label in pairs]
        with OnnxRuntimeRunner(model, threads=THREADS) as runner:
            goldens = [runner.infer(f) for f in feeds]
        return cls(name, model, path, chosen, feeds, labels, goldens)

    def measure(self, model: ir.Model | Path) -> Tally:
        tally = Tally()
        with OnnxRuntimeRunner(model, threads=THREADS) as runner:
            for feeds, label, golden in zip(self.feeds, self.labels, self.goldens, strict=True):
                tally.add(runner.infer(feeds), golden, label)
        return tally

    def drift(self, model: ir.Model) -> float:
        """SQNR of the fused integer kernels against the meaning of the Q/DQ model."""
        tally = Tally()
        with (
            OnnxRuntimeRunner(model, optimize=False) as meaning,
            OnnxRuntimeRunner(model) as fused,
        ):
            for feeds in self.feeds[:4]:
                tally.add(fused.infer(feeds), meaning.infer(feeds), None)
        return tally.sqnr

    def chosen(self, precision: str) -> Planned:
        """What a build for onnxruntime on this machine chooses; nothing is timed."""
        options = BuildOptions(
            precision=precision, backend="ort", samples=self.calibration, measure=False
        )
        return explain(str(self.path), "host", options)

    def quantized(self, recipe: str) -> ir.Model:
        model = self.float_model.clone()
        passes.parse(recipe).run(model, PassContext(samples=self.calibration))
        return model


def quantize_static(case: Case, method: str, out: Path) -> Path:
    """onnxruntime's own quantization, as in testdata's MANIFEST: QDQ, weights by channel, int8."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> Feeds | None:
            return next(self.feeds, None)

        def rewind(self) -> None:
            self.feeds: Iterator[Feeds] = iter(case.calibration)

    clean = out / f"{case.name}.clean.onnx"
    made = out / f"{case.name}.{method}.onnx"
    modern = out / f"{case.name}.onnx"
    model = case.source.clone()
    if model.opset_imports[""] < 13:  # below, it writes scales by channel that are not valid there
        passes.parse("lift-constants,convert-opset").run(model, PassContext())
    for (
        name
    ) in model.graph.initializers:  # old files list them as inputs, and it then quantizes none
        model.graph.inputs[:] = [v for v in model.graph.inputs if v.name != name]
    ir.save(model, modern)
    with _silence():
        quant_pre_process(str(modern), str(clean))
        q.quantize_static(
            str(clean),
            str(made),
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            calibrate_method=getattr(q.CalibrationMethod, method),
            extra_options={"CalibPercentile": 99.99} if method == "Percentile" else {},
        )
    return made


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(logging.NOTSET)


def layers(case: Case, recipe: str, count: int = 16) -> list[tuple[float, str, str]]:
    """The output's SQNR with a single quantized node, worst first."""
    whole = case.quantized(recipe)
    found = []
    for node in quantized_nodes(whole):
        one = whole.clone()
        one.meta.update(whole.meta)
        only(one, [str(node.name)])
        tally = Tally()
        with OnnxRuntimeRunner(one, threads=THREADS, optimize=False) as runner:
            for feeds, golden in list(zip(case.feeds, case.goldens, strict=True))[:count]:
                tally.add(runner.infer(feeds), golden, None)
        found.append((tally.sqnr, node.op_type, str(node.name)))
    return sorted(found)


def row(name: str, what: str, tally: Tally, base: Tally, size: int, drift: float | None) -> str:
    def number(value: float | None, width: int, digits: int = 1) -> str:
        return f"{value:{width}.{digits}f}" if value is not None else " " * (width - 1) + "-"

    drop = base.top1 - tally.top1 if base.top1 is not None and tally.top1 is not None else None
    sqnr = "  exact" if tally.sqnr == float("inf") else f"{tally.sqnr:7.2f}"
    return (
        f"{name:20} {what:52} {number(tally.top1, 6, 2)} {number(drop, 6, 2)} "
        f"{number(tally.agreement, 7, 2)} {sqnr} {size:9} {number(drift, 6)}"
    )


def main() -> None:
    ort.set_default_logger_severity(3)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="", help="parts of names, with commas; default: all")
    parser.add_argument("--limit", type=int, help="of the evaluation set")
    parser.add_argument("--recipe", action="append", help="pipeline text; again for each")
    parser.add_argument(
        "--precision",
        action="append",
        choices=["int8", "w4a8"],
        help="as the build chooses; again for each; default: int8, unless recipes are given",
    )
    parser.add_argument("--calibrators", action="store_true", help="recipes of quantize alone, too")
    parser.add_argument("--notes", action="store_true", help="what the build tried, and its recipe")
    parser.add_argument("--no-ort", action="store_true", help="leave out quantize_static")
    parser.add_argument("--layers", action="store_true", help="the cost of every node on its own")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    args = parser.parse_args()
    recipes = [*(args.recipe or ()), *(RECIPES if args.calibrators else ())]
    parts = [p for p in args.models.split(",") if p]
    chosen = [n for n in MODELS if not parts or any(p in n for p in parts)]
    if not chosen:
        sys.exit(f"no model is called like {args.models!r}: {', '.join(MODELS)}")
    head = ("top-1", "drop", "agrees", "SQNR", "bytes", "drift")
    widths = (6, 6, 7, 7, 9, 6)
    columns = " ".join(f"{h:>{w}}" for h, w in zip(head, widths, strict=True))
    print(f"{'model':20} {'recipe':52} {columns}", flush=True)
    rows: list[dict[str, Any]] = []

    for name in chosen:
        case = Case.open(name, args.limit)
        base = case.measure(case.source)

        def show(
            what: str,
            tally: Tally,
            size: int,
            drift: float | None = None,
            name: str = name,
            base: Tally = base,
        ) -> None:
            print(row(name, what, tally, base, size, drift), flush=True)
            rows.append(
                {
                    "model": name,
                    "recipe": what,
                    "top1": tally.top1,
                    "agreement": tally.agreement,
                    "sqnr_db": tally.sqnr,
                    "bytes": size,
                    "samples": tally.samples,
                }
            )

        show(f"fp32 ({base.samples} samples)", base, case.path.stat().st_size)
        if args.layers:
            for sqnr, kind, node in layers(case, (args.recipe or RECIPES)[0]):
                print(f"{'':20} {sqnr:7.2f} dB  {kind:18} {node}")
            continue
        if not args.no_ort:
            with tempfile.TemporaryDirectory() as folder:
                for method in ("MinMax", "Percentile"):
                    start = time.perf_counter()
                    made = quantize_static(case, method, Path(folder))
                    seconds = time.perf_counter() - start
                    what = f"onnxruntime {method} ({seconds:.1f} s)"
                    show(what, case.measure(made), made.stat().st_size)
        for precision in args.precision or ([] if recipes else ["int8"]):
            start = time.perf_counter()
            planned = case.chosen(precision)
            seconds = time.perf_counter() - start
            size = ir.to_proto(planned.model).ByteSize()
            what = f"effc (--precision {precision}) ({seconds:.1f} s)"
            show(what, case.measure(planned.model), size, case.drift(planned.model))
            if args.notes and planned.recipe is not None:
                print(
                    "  " + "\n  ".join((planned.recipe.compress, *planned.recipe.notes)), flush=True
                )
        for recipe in recipes:
            start = time.perf_counter()
            model = case.quantized(recipe)
            seconds = time.perf_counter() - start
            size = ir.to_proto(model).ByteSize()
            show(f"{recipe} ({seconds:.1f} s)", case.measure(model), size, case.drift(model))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
