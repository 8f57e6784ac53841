"""Whole models as firmware's C on this machine, bit for bit what the integer reference computes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc.backends.tvm.mcu.cores import Core
from effc.backends.tvm.mcu.lower import lower
from effc.backends.tvm.mcu.pipeline import PIPELINE
from effc.backends.tvm.mcu.sources import write_sources
from effc.core.data import SyntheticSamples
from effc.core.integers import reference
from effc.core.passinfra import PassContext
from effc.core.reference import random_feeds
from effc.core.shapes import infer_shapes
from effc.core.specs import static_specs
from effc.frontend import tflite
from effc.passes import CANONICALIZE, FUSE, parse
from effc.zoo import build

TESTDATA = Path(os.environ.get("EFFC_TESTDATA", Path(__file__).parents[5] / "shared/testdata"))
Exact = Callable[..., Any]
DSP = Core("cortex-m7", dsp=True)

# name -> bytes of arena at most (the goals are 60, 16 and 45 kB)
MLPERF = {"vww96": 40_000, "kws": 8_400, "resnet8": 34_200}

MAIN = r"""
#include <stdio.h>
#include "model.h"
int main(void) {
  for (int i = 0; i < EFFC_INPUTS; i++)
    if (fread(effc_input(i), 1, effc_input_bytes(i), stdin) != effc_input_bytes(i)) return 2;
  if (effc_invoke()) return 3;
  for (int i = 0; i < EFFC_OUTPUTS; i++) fwrite(effc_output(i), 1, effc_output_bytes(i), stdout);
  return 0;
}
"""


def integers(name: str) -> ir.Model:
    """An int8 model of MLPerf Tiny with integer operators."""
    path = TESTDATA / "models" / f"mlperf_tiny_{name}_int8.tflite"
    if not path.exists():
        pytest.skip(f"no {path.name} below {TESTDATA}: set EFFC_TESTDATA")
    model: ir.Model = tflite.load(path)
    infer_shapes(model)
    parse(f"{CANONICALIZE},{FUSE},{PIPELINE}").run(model, PassContext())
    return model


def quantized(name: str) -> ir.Model:
    """A member of the zoo, quantized by the scheme of microcontrollers on made-up samples."""
    model: ir.Model = build(name)
    infer_shapes(model)
    samples = SyntheticSamples(static_specs(model.graph.inputs), count=2)
    text = f"{CANONICALIZE},{FUSE},quantize{{scheme=integer}},{PIPELINE}"
    parse(text).run(model, PassContext(samples=samples))
    return model


@pytest.mark.parametrize("name", MLPERF)
def test_mlperf_tiny(name: str, exact: Exact) -> None:
    model = integers(name)
    program = exact(model, random_feeds(model, 1)[0], DSP)
    assert program.plan.bytes <= MLPERF[name]
    assert program.plan.bytes <= 1.02 * program.plan.bound


@pytest.mark.parametrize("name", ["kws", "resnet8"])
def test_mlperf_tiny_without_dsp(name: str, exact: Exact) -> None:
    model = integers(name)
    exact(model, random_feeds(model, 1)[0], Core("cortex-m0plus"))


@pytest.mark.parametrize(
    "name",
    ["tiny-mobilenetv2", "tiny-mobilenetv3", "tiny-shufflenet", "tiny-squeezenet", "tiny-yolo"],
)
def test_quantized_zoo(name: str, exact: Exact) -> None:
    model = quantized(name)
    exact(model, random_feeds(model, 1)[0], DSP)


@pytest.mark.parametrize("core", [DSP, Core("cortex-m0plus")], ids=["dsp", "generic"])
def test_no_access_out_of_bounds(core: Core, tmp_path: Path) -> None:
    """Address and undefined-behaviour sanitizers over a whole model."""
    model = quantized("tiny-mobilenetv2")
    program = lower(model, core)
    write_sources(program, tmp_path)
    (tmp_path / "main.c").write_text(MAIN)
    flags = ["-std=c99", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = subprocess.run(
        ["cc", *flags, *sorted(p.name for p in tmp_path.glob("*.c")), "-lm", "-o", "run"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"the C compiler has no sanitizers: {done.stderr[:200]}")
    feeds = random_feeds(model, 1)[0]
    given = b"".join(b.pack(feeds[b.name]).tobytes() for b in program.inputs)
    ran = subprocess.run([tmp_path / "run"], input=given, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()[:2000]
    border = program.outputs[0]
    stored = np.frombuffer(ran.stdout, border.tensor.dtype)
    right = reference.run(model, feeds)[border.name]
    np.testing.assert_array_equal(border.unpack(stored), right)


@pytest.mark.parametrize("cpu", ["cortex-m7", "cortex-m0plus"])
def test_the_boards_compiler_has_nothing_to_say(cpu: str, tmp_path: Path) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("needs arm-none-eabi-gcc: apt install gcc-arm-none-eabi")
    write_sources(lower(quantized("tiny-mobilenetv3"), Core(cpu, dsp=cpu == "cortex-m7")), tmp_path)
    flags = [
        "-std=c99",
        "-O3",
        "-Wall",
        "-Wextra",
        "-pedantic",
        "-Werror",
        f"-mcpu={cpu}",
        "-mthumb",
    ]
    for name in ("model.c", "kernels.c"):
        subprocess.run(["arm-none-eabi-gcc", *flags, "-c", name], cwd=tmp_path, check=True)
    assembly = subprocess.run(
        ["arm-none-eabi-objdump", "-d", "kernels.o"], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert ("smmlar" in assembly) == ("smlad" in assembly) == (cpu == "cortex-m7")


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    texts = []
    for k in range(2):
        files = write_sources(lower(quantized("tiny-mlp"), DSP), tmp_path / str(k))
        texts.append({name: path.read_text() for name, path in files.items()})
    assert texts[0] == texts[1]
    assert "malloc" not in "".join(texts[0].values())
