"""A C program against effc_model.h: the numbers of onnxruntime, and clean under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm import emit_c, library  # noqa: E402
from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.storing import store_constants  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, random_feeds  # noqa: E402

Make = Callable[..., Any]

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")

DRIVER = r"""
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "effc_model.h"

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, effc_model_last_error());
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int threads = atoi(argv[1]);
  if (effc_model_api_version() != EFFC_MODEL_API) return 3;
  if (effc_model_input(-1) || effc_model_input(effc_model_input_count())) return 4;
  if (effc_model_create(0) || effc_model_create(1000)) return 5;
  if (!strstr(effc_model_last_error(), "threads")) return 6;
  /* two instances at once, each with its own threads */
  effc_model *model = effc_model_create(threads), *other = effc_model_create(1);
  if (!model || !other) return failed("create");
  const effc_tensor *in = effc_model_input(0), *out = effc_model_output(0);
  printf("%s %s %" PRId32 " %" PRId64 "\n", in->name, in->dtype, in->ndim, in->shape[1]);
  /* buffers that are aligned for a float and nothing more */
  char *block = malloc(in->bytes + 4), *result = malloc(out->bytes + 4), *again = malloc(out->bytes);
  FILE *file = fopen(argv[2], "rb");
  if (!file || fread(block + 4, 1, in->bytes, file) != in->bytes) return 7;
  fclose(file);
  const void *inputs[] = {block + 4};
  void *outputs[] = {result + 4}, *others[] = {again};
  if (effc_model_invoke(other, inputs, others)) return failed("invoke");
  for (int i = 0; i < 20; i++) {
    memset(result + 4, 255, out->bytes);
    if (effc_model_invoke(model, inputs, outputs)) return failed("invoke");
    if (memcmp(result + 4, again, out->bytes)) return 8;
  }
  if (effc_model_set_threads(model, threads + 1)) return failed("set_threads");
  uint64_t *ns = calloc((size_t)effc_model_call_count(), sizeof *ns);
  if (effc_model_profile(model, inputs, outputs, ns)) return failed("profile");
  if (memcmp(result + 4, again, out->bytes)) return 9;
  for (int i = 0; i < effc_model_call_count(); i++)
    if (!effc_model_call(i)->nodes[0] || !effc_model_call(i)->kernel_class[0]) return 10;
  if (!effc_model_invoke(model, NULL, outputs)) return 11;
  if (!effc_model_arena_bytes(model)) return 12;
  file = fopen(argv[3], "wb");
  if (!file || fwrite(result + 4, 1, out->bytes, file) != out->bytes) return 13;
  fclose(file);
  effc_model_destroy(model);
  effc_model_destroy(other);
  effc_model_destroy(NULL);
  free(block); free(result); free(again); free(ns);
  return 0;
}
"""


@pytest.fixture(scope="module")
def source(model_of: Make, weights: Make) -> Any:
    return model_of(
        """g (float[1,3,17,15] image) => (float[1,7] y) {
            a = Conv<pads=[1,1,1,1], strides=[2,2]>(image, w)
            b = Relu(a)
            c = Conv<pads=[1,1,1,1], group=20>(b, d)
            e = Concat<axis=1>(b, c)
            p = GlobalAveragePool(e)
            f = Flatten(p)
            y = Gemm(f, v)
        }""",
        weights(w=(20, 3, 3, 3), d=(20, 1, 3, 3), v=(40, 7)),
    )


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment or None
    )


def test_a_c_program_gets_the_numbers_of_onnxruntime(source: Any, tmp_path: Path) -> None:
    library.write_library(lower(source, host_isa()), tmp_path)
    (tmp_path / "driver.c").write_text(DRIVER)
    built = run(
        ["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "driver.c", "model.so",
         "-Wl,-rpath,.", "-o", "driver"], tmp_path,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    feeds = random_feeds(source, 1)[0]
    feeds["image"].tofile(tmp_path / "in.bin")
    for threads in ("1", "3"):
        done = run(["./driver", threads, "in.bin", "out.bin"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "image float32 4 3\n"
        found = np.fromfile(tmp_path / "out.bin", np.float32)
        with OnnxRuntimeRunner(source) as reference:
            expected = reference.infer(feeds)["y"].ravel()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_runtime_is_clean_under_the_sanitizers(
    source: Any, tmp_path: Path, sanitizer: str
) -> None:
    """The runtime, the generated table and the driver instrumented; the kernels as they are."""
    program = lower(source, host_isa())
    blob = store_constants(program)
    (tmp_path / emit_c.CONSTANTS_FILE).write_bytes(blob.stored)
    (tmp_path / "model.c").write_text(emit_c.model_c(program, blob))
    (tmp_path / "driver.c").write_text(DRIVER)
    for file in library.RUNTIME.iterdir():
        shutil.copy(file, tmp_path)
    objects = library.write_objects(program, tmp_path)
    built = run(
        ["gcc", "-std=c11", "-g", "-O1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all",
         "model.c", "runtime.c", "driver.c", *objects, "-lm", "-pthread", "-o", "driver"], tmp_path,
    )  # fmt: skip
    if "cannot find" in built.stderr:
        pytest.skip(f"gcc has no runtime for {sanitizer}")
    assert built.returncode == 0, built.stderr
    random_feeds(source, 1)[0]["image"].tofile(tmp_path / "in.bin")
    done = run(["./driver", "3", "in.bin", "out.bin"], tmp_path)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not start under this kernel's address layout")
    assert done.returncode == 0, done.stderr
