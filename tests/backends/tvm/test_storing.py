"""Constants stored smaller: the same answers bit for bit, from fewer bytes; damage is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm import storing  # noqa: E402
from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.library import write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.storing import store_constants  # noqa: E402
from effc.core.errors import DeviceError  # noqa: E402
from effc.core.native import Model  # noqa: E402
from effc.core.reference import random_feeds  # noqa: E402
from effc.core.storage import decode_arrays  # noqa: E402

Make = Callable[..., Any]

BODY = """g (float[1,20,12,12] x) => (float[1,6] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    d = Conv<pads=[1,1,1,1], group=40>(r, k)
    t = ConvTranspose<strides=[2,2]>(d, u)
    p = GlobalAveragePool(t)
    f = Flatten(p)
    y = Gemm(f, v)
}"""
SHAPES = {"w": (40, 20, 3, 3), "k": (40, 1, 3, 3), "u": (40, 24, 2, 2), "v": (24, 6)}


def quantized(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> np.ndarray:
    along = [1] * len(shape)
    along[axis] = -1
    scales = (rng.random(shape[axis]) + 0.1).astype(np.float32).reshape(along) / np.float32(40)
    return rng.integers(-127, 127, shape, endpoint=True).astype(np.float32) * scales


def weights(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if kind == "int8":
        axes = {"w": 0, "k": 0, "u": 1, "v": 1}
        return {n: quantized(rng, s, axes[n]) for n, s in SHAPES.items()}
    found = {n: rng.standard_normal(s).astype(np.float32) / 8 for n, s in SHAPES.items()}
    if kind == "palette":
        return {
            n: np.where(rng.random(a.shape) < 0.6, 0, np.round(a * 16) / 16).astype(np.float32)
            for n, a in found.items()
        }
    return (
        {n: a.astype(np.float16).astype(np.float32) for n, a in found.items()}
        if kind == "half"
        else found
    )


@pytest.mark.parametrize(("kind", "most"), [("palette", 0.1), ("int8", 0.27), ("half", 0.5)])
def test_the_library_decodes_what_was_packed(
    tmp_path: Path, model_of: Make, monkeypatch: pytest.MonkeyPatch, kind: str, most: float
) -> None:
    model = model_of(BODY, weights(kind))
    program = lower(model, host_isa())
    stored = store_constants(program)
    assert stored.coded is not None
    assert len(stored.stored) < most * len(stored.data)
    assert bytes(decode_arrays(stored.stored, len(stored.data))) == stored.data
    assert stored.describe()["stored_bytes"] == len(stored.stored)
    write_library(program, tmp_path / "coded")
    assert program.storage["ratio"] > 1 / most
    monkeypatch.setattr(storing, "_WORTH", 0.0)
    write_library(program, tmp_path / "raw")
    assert "ratio" not in program.storage
    sizes = [(tmp_path / n / "model.so").stat().st_size for n in ("coded", "raw")]
    assert sizes[0] < sizes[1]
    feeds = random_feeds(model, 1)[0]
    with (
        Model(tmp_path / "coded") as coded,
        Model(tmp_path / "coded", threads=2) as second,
        Model(tmp_path / "raw") as raw,
    ):
        right = raw.run(feeds)["y"]
        np.testing.assert_array_equal(coded.run(feeds)["y"], right)
        coded.close()  # the constants stay for those that still run
        np.testing.assert_array_equal(second.run(feeds)["y"], right)
    with Model(tmp_path / "coded") as again:
        np.testing.assert_array_equal(again.run(feeds)["y"], right)


def test_trained_floats_are_stored_as_they_are(model_of: Make) -> None:
    program = lower(model_of(BODY, weights("float")), host_isa())
    stored = store_constants(program)
    assert stored.coded is None
    assert stored.stored is stored.data


def test_damaged_constants_are_refused(tmp_path: Path, model_of: Make) -> None:
    program = lower(model_of(BODY, weights("int8")), host_isa())
    write_library(program, tmp_path)
    data = bytearray((tmp_path / "model.so").read_bytes())
    begin = data.index(store_constants(program).stored)
    data[begin + 500] ^= 4
    (tmp_path / "model.so").write_bytes(bytes(data))
    with pytest.raises(
        DeviceError, match="constants are damaged: their checksum is wrong"
    ) as error:
        Model(tmp_path)
    assert "\n" not in str(error.value)
