"""A network of two layers written by hand in C, and its reference."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effc.backends.tvm.mcu.device.boards import board_of
from effc.backends.tvm.mcu.device.description import describe, write_description
from effc.backends.tvm.mcu.device.firmware import Firmware, LinkTo, build_firmware
from effc.backends.tvm.mcu.device.sources import Layer, Port, Sources
from effc.backends.tvm.mcu.program import Border, Tensor
from effc.core.artifact import Artifact, Manifest, Verdict
from effc.core.profiles import load_profile
from effc.core.target import HardwareProfile

Array = np.ndarray[Any, Any]

IN, HIDDEN, OUT = 37, 24, 10
SHIFT = 32

_MODEL_C = """
#include "model.h"
int8_t input[{inputs}], output[{outputs}];
static int8_t hidden[{hidden}];
void fully_connected(const int8_t *x, int8_t *y, const int8_t *w, const int32_t *m, int n, int k);
static const int8_t w0[] = {{ {w0} }}, w1[] = {{ {w1} }};
static const int32_t m0[] = {{ {m0} }}, m1[] = {{ {m1} }};
int effc_invoke(void) {{
  fully_connected(input, hidden, w0, m0, {hidden}, {inputs});
  fully_connected(hidden, output, w1, m1, {outputs}, {hidden});
  return 0;
}}
"""
_KERNELS_C = """
#include "model.h"
void fully_connected(const int8_t *x, int8_t *y, const int8_t *w, const int32_t *m, int n, int k);
void fully_connected(const int8_t *x, int8_t *y, const int8_t *w, const int32_t *m, int n, int k) {
  for (int i = 0; i < n; i++, w += k) {
    int32_t sum = 0;
    for (int j = 0; j < k; j++) sum += (int32_t)x[j] * w[j];
    int32_t q = (int32_t)(((int64_t)sum * m[i] + (INT64_C(1) << 31)) >> 32) + 3;
    y[i] = (int8_t)(q < -128 ? -128 : q > 127 ? 127 : q);
  }
}
"""
_MODEL_H = """
#ifndef MODEL_H
#define MODEL_H
#include <stdint.h>
extern int8_t input[], output[];
int effc_invoke(void);
#endif
"""


@dataclass(frozen=True)
class Network:
    """y = requantize(W1 requantize(W0 x)): int8, the rule `fixed`."""

    weights: tuple[Array, Array]
    multipliers: tuple[Array, Array]

    def reference(self, x: Array) -> Array:
        value = x.reshape(-1).astype(object)  # Python's integers: nothing can overflow
        for w, m in zip(self.weights, self.multipliers, strict=True):
            sums = [sum(int(a) * int(b) for a, b in zip(row, value, strict=True)) for row in w]
            scaled = [
                (s * int(k) + (1 << (SHIFT - 1))) >> SHIFT for s, k in zip(sums, m, strict=True)
            ]
            value = np.clip(np.array(scaled, object) + 3, -128, 127)
        return value.astype(np.int8).reshape(1, OUT)

    def sources(self) -> Sources:
        def rows(array: Array) -> str:
            return ", ".join(str(v) for v in array.reshape(-1))

        text = _MODEL_C.format(
            inputs=IN, outputs=OUT, hidden=HIDDEN,
            w0=rows(self.weights[0]), w1=rows(self.weights[1]),
            m0=rows(self.multipliers[0]), m1=rows(self.multipliers[1]),
        )  # fmt: skip
        borders = [
            Border('pixels "x"', "int8", Tensor("x", "int8", (1, IN), (0, 1))),
            Border("scores", "int8", Tensor("y", "int8", (1, OUT), (0, 1))),
        ]
        return Sources(
            {"model.c": text, "kernels.c": _KERNELS_C, "model.h": _MODEL_H},
            (Port(borders[0], "input"),),
            (Port(borders[1], "output"),),
            (
                Layer("hidden", "fully_connected", "fc", ("fc_0", "relu_0")),
                Layer("scores", "fully_connected", "fc", ("fc_1",)),
            ),
        )


@pytest.fixture(scope="session")
def network() -> Network:
    rng = np.random.default_rng(5)
    weights = (
        rng.integers(-127, 128, (HIDDEN, IN), np.int8),
        rng.integers(-127, 128, (OUT, HIDDEN), np.int8),
    )
    multipliers = tuple(rng.integers(2**23, 2**25, n).astype(np.int32) for n in (HIDDEN, OUT))
    return Network(weights, multipliers)


@pytest.fixture(scope="session")
def samples() -> list[Array]:
    rng = np.random.default_rng(6)
    return [rng.integers(-128, 128, (1, IN), np.int8) for _ in range(4)]


def profile_with_tools(name: str) -> HardwareProfile:
    """The profile, or a skip that names what is missing."""
    profile = load_profile(name)
    for key in ("cc", "emulator"):
        if shutil.which(profile.toolchain[key]) is None:
            pytest.skip(f"{profile.toolchain[key]} is not installed")
    return profile


@dataclass(frozen=True)
class Built:
    profile: HardwareProfile
    firmware: Firmware
    artifact: Artifact


@pytest.fixture(scope="session")
def built(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    """The network as the firmware of an emulated board, each built once."""
    made: dict[tuple[str, LinkTo], Built] = {}

    def build(name: str, to: LinkTo = "semihosting") -> Built:
        if (name, to) not in made:
            profile = profile_with_tools(name)
            folder: Path = tmp_path_factory.mktemp(f"{name}-{to}")
            sources = network.sources()
            firmware = build_firmware(sources, board_of(profile), folder / "firmware.elf", to=to)
            write_description(folder, describe(sources, firmware.map))
            manifest = Manifest(
                1, {}, name, "tvm", "int8", (), (), {}, (), "", {}, Verdict("not run", "")
            )
            made[name, to] = Built(profile, firmware, Artifact(folder, manifest))
        return made[name, to]

    return build
